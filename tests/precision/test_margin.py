"""The converter leaves half of a reduced precision's tolerance to the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from refimpl.artifacts import Array
from refimpl.converter.precision.refine import Refiner, Task
from refimpl.converter.precision.rewrite import Ranges
from refimpl.converter.verify import Evidence, judge_engine

ONES = np.ones((2, 3), np.float32)
EVIDENCE = Evidence("sample", (ONES,), (ONES,))


class Off:
    """An engine whose every answer is a share too large."""

    def __init__(self, share: float) -> None:
        self._share = share

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return [array * np.float32(1 + self._share) for array in inputs]


@pytest.mark.parametrize(
    ("error", "converter", "machine"), [(0.009, True, True), (0.015, False, True), (0.025, False, False)]
)
def test_what_only_just_agrees_here_is_not_shipped(
    error: float, converter: bool, machine: bool, tmp_path: Path
) -> None:
    """Of fp16's 1e-2 + 1e-2 an engine may use up one half when converting, and all of it where it runs."""
    task = Task(model=None, ops=("MatMul",), leaving=("y:0",), evidence=(EVIDENCE,), ranges=Ranges())
    refiner = Refiner(task, tmp_path, "x", ".onnx", lambda _: None)
    finding, _ = refiner._judge(Off(error), "fp16")
    assert (not finding.problem) is converter
    assert (not judge_engine(Off(error), [EVIDENCE], ["y:0"], "fp16", ["MatMul"]).problem) is machine
