"""INT8: QuantizeLinear and DequantizeLinear around the layers that TensorRT runs in INT8, by its rules.

All of it is symmetric with zero point 0: activations with one scale a tensor, ``threshold / 127``; weights with one
scale an output channel, ``max|w| / 127``, stored as int8 with a DequantizeLinear behind them. Biases and outputs stay
float32.

``onnxruntime.quantization`` has a ``QDQQuantizer``, and this is not it: with every choice of nodes and ranges made for
it, what remains is to insert the pairs, and there it

* rewires *all* readers of a tensor, so that a layer kept in float, a softmax or a LayerNorm beside an INT8 layer reads
  quantized values too, and it quantizes a graph output that a layer also reads;
* has no residual sums, no pairs before commuting ops, and no scales shared by a Concat;
* takes axis 1 of a MatMul's weight whatever its rank, and sets ``beta`` of a Gemm to 1 even where it leaves the bias;
* appends its nodes behind all others, out of topological order, and infers shapes through a copy of the whole model.

The tests hold its numbers against ours where the rules agree: scales and int8 weights are equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from refimpl.converter.precision.graph_view import Array, Read, View, named, unused
from refimpl.converter.precision.int8_rules import Candidate, find_candidates
from refimpl.converter.precision.int8_sites import Sites, find_sites, residual_reads, shared_scales

__all__ = ["Candidate", "Quantized", "candidates", "named", "place", "quantize_weight", "tensors_to_observe"]

STEPS = 127  # of a symmetric int8 range; -128 is reached only by clipping
_TINY = float(np.finfo(np.float32).tiny)  # below it scales are denormal, and 1 / scale is infinite


@dataclass(frozen=True)
class Quantized:
    """A model with its pairs placed.

    Attributes:
        model: the new model; inputs, outputs and opset are those of the old one.
        layers: node -> "" if it is quantized, else why not; every candidate, in graph order.
        scales: activation tensor -> its scale, a float32 value; every tensor that has a pair.
    """

    model: onnx.ModelProto
    layers: Mapping[str, str]
    scales: Mapping[str, float]


def candidates(model: onnx.ModelProto) -> tuple[Candidate, ...]:
    """Every node that could be quantized, in graph order, with why TensorRT would not run it in INT8.

    Nodes inside the bodies of ``If`` and ``Loop`` are not among them.

    Args:
        model: its nodes have unique names (:func:`named`), its weights are in it.
    """
    return find_candidates(View(model))


def tensors_to_observe(model: onnx.ModelProto) -> tuple[str, ...]:
    """The activation tensors whose ranges :func:`place` may ask for, in the order of their readers; all are float32.

    Where only reshapes, transposes and max pooling lie between a tensor and a layer, it is the tensor before them.
    """
    view = View(model)
    return tuple(_full(view, find_candidates(view))[0])


def _full(view: View, layers: Iterable[Candidate]) -> tuple[Sites, Mapping[str, str]]:
    """Sites and moves if everything that can be quantized is: no other choice moves a pair further up."""
    return find_sites(view, _reads(view, [layer for layer in layers if not layer.refused], {}))


def _reads(view: View, layers: Iterable[Candidate], keep: Mapping[str, str]) -> list[Read]:
    chosen = {layer.node for layer in layers}
    reads = [Read(index, 0) for index, node in enumerate(view.nodes) if node.name in chosen]
    return reads + [read for read in residual_reads(view, chosen) if view.nodes[read.node].name not in keep]


def place(model: onnx.ModelProto, thresholds: Mapping[str, float], keep: Mapping[str, str]) -> Quantized:
    """Place pairs around every layer that TensorRT would run in INT8.

    Args:
        model: opset 13 or later (DequantizeLinear with an axis), nodes with unique names (:func:`named`); unchanged.
        thresholds: the largest ``|x|`` to represent, by tensor, for those of :func:`tensors_to_observe`. A layer whose
            input has none, or zero, or one that is not finite, is not quantized.
        keep: node -> why it must not be quantized. The name of a residual ``Add`` keeps its branch in float.
    """
    view = View(model)
    layers = find_candidates(view)
    _, moved = _full(view, layers)

    def observed(tensor: str) -> str:
        while tensor in moved:
            tensor = moved[tensor]
        return tensor

    why = {
        layer.node: layer.refused or keep.get(layer.node, "") or _range_problem(observed(layer.activation), thresholds)
        for layer in layers
    }
    chosen = [layer for layer in layers if not why[layer.node]]
    reads = [read for read in _reads(view, chosen, keep) if not _range_problem(observed(view.tensor(read)), thresholds)]
    sites, _ = find_sites(view, reads)
    widest: dict[str, float] = {}
    leader = shared_scales(view, sites)
    for tensor in sites:
        widest[leader[tensor]] = max(widest.get(leader[tensor], 0.0), thresholds[observed(tensor)])
    scales = {tensor: float(np.float32(widest[leader[tensor]] / STEPS)) for tensor in sites}
    return Quantized(_Rewrite(view, sites, scales, chosen).model(), why, scales)


def _range_problem(tensor: str, thresholds: Mapping[str, float]) -> str:
    threshold = thresholds.get(tensor)
    if threshold is None:
        return f"no range is known for its input {tensor}"
    if not math.isfinite(threshold) or threshold < 0 or threshold / STEPS > np.finfo(np.float32).max:
        return f"the range of its input {tensor} is {threshold}"
    if threshold / STEPS < _TINY:
        return f"its input {tensor} was always zero"
    return ""


def quantize_weight(weight: Array, axis: int) -> tuple[Array, Array]:
    """Symmetric int8 with a scale for each index of an axis.

    Args:
        weight: float32, finite.
        axis: the axis of output channels.

    Returns:
        int8 values of the weight's shape, and float32 scales ``max|w| / 127`` of shape ``(weight.shape[axis],)``. The
        values are ``w / scale`` in float32, rounded half to even like QuantizeLinear. A channel of zeros has scale 1.
    """
    others = tuple(number for number in range(weight.ndim) if number != axis)
    scales = (np.abs(weight).max(axis=others) / np.float32(STEPS)).astype(np.float32)
    scales[scales < _TINY] = 1.0
    steps = np.rint(weight / np.expand_dims(scales, others))
    return np.clip(steps, -STEPS - 1, STEPS).astype(np.int8), scales


@dataclass
class _Rewrite:
    """Builds the new model; weights that stay are copied once, those that become int8 never."""

    view: View
    sites: Sites
    scales: Mapping[str, float]
    layers: Iterable[Candidate]
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.view.model.graph
        self._taken = {item.name for item in [*graph.initializer, *graph.input]}
        self._taken |= {name for node in self.view.nodes for name in [*node.output, node.name]}
        self._taken |= self.view.captured

    def model(self) -> onnx.ModelProto:
        behind: dict[str, list[onnx.NodeProto]] = {}  # maker's tensor -> the pair that follows it
        before: dict[int, list[onnx.NodeProto]] = {}  # layer -> what dequantizes its weight
        inputs: dict[Read, str] = {}
        for tensor, reads in self.sites.items():
            pair = self._pair(tensor)
            behind[tensor] = pair
            inputs.update(dict.fromkeys(reads, pair[-1].output[0]))
        made: dict[tuple[str, int], str] = {}
        number = {node.name: index for index, node in enumerate(self.view.nodes)}
        for layer in self.layers:
            if (layer.weight, layer.axis) not in made:
                node = self._weight(layer)
                made[layer.weight, layer.axis] = node.output[0]
                before[number[layer.node]] = [node]
            inputs[Read(number[layer.node], 1)] = made[layer.weight, layer.axis]
        nodes = [node for tensor, pair in behind.items() if tensor not in self.view.producer for node in pair]
        for index, old in enumerate(self.view.nodes):
            node = onnx.NodeProto()
            node.CopyFrom(old)
            for position in range(len(node.input)):
                node.input[position] = inputs.get(Read(index, position), node.input[position])
            nodes += [*before.get(index, ()), node]
            nodes += [following for name in node.output for following in behind.get(name, ())]
        return self._assemble(nodes)

    def _name(self, wanted: str) -> str:
        name = unused(wanted, self._taken)
        self._taken.add(name)
        return name

    def _store(self, value: Array, wanted: str) -> str:
        name = self._name(wanted)
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def _pair(self, tensor: str) -> list[onnx.NodeProto]:
        scale = self._store(np.array(self.scales[tensor], np.float32), f"{tensor}/scale")
        zero = self._store(np.array(0, np.int8), f"{tensor}/zero_point")  # without it Q would give uint8
        steps, value = self._name(f"{tensor}/quantized"), self._name(f"{tensor}/dequantized")
        return [
            onnx.helper.make_node("QuantizeLinear", [tensor, scale, zero], [steps], self._name(f"{tensor}/Q")),
            onnx.helper.make_node("DequantizeLinear", [steps, scale, zero], [value], self._name(f"{tensor}/DQ")),
        ]

    def _weight(self, layer: Candidate) -> onnx.NodeProto:
        name = layer.weight
        values, scales = quantize_weight(self.view.constant(name), layer.axis)
        stored = [
            self._store(values, f"{name}/quantized"),
            self._store(scales, f"{name}/scale"),
            self._store(np.zeros(scales.shape, np.int8), f"{name}/zero_point"),
        ]
        output = self._name(f"{name}/dequantized")
        return onnx.helper.make_node("DequantizeLinear", stored, [output], self._name(f"{name}/DQ"), axis=layer.axis)

    def _assemble(self, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        """A model like the old one with other nodes; constants that only int8 weights came from are left out."""
        nodes, used = self._without_dead_constants(nodes)
        old = self.view.model
        graph = onnx.GraphProto(name=old.graph.name, doc_string=old.graph.doc_string, node=nodes)
        graph.input.extend(old.graph.input)
        graph.output.extend(old.graph.output)
        made = {name for node in nodes for name in node.output}
        graph.value_info.extend(item for item in old.graph.value_info if item.name in made)
        graph.initializer.extend(
            item for item in old.graph.initializer if item.name in used or item.name in self.view.inputs
        )
        graph.initializer.extend(self.initializers)
        return onnx.ModelProto(
            ir_version=old.ir_version,
            opset_import=old.opset_import,
            producer_name=old.producer_name,
            producer_version=old.producer_version,
            metadata_props=old.metadata_props,
            functions=old.functions,
            graph=graph,
        )

    def _without_dead_constants(self, nodes: list[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], set[str]]:
        while True:
            used = {name for node in nodes for name in node.input} | self.view.outputs | self.view.captured
            kept = [
                node
                for node in nodes
                if any(name in used for name in node.output)
                or not node.output
                or not self.view.is_constant(node.output[0])
            ]
            if len(kept) == len(nodes):
                return nodes, used
            nodes = kept
