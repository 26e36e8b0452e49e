"""The examples of ``docs/migrating-from-tf-trt.md`` run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from refimpl import bundle
from tests.contract.sources import ROOT

TEXT = (ROOT / "docs" / "migrating-from-tf-trt.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### (.+?)\n\n```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def test_all_examples_are_found():
    assert len(EXAMPLES) == TEXT.count("```python") == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[name]], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if "INT8" in name:
        assert bundle.read(tmp_path / "net_int8").precision == "int8", "an example of INT8 has layers that INT8 takes"
    if "summary" in EXAMPLES[name]:
        assert "Total number of TensorRT engines: 1" in done.stdout
