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
    """The largest |x| of every float32 tensor of an island, over all batches that it is shown, and its last size.

    The maxima are computed inside the graph, so that no tensor has to be kept for it.

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
            model.graph.node.append(helper.make_node("Size", [name], [f"{output}/size"]))
            model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
            model.graph.output.append(helper.make_tensor_value_info(f"{output}/size", TensorProto.INT64, []))
        options = session_options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        self._session: Any = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [item.name for item in self._session.get_inputs()]
        self.found: dict[str, float] = dict.fromkeys(names, 0.0)
        self.sizes: dict[str, int] = {}

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
            wanted = [*self._outputs, *(f"{output}/size" for output in self._outputs)]
            values = self._session.run(wanted, dict(zip(self._inputs, inputs, strict=True)))
        except Exception as error:  # its exceptions share no base class with a public name
            raise RunError(f"ONNX Runtime failed: {first_line(error)}") from error
        count = len(self._names)
        for name, value, size in zip(self._names, values[:count], values[count:], strict=True):
            self.found[name] = max(self.found[name], float(value))
            self.sizes[name] = int(size)


def multiplications(model: Any, sizes: Mapping[str, int]) -> dict[str, float]:
    """How many multiplications each product of an island takes, by node name.

    With a constant weight, every element of the output takes as many as the weight has per output channel. Of two
    activations of m x k and k x n, m k n is the root of the product of the three sizes.

    Args:
        model: the island's ModelProto.
        sizes: elements of each float tensor, by name.
    """
    weights = {item.name: list(item.dims) for item in model.graph.initializer}
    found: dict[str, float] = {}
    for node in model.graph.node:
        made = sizes.get(node.output[0], 0) if node.output else 0
        if node.op_type not in HEAVY or not made:
            continue
        if node.input[1] in weights:
            dims = weights[node.input[1]]
            channels = dims[0] if node.op_type == "Conv" else dims[-1]
            found[node.name] = made * math.prod(dims) / max(channels, 1)
        else:
            found[node.name] = math.sqrt(made * math.prod(float(sizes.get(name, 1)) for name in node.input[:2]))
    return found


def maxima(file: Path, batches: Iterable[Sequence[Array]]) -> dict[str, float]:
    """The largest |x| of every float32 tensor of an island over some batches of its inputs."""
    watch = Maxima(file)
    for batch in batches:
        watch.add(batch)
    return watch.found
