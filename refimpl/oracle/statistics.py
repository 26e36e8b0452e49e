"""Numbers about the error of one output, for people: they explain a verdict and decide nothing.

Statistics are taken in float64 over the elements that are finite on both sides; a complex array comes as its parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.oracle.arrays import Array

TOP_K = (1, 5)
FIRST = 5  # so many places of NaN or infinities are told
# Lower edges of the histogram's bins of |error| over the tensor's largest value; before them are two bins, "exactly 0"
# and "less than the first edge", and the last one has no upper edge.
HISTOGRAM_EDGES = tuple(10.0**power for power in range(-9, 1))


@dataclass(frozen=True, slots=True)
class Places:
    """Where something stands in a tensor: how often, and the first few indices in C order."""

    count: int
    first: tuple[tuple[int, ...], ...]


def error_statistics(want: Array, got: Array) -> dict[str, Any]:
    """Maxima, means, RMSE, cosine, PSNR and the histogram of the error.

    Args:
        want: float64 of one dimension, finite.
        got: the same shape, finite.

    Returns:
        Fields of :class:`refimpl.oracle.compare.TensorDiff`; empty for empty arrays. PSNR is in dB, with the largest
        magnitude of ``want`` as the peak.
    """
    if not want.size:
        return {}
    with np.errstate(all="ignore"):  # float64 extremes may overflow
        error = np.abs(want - got)
        size = np.abs(want)
        relative = error[size > 0] / size[size > 0]
        rmse = float(np.sqrt(np.mean(error**2)))
        norms = float(np.linalg.norm(want) * np.linalg.norm(got))
        peak = float(size.max())
        return {
            "max_abs": float(error.max()),
            "mean_abs": float(error.mean()),
            "max_rel": float(relative.max()) if relative.size else None,
            "mean_rel": float(relative.mean()) if relative.size else None,
            "rmse": rmse,
            "cosine": float(want @ got) / norms if math.isfinite(norms) and norms else None,
            "psnr_db": 20 * math.log10(peak / rmse) if rmse and peak and math.isfinite(rmse) else None,
            "histogram": histogram(error, peak),
        }


def histogram(error: Array, largest: float) -> tuple[int, ...]:
    """Counts of ``error`` (not negative) over ``largest``, by :data:`HISTOGRAM_EDGES`; by itself when that is 0."""
    with np.errstate(all="ignore"):
        relative = error / (largest or 1.0)
    bins = np.where(error == 0, 0, 1 + np.searchsorted(HISTOGRAM_EDGES, relative, side="right"))
    return tuple(int(n) for n in np.bincount(bins, minlength=len(HISTOGRAM_EDGES) + 2))


def ulps(want: Array, got: Array, finite: Array) -> dict[str, int]:
    """The largest distance in representable numbers; -0.0 and 0.0 are the same number.

    Args:
        want: float16 or float32; nothing is told of another dtype.
        got: the same dtype and shape.
        finite: bool mask of what to look at.
    """
    if want.dtype not in (np.float32, np.float16) or not finite.any():
        return {}
    kind = np.dtype(f"i{want.dtype.itemsize}")
    lowest = int(np.iinfo(kind).min)

    def rank(values: Array) -> Array:
        bits = np.ascontiguousarray(values[finite]).view(kind).astype(np.int64)
        return np.where(bits < 0, lowest - bits, bits)

    return {"max_ulp": int(np.abs(rank(want) - rank(got)).max())}


def top_agreement(want: Array, got: Array) -> dict[str, float]:
    """Share of the rows (all axes but the last) whose ``k`` largest values stand at the same places, for k of TOP_K.

    The order among the ``k`` does not count, NaN is never the largest, and of equal values any may be taken. Nothing is
    told of fewer than two axes, of rows of a single value, or where ``k`` takes the whole row.
    """
    if want.ndim < 2 or not want.size or want.dtype.kind == "c":
        return {}
    width = want.shape[-1]
    rows = [np.where(np.isnan(a), -np.inf, a).reshape(-1, width) for a in (want, got)]
    found = {}
    for k in TOP_K:
        if k < width:
            chosen = [np.sort(np.argpartition(-a, k - 1, axis=-1)[:, :k], axis=-1) for a in rows]
            found[f"top{k}"] = float((chosen[0] == chosen[1]).all(-1).mean())
    return found


def places(mask: Array) -> Places | None:
    """Where a mask of the tensor's shape is true; None where it never is."""
    flat = np.flatnonzero(mask)
    if not flat.size:
        return None
    first = tuple(tuple(int(i) for i in np.unravel_index(int(at), mask.shape)) for at in flat[:FIRST])
    return Places(int(flat.size), first)


def odd_places(want: Array, got: Array) -> dict[str, Places | None]:
    """Where NaN and infinities stand on each side."""
    return {
        "nan_want": places(np.isnan(want)),
        "nan_got": places(np.isnan(got)),
        "inf_want": places(np.isinf(want)),
        "inf_got": places(np.isinf(got)),
    }
