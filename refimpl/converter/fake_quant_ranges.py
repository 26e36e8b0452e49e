"""The ranges of fake-quantization ops, where they are constant, and the int8 step that each of them becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from refimpl.artifacts import Array
from refimpl.converter import graphdefs as gd
from refimpl.converter.constants import LoweringGraph
from refimpl.converter.fake_quant_exact import ARGS, CHANNELS, FAKE_QUANTS, V3, attribute, integers, op_dtype

_MIDDLE = 128  # the unsigned level that is zero when levels are int8 levels


@dataclass(frozen=True)
class Range:
    """The range of one op as its kernel takes it: float32 scalars, or one per channel."""

    low: Array
    high: Array


@dataclass(frozen=True)
class Grid:
    """Int8 levels, float32; scalars or one per channel.

    Attributes:
        scale: the step from level to level.
        low, high: the lowest and the highest value that TensorFlow's op gives.
        own: whether TensorFlow's levels are these, so that clamping to low and high is all but what int8 does anyway.
    """

    scale: Array
    low: Array
    high: Array
    own: Array


def constant_ranges(lowering: LoweringGraph, nodes: Mapping[str, gd.NodeDef]) -> dict[str, Range]:
    """The range of every op that has a constant one."""
    wanted = {name: _tensors_of(node) for name, node in nodes.items()}
    wanted = {name: refs for name, refs in wanted.items() if all(is_constant(lowering, ref) for ref in refs)}
    values = evaluate(lowering, [ref for refs in wanted.values() for ref in refs])
    return {name: _range(nodes[name], [values[ref] for ref in refs]) for name, refs in wanted.items()}


def _tensors_of(node: gd.NodeDef) -> list[str]:
    """The tensors that an op's range depends on."""
    if node.op == ARGS:
        return []
    given = node.op in FAKE_QUANTS or attribute(node, "range_given").b
    return [*(node.input[1:3] if given else node.input[:1]), *(node.input[3:4] if node.op == V3 else [])]


def _range(node: gd.NodeDef, values: Sequence[Array]) -> Range:
    if node.op == ARGS:
        values = [attribute(node, "min").f, attribute(node, "max").f]
    if node.op in FAKE_QUANTS or attribute(node, "range_given").b:
        return Range(np.asarray(values[0], np.float32), np.asarray(values[1], np.float32))
    axis = attribute(node, "axis").i
    others = None if axis < 0 else tuple(index for index in range(values[0].ndim) if index != axis)
    low, high = values[0].min(axis=others), values[0].max(axis=others)
    return Range(np.asarray(low, np.float32), np.asarray(high, np.float32))


def why_not_int8(lowering: LoweringGraph, node: gd.NodeDef, found: Range | None) -> str:
    """Why an op cannot be an int8 pair, "" when it can; ``found`` is its range, None when that is not constant."""
    if found is None:
        return f"the range of {node.op} is computed at every call, so there is no scale to fix"
    if op_dtype(node) != tf.float32:
        return f"{node.op} computes in {op_dtype(node).name}"
    if (bits := _bits(lowering, node)) != 8:
        return f"{node.op} has {bits} bits, and INT8 has 8"
    if by_channel(node) and not is_constant(lowering, node.input[0]):
        return f"{node.op} has a range per channel on an activation, and TensorRT takes one per tensor there"
    sane = np.isfinite(found.low) & np.isfinite(found.high) & (found.low <= found.high)
    if not sane.all() or not np.isfinite(scale := int8_grid(node, found).scale).all() or not (scale > 0).all():
        return f"the range of {node.op} makes no sense: min {found.low.min()}, max {found.high.max()}"
    return ""


def _bits(lowering: LoweringGraph, node: gd.NodeDef) -> int:
    if node.op != V3:
        return int(attribute(node, "num_bits").i)
    return int(evaluate(lowering, [node.input[3]])[node.input[3]])


def by_channel(node: gd.NodeDef) -> bool:
    """Whether an op has a range for each channel."""
    return bool(node.op == CHANNELS if node.op in FAKE_QUANTS else attribute(node, "axis").i >= 0)


def channel_axis(node: gd.NodeDef, value: Array | None) -> int | None:
    """The axis of the channels in the constant that is quantized; None when all of it has one range."""
    if value is None or not by_channel(node):
        return None
    return value.ndim - 1 if node.op == CHANNELS else int(attribute(node, "axis").i)


def int8_grid(node: gd.NodeDef, found: Range) -> Grid:
    """The int8 levels of an op; every operation in float32 and in the order of TensorFlow's kernels.

    A range from zero to zero gives zero in TensorFlow; its step may be anything that is positive.
    """
    with np.errstate(all="ignore"):
        grid = (_fake_quant_grid if node.op in FAKE_QUANTS else _quantize_dequantize_grid)(node, found.low, found.high)
    nothing = (found.low == 0) & (found.high == 0)
    step = np.where(nothing, np.finfo(np.float32).tiny, grid.scale)
    low, high = (np.asarray(np.where(nothing, 0, bound), np.float32) for bound in (grid.low, grid.high))
    return Grid(np.asarray(step, np.float32), low, high, grid.own & ~nothing)


def _fake_quant_grid(node: gd.NodeDef, low: Array, high: Array) -> Grid:
    low, high = (  # the kernel moves a range that does not hold zero until it does
        np.where(low > 0, 0, np.where(high < 0, low - high, low)).astype(np.float32),
        np.where(low > 0, high - low, np.where(high < 0, 0, high)).astype(np.float32),
    )
    first, last = np.float32(attribute(node, "narrow_range").b), np.float32(255)
    step = (high - low) / (last - first)
    zero = np.floor(np.clip(first - low / step, first, last) + np.float32(0.5))
    own = zero == _MIDDLE
    return Grid(np.where(own, step, _tensorrt_step(low, high)), (first - zero) * step, (last - zero) * step, own)


def _quantize_dequantize_grid(node: gd.NodeDef, low: Array, high: Array) -> Grid:
    if not attribute(node, "signed_input").b:
        low = np.zeros_like(low) if attribute(node, "range_given").b else low  # data are not clamped to their own range
        return Grid(_tensorrt_step(low, high), low, high, np.zeros(low.shape, bool))
    first, last = (np.float32(level) for level in integers(8, True, attribute(node, "narrow_range").b))
    most = np.finfo(np.float32).max
    from_low, from_high = np.where(first * low > 0, first / low, most), np.where(last * high > 0, last / high, most)
    step = np.where(from_low < from_high, low / first, high / last)
    return Grid(step, first * step, last * step, np.ones(low.shape, bool))


def _tensorrt_step(low: Array, high: Array) -> Array:
    return np.asarray(np.maximum(np.abs(low), np.abs(high)) / np.float32(127))


def is_constant(lowering: LoweringGraph, tensor: str) -> bool:
    """Whether a tensor is the same at every call."""
    return gd.parse_ref(tensor).node in lowering.constant


def read_by(lowering: LoweringGraph, ops: Sequence[str]) -> set[str]:
    """The ops, and the constants that they read, directly or through other constants."""
    by_name = {node.name: node for node in lowering.order}
    seen, stack = set(), list(ops)
    while stack:
        if (name := stack.pop()) not in seen:
            seen.add(name)
            stack += [ref.node for ref in gd.data_inputs(by_name[name]) if ref.node in lowering.constant]
    return seen


def evaluate(lowering: LoweringGraph, tensors: Sequence[str]) -> dict[str, Array]:
    """The values of constant tensors, by TensorFlow itself where one is computed from others."""
    found = {tensor: _stored(lowering, tensor) for tensor in tensors}
    computed = {tensor: gd.parse_ref(tensor) for tensor, value in found.items() if value is None}
    if computed:
        nodes = {node.name: node for body in lowering.bodies.values() for node in body}
        kept = [nodes[name] for name in gd.reachable(nodes, {ref.node for ref in computed.values()})]
        graph_def = gd.new_graph_def(node=kept, versions=lowering.versions)
        graph_def.library.function.extend(gd.functions_of(kept, lowering.library).values())
        for node in graph_def.node:
            node.device = ""
        graph = tf.Graph()
        with graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
        feeds = {f"{node.name}:0": lowering.weights[node.name] for node in kept if node.name in lowering.weights}
        with tf.compat.v1.Session(graph=graph) as session:
            values = session.run([ref.tensor for ref in computed.values()], feeds)
        found.update(zip(computed, values, strict=True))
    return {tensor: np.asarray(value) for tensor, value in found.items()}


def _stored(lowering: LoweringGraph, tensor: str) -> Array | None:
    """The value of a constant that stands in the graph, be it behind an Identity; None for a computed one."""
    name = gd.parse_ref(tensor).node
    while name in lowering.bodies:
        node = lowering.bodies[name][-1]
        if node.op == "Const":
            return tf.make_ndarray(node.attr["value"].tensor)  # type: ignore[no-any-return]
        if node.op != "Identity":
            return None
        name = gd.data_inputs(node)[0].node
    return lowering.weights.get(name)
