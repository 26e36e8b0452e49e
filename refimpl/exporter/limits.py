"""refimpl's tolerances in the terms of Polygraphy's comparer, never looser.

``SimpleCompareFunc`` passes an element when its absolute **or** its relative error is within the limit::

    |got - want| <= max(ATOL, RTOL * |want|)

refimpl allows the sum ``rtol * |want| + fixed`` with ``fixed = of_max * max|want| + atol``. The outputs of a sample are
known, so the two limits can be as large as they may be without ever exceeding that sum:

    ATOL = rtol * min|want| + fixed         equal to the sum at the smallest element, below it at the others
    RTOL = rtol + fixed / max|want|         equal to the sum at the largest element, below it at the others

What Polygraphy passes is therefore within refimpl's tolerance. The other way it may be stricter between the two ends,
by less than a factor of two: ``max(a, b)`` is at least half of ``a + b``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.bundle import IslandRecord
from refimpl.exporter.samples import Sample
from refimpl.tolerance import tolerance_for

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Limit:
    """What Polygraphy is to allow one output of one sample."""

    output: str  # its name in the ONNX model
    rtol: float
    atol: float
    quantile: float | None = None  # share of the elements that must be within; None: all of them
    why: str = ""  # the reason in refimpl's table


def limits_for(record: IslandRecord, names: Sequence[str], sample: Sample, precision: str) -> tuple[Limit, ...]:
    """The limits of every output.

    Args:
        record: the island.
        names: of the ONNX model's outputs.
        sample: whose outputs say what the largest magnitude is.
        precision: what the engine computes in, as the manifest says it.
    """
    rows = zip(names, record.outputs, sample.outputs, strict=True)
    return tuple(_limit(name, spec.dtype, value, precision) for name, spec, value in rows)


def _limit(name: str, dtype: str, want: Array, precision: str) -> Limit:
    row = tolerance_for(precision, dtype)
    if want.dtype.kind != "f":
        # Quantiles of bools are more than Polygraphy can compute, so they must all be equal.
        share = 1.0 - row.flips if row.flips and want.dtype.kind != "b" else None
        return Limit(name, 0.0, 0.0, share, row.why)
    finite = np.abs(want[np.isfinite(want)].astype(np.float64))
    smallest, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    fixed = row.of_max * largest + row.atol
    relative = row.rtol + (fixed / largest if largest else 0.0)
    return Limit(name, relative, row.rtol * smallest + fixed, None, row.why)


def arguments(limits: Sequence[Limit], sample: Sample) -> list[str]:
    """The options of ``polygraphy run`` for these limits."""
    words = ["--rtol", *(f"{item.output}:{item.rtol!r}" for item in limits)]
    words += ["--atol", *(f"{item.output}:{item.atol!r}" for item in limits)]
    if shares := [item for item in limits if item.quantile is not None]:
        words += ["--check-error-stat", "elemwise", *(f"{item.output}:quantile" for item in shares)]
        words += ["--error-quantile", *(f"{item.output}:{item.quantile!r}" for item in shares)]
    if any(value.dtype.kind == "f" and bool(np.isinf(value).any()) for value in sample.outputs):
        words.append("--infinities-compare-equal")
    return words
