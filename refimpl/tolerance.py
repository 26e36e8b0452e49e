"""How close is close enough: the one table of tolerances, a reason in every row.

An element ``got`` agrees with ``want`` when::

    |got - want| <= rtol * |want| + of_max * max|want| + atol

``of_max`` scales with the largest finite magnitude of the wanted tensor: a sum of many large terms that happens to come
out near zero carries the rounding error of its terms, not of its result. The parts of a complex number are judged one
by one. Strings must be equal; so must integers and booleans, unless the engine computes in a reduced precision: a
decision between nearly equal values may then fall the other way, in at most a share ``flips`` of the elements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Tolerance:
    """One row of the table; see the module docstring for the formula."""

    rtol: float
    of_max: float
    atol: float
    why: str
    flips: float = 0.0  # of integers and booleans

    def __post_init__(self) -> None:
        if not self.why:
            raise ValueError("a tolerance needs a reason")
        if not (
            0 <= self.rtol <= 0.1 and 0 <= self.of_max <= 0.1 and 0 <= self.atol <= 1e-2 and 0 <= self.flips <= 0.1
        ):
            raise ValueError(f"{self}: outside the sane range")

    def tightened(self, share: float) -> Tolerance:
        """A share of this tolerance, for one who must leave the rest to somebody else's rounding."""
        return replace(self, rtol=share * self.rtol, of_max=share * self.of_max, atol=share * self.atol)


EXACT = Tolerance(0.0, 0.0, 0.0, "integers, booleans and strings have no rounding")
_STEPS = "where the model itself rounds to steps (fake quantization), a sum in another order may fall on the next step"


def _reduced(precision: str, share: float, why: str) -> dict[tuple[str, str], Tolerance]:
    """Rows of a model that was made less precise than it is: one for every dtype that an output may have."""
    dtypes = ("float16", "float32", "float64", "bfloat16", "complex64", "complex128")
    return {(precision, dtype): Tolerance(share, share, 1e-5, why) for dtype in dtypes}


# Keyed by (precision the engines compute in, dtype of the tensor compared). "half" is a model that computes in float16
# itself, "quantized" one that fake-quantizes in float32 itself; "fp16" and so on one that was made to.
_HALF = "TensorFlow rounds to float16 after every op, an engine may round less often: a few float16 ulps of the largest"
_TF32 = "operands of products are rounded to 10-bit mantissas, 2^-11 relative each; 1.3e-3 was measured on an H100"
TABLE: dict[tuple[str, str], Tolerance] = {
    ("fp32", "float32"): Tolerance(
        1e-4, 2e-5, 1e-6, "same arithmetic in another summation order through up to a few hundred layers"
    ),
    ("fp32", "float16"): Tolerance(
        2e-3, 1e-3, 1e-6, "a float32 result rounded to float16 once: one ulp is 1e-3 relative"
    ),
    ("fp32", "bfloat16"): Tolerance(
        1.6e-2, 8e-3, 1e-6, "a float32 result rounded to bfloat16 once: one ulp is 8e-3 relative"
    ),
    ("fp32", "float64"): Tolerance(1e-4, 2e-5, 1e-6, "float64 stays in TensorFlow but may be fed from float32 engines"),
    ("fp32", "complex64"): Tolerance(1e-4, 2e-5, 1e-6, "stays in TensorFlow but may be fed from float32 engines"),
    ("fp32", "complex128"): Tolerance(1e-4, 2e-5, 1e-6, "stays in TensorFlow but may be fed from float32 engines"),
    ("tf32", "float32"): Tolerance(5e-3, 2e-3, 1e-5, _TF32),
    ("tf32", "float16"): Tolerance(5e-3, 2e-3, 1e-5, _TF32),
    ("tf32", "float64"): Tolerance(5e-3, 2e-3, 1e-5, _TF32),
    ("tf32", "bfloat16"): Tolerance(1.6e-2, 8e-3, 1e-5, "one bfloat16 ulp is 8e-3 relative, more than TF32 loses"),
    ("tf32", "complex64"): Tolerance(5e-3, 2e-3, 1e-5, _TF32),
    ("tf32", "complex128"): Tolerance(5e-3, 2e-3, 1e-5, _TF32),
    **_reduced("quantized", 1e-2, _STEPS),
    ("half", "float16"): Tolerance(5e-3, 5e-3, 1e-5, _HALF),
    ("half", "float32"): Tolerance(5e-3, 5e-3, 1e-5, _HALF),
    ("half", "float64"): Tolerance(5e-3, 5e-3, 1e-5, _HALF),
    ("half", "bfloat16"): Tolerance(1.6e-2, 8e-3, 1e-5, "one bfloat16 ulp is 8e-3 relative, more than float16 loses"),
    ("half", "complex64"): Tolerance(5e-3, 5e-3, 1e-5, _HALF),
    ("half", "complex128"): Tolerance(5e-3, 5e-3, 1e-5, _HALF),
    **_reduced(
        "fp16", 1e-2, "a float32 model rounded to float16 after every op; TF-TRT's own tests accept 1e-2 for FP16"
    ),
    **_reduced("bf16", 8e-2, "bfloat16 has three bits less than float16: eight times the rounding"),
    **_reduced("int8", 1e-1, "a step is 1/127 of the calibrated range; TF-TRT's own quantization test accepts 1e-1"),
}
LOOSEST_FIRST = ("int8", "bf16", "fp16", "quantized", "tf32", "half", "fp32")
# What a decision (an index, a comparison) may lose when the values it is made from are rounded.
_FLIPS = {
    "fp16": Tolerance(0.0, 0.0, 0.0, "float16 confuses values closer than 1e-3 of each other", flips=0.01),
    "bf16": Tolerance(0.0, 0.0, 0.0, "bfloat16 confuses values closer than 1e-2 of each other", flips=0.05),
    "int8": Tolerance(0.0, 0.0, 0.0, "int8 confuses values within a step of each other", flips=0.05),
}


def loosest(precisions: Iterable[str]) -> str:
    """The one of these precisions whose row forgives most; ``"fp32"`` when there are none."""
    found = set(precisions)
    return next((precision for precision in LOOSEST_FIRST if precision in found), min(found, default="fp32"))


def tolerance_for(precision: str, dtype: str) -> Tolerance:
    """The row for a compute precision (``"fp32"``) and a tensor dtype (``"float32"``).

    Raises:
        KeyError: a float dtype without a row: add one, with its reason.
    """
    if not dtype.startswith(("float", "bfloat", "complex")):
        return EXACT if dtype in ("string", "object") else _FLIPS.get(precision, EXACT)
    return TABLE[precision, dtype]
