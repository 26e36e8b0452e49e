"""How far a tensor inside an island is from TensorFlow's, in units of its tolerance, and what the error looks like."""

from __future__ import annotations

import math

import numpy as np

from refimpl.oracle.arrays import Array
from refimpl.tolerance import Tolerance, tolerance_for

ADDED = "something is added to it"
_SAME = 1e-4  # of the largest value: what counts as equal where the form of an error is looked for
FINE = 1.0  # the largest error, as a share of what the tolerance allows there


def is_float(array: Array) -> bool:
    """Whether an array holds floats; to NumPy, bfloat16 is of no kind."""
    return array.dtype.kind in "fc" or array.dtype.name == "bfloat16"


def tolerance_of(precision: str, array: Array) -> Tolerance:
    """The row for an array of TensorFlow's; inside an island as at its outputs."""
    return tolerance_for(precision, "string" if array.dtype == object else array.dtype.name)


def share(want: Array, got: Array, tolerance: Tolerance) -> float:
    """The largest error as a share of what is allowed: fine up to 1; infinite where shapes, NaN or infinities differ.

    Whole numbers and booleans may come in another width than TensorFlow's.
    """
    if want.shape != got.shape:
        return math.inf
    if not want.size:
        return 0.0
    if not is_float(want):
        wrong = float(np.mean(np.asarray(want != got)))
        return 0.0 if not wrong else wrong / tolerance.flips if tolerance.flips else math.inf
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    a, b = want.astype(wide), got.astype(wide)
    odd = np.isfinite(a) != np.isfinite(b)
    odd |= ~np.isfinite(a) & (np.isnan(a) != np.isnan(b)) | (np.isinf(a) & np.isinf(b) & (a != b))
    if odd.any():
        return math.inf
    finite = np.isfinite(a)
    if not finite.any():
        return 0.0
    size, error = np.abs(a[finite]), np.abs(a[finite] - b[finite])
    limit = tolerance.rtol * size + tolerance.of_max * size.max() + tolerance.atol
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(error > 0, error / limit, 0.0)))


def relative(want: Array, got: Array) -> float:
    """The error relative to the tensor, by Euclidean norms; infinite where it is not finite."""
    a, b = want.astype(np.float64), got.astype(np.float64)
    with np.errstate(all="ignore"):
        norm, error = float(np.linalg.norm(a)), float(np.linalg.norm(a - b))
    if not math.isfinite(error):
        return math.inf
    return error / norm if norm else (math.inf if error else 0.0)


def pattern(want: Array, got: Array) -> str:
    """What the error looks like, where it has a form that tells something; else ""."""
    if want.shape != got.shape:
        return f"it has the shape {list(got.shape)}, not {list(want.shape)}"
    if not is_float(want) or want.size < 8:
        return ""
    a, b = want.astype(np.float64), got.astype(np.float64)
    scale = float(np.abs(a).max())
    if not math.isfinite(scale) or not scale:
        return ""
    if not np.isfinite(b).all():
        return f"{int((~np.isfinite(b)).sum())} of {b.size} elements are NaN or infinite"
    return _factor(a, b, scale) or _bias(b - a, scale) or _places(b - a, scale)


def _factor(want: Array, got: Array, scale: float) -> str:
    factor = float(np.vdot(want, got) / np.vdot(want, want))
    if np.abs(got - factor * want).max() > _SAME * scale:
        return ""
    return f"it is TensorFlow's times {factor:.4g}" if got.any() else "it is zero everywhere"


def _bias(error: Array, scale: float) -> str:
    for axis in range(error.ndim - 1, 0, -1):
        others = tuple(other for other in range(error.ndim) if other != axis)
        if error.shape[axis] * 2 <= error.size and np.ptp(error, axis=others).max() < _SAME * scale:
            return f"{ADDED}: the error is the same all along every axis but one, as of a bias"
    return ""


def _places(error: Array, scale: float) -> str:
    for axis in range(error.ndim - 1, 0, -1):
        others = tuple(other for other in range(error.ndim) if other != axis)
        touched = np.flatnonzero(np.abs(error).max(axis=others) > _SAME * scale)
        if touched.size == 1 and error.shape[axis] > 2:
            return f"it is wrong only where axis {axis} is {int(touched[0])}"
    few = int((np.abs(error) > _SAME * scale).sum())
    return f"{few} of {error.size} elements are wrong" if few * 20 < error.size else ""
