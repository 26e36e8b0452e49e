"""Profiles: from shapes seen at the cuts to TensorRT optimization profiles, as TF-TRT's four strategies make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from refimpl.artifacts import Array
from refimpl.engines import Profile
from refimpl.specs import TensorSpec

Row = tuple[tuple[int, ...], ...]  # shapes of all inputs, then values of those that may be shapes
_MAX_SHAPE_VALUES = 64  # a longer integer vector is data, not a shape


def profiles_for(
    strategy: str, specs: Sequence[TensorSpec], seen: Sequence[Mapping[str, Array]]
) -> tuple[Profile, ...]:
    """Profiles of one island.

    Args:
        strategy: ``range`` (one profile from the smallest to the largest, opt = largest), ``optimal`` (one per shape,
            fixed), ``range+optimal`` (the optimal ones first), ``implicit-batch`` (one per shape, first dimension from
            1).
        specs: the island's inputs.
        seen: values at the island's inputs, by tensor name, one mapping per sample.

    Returns:
        No profile when every input is static (none is needed) or nothing was seen.
    """
    if not specs or not seen:
        return ()
    if all(spec.shape is not None and None not in spec.shape for spec in specs) and not _shape_like(specs):
        return ()
    ranks = min(tuple(item[spec.name].ndim for spec in specs) for item in seen)  # TensorRT has no dynamic rank
    rows = [_row(specs, item) for item in seen if tuple(item[spec.name].ndim for spec in specs) == ranks]
    rows = list(dict.fromkeys(rows))
    if strategy == "implicit-batch":
        return tuple(_profile(specs, _batch_one(row, specs), row) for row in rows)
    whole = _profile(specs, _elementwise(min, rows), _elementwise(max, rows))
    optimal = tuple(_profile(specs, row, row) for row in rows)
    return {"range": (whole,), "optimal": optimal, "range+optimal": (*optimal, whole)}[strategy]


def profile_at_runtime(
    strategy: str, specs: Sequence[TensorSpec], inputs: Sequence[Array], before: Profile | None
) -> Profile:
    """The profile of an engine that is built while a bundle runs.

    Args:
        strategy: as for :func:`profiles_for`. A range grows with every engine, so that it covers all soon.
        specs: the island's inputs.
        inputs: what it must take.
        before: the profile of the engine built last.
    """
    row = _row(specs, {spec.name: value for spec, value in zip(specs, inputs, strict=True)})
    if strategy == "implicit-batch":
        return _profile(specs, _batch_one(row, specs), row)
    low = high = row
    if strategy.startswith("range") and before and [len(s) for s in before.min] == [len(s) for s in row[: len(specs)]]:
        lower = (*before.min, *(item[1] for item in before.values))
        upper = (*before.max, *(item[3] for item in before.values))
        low, high = _elementwise(min, (lower, row)), _elementwise(max, (upper, row))
    return _profile(specs, low, high)


def _row(specs: Sequence[TensorSpec], item: Mapping[str, Array]) -> Row:
    """What one sample shows: the shape of every input, then the values of those that may be shapes."""
    shapes = tuple(tuple(item[spec.name].shape) for spec in specs)
    return (*shapes, *(tuple(map(int, item[specs[index].name].reshape(-1))) for index in _shape_like(specs)))


def _profile(specs: Sequence[TensorSpec], low: Row, high: Row) -> Profile:
    """From the lowest to the highest row, the highest being the one to optimize for."""
    count = len(specs)
    values = zip(_shape_like(specs), low[count:], high[count:], high[count:], strict=True)
    return Profile(low[:count], high[:count], high[:count], tuple(values))


def _elementwise(pick: Callable[..., int], rows: Sequence[Row]) -> Row:
    return tuple(tuple(pick(sizes) for sizes in zip(*parts, strict=True)) for parts in zip(*rows, strict=True))


def _batch_one(row: Row, specs: Sequence[TensorSpec]) -> Row:
    """First dimensions, and first values, set to 1; but not the dimensions that the island fixes."""
    fixed = [spec.shape is not None and bool(spec.shape) and spec.shape[0] is not None for spec in specs]
    keep = [*fixed, *[False] * (len(row) - len(specs))]
    return tuple(
        part if kept or not part else (min(1, part[0]), *part[1:]) for part, kept in zip(row, keep, strict=True)
    )


def _shape_like(specs: Sequence[TensorSpec]) -> list[int]:
    """Indices of inputs that TensorRT may use as shapes: few integers, of any rank (paddings are a matrix)."""
    return [
        index
        for index, spec in enumerate(specs)
        if spec.dtype in ("int32", "int64")
        and spec.shape is not None
        and None not in spec.shape
        and int(np.prod([size or 0 for size in spec.shape], dtype=int)) <= _MAX_SHAPE_VALUES
    ]
