"""What a chain of element-wise ops computes: a polynomial over a few tensors, whatever the spelling."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.converter.precision.graph_view import View

Float64 = npt.NDArray[np.float64]
Poly = Mapping[tuple[str, ...], Float64]  # monomial, its symbols sorted -> coefficient; () is the constant term
_LARGE = 4  # no more terms and no higher degree than what is looked for can pass through


def constant(view: View, tensor: str) -> Float64 | None:
    """The value of a float32 constant."""
    value = view.constant(tensor) if view.is_constant(tensor) else None
    return value.astype(np.float64) if value is not None and value.dtype == np.float32 else None


def scalar(view: View, tensor: str) -> float:
    """The value of a constant without dimensions (any could widen what it meets); NaN for everything else."""
    value = constant(view, tensor)
    return float(value) if value is not None and value.ndim == 0 else math.nan


def _sum(a: Poly, b: Poly, sign: float = 1.0) -> Poly:
    total = dict(a)
    for key, value in b.items():
        total[key] = total[key] + sign * value if key in total else sign * value
    return total


def _product(a: Poly, b: Poly) -> Poly:
    total: Poly = {}
    for left, p in a.items():
        for right, q in b.items():
            total = _sum(total, {tuple(sorted(left + right)): p * q})
    return total


def _div(a: Poly, b: Poly) -> Poly | None:
    if _is_symbol(b, "s"):
        return _product(a, _symbol("r"))
    if list(b) == [()] and np.all(b[()] != 0):
        return {key: value / b[()] for key, value in a.items()}
    return None


def _pow(a: Poly, b: Poly) -> Poly | None:
    exponent = float(b[()]) if list(b) == [()] and b[()].ndim == 0 else math.nan
    if exponent not in (2.0, 3.0):
        return None
    return _product(a, a) if exponent == 2 else _product(a, _product(a, a))


def _symbol(name: str) -> Poly:
    return {(name,): np.array(1.0)}


def _is_symbol(a: Poly, name: str) -> bool:
    return list(a) == [(name,)] and bool(np.all(a[name,] == 1))


_RULES: Mapping[str, Callable[..., Poly | None]] = {
    "Neg": lambda a: _product(a, {(): np.array(-1.0)}),
    "Add": _sum,
    "Sub": lambda a, b: _sum(a, b, -1.0),
    "Mul": _product,
    "Div": _div,
    "Pow": _pow,
    "Reciprocal": lambda a: _symbol("r") if _is_symbol(a, "s") else None,
}


def _apply(view: View, node: onnx.NodeProto, known: Mapping[str, Poly]) -> Poly | None:
    """What a node makes of polynomials; None when that is no polynomial, or too large a one."""
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return None
    args: list[Poly] = []
    for name in node.input:
        if name in known:
            args.append(known[name])
        elif (value := constant(view, name)) is not None:
            args.append({(): value})
        else:
            return None
    made = rule(*args)
    if made is None or len(made) > _LARGE or any(len(key) > _LARGE for key in made):
        return None
    return made


def follow(view: View, seeds: Mapping[str, str]) -> dict[int, Poly]:
    """Polynomials of all tensors that can be computed from the seeds.

    Args:
        view: the graph.
        seeds: tensor -> the symbol that it is. ``s`` is special: it stands for 1/r.

    Returns:
        Position of a node -> what it computes, in graph order.
    """
    known: dict[str, Poly] = {tensor: _symbol(symbol) for tensor, symbol in seeds.items()}
    waiting = [read.node for tensor in seeds for read in view.readers.get(tensor, ())]
    heapq.heapify(waiting)
    found: dict[int, Poly] = {}
    while waiting:
        index = heapq.heappop(waiting)
        node = view.nodes[index]
        if index in found or node.output[0] in seeds or (made := _apply(view, node, known)) is None:
            continue
        known[node.output[0]] = found[index] = made
        for read in view.readers.get(node.output[0], ()):
            heapq.heappush(waiting, read.node)
    return found


def between(view: View, x: str, out: int) -> frozenset[int] | None:
    """The nodes from x to ``out``, constants left out; None if anything else reads what they compute on the way."""
    inside, stack = {out}, [out]
    while stack:
        for name in view.nodes[stack.pop()].input:
            index = view.producer.get(name)
            if name and name != x and index is not None and index not in inside and not view.is_constant(name):
                inside.add(index)
                stack.append(index)
    for index in inside - {out}:
        for name in view.nodes[index].output:
            if name in view.outputs or name in view.captured:
                return None
            if any(read.node not in inside for read in view.readers.get(name, ())):
                return None
    return frozenset(inside)
