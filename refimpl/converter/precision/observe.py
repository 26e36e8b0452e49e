"""Look at an island's inside while real values run through it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from refimpl.artifacts import Array
from refimpl.converter.precision.half import HEAVY
from refimpl.engines.onnxruntime import session_options
from refimpl.engines.rounding import tensor_types
from refimpl.errors import RunError, first_line


class Maxima:
    """The largest |x| of every float32 tensor of an island, over all batches that it is shown, and its last shape.

    The maxima are computed inside the graph, so that no tensor has to be kept for it. A NaN counts as infinite.

    Args:
        file: the island's ONNX file, in float32.
    """

    def __init__(self, file: Path) -> None:
        model = onnx.load(file, load_external_data=False)
        types = tensor_types(model)
        made = [name for node in model.graph.node for name in node.output]
        names = [name for name in made if types.get(name) == TensorProto.FLOAT]
        names += [item.name for item in model.graph.input if types.get(item.name) == TensorProto.FLOAT]
        model.graph.ClearField("output")
        self._names = names
        self._outputs = [f"maximum/{index}" for index in range(len(names))]
        for name, output in zip(names, self._outputs, strict=True):
            model.graph.node.append(helper.make_node("Abs", [name], [f"{output}/abs"]))
            model.graph.node.append(helper.make_node("ReduceMax", [f"{output}/abs"], [output], keepdims=0))
            model.graph.node.append(helper.make_node("Shape", [name], [f"{output}/shape"]))
            model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
            model.graph.output.append(helper.make_tensor_value_info(f"{output}/shape", TensorProto.INT64, [None]))
        options = session_options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        self._session: Any = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [item.name for item in self._session.get_inputs()]
        self.found: dict[str, float] = dict.fromkeys(names, 0.0)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, inputs: Sequence[Array]) -> None:
        """Run one batch.

        Args:
            inputs: the island's inputs, in order; an empty batch shows nothing.

        Raises:
            RunError: ONNX Runtime fails on it.
        """
        if not self._outputs or any(array.size == 0 for array in inputs):
            return
        try:
            wanted = [*self._outputs, *(f"{output}/shape" for output in self._outputs)]
            values = self._session.run(wanted, dict(zip(self._inputs, inputs, strict=True)))
        except Exception as error:  # its exceptions share no base class with a public name
            raise RunError(f"ONNX Runtime failed: {first_line(error)}") from error
        count = len(self._names)
        for name, value, shape in zip(self._names, values[:count], values[count:], strict=True):
            self.found[name] = max(self.found[name], math.inf if math.isnan(value) else float(value))
            self.shapes[name] = tuple(int(size) for size in shape)


def multiplications(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """How many multiplications each product of an island takes, by node name.

    Args:
        model: the island's ModelProto.
        shapes: of each float tensor, by name; those of weights are in the model. Products of tensors whose shapes are
            unknown are left out.
    """
    known = {**shapes, **{item.name: tuple(item.dims) for item in model.graph.initializer}}
    found: dict[str, float] = {}
    for node in model.graph.node:
        operands = node.input if node.op_type == "Einsum" else node.input[:2]
        if node.op_type in HEAVY and all(name in known for name in [*operands, node.output[0]]):
            found[node.name] = float(_product(node, [known[name] for name in operands], known[node.output[0]]))
    return found


def _product(node: Any, operands: Sequence[Sequence[int]], made: Sequence[int]) -> int:
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Einsum":
        return _einsum(attributes["equation"].decode(), operands)
    if node.op_type == "ConvTranspose":  # every element of the input is multiplied with all weights of its channel
        return math.prod(operands[0]) * math.prod(operands[1][1:])
    if node.op_type == "Conv":  # every element of the output takes all weights of its channel
        return math.prod(made) * math.prod(operands[1][1:])
    summed = operands[0][0 if attributes.get("transA") else -1]
    return math.prod(made) * summed


def _einsum(equation: str, operands: Sequence[Sequence[int]]) -> int:
    """Every index takes every value; what an ellipsis stands for counts as in the operand that has most of it."""
    sizes: dict[str, int] = {}
    rest = 1
    for term, shape in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        before, dots, after = term.partition("...")
        middle = len(shape) - len(after)
        sizes.update(zip(before, shape, strict=False))
        sizes.update(zip(after, shape[middle:], strict=True))
        if dots:
            rest = max(rest, math.prod(shape[len(before) : middle]))
    return rest * math.prod(sizes.values())


def maxima(file: Path, batches: Iterable[Sequence[Array]]) -> dict[str, float]:
    """The largest |x| of every float32 tensor of an island over some batches of its inputs."""
    watch = Maxima(file)
    for batch in batches:
        watch.add(batch)
    return watch.found
