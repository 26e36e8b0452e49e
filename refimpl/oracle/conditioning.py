"""Questions that nobody can be held to: TensorFlow's own answer hangs on what floating point leaves open.

Asked while recording, of TensorFlow alone and before any engine is known. Two things are left open:

* what a machine makes of subnormal inputs. TensorFlow on a CPU takes them for zeros in some ops (a product) and for
  what they are in others (a logarithm); ONNX Runtime takes them for what they are, and a GPU as its kernels were
  compiled. So a case that has some is asked again with zeros and with the smallest normal number in their places;
* the last bit of the inputs. Every engine rounds at least that much. Magnitudes that the model may never meet
  (``large``, ``pixels``) can push it where it magnifies that bit beyond any tolerance, as a softmax over huge scores
  does. So such cases are asked again with every float one step larger, and one step smaller. Cases of ordinary
  magnitudes and the user's own are not: what a model makes of those is to be judged, whatever it costs.

An output that moves by more than half of what float32 is allowed has no answer that an engine could be held to. One
that stays has, and is judged as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from refimpl.errors import RunError
from refimpl.numerics import disagreement
from refimpl.oracle.arrays import Array, dtype_name
from refimpl.oracle.cases import Case, smallest_normal
from refimpl.tolerance import tolerance_for

SUBNORMALS = "subnormals"
ROUNDING = "rounding"

Inputs = Mapping[str, Array]
Run = Callable[[Inputs], Mapping[str, Array]]


def hanging(case: Case, answer: Mapping[str, Array], run: Run) -> dict[str, str]:
    """The outputs of a case that cannot be judged by value.

    Args:
        case: what was asked.
        answer: what TensorFlow answered, by output name.
        run: asks TensorFlow again, with other inputs.

    Returns:
        Output name to :data:`SUBNORMALS` or :data:`ROUNDING`.
    """
    found = _moved(case.inputs, answer, run, ROUNDING, _a_step_away) if case.stranger else {}
    return found | _moved(case.inputs, answer, run, SUBNORMALS, without_subnormals)


def _moved(
    inputs: Inputs, answer: Mapping[str, Array], run: Run, why: str, change: Callable[[Array, int], Array]
) -> dict[str, str]:
    """The outputs that differ when the inputs are changed in either of two ways."""
    questions = [{name: change(array, way) for name, array in inputs.items()} for way in (0, 1)]
    if all(questions[0][name] is array for name, array in inputs.items()):
        return {}
    try:
        others = [run(question) for question in questions]
    except RunError:
        return dict.fromkeys(answer, why)
    return {
        name: why
        for name, array in answer.items()
        for limit in [tolerance_for("fp32", dtype_name(array)).tightened(0.5)]
        if any(disagreement(array, other[name], limit) for other in others)
    }


def _a_step_away(array: Array, way: int) -> Array:
    """Every float larger, or smaller, by one step of float32; other dtypes, and float16, as they are."""
    if array.dtype not in (np.float32, np.float64):
        return array
    with np.errstate(all="ignore"):  # NaN and infinities stay what they are
        step = np.spacing(np.abs(array).astype(np.float32)).astype(array.dtype)
        return np.where(np.isfinite(array), array + step if way else array - step, array).astype(array.dtype)


def without_subnormals(array: Array, way: int) -> Array:
    """The array with zeros (0) or smallest normal numbers (1) in place of the subnormal ones, signs kept.

    The very same array when it has none. Float16's are left: they are computed as float32, where they are normal.
    """
    if not dtype_name(array).startswith(("float32", "float64", "bfloat", "complex")):
        return array
    if array.dtype.kind == "c":
        parts = np.stack([array.real, array.imag])
        other = without_subnormals(parts, way)
        return array if other is parts else np.stack(list(other), axis=-1).view(array.dtype)[..., 0]
    least, wide = smallest_normal(array.dtype), array.astype(np.float64)
    subnormal = (wide != 0) & (np.abs(wide) < least)
    return np.where(subnormal, np.copysign(way * least, wide), wide).astype(array.dtype) if subnormal.any() else array
