"""One rewrite of one island: what each layer is to compute in, written into the ONNX."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from refimpl.artifacts import Array
from refimpl.converter.fake_quant import behind
from refimpl.converter.precision.assigned import Assigned
from refimpl.converter.precision.half import HEAVY, Half, to_half
from refimpl.converter.precision.opsets import with_opset
from refimpl.converter.precision.quantize import candidates, place

LEVELS = {"int8": ("fp16", "fp32"), "fp16": ("fp32",), "bf16": ("fp32",)}  # where a layer goes that does not stand it
_QUANTIZED = "it computes in int8"
_PAIRS = ("QuantizeLinear", "DequantizeLinear")  # they stand around layers and are none
# TensorRT for RTX 1.7 builds a quantized depthwise convolution, but the engine grows by three bytes for every element
# of its input, as no other layer does: MobileNetV2 from 14.5 MB in float32 to 41 MB, and to 10.2 MB without them.
_DEPTHWISE = "TensorRT for RTX takes depthwise convolutions in int8, but does not seem to run them so"
_QDQ_OPSET = 19  # onnx.reference has QuantizeLinear and DequantizeLinear of int8 from there on


@dataclass(frozen=True)
class Ranges:
    """What calibration saw of one island.

    Attributes:
        maxima: largest |x| of every float tensor, by ONNX name.
        thresholds: for int8, the |x| that quantization clips at, by ONNX name.
        own: the model brings its own ranges: it is quantized already, by Q/DQ pairs.
    """

    maxima: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    own: bool = False


@dataclass(frozen=True)
class Lift:
    """A layer that computes in more than was asked for, and why."""

    precision: str  # "fp16" or "fp32"
    reason: str


@dataclass(frozen=True)
class Rewritten:
    """An island in its new precision."""

    model: Any  # ModelProto
    layers: tuple[Assigned, ...]  # products, and whatever else was decided one by one
    lowered: tuple[str, ...]  # every node that computes in the precision asked for

    @property
    def changed(self) -> bool:
        return bool(self.lowered) or any(layer.precision != "fp32" for layer in self.layers)


def rewrite(model: Any, precision: str, ranges: Ranges, lifts: Mapping[str, Lift]) -> Rewritten:
    """Rewrite an island.

    Args:
        model: its ModelProto in float32, nodes named; for int8 from the model's own ranges, with Q/DQ in it already.
        precision: ``"fp16"``, ``"bf16"`` or ``"int8"``.
        ranges: what was seen at its tensors.
        lifts: layers, by node name, that are not to be in ``precision``.
    """
    if precision != "int8":
        half = to_half(model, precision, ranges.maxima, {name: lift.reason for name, lift in lifts.items()})
        return Rewritten(half.model, _layers(model, precision, half, {}), _chosen(half.layers))
    layers: Mapping[str, str]
    if ranges.own:
        quantized = _with_float_weights(with_opset(model, _QDQ_OPSET), lifts)
        layers = {**_own_layers(model), **{name: lift.reason for name, lift in lifts.items()}}
    else:
        keep = {item.node: _DEPTHWISE for item in candidates(model) if item.depthwise}
        placed = place(model, ranges.thresholds, {**keep, **{name: lift.reason for name, lift in lifts.items()}})
        quantized, layers = with_opset(placed.model, _QDQ_OPSET), placed.layers
    not_int8 = {name: reason for name, reason in layers.items() if reason}
    keep = {name: lift.reason for name, lift in lifts.items() if lift.precision == "fp32"}
    keep.update({name: _QUANTIZED for name, reason in layers.items() if not reason})
    half = to_half(quantized, "fp16", ranges.maxima, keep)
    return Rewritten(half.model, _layers(model, "fp16", half, not_int8), _chosen(layers))


def _chosen(layers: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name, reason in layers.items() if not reason)


def _own_layers(model: Any) -> dict[str, str]:
    """Products of a model that is quantized already: "" for those whose operands both come dequantized."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in HEAVY:
            sources = [makers.get(behind(makers, name)) for name in node.input[:2]]
            quantized = all(item is not None and item.op_type == "DequantizeLinear" for item in sources)
            found[node.name] = "" if quantized else "it has no range"
    return found


def _with_float_weights(model: Any, layers: Container[str]) -> Any:
    """A model that is quantized already, the int8 weights of some layers written as the float32 values they stand for.

    Their results are the same. With one operand in float32, TensorRT does not run them in int8.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    makers = {name: node for node in graph.node for name in node.output}
    stored = {item.name: item for item in graph.initializer}
    made: dict[str, Any] = {}
    for node in graph.node if layers else ():
        maker = makers.get(node.input[1]) if node.op_type in HEAVY and node.name in layers else None
        if maker is None or maker.op_type != "DequantizeLinear" or not all(name in stored for name in maker.input):
            continue
        name = f"{maker.output[0]}/float"
        if name not in made:
            made[name] = numpy_helper.from_array(_dequantized(maker, stored), name)
        node.input[1] = name
    read = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    nodes = [node for node in graph.node if node.op_type != "DequantizeLinear" or node.output[0] in read]
    if made:
        graph.ClearField("node")
        graph.node.extend(nodes)
        graph.initializer.extend(made.values())
    return result


def _dequantized(node: Any, stored: Mapping[str, Any]) -> Array:
    steps, scales, *zero = (numpy_helper.to_array(stored[name]) for name in node.input)
    axis = next((int(item.i) for item in node.attribute if item.name == "axis"), 1)
    shape = [-1 if number == axis else 1 for number in range(steps.ndim)] if scales.ndim else []
    levels = steps.astype(np.int32) - (zero[0].astype(np.int32).reshape(shape) if zero else 0)
    return np.asarray(levels.astype(np.float32) * scales.reshape(shape), np.float32)


def _layers(model: Any, precision: str, half: Half, not_int8: Mapping[str, str]) -> tuple[Assigned, ...]:
    found = []
    for node in model.graph.node:
        reason = half.layers.get(node.name)
        if reason is None or node.op_type in _PAIRS or (node.op_type not in HEAVY and not half.decided(node.name)):
            continue
        if reason == _QUANTIZED:
            found.append(Assigned(node.name, node.op_type, "int8", ""))
        else:
            why = "; ".join(filter(None, dict.fromkeys((not_int8.get(node.name, ""), reason))))
            found.append(Assigned(node.name, node.op_type, "fp32" if reason else precision, why))
    return tuple(found)
