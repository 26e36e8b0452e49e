"""Samples of an island on disk: once for NumPy, once for Polygraphy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.numerics import has_nonfinite

Array = np.ndarray[Any, Any]
FOLDER = "samples"
RUNNER = "TensorFlow"  # the name that Polygraphy shows for the recorded outputs


@dataclass(frozen=True, slots=True)
class Sample:
    """Values at the cuts of one island: what entered it, and what TensorFlow made of that.

    ``inputs`` and ``outputs`` are in the order of the island's record, with its dtypes; ``unfit`` says why nothing can
    be judged by them, and is empty when it can.
    """

    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    unfit: str = ""


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample, its files in the folder of its island, and why ``polygraphy run`` cannot judge by it ("" if it can)."""

    sample: Sample
    arrays: str
    inputs: str
    outputs: str
    unfit: str


def write_samples(
    samples: Sequence[Sample], names: tuple[Sequence[str], Sequence[str]], folder: Path, *, finite_only: bool
) -> tuple[StoredSample, ...]:
    """Write samples as ``.npz`` and as Polygraphy's JSON.

    Args:
        samples: what to write.
        names: of the ONNX model's inputs and outputs.
        folder: of the island; they go to ``samples/`` in it.
        finite_only: whether the bundle itself gives calls with NaN or infinities to TensorFlow.
    """
    (folder / FOLDER).mkdir()
    return tuple(_write(number, sample, names, folder, finite_only) for number, sample in enumerate(samples))


def _write(
    number: int, sample: Sample, names: tuple[Sequence[str], Sequence[str]], folder: Path, finite_only: bool
) -> StoredSample:
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    stem = f"{FOLDER}/{number:03d}-{_portable(sample.name)}"
    inputs, outputs = (
        {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in zip(side, values, strict=True)}
        for side, values in zip(names, (sample.inputs, sample.outputs), strict=True)
    )
    arrays = {f"inputs/{name}": value for name, value in inputs.items()}
    arrays |= {f"outputs/{name}": value for name, value in outputs.items()}
    np.savez(folder / f"{stem}.npz", **arrays)  # type: ignore[arg-type]
    save_json([inputs], str(folder / f"{stem}.inputs.json"))
    results = RunResults()
    results.add([outputs], runner_name=RUNNER)
    save_json(results, str(folder / f"{stem}.outputs.json"))  # its own save() also talks
    files = (f"{stem}.npz", f"{stem}.inputs.json", f"{stem}.outputs.json")
    return StoredSample(sample, *files, _unfit(sample, finite_only=finite_only))


def _unfit(sample: Sample, *, finite_only: bool) -> str:
    if sample.unfit:
        return sample.unfit
    if any(value.size == 0 for value in sample.inputs):
        return "an input is empty, and the bundle gives such calls to TensorFlow"
    if finite_only and any(map(has_nonfinite, (*sample.inputs, *sample.outputs))):
        return "it holds NaN or infinities, and the bundle gives such calls to TensorFlow"
    if any(value.dtype.kind == "f" and bool(np.isnan(value).any()) for value in sample.outputs):
        return "TensorFlow's outputs hold NaN, which Polygraphy's comparer always calls a mismatch"
    return ""


def _portable(name: str) -> str:
    """Letters, digits, dots, dashes and underscores, 60 at most: a file name everywhere."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")[:60] or "sample"
