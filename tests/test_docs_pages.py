"""The guides are followed to the letter: their blocks run in the order in which they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.sources import ROOT
from tests.test_docs import FENCE, MAKE_MODEL, fenced, text_of

pytestmark = pytest.mark.slow

SHELL = 'set -e\nrefimpl() { "$PYTHON" -m refimpl "$@"; }\npython() { "$PYTHON" "$@"; }\n'


def run(language: str, body: str, folder: Path) -> str:
    """Run one block in a folder, as a reader would; what it prints."""
    command = ["bash", "-c", SHELL + body] if language == "sh" else [sys.executable, "-c", body]
    home = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=home, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{body}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_quickstart(tmp_path: Path) -> None:
    blocks = FENCE.findall(text_of("docs/quickstart.md"))
    assert [language for language, _ in blocks] == ["sh", "python", "sh", "sh", "python", "sh"]
    (_, install), *rest = blocks
    assert install.startswith("pip install")
    printed = [run(language, body, tmp_path) for language, body in rest]
    assert "in 1 island" in printed[1]
    assert printed[3] == "(1, 10) ['onnxruntime']\n"
    assert "PASSED" in printed[4]


def test_serving(tmp_path: Path) -> None:
    run("python", MAKE_MODEL, tmp_path)
    run("sh", "refimpl convert my_model my_bundle", tmp_path)
    in_python, without_tensorflow = fenced(text_of("docs/serving.md"), "python")
    assert run("python", in_python, tmp_path).startswith("{'output_0': (1, 4)}\n{IslandRun(")
    assert run("python", without_tensorflow, tmp_path) == "dict_keys(['output_0'])\nFalse\n"
    says = "Could not find callback with key=refimpl.engine.v1 in the registry"
    assert says in text_of("docs/serving.md")
    load = "import tensorflow as tf\nf = tf.saved_model.load('my_bundle').signatures['serving_default']\n"
    call = "f(image=tf.zeros((1, 224, 224, 3)))\n"
    fails = f"try:\n    {call}except Exception as error:\n    told = str(error)\nassert {says!r} in told\n"
    run("python", f"{load}{fails}import refimpl\n{call}", tmp_path)
