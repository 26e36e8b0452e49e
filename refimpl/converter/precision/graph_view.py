"""Reading an ONNX graph: unique names of nodes, who makes and reads a tensor, constants, shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from refimpl.errors import InternalError

Array = npt.NDArray[np.generic]
Dim = int | str | None  # a size, the name of a size that is open, or unknown

# Ops that only move values: a constant behind them is still a constant, and folding them is exact.
_MOVES = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_STANDARD = ("", "ai.onnx")
_SMALL = 64  # elements; larger constants are never shapes, so shape inference need not see their values


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a unique, non-empty name for every node, those in bodies of ``If`` and ``Loop`` too.

    ONNX names tensors; names of nodes are optional and may repeat, and ONNX Runtime's optimizer uses that. A node
    without a name takes that of its first output; a repeated name gets ``_1``, ``_2``, ... in graph order, so the same
    model always gets the same names.

    Returns:
        A copy, or the model itself when nothing had to be renamed.
    """
    names = [node.name for node in _all_nodes(model.graph)]
    if all(names) and len(set(names)) == len(names):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken, seen = set(names), set[str]()
    for node in _all_nodes(copy.graph):
        wanted = node.name or next((name for name in node.output if name), node.op_type)
        if wanted in seen or (not node.name and wanted in taken):
            wanted = unused(wanted, taken)
        node.name = wanted
        seen.add(wanted)
        taken.add(wanted)
    return copy


def unused(name: str, taken: set[str]) -> str:
    """``name``, or the first of ``name_1``, ``name_2``, ... that is not taken."""
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _all_nodes(body)


@dataclass(frozen=True, order=True)
class Read:
    """One input of one node: the node's position in the graph and the input's number."""

    node: int
    input: int


class View:
    """A graph to look things up in; the model must not change meanwhile. Bodies of ``If`` and ``Loop`` are opaque.

    Args:
        model: all weights in it (none in external files), nodes in topological order as ONNX asks, names unique.

    Raises:
        InternalError: two nodes have the same name, or one has none (see :func:`named`).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        if len({node.name for node in self.nodes} - {""}) != len(self.nodes):
            raise InternalError("nodes without unique names: `named` comes first")
        self.producer: dict[str, int] = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        self.inputs = frozenset(item.name for item in model.graph.input)
        self.outputs = frozenset(item.name for item in model.graph.output)
        # Everything that a body reads; a name of its own that hides an outer one only makes us more careful.
        self.captured = frozenset(
            name for node in self.nodes for body in _bodies(node) for inner in _all_nodes(body) for name in inner.input
        ) | frozenset(item.name for node in self.nodes for body in _bodies(node) for item in body.output)
        self._stored = {item.name: item for item in model.graph.initializer if item.name not in self.inputs}

    @cached_property
    def readers(self) -> dict[str, tuple[Read, ...]]:
        """Tensor -> the inputs of nodes that read it, in graph order; bodies and graph outputs are not among them."""
        found: dict[str, list[Read]] = {}
        for index, node in enumerate(self.nodes):
            for number, name in enumerate(node.input):
                if name:
                    found.setdefault(name, []).append(Read(index, number))
        return {name: tuple(reads) for name, reads in found.items()}

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes a tensor; None for inputs and initializers."""
        return self.nodes[self.producer[tensor]] if tensor in self.producer else None

    def tensor(self, read: Read) -> str:
        """Name of the tensor at an input of a node."""
        return str(self.nodes[read.node].input[read.input])

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is an initializer, a ``Constant``, or only moves away from one."""
        if tensor in self._stored:
            return True
        node = self.maker(tensor)
        if node is None or node.domain not in _STANDARD:
            return False
        return node.op_type == "Constant" or (
            node.op_type in _MOVES and all(self.is_constant(name) for name in node.input if name)
        )

    def constant(self, tensor: str) -> Array:
        """The value of a tensor for which :meth:`is_constant` holds."""
        if tensor in self._stored:
            return onnx.numpy_helper.to_array(self._stored[tensor])
        node = self.nodes[self.producer[tensor]]
        feeds = {name: self.constant(name) for name in node.input if name}
        values: Any = ReferenceEvaluator(node).run(None, feeds)
        return np.asarray(values[0])

    @cached_property
    def shapes(self) -> dict[str, tuple[Dim, ...]]:
        """Shapes that ONNX's shape inference finds; tensors of unknown rank are missing."""
        graph = self.model.graph
        bare = onnx.GraphProto(name="shapes", node=graph.node, input=graph.input, output=graph.output)
        bare.value_info.extend(graph.value_info)
        for item in graph.initializer:
            # A protobuf ends at 2 GiB and inference copies it, so it is not shown the weights: only their types.
            if np.prod(item.dims, dtype=np.int64) > _SMALL:
                if item.name not in self.inputs:
                    bare.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
            else:
                bare.initializer.append(item)
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=bare, opset_import=self.model.opset_import)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        return {
            item.name: tuple(_dim(dim) for dim in item.type.tensor_type.shape.dim)
            for item in [*inferred.value_info, *inferred.input, *inferred.output]
            if item.type.tensor_type.HasField("shape")
        }


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)
