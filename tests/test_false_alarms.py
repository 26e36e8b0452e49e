"""The command that counts false alarms: a small budget of it here, and that the docs hold its last output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.oracle import Outcome
from refimpl.oracle.compare import Comparison, TensorDiff
from refimpl.oracle.verdict import CaseResult, IslandNote
from tests.contract.sources import ROOT
from tools import false_alarms
from tools.false_alarms import Budget, Row

WRITTEN = ROOT / "docs" / "benchmarks" / "false-alarms.json"
QUICK = ("while_loop", "tensor_array", "argmax_gather", "several_signatures", "tf1_resource_variables")


def test_nothing_is_said_against_bundles_without_a_fault(tmp_path: Path) -> None:
    """In a process of its own: golden answers are made without oneDNN, which has to be said before TensorFlow comes."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "false_alarms.py"), "--only", ",".join(QUICK), "--precisions", "fp32",
         "--seeds", "1", "--draws", "2", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = json.loads((tmp_path / "false-alarms.json").read_text())["rows"]
    assert {row["model"] for row in rows} == set(QUICK)
    assert all(row["comparisons"] >= 10 and row["worst"] < 1 and not row["alarms"] for row in rows)
    assert sum(row["comparisons"] for row in rows) >= 150
    assert "**fp32**: 0 alarms in" in (tmp_path / "false-alarms.md").read_text()


OUTPUTS = (
    TensorDiff(name="a", dtype="float32", shape=(2,), ok=True, compared=2, share=0.25),
    TensorDiff(name="b", dtype="float32", shape=(0,), ok=True),
)
RAN, NATIVE = IslandNote("i", "onnxruntime"), IslandNote("i", "native", "empty input")
CASE = CaseResult(
    signature="s", case="c", kind="ordinary", outcome=Outcome.MATCH, comparison=Comparison(OUTPUTS), islands=(RAN,)
)
EMPTY = Row(model="m", precision="fp32")


def test_what_is_counted() -> None:
    row = EMPTY.plus(CASE, "here").plus(replace(CASE, islands=(NATIVE,)), "there")
    assert (row.cases, row.comparisons, row.in_tensorflow, row.elements) == (2, 1, 1, 2)
    assert (row.worst, row.worst_at, row.alarms) == (0.25, "here: a", ())


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in false_alarms._QUIET])
def test_what_is_an_alarm(outcome: Outcome) -> None:
    row = EMPTY.plus(replace(CASE, outcome=outcome, reason="why"), "here")
    assert row.alarms == (f"here: {outcome.value}: why",)
    assert len(false_alarms.total([EMPTY, row]).alarms) == 1


def test_slow_models_are_asked_less() -> None:
    assert Budget(3, 8).of(slow=True) == Budget(1, 2)
    assert Budget(3, 8).of(slow=False) == Budget(3, 8)


def test_rows_of_other_versions_go() -> None:
    head = {"versions": {"numpy": "2"}, "processor": "p"}
    old = false_alarms.merged({}, head, [Row(model="lstm", precision="fp32", cases=1)])
    new = [Row(model="gru", precision="fp32", cases=2)]
    assert [row["model"] for row in false_alarms.merged(old, head, new)["rows"]] == ["lstm", "gru"]
    assert [row["model"] for row in false_alarms.merged(old, {**head, "processor": "q"}, new)["rows"]] == ["gru"]


def test_the_docs_hold_what_was_measured() -> None:
    data = json.loads(WRITTEN.read_text(encoding="utf-8"))
    assert WRITTEN.with_suffix(".md").read_text(encoding="utf-8") == false_alarms.markdown(data)
    rows = [Row(**{**row, "alarms": tuple(row["alarms"])}) for row in data["rows"]]
    assert sum(row.comparisons for row in rows) >= 1000
