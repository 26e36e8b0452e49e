"""Normalisations and GELUs among primitive ops; what they become is told in :mod:`refimpl.converter.precision.fuse`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from refimpl.converter.precision.chains import Float64, Poly, between, follow, scalar
from refimpl.converter.precision.graph_view import Dim, View, attribute

_CLOSE = 1e-6  # relative; a GELU's constants may be rounded to float32, or written down with seven digits


@dataclass(frozen=True)
class Match:
    """A chain of nodes and the op that it spells out."""

    op: str
    x: str
    out: int  # position of the node whose output the op takes over
    inside: frozenset[int]  # positions of the nodes that it replaces, ``out`` among them
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scale: Float64 | None = None  # in the shape that the op wants
    bias: Float64 | None = None
    perm: tuple[int, ...] = ()  # transpose x by it, and the result back
    gamma: Float64 | None = None  # multiplied and added afterwards, in the shape that x broadcasts with
    beta: Float64 | None = None


# Normalisations.


@dataclass(frozen=True)
class _Moments:
    """sqrt(mean(d * d) + epsilon), with d = x - m (a variance) or d = x (a mean of squares)."""

    x: str
    mean: str  # name of the tensor m; "" for a mean of squares
    axes: tuple[int, ...]  # sorted, not negative
    epsilon: float


def _normalisation(view: View, index: int) -> Match | None:
    """A normalisation, found at its Sqrt."""
    for moments in _moments(view, view.nodes[index]):
        seeds = {moments.x: "x", view.nodes[index].output[0]: "s"}
        if moments.mean:
            seeds[moments.mean] = "m"
        for out, poly in reversed(follow(view, seeds).items()):
            affine = _affine(poly, moments)
            inside = between(view, moments.x, out) if affine else None
            if affine and inside and (match := _norm_match(view, moments, affine, out, inside)):
                return match
    return None


def _moments(view: View, root: onnx.NodeProto) -> list[_Moments]:
    """What a Sqrt takes the root of: as a variance of x and, else, as a mean of squares of d; empty if neither."""
    shifted = view.maker(root.input[0])
    if shifted is None or shifted.op_type != "Add":
        return []
    for mean, constant in (shifted.input, reversed(shifted.input)):
        epsilon = scalar(view, constant)
        reduce = view.maker(mean)
        if reduce is None or not 0 < epsilon < math.inf:
            continue
        square = view.maker(reduce.input[0])
        if square is None or not _is_square(view, square) or not (axes := _axes(view, reduce)):
            continue
        found = [_Moments(square.input[0], "", axes, epsilon)]
        centred = view.maker(square.input[0])
        if centred is not None and centred.op_type == "Sub":
            for x, m in (centred.input, reversed(centred.input)):
                average = view.maker(m)
                if average is not None and average.input[0] == x and _axes(view, average) == axes:
                    found.insert(0, _Moments(x, m, axes, epsilon))
        return found
    return []


def _is_square(view: View, node: onnx.NodeProto) -> bool:
    if node.op_type == "Pow":
        return scalar(view, node.input[1]) == 2
    return node.op_type == "Mul" and node.input[0] == node.input[1]


def _axes(view: View, node: onnx.NodeProto) -> tuple[int, ...]:
    """The axes of a ReduceMean that keeps them; () for any other node, or where they are not known."""
    if node.op_type != "ReduceMean" or len(node.input) != 2 or attribute(node, "keepdims", 1) != 1:
        return ()
    shape = view.shapes.get(node.input[0])
    if not shape or not view.is_constant(node.input[1]):
        return ()
    return tuple(sorted({int(axis) % len(shape) for axis in view.constant(node.input[1]).reshape(-1)}))


def _affine(poly: Poly, moments: _Moments) -> tuple[Float64, Float64] | None:
    """What g and b are when a tensor is g·(x - m)·r + b, exactly in float32."""
    rest = dict(poly)
    gamma, beta = rest.pop(("r", "x"), None), rest.pop((), np.zeros(()))
    if gamma is None:
        return None
    if moments.mean:
        shift = rest.pop(("m", "r"), None)
        if shift is None or shift.shape != gamma.shape or not np.array_equal(gamma, -shift):
            return None
    with np.errstate(over="ignore"):
        exact = all(np.array_equal(value.astype(np.float32), value) for value in (gamma, beta))
    return (gamma, beta) if exact and not rest else None


def _norm_match(
    view: View, moments: _Moments, affine: tuple[Float64, Float64], out: int, inside: frozenset[int]
) -> Match | None:
    shape, axes = view.shapes.get(moments.x, ()), moments.axes
    kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
    perm = (*kept, *axes) if kept + axes != tuple(range(len(shape))) else ()
    if not all(_spreads(value, shape) for value in affine):
        return None
    gamma, beta = (value.reshape((1,) * (len(shape) - value.ndim) + value.shape) for value in affine)
    scale, bias = (_over(value, axes, shape) for value in (gamma, beta))
    make = functools.partial(Match, x=moments.x, out=out, inside=inside, perm=perm)
    attributes: dict[str, Any] = {"axis": -len(axes), "epsilon": moments.epsilon}
    if not moments.mean:
        if scale is None or np.any(beta):  # without the step that adds, it is one
            return None
        return make("RMSNormalization", attributes=attributes, scale=scale)
    if scale is not None:
        later = beta if bias is None else None
        return make("LayerNormalization", attributes=attributes, scale=scale, bias=_unless(bias, 0), beta=later)
    ones, channels = _over(np.ones((1,) * len(shape)), axes, shape), shape[kept[-1]] if kept else None
    if len(kept) == 2 and kept[0] == 0 and isinstance(channels, int):
        attributes = {"epsilon": moments.epsilon}
        made = make("InstanceNormalization", attributes=attributes, scale=np.ones(channels), bias=np.zeros(channels))
    elif ones is not None:
        made = make("LayerNormalization", attributes=attributes, scale=ones)
    else:
        return None
    return replace(made, gamma=_unless(gamma, 1), beta=_unless(beta, 0))


def _spreads(value: Float64, shape: Sequence[Dim]) -> bool:
    """Whether a constant broadcasts to a shape without changing it."""
    return value.ndim <= len(shape) and all(
        size in (1, wanted) for size, wanted in zip(reversed(value.shape), reversed(shape), strict=False)
    )


def _over(value: Float64, axes: Sequence[int], shape: Sequence[Dim]) -> Float64 | None:
    """A constant of full rank over these axes only; None if it differs along others or a size is open."""
    sizes = [size for size in (shape[axis] for axis in axes) if isinstance(size, int)]
    if len(sizes) < len(axes) or value.size != math.prod(value.shape[axis] for axis in axes):
        return None
    return np.broadcast_to(value.reshape([value.shape[axis] for axis in axes]), sizes)


def _unless(value: Float64 | None, idle: float) -> Float64 | None:
    return value if value is not None and np.any(value != idle) else None


# GELU.


def _gelu(view: View, index: int) -> Match | None:
    """A GELU, found at its Erf or Tanh."""
    node = view.nodes[index]
    tanh = node.op_type == "Tanh"
    for x in _sources(view, node.input[0]):
        found = follow(view, {x: "x", node.output[0]: "t"})
        if x == node.input[0] or view.producer[node.input[0]] not in found:
            continue
        sign = _gelu_sign(found[view.producer[node.input[0]]], tanh=tanh)
        for out, poly in reversed(found.items()):
            values = {key: float(value.reshape(())) for key, value in poly.items() if value.ndim == 0}
            if sign and values == {("x",): 0.5, ("t", "x"): 0.5 * sign} and len(poly) == 2:
                inside = between(view, x, out)
                if inside:
                    return Match("Gelu", x, out, inside, {"approximate": "tanh" if tanh else "none"})
    return None


def _sources(view: View, tensor: str) -> list[str]:
    """Tensors a few steps of arithmetic before a tensor, the nearest first."""
    found, level = [tensor], [tensor]
    for _ in range(6):
        makers = [view.maker(name) for name in level]
        level = list(
            dict.fromkeys(
                name
                for maker in makers
                if maker is not None and maker.op_type in ("Neg", "Add", "Sub", "Mul", "Div", "Pow")
                for name in maker.input
                if name not in found and not view.is_constant(name)
            )
        )
        found += level
    return found


def _gelu_sign(poly: Poly, *, tanh: bool) -> int:
    """The sign of x in erf(±x/√2) or tanh(±√(2/π)·(x + 0.044715·x³)); 0 when it is another function of x."""
    outer = math.sqrt(2 / math.pi)
    want = {("x",): outer, ("x", "x", "x"): outer * 0.044715} if tanh else {("x",): math.sqrt(0.5)}
    if poly.keys() != want.keys() or any(value.ndim for value in poly.values()):
        return 0
    for sign in (1, -1):
        if all(abs(float(poly[key]) - sign * value) <= _CLOSE * value for key, value in want.items()):
            return sign
    return 0


FINDERS: Mapping[str, Callable[[View, int], Match | None]] = {"Sqrt": _normalisation, "Erf": _gelu, "Tanh": _gelu}
