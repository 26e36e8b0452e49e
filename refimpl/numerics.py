"""The converter's and the runtime's own check that two tensors agree.

The oracle has another, richer one on purpose: a mistake here must not also blind the judge.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.tolerance import Tolerance

Array = np.ndarray[Any, Any]
_BLOCK = 1 << 18  # elements


def disagreement(want: Array, got: Array, tolerance: Tolerance) -> str:
    """Why ``got`` does not agree with ``want``, or "" when it does.

    Shape and dtype must be the same, NaN and infinities must stand at the same places; see
    :mod:`refimpl.tolerance` for the rest.
    """
    if want.dtype != got.dtype:
        return f"dtype {got.dtype}, TensorFlow gives {want.dtype}"
    if want.shape != got.shape:
        return f"shape {list(got.shape)}, TensorFlow gives {list(want.shape)}"
    if want.dtype.kind == "c":
        parts = (("real", want.real, got.real), ("imaginary", want.imag, got.imag))
        return "; ".join(f"{name} part: {why}" for name, a, b in parts if (why := disagreement(a, b, tolerance)))
    if not _is_float(want):
        wrong = int(np.sum(want != got))
        return f"{wrong} of {want.size} elements differ" if wrong > tolerance.flips * want.size else ""
    return _float_disagreement(want.astype(np.float64), got.astype(np.float64), tolerance)


def _float_disagreement(wide: Array, other: Array, tolerance: Tolerance) -> str:
    if not np.array_equal(np.isnan(wide), np.isnan(other)):
        return f"NaN at {int(np.isnan(other).sum())} places, TensorFlow at {int(np.isnan(wide).sum())} (or elsewhere)"
    infinite = np.isinf(wide) | np.isinf(other)
    if not np.array_equal(wide[infinite], other[infinite]):
        return "infinities at other places or of another sign"
    finite = np.isfinite(wide)
    if not finite.any():
        return ""
    wide, other = wide[finite], other[finite]
    error = np.abs(wide - other)
    size = np.abs(wide)
    over = error > tolerance.rtol * size + tolerance.of_max * size.max() + tolerance.atol
    if not over.any():
        return ""
    worst = int(np.argmax(error))
    return (
        f"max |Δ| {error[worst]:.3g} where TensorFlow gives {wide[worst]:.6g}; "
        f"{int(over.sum())} of {wide.size} elements beyond tolerance"
    )


def _is_float(array: Array) -> bool:
    kind = array.dtype.kind
    return kind == "f" or (kind == "V" and str(array.dtype) == "bfloat16")  # to NumPy, bfloat16 is of no kind


def has_nonfinite(array: Array) -> bool:
    """Whether a float array holds a NaN or an infinity; False for every other dtype."""
    if not _is_float(array) or not array.size:
        return False
    # Exact, and faster than looking whether a sum is finite; in blocks, so that the temporary stays small.
    flat = array.reshape(-1)
    if flat.size <= _BLOCK:
        return not bool(np.isfinite(flat).all())
    return any(not np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK))
