"""What "equal" means. Knows no files, no runners and no models: two arrays and a tolerance in, a verdict out.

A comparison is never vacuous: names, dtype and shape come first, NaN must be at the same places, infinities must be the
same, and the elements that were compared are counted. Cosine similarity and PSNR are reported and decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.errors import GoldenError
from refimpl.oracle import statistics
from refimpl.oracle.arrays import Array, dtype_name
from refimpl.oracle.statistics import Places
from refimpl.specs import format_shape
from refimpl.tolerance import Tolerance

NOT_JUDGED = {
    "values": "TensorFlow's own values differ from run to run",
    "shape": "TensorFlow's own shape differs from run to run",
    "subnormals": "the answer hangs on what a machine makes of subnormal numbers",
    "rounding": "the answer hangs on the last bit of the inputs",
}
Scalar = float | int | bool | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDiff:
    """How one output compares with the golden one.

    ``ok`` decides; everything after ``compared`` is for people, and None where it has no meaning. The statistics are
    taken over the elements that are finite in both arrays.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    ok: bool
    reason: str = ""  # why not ok, or why nothing was compared
    compared: int = 0  # elements whose value was judged
    over: int = 0  # elements beyond the tolerance, or at odds about NaN or infinity
    weak: bool = False  # an answer of zeros would have passed too
    tolerance: Tolerance | None = None
    share: float | None = None  # the largest error as a share of what the tolerance allows there; above 1 it is over
    max_abs: float | None = None
    mean_abs: float | None = None
    max_rel: float | None = None  # over the elements whose golden value is not 0
    mean_rel: float | None = None  # over the same
    rmse: float | None = None
    cosine: float | None = None
    psnr_db: float | None = None
    max_ulp: int | None = None  # float32 and float16
    worst_index: tuple[int, ...] | None = None
    want: Scalar = None  # at the worst index
    got: Scalar = None
    top1: float | None = None  # share of rows along the last axis whose largest value is at the same place
    top5: float | None = None  # the same of the set of the five largest
    nan_want: Places | None = None
    nan_got: Places | None = None
    inf_want: Places | None = None
    inf_got: Places | None = None
    histogram: tuple[int, ...] = ()  # of the error: refimpl.oracle.statistics.HISTOGRAM_EDGES
    second_opinion: str = ""  # Polygraphy's: refimpl.oracle.second_opinion


@dataclass(frozen=True, slots=True)
class Comparison:
    """All outputs of one case, in the golden order, and the names that only one side has."""

    tensors: tuple[TensorDiff, ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        return sum(tensor.compared for tensor in self.tensors)

    @property
    def ok(self) -> bool:
        """No output is wrong, missing or extra. Says nothing about how much was compared."""
        return not self.missing and not self.extra and all(tensor.ok for tensor in self.tensors)

    @property
    def reason(self) -> str:
        """Every fault in one line; empty when there is none."""
        faults = [f"{tensor.name}: {tensor.reason}" for tensor in self.tensors if not tensor.ok]
        if self.missing:
            faults.append(f"missing outputs: {', '.join(self.missing)}")
        if self.extra:
            faults.append(f"outputs that golden does not have: {', '.join(self.extra)}")
        return "; ".join(faults)


def compare(
    want: Mapping[str, Array],
    got: Mapping[str, Array],
    tolerance_of: Callable[[str], Tolerance],
    unstable: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare the outputs of one case by name.

    Args:
        want: golden outputs.
        got: outputs under judgement.
        tolerance_of: the tolerance for a dtype name.
        unstable: outputs whose values cannot be judged, with why: a key of :data:`NOT_JUDGED`.

    Raises:
        GoldenError: ``want`` is empty.
    """
    if not want:
        raise GoldenError("golden holds no outputs, so nothing can be compared")
    unstable = unstable or {}
    both = [name for name in want if name in got]
    return Comparison(
        tuple(
            _diff_unstable(name, want[name], got[name], unstable[name])
            if name in unstable
            else diff(name, want[name], got[name], tolerance_of(dtype_name(want[name])))
            for name in both
        ),
        missing=tuple(sorted(set(want) - set(got))),
        extra=tuple(sorted(set(got) - set(want))),
    )


def diff(name: str, want: Array, got: Any, tolerance: Tolerance) -> TensorDiff:
    """Compare one output with its golden value, element by element.

    NumPy scalars and bytes are what TensorFlow makes of tensors of rank 0, and are taken as such.
    """
    got = _as_array(got)
    fault = _form_fault(want, got) or _shape_fault(want, got)
    dtype, shape = dtype_name(want), want.shape
    if fault:
        return TensorDiff(name=name, dtype=dtype, shape=shape, ok=False, reason=fault)
    if want.size == 0:
        return TensorDiff(name=name, dtype=dtype, shape=shape, ok=True, reason="empty: nothing to compare")
    if dtype.startswith(("float", "bfloat", "complex")):
        facts = _diff_floats(want, got, tolerance)
    else:
        facts = _diff_exact(want, got, tolerance)
    return TensorDiff(name=name, dtype=dtype, shape=shape, tolerance=tolerance, ok=not facts["reason"], **facts)


def _diff_unstable(name: str, want: Array, got: Any, what: str) -> TensorDiff:
    got = _as_array(got)
    fault = _form_fault(want, got)
    if not fault and what == "shape" and want.ndim != got.ndim:
        fault = f"rank {got.ndim}, want {want.ndim}"
    elif not fault and what != "shape":
        fault = _shape_fault(want, got)
    reason = fault or f"not compared: {NOT_JUDGED[what]}"
    return TensorDiff(name=name, dtype=dtype_name(want), shape=want.shape, ok=not fault, reason=reason)


def _as_array(got: Any) -> Any:
    if isinstance(got, bytes):
        return np.array(got, dtype=object)
    return np.asarray(got) if isinstance(got, np.generic) else got


def _form_fault(want: Array, got: Any) -> str:
    if not isinstance(got, np.ndarray):
        return f"not an array but {type(got).__name__}"
    if got.dtype != want.dtype:
        return f"dtype {dtype_name(got)}, want {dtype_name(want)}"
    return ""


def _shape_fault(want: Array, got: Array) -> str:
    return "" if got.shape == want.shape else f"shape {format_shape(got.shape)}, want {format_shape(want.shape)}"


def _diff_exact(want: Array, got: Array, tolerance: Tolerance) -> dict[str, Any]:
    """Integers, booleans and strings: equal or wrong; a share may be wrong where the tolerance has one."""
    wrong = np.asarray(want != got, dtype=bool)
    over = int(wrong.sum())
    facts: dict[str, Any] = {
        "compared": want.size,
        "over": over,
        "reason": f"{over} of {want.size} differ" if over > tolerance.flips * want.size else "",
        "weak": want.dtype != object and not want.any(),
    }
    allowed = tolerance.flips * want.size
    facts["share"] = over / allowed if allowed else (math.inf if over else 0.0)
    if want.dtype.kind in "iu":  # in Python integers: uint64 and int64 overflow every NumPy type
        gaps = [abs(int(a) - int(b)) for a, b in zip(want[wrong], got[wrong], strict=True)]
        facts["max_abs"] = float(max(gaps, default=0))
    if over:
        facts |= _at(np.flatnonzero(wrong)[0], want, got)
    return facts


def _diff_floats(want: Array, got: Array, tolerance: Tolerance) -> dict[str, Any]:
    a, b = _as_float64(want), _as_float64(got)
    with np.errstate(all="ignore"):  # float64 extremes may overflow: an infinite error is over any limit
        odd = np.isnan(a) != np.isnan(b)
        clash = (np.isinf(a) | np.isinf(b)) & (a != b) & ~odd
        finite = np.isfinite(a) & np.isfinite(b)
        x, y = a[finite], b[finite]
        largest = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
        limit = tolerance.rtol * np.abs(x) + tolerance.of_max * largest + tolerance.atol
        error = np.abs(x - y)
        excess = error - limit
        shares = np.where(error == 0, 0.0, error / limit)
    over = int((excess > 0).sum())
    at_odds = odd | clash
    reasons = [
        f"NaN at different places ({int(odd.sum())})" if odd.any() else "",
        f"infinities differ ({int(clash.sum())})" if clash.any() else "",
        f"{over} of {x.size} beyond the tolerance" if over else "",
    ]
    facts: dict[str, Any] = {
        "compared": want.size,
        "over": over + int(at_odds.sum()),
        "reason": "; ".join(filter(None, reasons)),
        "weak": bool(finite.all() and (np.abs(x) <= limit).all()),
        "share": math.inf if at_odds.any() else float(shares.max(initial=0.0)),
    }
    if want.dtype.kind != "c":
        facts |= statistics.odd_places(a, b) | statistics.top_agreement(a, b)
    if at_odds.any():
        worst = np.flatnonzero(at_odds)[0]
    elif x.size:
        worst = np.flatnonzero(finite)[int(np.argmax(excess))]
    else:
        return facts
    parts = 2 if want.dtype.kind == "c" else 1
    described = statistics.error_statistics(x, y) | statistics.ulps(want, got, finite)
    return facts | described | _at(worst // parts, want, got)


def _as_float64(array: Array) -> Array:
    """The array in float64; a complex one gets a last axis of size 2 with its parts."""
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], axis=-1).astype(np.float64)
    return array.astype(np.float64)


def _at(flat: int | np.integer[Any], want: Array, got: Array) -> dict[str, Any]:
    index = tuple(int(i) for i in np.unravel_index(int(flat), want.shape))
    return {"worst_index": index, "want": _scalar(want[index]), "got": _scalar(got[index])}


def _scalar(value: Any) -> Scalar:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (bytes, str)):
        return repr(value[:60])
    if isinstance(value, (complex, np.complexfloating)):
        return str(value)
    return int(value) if isinstance(value, (int, np.integer)) else float(value)
