"""An island's ONNX opened up: every tensor inside of it can be seen, and replaced by another value.

For whoever looks for the node that is wrong. Nothing is decided here, and TensorFlow is not known.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from refimpl.engines import Array, numpy, onnxruntime, rounding

_OWN, _GIVEN, _ON, _SHOWN = "/own", "/given", "/on", "/shown"
# What tensors are seen and handed over in, where NumPy lacks their type, or tells it apart for nothing; all exact.
_CARRIER: dict[int, int] = {
    TensorProto.FLOAT16: TensorProto.FLOAT,
    TensorProto.BFLOAT16: TensorProto.FLOAT,
    TensorProto.BOOL: TensorProto.INT32,
    TensorProto.INT8: TensorProto.INT32,
    TensorProto.UINT8: TensorProto.INT32,
    TensorProto.INT16: TensorProto.INT32,
    TensorProto.UINT16: TensorProto.INT32,
}
_PLAIN = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64)


@dataclass(frozen=True, slots=True)
class Node:
    """One ONNX node of an island: its name, its op type, and the tensors that it reads (bodies included) and makes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[int, ...] = ()  # the permutation of a Transpose
    into: str = ""  # the type that a Cast casts to: "float16", "bfloat16" or ""


class Inner:
    """The nodes of an island's ONNX file, and runs of it in ONNX Runtime in which tensors are seen and replaced.

    Args:
        file: the stored ``.onnx`` file; its name says how it is to be run.
        without: the name of a node that is left out, and everything that depends on it.

    Attributes:
        nodes: in topological order.
        inputs: names of the graph's inputs, in the island's order.
        outputs: names of its outputs, in the island's order, the lost ones too.
        maker: tensor -> the node that makes it.
        readers: tensor -> the tensors that are computed from it directly.
        tensors: every tensor that depends on an input, in topological order, and that can be replaced.
    """

    def __init__(self, file: Path, without: str = "") -> None:
        self._file = file
        self._stored = onnx.load(file, load_external_data=False)
        self.outputs = tuple(item.name for item in self._stored.graph.output)
        if without:
            _cut(self._stored.graph, without)
        self._model = rounding.spelled_out(self._stored, tf32=rounding.TF32 in file.name)
        graph = self._stored.graph
        weights = {item.name for item in graph.initializer}
        self.inputs = tuple(item.name for item in graph.input if item.name not in weights)
        self.nodes = tuple(_node(node) for node in graph.node)
        self.maker = {name: node for node in self.nodes for name in node.outputs}
        self.readers: dict[str, list[str]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).extend(node.outputs)
        self._types = rounding.tensor_types(self._model)
        self.tensors = tuple(self._replaceable())
        self._engine: onnxruntime.OrtEngine | None = None

    def run(
        self, inputs: Sequence[Array], given: Mapping[str, Array] | None = None, *, over: bool = True
    ) -> dict[str, Array]:
        """What every tensor comes out as, before it is replaced.

        Args:
            inputs: the island's inputs.
            given: values that stand in for tensors from there on, in their ONNX shapes.
            over: False leaves ``given`` unused.

        Returns:
            Values by name; float16 and bfloat16 as float32, small integers and booleans as int32.

        Raises:
            RunError: ONNX Runtime fails on these values.
        """
        if self._engine is None:
            self._engine = onnxruntime.open_model(self._switched(), self._file)
        given = given if given is not None and over else {}
        feeds = list(inputs)
        for name in self.tensors:
            kind = helper.tensor_dtype_to_np_dtype(self._carrier(name))
            value = given.get(name)
            feeds += [np.asarray(value is not None), np.zeros((), kind) if value is None else value.astype(kind)]
        return dict(zip(self.tensors, self._engine.run(feeds), strict=True))

    def plain(self) -> onnxruntime.OrtEngine:
        """The island without any of ONNX Runtime's optimizations.

        Raises:
            RunError: ONNX Runtime cannot load it.
        """
        return onnxruntime.open_model(self._model, self._file, optimize=False)

    def part(self, inputs: Sequence[str], outputs: Sequence[str], folder: Path) -> numpy.NumpyEngine:
        """A few nodes of it alone, in ONNX's own reference evaluator: a second opinion on them.

        Args:
            inputs: tensors that are given.
            outputs: tensors that are wanted.
            folder: where the part is written.

        Raises:
            RunError: the evaluator cannot load it.
        """
        model = onnx.load(self._file)
        nodes: list[Any] = []
        wanted = set(outputs)
        for node in reversed(model.graph.node):
            if wanted & set(node.output):
                nodes.insert(0, node)
                wanted |= {name for name in _read(node) if name not in inputs}
        types = rounding.tensor_types(model)
        part = helper.make_model(
            helper.make_graph(
                nodes,
                "part",
                [helper.make_tensor_value_info(name, types[name], None) for name in inputs],
                [helper.make_tensor_value_info(name, types[name], None) for name in outputs],
                [item for item in model.graph.initializer if item.name in wanted],
            ),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )
        file = folder / (f"part{rounding.TF32}onnx" if rounding.TF32 in self._file.name else "part.onnx")
        onnx.save(part, file)
        return numpy.open(file)

    def dtype(self, name: str) -> np.dtype[Any]:
        """What NumPy calls the type of a tensor."""
        return helper.tensor_dtype_to_np_dtype(self._types[name])

    def _replaceable(self) -> Iterator[str]:
        alive = set(self.inputs)
        for node in self.nodes:
            if alive & set(node.inputs):
                alive |= set(node.outputs)
                yield from (name for name in node.outputs if name and self._types.get(name) in {*_CARRIER, *_PLAIN})

    def _carrier(self, name: str) -> int:
        kind = self._types[name]
        return int(_CARRIER.get(kind, kind))

    def _switched(self) -> Any:
        """The model with a switch behind every tensor: its own value, or one that is given."""
        model = copy.deepcopy(self._model)
        graph = model.graph
        graph.ClearField("value_info")
        graph.ClearField("output")
        nodes, chosen = [], set(self.tensors)
        for node in list(graph.node):
            made = [name for name in node.output if name in chosen]
            node.output[:] = [f"{name}{_OWN}" if name in chosen else name for name in node.output]
            nodes.append(node)
            for name in made:
                nodes += self._switch(name)
        graph.ClearField("node")
        graph.node.extend(nodes)
        for name in self.tensors:
            graph.input.append(helper.make_tensor_value_info(f"{name}{_ON}", TensorProto.BOOL, []))
            graph.input.append(helper.make_tensor_value_info(f"{name}{_GIVEN}", self._carrier(name), None))
            graph.output.append(helper.make_empty_tensor_value_info(f"{name}{_SHOWN}"))
        return model

    def _switch(self, name: str) -> list[Any]:
        kind, carrier = self._types[name], self._carrier(name)
        chosen = name if kind == carrier else f"{name}/chosen"
        branches = {
            branch: helper.make_graph(
                [helper.make_node("Identity", [f"{name}{source}"], [f"{name}{source}/passed"])],
                branch,
                [],
                [helper.make_tensor_value_info(f"{name}{source}/passed", carrier, None)],
            )
            for branch, source in (("then_branch", _GIVEN), ("else_branch", _SHOWN))
        }
        choice = helper.make_node("If", [f"{name}{_ON}"], [chosen], **branches)  # Where would want equal shapes
        if kind == carrier:
            return [helper.make_node("Identity", [f"{name}{_OWN}"], [f"{name}{_SHOWN}"]), choice]
        shown = helper.make_node("Cast", [f"{name}{_OWN}"], [f"{name}{_SHOWN}"], to=carrier)
        return [shown, choice, helper.make_node("Cast", [chosen], [name], to=kind)]


def _cut(graph: Any, without: str) -> None:
    """Take out a node, and every node and output that depends on it."""
    lost: set[str] = set()
    kept = []
    for node in graph.node:
        if node.name == without or lost & set(_read(node)):
            lost |= set(node.output)
        else:
            kept.append(node)
    outputs = [item for item in graph.output if item.name not in lost]
    for field, items in (("node", kept), ("output", outputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)


def _node(node: Any) -> Node:
    attributes = {item.name: item for item in node.attribute}
    axes = tuple(attributes["perm"].ints) if node.op_type == "Transpose" and "perm" in attributes else ()
    halves = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    into = halves.get(attributes["to"].i, "") if node.op_type == "Cast" else ""
    return Node(node.name, node.op_type, tuple(_read(node)), tuple(node.output), axes, into)


def _read(node: Any) -> list[str]:
    """Tensors that a node reads; those of the outer graph that its bodies read are among them."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            inside = {item.name for item in [*body.input, *body.initializer]}
            inside |= {name for item in body.node for name in item.output}
            read = [*(name for item in body.node for name in _read(item)), *(item.name for item in body.output)]
            names += [name for name in read if name not in inside]
    return list(dict.fromkeys(names))
