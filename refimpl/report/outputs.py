"""Render what a run gave: each output in a line, and what every island ran on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from refimpl.runtime import RunResult


def describe_run(result: RunResult) -> dict[str, Any]:
    """Plain data: dtype, shape and range of every output, and what ran each island."""
    return {
        "outputs": {name: _describe(array) for name, array in result.outputs.items()},
        "islands": [{"island": run.island, "engine": run.engine, "reason": run.reason} for run in result.islands],
    }


def _describe(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.dtype == object:
        facts["values"] = [item.decode(errors="replace") for item in array.reshape(-1)[:8].tolist()]
    elif array.size and array.dtype.kind in "fiub":
        wide = array.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        facts["finite"] = int(finite.size)
        if finite.size:
            facts.update(min=float(finite.min()), mean=float(finite.mean()), max=float(finite.max()))
    return facts


def print_run(console: Console, result: RunResult) -> None:
    """One line per output, one per kind of engine."""
    table = Table("output", "dtype", "shape", "min", "mean", "max", box=None, pad_edge=False)
    for name, facts in describe_run(result)["outputs"].items():
        numbers = [f"{facts[key]:.5g}" if key in facts else "" for key in ("min", "mean", "max")]
        table.add_row(name, facts["dtype"], str(facts["shape"]), *numbers)
    console.print(table)
    for (engine, reason), count in Counter((run.engine, run.reason) for run in result.islands).items():
        console.print(f"{count} islands ran on {engine}" + (f": {reason}" if reason else ""))
    if not result.islands:
        console.print("no island in this signature: TensorFlow ran all of it")
