"""Profiles: from shapes seen at the cuts to TensorRT optimization profiles, as TF-TRT's four strategies make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refimpl.artifacts import Array
from refimpl.engines import Profile
from refimpl.specs import TensorSpec

Shapes = tuple[tuple[int, ...], ...]
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
    shapes = list(dict.fromkeys(tuple(tuple(item[spec.name].shape) for spec in specs) for item in seen))
    ranks = {tuple(map(len, item)) for item in shapes}
    shapes = [item for item in shapes if tuple(map(len, item)) == min(ranks)]  # TensorRT has no dynamic rank
    low, high = _elementwise(min, shapes), _elementwise(max, shapes)
    values = _values(specs, seen)
    if strategy == "range":
        return (Profile(low, high, high, values),)
    optimal = tuple(Profile(item, item, item, values) for item in shapes)
    if strategy == "optimal":
        return optimal
    if strategy == "range+optimal":
        return (*optimal, Profile(low, high, high, values))
    return tuple(Profile(_batch_one(item, specs), item, item, values) for item in shapes)


def _elementwise(pick: object, shapes: Sequence[Shapes]) -> Shapes:
    assert callable(pick)
    return tuple(
        tuple(int(pick(sizes)) for sizes in zip(*(shape[index] for shape in shapes), strict=True))
        for index in range(len(shapes[0]))
    )


def _batch_one(shapes: Shapes, specs: Sequence[TensorSpec]) -> Shapes:
    """First dimensions set to 1, where the island leaves them open."""
    return tuple(
        (1, *shape[1:]) if shape and (spec.shape is None or spec.shape[0] is None) else shape
        for shape, spec in zip(shapes, specs, strict=True)
    )


def _shape_like(specs: Sequence[TensorSpec]) -> list[int]:
    """Indices of inputs that TensorRT may use as shapes: short integer vectors and scalars."""
    return [
        index
        for index, spec in enumerate(specs)
        if spec.dtype in ("int32", "int64")
        and spec.shape is not None
        and len(spec.shape) <= 1
        and None not in spec.shape
        and int(np.prod([size or 0 for size in spec.shape], dtype=int)) <= _MAX_SHAPE_VALUES
    ]


def _values(
    specs: Sequence[TensorSpec], seen: Sequence[Mapping[str, Array]]
) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]:
    found = []
    for index in _shape_like(specs):
        rows = np.stack([item[specs[index].name].reshape(-1) for item in seen])
        low, high = tuple(map(int, rows.min(axis=0))), tuple(map(int, rows.max(axis=0)))
        found.append((index, low, high, high))
    return tuple(found)
