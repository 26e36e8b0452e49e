"""Which ONNX tensor is which TensorFlow tensor: by name and shape. A guess; :mod:`.inside` proves it by values.

ONNX nodes are named after TensorFlow ops, with additions: counters (``__12``), markers (``mk/OP/0:0``), precisions
(``/half``). The name of an op may stand at a step on the way to its result, or at its operand in another layout.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.engines.inner import Inner, Node
from refimpl.oracle.arrays import Array
from refimpl.oracle.bisect.measure import is_float

_MARKER = re.compile(r"mk/(.+)/(\d+):0")
_INDEX = re.compile(r":(\d+)$")
_COUNTER = re.compile(r"__\d+$")
# Values only move, so what was rounded for the layer that reads them is still rounded for it.
_MOVES = frozenset("Transpose Reshape Flatten Squeeze Unsqueeze Identity MaxPool".split())

_COPIES = frozenset("Transpose Identity Cast Gather".split())  # Gather: ONNX Runtime puts a moved shape in order so


@dataclass(frozen=True, slots=True)
class Match:
    """An ONNX tensor that holds a TensorFlow tensor, its axes in another order."""

    tensor: str
    tf: str  # node:index
    axes: tuple[int, ...]  # the ONNX tensor is the other one, transposed by these

    def to_onnx(self, value: Array, shape: tuple[int, ...] | None = None) -> Array:
        """TensorFlow's value as it lies in ONNX; ``shape`` when axes of size 1 come or go."""
        moved: Array = value.transpose(self.axes)
        return moved.reshape(shape) if shape is not None and math.prod(shape) == moved.size else moved

    def to_tf(self, value: Array, shape: tuple[int, ...]) -> Array:
        """The value of the ONNX tensor as it would lie in TensorFlow, where it has this shape."""
        if value.size != math.prod(shape):
            return value
        moved = value.reshape([shape[axis] for axis in self.axes])
        return moved.transpose(np.argsort(self.axes))


def named_after(name: str) -> tuple[str, int]:
    """The TensorFlow op, and the index of its output, that a name of ONNX tells of."""
    name = name.removesuffix("/half")
    if marker := _MARKER.fullmatch(name):
        return marker[1], int(marker[2])
    index = _INDEX.search(name)
    name = name[: index.start()] if index else name
    plain = _COUNTER.sub("", name)
    return plain, int(index[1]) if index and plain == name else 0


def rounded_for_reader(inner: Inner) -> set[str]:
    """Tensors that only hold what another holds, rounded to what the layer that reads them computes in."""
    found: set[str] = set()
    for node in inner.nodes:
        dynamic = node.inputs and (node.inputs[0] in inner.maker or node.inputs[0] in inner.inputs)
        rounds = node.op in ("QuantizeLinear", "DequantizeLinear") or node.into
        if dynamic and (rounds or (node.op in _MOVES and node.inputs[0] in found)):
            found |= set(node.outputs)
    return found - set(inner.outputs)


def guesses(inner: Inner, seen: Mapping[str, Array], values: Mapping[str, Array]) -> Iterator[Match]:
    """For ONNX tensors whose names tell of a TensorFlow tensor that may have their shape: the likeliest match.

    Where several are named after one, the last is meant, and those that it only moves; the others are steps on the way.

    Args:
        inner: the island.
        seen: values of the ONNX tensors, maybe wrong ones.
        values: TensorFlow's.
    """
    found = list(_named(inner, seen, values))
    last = {match.tf: match.tensor for match in found}
    meant = {name for tensor in last.values() for name in _moved_from(inner, tensor)}
    return (match for match in found if match.tensor in meant)


def _moved_from(inner: Inner, tensor: str) -> Iterator[str]:
    """A tensor, and those that it is a copy of, its axes or its type changed."""
    while tensor in inner.maker:
        yield tensor
        node = inner.maker[tensor]
        tensor = node.inputs[0] if node.op in _COPIES and node.inputs else ""


def _named(inner: Inner, seen: Mapping[str, Array], values: Mapping[str, Array]) -> Iterator[Match]:
    skip = rounded_for_reader(inner) | set(inner.outputs)
    axes_of: dict[str, tuple[int, ...]] = {}
    for tensor in inner.tensors:
        op, index = named_after(tensor)
        tf = f"{op}:{index}"
        if tensor in skip or tf not in values or is_float(values[tf]) != is_float(seen[tensor]):
            continue
        fitting = [axes for axes in usual_axes(values[tf].ndim) if _fits(values[tf], axes, seen[tensor].shape)]
        if not is_float(values[tf]):
            # Whole numbers become shapes and indices, which nobody can run with when they are not right.
            fitting = [axes for axes in fitting if np.array_equal(values[tf].transpose(axes), seen[tensor])]
        if fitting:
            axes = _likeliest(fitting, values[tf], seen[tensor], _inherited(inner, tensor, axes_of))
            axes_of[tensor] = axes
            yield Match(tensor, tf, axes)


def usual_axes(rank: int) -> list[tuple[int, ...]]:
    """Orders of axes that TensorFlow and ONNX differ by: none, channels moved to the front or to the back."""
    plain = tuple(range(rank))
    if rank < 3:
        return [plain]
    return list(dict.fromkeys([plain, (0, rank - 1, *plain[1:-1]), (0, *plain[2:], 1)]))


def any_axes(value: Array, shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Every order of axes in which a value may take a shape; axes of size 1 may come or go."""
    slim = [size for size in shape if size != 1]
    orders = itertools.permutations(range(value.ndim)) if value.ndim <= 4 else [tuple(range(value.ndim))]
    return [axes for axes in orders if [value.shape[axis] for axis in axes if value.shape[axis] != 1] == slim]


def _fits(value: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return tuple(value.shape[axis] for axis in axes) == shape


def _likeliest(fitting: list[tuple[int, ...]], want: Array, got: Array, inherited: tuple[int, ...]) -> tuple[int, ...]:
    """The order that makes the values equal; else that of the tensors before."""
    if len(fitting) == 1:
        return fitting[0]
    errors = {axes: _distance(want.transpose(axes), got) for axes in fitting}
    best = min(fitting, key=lambda axes: errors[axes])
    if inherited in errors and errors[best] > 0.5 * errors[inherited]:
        return inherited
    return best


def _distance(want: Array, got: Array) -> float:
    with np.errstate(all="ignore"):
        found = float(np.linalg.norm(np.subtract(want, got, dtype=np.float64)))
    return found if np.isfinite(found) else np.inf


def _inherited(inner: Inner, tensor: str, known: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The order of axes that a tensor has if every node before it but Transpose keeps the order of its operand."""
    moves: list[tuple[int, ...]] = []
    node: Node | None = inner.maker[tensor]
    while node is not None:
        if node.op == "Transpose":
            moves.append(node.axes)
        source = next((name for name in node.inputs if name in known), "")
        if source:
            return _composed(known[source], moves)
        before = next((name for name in node.inputs if name in inner.maker or name in inner.inputs), "")
        node = inner.maker.get(before)
    return _composed(tuple(range(len(moves[0]))), moves) if moves else ()


def _composed(axes: tuple[int, ...], moves: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    for move in reversed(moves):
        if len(move) != len(axes):
            return ()
        axes = tuple(axes[place] for place in move)
    return axes
