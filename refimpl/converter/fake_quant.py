"""INT8 from a quantization-aware model: its fake-quantization ops as int8 QuantizeLinear and DequantizeLinear.

Every op with a constant range becomes one pair with zero point 0, the only kind that TensorRT runs, on weights and on
activations alike. The step is TensorFlow's own where TensorFlow's levels are int8 levels around zero (a signed
QuantizeAndDequantize; a fake-quant whose zero is nudged to the middle): the pair then gives TensorFlow's values, but
for one step where an activation of narrow range saturates at -128, not at -127.
Elsewhere (0 to 6, say) it is TensorRT's max(|min|, |max|) / 127, at most twice as coarse, behind a Clip where
int8 would let values pass that TensorFlow clamps.

Before :func:`with_quantizers` the ops are spelled exactly in float ops (``fake_quant_exact``), and so are those that
cannot be INT8 (:func:`not_int8`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import tensorflow as tf

from refimpl.artifacts import Array
from refimpl.converter import graphdefs as gd
from refimpl.converter.constants import WEIGHT
from refimpl.converter.fake_quant_exact import TYPES
from refimpl.converter.fake_quant_ranges import (
    Grid,
    channel_axis,
    constant_ranges,
    evaluate,
    int8_grid,
    is_constant,
    read_by,
    why_not_int8,
)
from refimpl.errors import InternalError

if TYPE_CHECKING:  # lower imports this module
    from refimpl.converter.lower import OpGraph

# Any op that has its input's shape and dtype and no lowering in tf2onnx, which then leaves it alone.
_STAND_IN = "FakeQuantWithMinMaxArgsGradient"
# ONNX ops that give int8 levels when they are given int8 levels of the same scale (zero point 0).
_COMMUTING = frozenset(
    "Transpose Reshape Flatten Squeeze Unsqueeze Identity Relu MaxPool GlobalMaxPool Slice DepthToSpace".split()
)
_WEIGHTED = frozenset(["Conv", "ConvTranspose", "MatMul", "Gemm"])


@dataclass(frozen=True)
class Quantizer:
    """One fake-quantization op as INT8."""

    op: str
    scale: Array  # float32; a scalar, or one per channel
    axis: int | None  # of the channels; None when the scale is a scalar
    clip: tuple[Array, Array] | None  # float32 bounds of what is quantized, where int8 itself would let more pass


def has_ranges(graph: OpGraph) -> bool:
    """Whether the signature has any fake-quantization op, on weights or on activations."""
    return any(node.op in TYPES for node in graph.nodes.values())


def ranges(graph: OpGraph) -> dict[str, tuple[float, float]]:
    """TensorFlow tensor -> (min, max), as the model has them, for every fake-quantization op with a constant range.

    The widest channel's where there is one per channel.
    """
    return {
        f"{name}:0": (float(found.low.min()), float(found.high.max()))
        for name, found in constant_ranges(graph.lowering, _fake_quants(graph)).items()
        if found.low.size
    }


def not_int8(graph: OpGraph) -> dict[str, str]:
    """Fake-quantization op -> why it cannot be INT8 and stays in float arithmetic; those that can are left out."""
    nodes = _fake_quants(graph)
    found = constant_ranges(graph.lowering, nodes)
    reasons = {name: why_not_int8(graph.lowering, node, found.get(name)) for name, node in nodes.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def with_quantizers(graph: OpGraph, ops: Sequence[str]) -> tuple[OpGraph, dict[str, Quantizer]]:
    """The graph to lower for INT8: a stand-in for every op that can be INT8, to be replaced by :func:`place`.

    What is quantized and constant becomes a hollow weight, or lowering would compute the pair away.

    Args:
        graph: the whole signature.
        ops: names of the ops that will be lowered; only their fake-quantization ops, and those of the constants that
            they read, are looked at.
    """
    lowering = graph.lowering
    nodes = {name: graph.nodes[name] for name in read_by(lowering, ops) if graph.nodes[name].op in TYPES}
    found = constant_ranges(lowering, nodes)
    usable = {name: node for name, node in nodes.items() if not why_not_int8(lowering, node, found.get(name))}
    values = evaluate(lowering, [node.input[0] for node in usable.values() if is_constant(lowering, node.input[0])])
    bodies, weights = dict(lowering.bodies), dict(lowering.weights)
    quantizers = {}
    for name, node in usable.items():
        grid, value = int8_grid(node, found[name]), values.get(node.input[0])
        axis, clip = channel_axis(node, value), None
        if value is not None:
            weights[WEIGHT + name] = _clamped(value, grid, axis)
        elif not grid.own.all() and not (grid.low == 0 < grid.high and _never_negative(graph, node)):
            clip = (grid.low, grid.high)
        bodies[name] = _stand_in(node, value)
        quantizers[name] = Quantizer(name, grid.scale, axis, clip)
    return replace(graph, lowering=replace(lowering, bodies=bodies, weights=weights)), quantizers


def _clamped(value: Array, grid: Grid, axis: int | None) -> Array:
    shape = [-1 if index == axis else 1 for index in range(value.ndim)]
    low, high = (bound if axis is None else bound.reshape(shape) for bound in (grid.low, grid.high))
    return np.asarray(np.clip(value, low, high), np.float32)


def _never_negative(graph: OpGraph, node: gd.NodeDef) -> bool:
    """The usual range of an activation: from zero, behind a ReLU. Int8 saturates at its upper end by itself."""
    source = graph.nodes[gd.parse_ref(node.input[0]).node]
    return source.op in ("Relu", "Relu6")


def _stand_in(node: gd.NodeDef, value: Array | None) -> tuple[gd.NodeDef, ...]:
    if value is None:
        return (gd.make_node(node.name, _STAND_IN, [node.input[0]] * 2),)
    hollow = gd.make_node(WEIGHT + node.name, "Placeholder", [], dtype=gd.type_attr(tf.float32.as_datatype_enum))
    for size in value.shape:
        hollow.attr["shape"].shape.dim.add(size=size)
    hollow.attr["shape"].shape.SetInParent()
    return (hollow, gd.make_node(node.name, _STAND_IN, [hollow.name] * 2))


def place(model: onnx.ModelProto, quantizers: Mapping[str, Quantizer]) -> None:
    """Put a pair in the place of every stand-in, in place.

    Not before tf2onnx is done: it takes what lies behind a pair for a constant whose layout it may change.

    Raises:
        InternalError: a stand-in is lost.
    """
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    missing = set(quantizers)
    for node in graph.node:
        if node.op_type == _STAND_IN:
            missing.discard(node.name)
            nodes += _pair(graph, node, quantizers[node.name])
        else:
            nodes.append(node)
    if missing:
        raise InternalError(f"lowering lost the quantization of {sorted(missing)}")
    graph.ClearField("node")
    graph.node.extend(nodes)


def _pair(graph: onnx.GraphProto, node: onnx.NodeProto, found: Quantizer) -> list[onnx.NodeProto]:
    scale, zero, levels = f"{node.name}/scale", f"{node.name}/zero_point", f"{node.name}/levels"
    graph.initializer.append(onnx.numpy_helper.from_array(found.scale, scale))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(found.scale.shape, np.int8), zero))
    source, made = node.input[0], []
    if found.clip is not None:
        bounds = [f"{node.name}/low", f"{node.name}/high"]
        graph.initializer.extend(map(onnx.numpy_helper.from_array, found.clip, bounds))
        made.append(onnx.helper.make_node("Clip", [source, *bounds], [f"{node.name}/clipped"], f"{node.name}/clip"))
        source = f"{node.name}/clipped"
    into = onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [levels], f"{node.name}/quantize")
    out = onnx.helper.make_node("DequantizeLinear", [levels, scale, zero], node.output, f"{node.name}/dequantize")
    if found.axis is not None:
        for item in (into, out):
            item.attribute.append(onnx.helper.make_attribute("axis", found.axis))
    return [*made, into, out]


def _fake_quants(graph: OpGraph) -> dict[str, gd.NodeDef]:
    return {name: node for name, node in graph.nodes.items() if node.op in TYPES}


def tidy_pairs(model: onnx.ModelProto) -> int:
    """Bring pairs into the form that engines know, in place, after ONNX Runtime's BASIC optimizations.

    Where those move a Transpose, they may put a second pair behind it, which quantizes to the levels that its input has
    already; and they give every consumer of a DequantizeLinear one of its own. Both are undone. Int8 weights get the
    layout of their layer, so that nothing stands between them and it but the DequantizeLinear.

    Returns:
        How many nodes were dropped.
    """
    graph = model.graph
    before = len(graph.node)
    kept = {item.name for item in [*graph.output, *graph.input]}
    first: dict[tuple[str, ...], str] = {}
    for node in [item for item in graph.node if item.op_type == "DequantizeLinear"]:
        original = first.setdefault((*node.input, *(str(item) for item in node.attribute)), node.output[0])
        if original != node.output[0] and node.output[0] not in kept:
            graph.node.remove(node)
            _rename(graph, node.output[0], original)
    while (found := next(_repeats(graph, kept), None)) is not None:
        into, out = found
        graph.node.remove(into)
        graph.node.remove(out)
        _rename(graph, into.input[0], out.output[0])
    for node in [item for item in graph.node if item.op_type == "DequantizeLinear"]:
        _lay_out(graph, node)
    return before - len(graph.node)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _repeats(graph: onnx.GraphProto, kept: Collection[str]) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    makers = {name: node for node in graph.node for name in node.output}
    fixed = {item.name: item.SerializeToString() for item in graph.initializer}
    read = [name for node in graph.node for name in node.input]
    for out in graph.node:
        into = makers.get(out.input[0]) if out.op_type == "DequantizeLinear" else None
        if into is None or into.op_type != "QuantizeLinear" or read.count(into.output[0]) != 1:
            continue
        before = makers.get(_behind(makers, into.input[0]))
        if into.input[0] in kept or before is None or before.op_type != "DequantizeLinear":
            continue
        if list(map(fixed.get, before.input[1:])) == list(map(fixed.get, into.input[1:])):
            yield into, out


def _lay_out(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Do to int8 weights what a Transpose and a Reshape behind their DequantizeLinear do, and drop these."""
    fixed = {item.name: item for item in graph.initializer if item.data_location != onnx.TensorProto.EXTERNAL}
    if not all(name in fixed for name in node.input):
        return
    value, scale = (onnx.numpy_helper.to_array(fixed[name]) for name in node.input[:2])
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1) if scale.ndim else 0
    channel = np.zeros(value.shape, np.int64)  # which channel every element belongs to
    if scale.ndim:
        channel += np.arange(scale.size).reshape([-1 if index == axis else 1 for index in range(value.ndim)])
    output, dropped = node.output[0], []
    while len(readers := [item for item in graph.node if output in item.input]) == 1:
        change = _layout_change(readers[0], fixed)
        if change is None or output in {item.name for item in graph.output}:
            break
        value, channel, output = change(value), change(channel), readers[0].output[0]
        dropped.append(readers[0])
    axes = [index for index in range(value.ndim) if _runs_along(channel, index, scale.size)] if scale.ndim else [0]
    if not dropped or not axes:
        return
    for item in dropped:
        graph.node.remove(item)
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), f"{output}/levels"))
    node.input[0], node.output[0] = f"{output}/levels", output
    node.ClearField("attribute")
    if scale.ndim:
        node.attribute.append(onnx.helper.make_attribute("axis", axes[0]))
    read = {name for item in graph.node for name in item.input}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _layout_change(node: onnx.NodeProto, fixed: Mapping[str, onnx.TensorProto]) -> Callable[[Array], Array] | None:
    if node.op_type == "Transpose":
        perm = next((list(item.ints) for item in node.attribute if item.name == "perm"), None)
        return lambda array: np.transpose(array, perm)
    if node.op_type == "Reshape" and node.input[1] in fixed:
        shape = onnx.numpy_helper.to_array(fixed[node.input[1]])
        return None if (shape == 0).any() else lambda array: array.reshape(shape)
    return None


def _runs_along(channel: Array, axis: int, count: int) -> bool:
    rows = np.moveaxis(channel, axis, 0).reshape(channel.shape[axis], -1)
    return rows.shape[0] == count and bool((rows == np.arange(count)[:, None]).all())


def missing_ranges(model: onnx.ModelProto, weights: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """What an INT8 layer reads without a range.

    Args:
        model: an island that was lowered with ``quantized=True``, before or after optimization.
        weights: names of the model's inputs that are weights (none after optimization).

    Returns:
        (layer, tensor) for every Conv, ConvTranspose, MatMul and Gemm with constant weights and for each of its
        activation and weights that comes from no DequantizeLinear. The layer is the ONNX node's name, which is the
        TensorFlow op's where lowering kept it; the tensor is TensorFlow's where it is a cut, else ONNX's.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constant = {item.name for item in graph.initializer} | set(weights)
    for node in graph.node:  # in topological order
        if all(name in constant for name in node.input if name) and (node.input or node.op_type == "Constant"):
            constant.update(node.output)
    found: dict[tuple[str, str], None] = {}
    for node in graph.node:
        if node.op_type in _WEIGHTED and any(name in constant for name in node.input[:2]):
            for name in node.input[:2]:
                source = _behind(makers, name)
                if source not in makers or makers[source].op_type != "DequantizeLinear":
                    found[node.name or node.output[0], _tensorflow_name(source)] = None
    return tuple(found)


def _behind(makers: Mapping[str, onnx.NodeProto], name: str) -> str:
    """The tensor that this one has its levels from: past everything that commutes with quantization."""
    while (node := makers.get(name)) is not None and (node.op_type in _COMMUTING or _pads_with_zero(node)):
        name = node.input[0]
    return name


def _pads_with_zero(node: onnx.NodeProto) -> bool:
    mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"constant")
    return node.op_type == "Pad" and mode == b"constant" and len([name for name in node.input if name]) < 3


def _tensorflow_name(name: str) -> str:
    """``"mk/NODE/INDEX:0"`` is the cut ``"NODE:INDEX"``."""
    if not name.startswith("mk/"):
        return name
    node, index = name[len("mk/") :].rsplit(":", 1)[0].rsplit("/", 1)
    return f"{node}:{index}"
