"""The programs in docs/examples/ run from a clean folder, and print what they promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from tests.bundles import make_bundle
from tests.contract.sources import ROOT

FOLDER = ROOT / "docs" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
# What must be printed, in this order: the point of each example, not a figure that another machine would change.
PRINTS = {
    "convert_keras": [
        r"^11 of 11 ops are in 1 island",
        r"^ran in: onnxruntime$",
        r"^largest difference .*: \d\.\de-0[6-9]$",
    ],
    "custom_metric": [r"'fp32'.*'allowed'", r"'int8'.*'verdict'", r"'chosen'"],
    "infer_without_tensorflow": [
        r"^loaded and answered",
        r"\(1, 8\).*engine='onnxruntime'",
        r"^TensorFlow was imported: False$",
    ],
    "int8_with_calibration": [
        r"^int8  Conv",
        r"^fp16  Gemm .*INT8 kernels need",
        r"^TensorFlow +(9\d|100)",
        r"^int8 +(9\d|100)",
    ],
    "migrate_from_tf_trt": [r"Total number of TensorRT engines: 1", r"^largest difference .*: \d\.\de-0[6-9]$"],
    "record_and_check": [r"^top1 on 64 examples", r"^PASSED", r"^exit code 0$"],
    "why_an_op_stays": [
        r"^float64: 5 of 10 ops in 2",
        r"RealDiv stays: float64 is not computed",
        r"^float32: 8 of 8 ops in 1",
    ],
}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def test_every_example_is_shown_and_short() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert re.findall(r"\(examples/(\w+)\.py\)", page) == re.findall(r"\{literalinclude\} examples/(\w+)\.py", page)
    assert {file.stem for file in EXAMPLES} == set(re.findall(r"\(examples/(\w+)\.py\)", page))
    assert {file.stem for file in EXAMPLES} == PRINTS.keys() | {"serve_http"}
    assert [file.name for file in EXAMPLES if len(file.read_text(encoding="utf-8").splitlines()) >= 60] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_example_runs(name: str, tmp_path: Path) -> None:
    home = {**environment(), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rest = done.stdout
    for pattern in PRINTS[name]:
        found = re.search(pattern, rest, re.MULTILINE)
        assert found, f"{pattern!r} is not in:\n{done.stdout}"
        rest = rest[found.end() :]


@pytest.fixture
def served() -> Iterator[str]:
    """The address at which the example serves a bundle."""
    command = [sys.executable, str(FOLDER / "serve_http.py"), str(make_bundle("while_loop")), "0"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            port = re.search(r"listening on port (\d+)", line)
            assert port, line
            yield f"http://127.0.0.1:{port[1]}/v1/models/model:predict"
        finally:
            process.terminate()


def post(address: str, data: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data), timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_server_answers_and_refuses(served: str) -> None:
    given = [[float(number) for number in range(8)]] * 2
    status, reply = post(served, json.dumps({"inputs": {"x": given}}).encode())
    assert status == 200
    want = refimpl.load(make_bundle("while_loop")).run({"x": np.array(given, np.float32)}).outputs
    assert reply["outputs"].keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(reply["outputs"][name], value, rtol=1e-6)
    for wrong, says in (
        (b"no JSON", "JSONDecodeError"),
        (b"[1]", "AttributeError"),
        (b"{}", "KeyError"),
        (b'{"inputs": {"x": [[1, 2]]}}', "has shape [1, 2]"),
        (b'{"inputs": {"y": [[1, 2]]}}', "input 'x' is missing"),
        (b'{"signature_name": "none", "inputs": {}}', "none"),
    ):
        status, reply = post(served, wrong)
        assert status == 400, wrong
        assert says in str(reply["error"]), wrong
