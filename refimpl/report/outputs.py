"""Render what a run gave: each output in a line, and what every island ran on."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console

from refimpl.errors import RecipeError
from refimpl.runtime import RunResult
from refimpl.tables import Column
from refimpl.terminal import print_line, print_table
from refimpl.text import counted

_OUTPUTS = (
    Column("output", "name"),
    Column("dtype"),
    Column("shape", "text"),
    Column("min", "number"),
    Column("mean", "number"),
    Column("max", "number"),
)


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


def write_outputs(file: Path, result: RunResult) -> None:
    """Write the outputs to a new ``.npz`` file, one array per output; half a file is never left.

    Raises:
        RecipeError: an output holds strings, or the file exists or cannot be written.
    """
    if any(array.dtype == object for array in result.outputs.values()):
        raise RecipeError("string outputs cannot be written to .npz", hint="leave --output away and use --json")
    try:
        with file.open("xb") as stream:
            try:
                _write_npz(stream, result.outputs)
            except BaseException:
                file.unlink()
                raise
    except OSError as error:
        raise RecipeError(f"cannot write {file}: {error.strerror or error}", hint="choose another place") from error


def _write_npz(stream: IO[bytes], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """As ``numpy.savez``, but for any name: an output may be called ``file``, and a path needs no suffix."""
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def print_run(console: Console, result: RunResult) -> None:
    """One line per output, one per kind of engine."""
    rows = []
    for name, facts in describe_run(result)["outputs"].items():
        numbers = [f"{facts[key]:.5g}" if key in facts else "" for key in ("min", "mean", "max")]
        rows.append((name, facts["dtype"], str(facts["shape"]), *numbers))
    print_table(console, _OUTPUTS, rows)
    for (engine, reason), count in Counter((run.engine, run.reason) for run in result.islands).items():
        print_line(console, f"{counted(count, 'island')} ran on {engine}" + (f": {reason}" if reason else ""))
    if not result.islands:
        print_line(console, "no island in this signature: TensorFlow ran all of it")
