"""Polygraphy's comparator as an independent second opinion, where it is sound. ``docs/checking.md`` lists where not.

Its test differs from ours: an element is wrong when its error exceeds an absolute *and* a relative tolerance, each one
number for a whole tensor; ours is a sum of three terms (:mod:`refimpl.tolerance`). With the relative one switched off
(nothing is less than -1), two implications hold, for limits taken over the elements of one tensor:

* if every error is within our limit for its element, Polygraphy passes with the *largest* of these limits;
* if some error is beyond, Polygraphy fails with the *smallest*.

It computes in float32 where the tensor is one, so both limits have a margin of a few roundings. Where an implication
does not hold, one of the two comparers is broken, and that is our bug: never a pass.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from refimpl.errors import InternalError
from refimpl.oracle.arrays import Array
from refimpl.oracle.compare import TensorDiff
from refimpl.tolerance import Tolerance

AGREES = "agrees"
_SOUND = ("float16", "float32", "float64")
_MARGIN = 1e-6  # of a limit: the error and the limit are each rounded to float32, 6e-8 relative
_MOST = 1 << 22  # elements; its statistics sort the tensor, several times


def ask(want: Array, got: Array, ours: TensorDiff) -> str:
    """What Polygraphy says of an output that was compared: ``"agrees"``, or ``"not asked: ..."`` with the reason.

    Args:
        want: the golden output.
        got: the output under judgement, as it came.
        ours: our own comparison of the two.

    Raises:
        InternalError: it contradicts ours.
    """
    if why := _unsound(want, got, ours):
        return f"not asked: {why}"
    assert ours.tolerance is not None
    smallest, largest = _limits(want, ours.tolerance)
    limit = largest * (1 + _MARGIN) if ours.ok else smallest * (1 - _MARGIN)
    passes = _polygraphy_passes(want, np.asarray(got), limit)
    if passes != ours.ok:
        raise InternalError(
            f"two comparers contradict each other on output {ours.name!r}: ours says "
            f"{ours.reason or 'within the tolerance'}, Polygraphy says {'passed' if passes else 'failed'} with an "
            f"absolute limit of {limit:.6g}"
        )
    return AGREES


def _unsound(want: Array, got: Array, ours: TensorDiff) -> str:
    if ours.dtype not in _SOUND:
        return f"its arithmetic is not sound for {ours.dtype}"
    if ours.tolerance is None or not isinstance(got, (np.ndarray, np.generic)):
        return "nothing was compared"
    if not (np.isfinite(want).all() and np.isfinite(got).all()):
        return "NaN or infinities, which it counts as wrong even where both sides have them"
    if want.size > _MOST:
        return f"more than {_MOST} elements"
    return ""


def _limits(want: Array, tolerance: Tolerance) -> tuple[float, float]:
    size = np.abs(want.astype(np.float64))
    fixed = tolerance.of_max * float(size.max()) + tolerance.atol
    return tolerance.rtol * float(size.min()) + fixed, tolerance.rtol * float(size.max()) + fixed


def _polygraphy_passes(want: Array, got: Array, limit: float) -> bool:
    from polygraphy import comparator
    from polygraphy.comparator import IterationResult
    from polygraphy.logger import G_LOGGER

    # Older versions have only the second name, newer ones will have only the first.
    simple = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
        judge = simple(check_shapes=True, rtol=-1.0, atol=limit, check_error_stat="elemwise")
        sides = (IterationResult(OrderedDict(output=array), runner_name=name) for name, array in _sides(want, got))
        answer = judge(*sides)
    if list(answer) != ["output"]:  # it skips what it does not find
        raise InternalError(f"Polygraphy compared {list(answer)}, not the one output it was given")
    return bool(answer["output"])


def _sides(want: Array, got: Array) -> tuple[tuple[str, Array], ...]:
    """A relative error is one of the second side, as Polygraphy has it. Tensors of rank 0 get an axis."""
    return ("bundle", np.atleast_1d(got)), ("golden", np.atleast_1d(want))
