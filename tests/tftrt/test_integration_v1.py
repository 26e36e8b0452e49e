"""TF-TRT's integration-test class in graph mode, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.contract.sources import ROOT

SKIPPED = 2 * (6 + 7)  # per model: conversion while a session runs, and the tests of TF2 and of nothing


@pytest.mark.slow
def test_graph_mode():
    command = [sys.executable, "-m", "tests.tftrt.graph_mode"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ran, skipped = (int(re.search(text, done.stderr)[1]) for text in (r"Ran (\d+) tests", r"skipped=(\d+)"))
    assert (ran, skipped) == (42, SKIPPED), "nothing else may be left out"
