"""Traffic: bytes that cross cuts in one call, from the dtypes and shapes of cut tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from refimpl.graph_record import SignatureGraph, parse_tensor

_SIZES = {
    **dict.fromkeys("bool int8 uint8 qint8 quint8".split(), 1),
    **dict.fromkeys("float16 bfloat16 int16 uint16".split(), 2),
    **dict.fromkeys("float32 int32 uint32".split(), 4),
    **dict.fromkeys("float64 int64 uint64 complex64".split(), 8),
    "complex128": 16,
}


@dataclass(frozen=True)
class Traffic:
    """What crosses cuts.

    Attributes:
        size: bytes; every unknown dimension counts as 1.
        rows: whether a first dimension is unknown, so that the size is that of one row (a batch of 1).
        at_least: whether another dimension, the only one, a rank, or the size of an element is unknown, so that it may
            be more.
        tensors: how many tensors; one that enters two islands counts twice.
    """

    size: int = 0
    rows: bool = False
    at_least: bool = False
    tensors: int = 0

    def __str__(self) -> str:
        text = _readable(self.size)
        return ("at least " if self.at_least else "") + text + (" per row" if self.rows else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"bytes": self.size, "per_row": self.rows, "at_least": self.at_least, "tensors": self.tensors}


def traffic_of(tensors: Iterable[str]) -> Traffic:
    """Of tensors, each a text such as ``float32[?,112,112,64]``."""
    size, rows, at_least, count = 0, False, False, 0
    for text in tensors:
        dtype, shape = parse_tensor(text)
        count += 1
        if shape is None or dtype not in _SIZES:
            at_least = True
            continue
        rows |= bool(shape) and shape[0] is None
        at_least |= None in shape[1:] or shape == (None,)  # which may be the size of what was flattened
        size += _SIZES[dtype] * math.prod(1 if dimension is None else dimension for dimension in shape)
    return Traffic(size, rows, at_least, count)


def between(graph: SignatureGraph, ops: Collection[int], readers: Sequence[Sequence[int]]) -> Traffic:
    """What passes between islands and some ops that are in none, in either direction.

    A tensor that these ops take from an island, or give to one, counts once per island.

    Args:
        graph: of the signature.
        ops: indices of the ops.
        readers: as :meth:`SignatureGraph.readers` gives them.
    """
    inside = set(ops)
    crossing: dict[tuple[int, int, str], str] = {}
    for index in {*inside, *(reader for op in inside for reader in readers[op])}:
        op = graph.ops[index]
        for source, slot in zip(op.inputs, op.slots, strict=True):
            giver = graph.ops[source]
            if index in inside and giver.island:
                crossing[source, slot, giver.island] = giver.outputs[slot]
            elif source in inside and op.island:
                crossing[source, slot, op.island] = giver.outputs[slot]
    return traffic_of(crossing.values())


def _readable(size: int) -> str:
    if size < 10_000:
        return f"{size} bytes"
    return f"{size / 1e3:.0f} kB" if size < 10_000_000 else f"{size / 1e6:.0f} MB"
