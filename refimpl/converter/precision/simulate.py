"""Which layers cost most: one session in which every layer's precision is a switch.

Rewriting, loading and running an island once for each of its layers takes minutes. Here the float32 island gets, at
every operand and result of every layer, a choice between the value and its rounded form; the choices are an input.
So one session answers for any set of layers. It ranks them, no more: what ships is rewritten and verified on its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from refimpl.artifacts import Array
from refimpl.converter.precision.half import KINDS
from refimpl.converter.precision.quantize import Quantized, candidates, quantize_weight
from refimpl.engines.onnxruntime import save, session_options
from refimpl.engines.rounding import tensor_types
from refimpl.errors import RunError, first_line

_FLAGS = "layer switches"
_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool")  # rounding commutes


class Simulation:
    """An island whose layers can be rounded one by one.

    Args:
        model: its ModelProto in float32, nodes named; it is not changed.
        layers: names of the nodes that get a switch.
        precision: what they are rounded to: ``"int8"``, ``"fp16"`` or ``"bf16"``.
        quantized: for int8, the island with every layer quantized: its scales are used.
        file: where the graph is written.
    """

    def __init__(
        self, model: Any, layers: Sequence[str], precision: str, quantized: Quantized | None, file: Path
    ) -> None:
        self._layers = tuple(layers)
        graph = _Switched(model, self._layers, precision, quantized).write()
        save(graph, file)
        options = session_options()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [item.name for item in self._session.get_inputs()]

    def run(self, rounded: Container[str], inputs: Sequence[Array]) -> list[Array]:
        """The island's outputs with some layers rounded.

        Raises:
            RunError: ONNX Runtime fails.
        """
        flags = np.array([name in rounded for name in self._layers])
        try:
            return list(self._session.run(None, dict(zip(self._inputs, [*inputs, flags], strict=True))))
        except Exception as error:  # its exceptions share no base class with a public name
            raise RunError(f"ONNX Runtime failed: {first_line(error)}") from error


class _Switched:
    """Writes the graph with the switches."""

    def __init__(self, model: Any, layers: Sequence[str], precision: str, quantized: Quantized | None) -> None:
        self._model, self._precision = model, precision
        self._index = {name: index for index, name in enumerate(layers)}
        self._types = tensor_types(model)
        self._weights = {item.name: item for item in model.graph.initializer}
        self._maker = {name: node for node in model.graph.node for name in node.output}
        self._scales = dict(quantized.scales) if quantized else {}
        self._axis = {item.node: item.axis for item in candidates(model)} if quantized else {}
        self._nodes: list[Any] = []
        self._added: dict[str, Any] = {}

    def write(self) -> Any:
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        for node in self._model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.name in self._index:
                self._switch(node, copy)
            else:
                self._nodes.append(copy)
        graph = result.graph
        graph.ClearField("node")
        graph.ClearField("value_info")
        graph.input.append(helper.make_tensor_value_info(_FLAGS, TensorProto.BOOL, [len(self._index)]))
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._added.values())
        return result

    def _switch(self, node: Any, copy: Any) -> None:
        flag = self._flag(node.name)
        for place, name in enumerate(node.input):
            if self._types.get(name) == TensorProto.FLOAT and (rounded := self._rounded(node, place, name)):
                copy.input[place] = self._choice(flag, rounded, name, f"{node.name}/in{place}")
        self._nodes.append(copy)
        for place, name in enumerate(node.output) if self._precision != "int8" else ():
            if self._types.get(name) == TensorProto.FLOAT:
                copy.output[place] = f"{name}/exact"
                rounded = self._half(copy.output[place], f"{node.name}/out{place}")
                self._nodes.append(helper.make_node("Where", [flag, rounded, copy.output[place]], [name]))

    def _flag(self, layer: str) -> str:
        index = self._constant(f"index of {layer}", np.int64(self._index[layer]))
        self._nodes.append(helper.make_node("Gather", [_FLAGS, index], [f"switch of {layer}"], axis=0))
        return f"switch of {layer}"

    def _choice(self, flag: str, rounded: str, exact: str, name: str) -> str:
        self._nodes.append(helper.make_node("Where", [flag, rounded, exact], [f"{name}/chosen"]))
        return f"{name}/chosen"

    def _rounded(self, node: Any, place: int, name: str) -> str:
        label = f"{node.name}/in{place}"
        if self._precision != "int8":
            return self._half(name, label)
        if place == 0 and (scale := self._scale(name)):
            return self._int8(name, self._constant(f"{label}/scale", np.float32(scale)), label)
        if place == 1 and name in self._weights and node.name in self._axis:
            return self._int8_weight(name, self._axis[node.name], label)
        return ""  # a bias

    def _scale(self, name: str) -> float:
        """Of the tensor itself, or of the one that it was moved from."""
        while name not in self._scales:
            maker = self._maker.get(name)
            if maker is None or maker.op_type not in _MOVES:
                return 0.0
            name = maker.input[0]
        return self._scales[name]

    def _half(self, name: str, label: str) -> str:
        kind = KINDS[self._precision]
        self._nodes.append(helper.make_node("Cast", [name], [f"{label}/half"], to=kind))
        self._nodes.append(helper.make_node("Cast", [f"{label}/half"], [f"{label}/rounded"], to=TensorProto.FLOAT))
        return f"{label}/rounded"

    def _int8(self, name: str, scale: str, label: str) -> str:
        zero = self._constant("int8 zero", np.int8(0))
        self._nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{label}/steps"]))
        self._nodes.append(helper.make_node("DequantizeLinear", [f"{label}/steps", scale, zero], [f"{label}/rounded"]))
        return f"{label}/rounded"

    def _int8_weight(self, name: str, axis: int, label: str) -> str:
        steps, scales = quantize_weight(numpy_helper.to_array(self._weights[name]), axis)
        operands = [self._constant(f"{label}/steps", steps), self._constant(f"{label}/scales", scales)]
        self._nodes.append(helper.make_node("DequantizeLinear", operands, [f"{label}/rounded"], axis=axis))
        return f"{label}/rounded"

    def _constant(self, name: str, value: Any) -> str:
        self._added.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name


def costs(simulation: Simulation, layers: Sequence[str], inputs: Sequence[Array], error_of: Any) -> Mapping[str, float]:
    """The error of the island with each layer rounded alone, by layer.

    Args:
        simulation: of the island.
        layers: that have switches.
        inputs: one sample.
        error_of: the error of given outputs, as a number.
    """
    return {name: error_of(simulation.run({name}, inputs)) for name in layers}
