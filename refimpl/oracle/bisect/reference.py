"""TensorFlow's side of a bundle, every tensor of the original model in reach.

A bundle is a SavedModel whose islands keep their original ops behind the engine nodes. Here the stitched function of a
signature is laid out flat in a session, each island replaced by those ops. So every op of the model can be fetched by
its original name, and any tensor can be fed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import BundleError, RunError, first_line
from refimpl.oracle.arrays import Array
from refimpl.oracle.runners import SavedModelRunner, require_reference_tf

_PREFIX = "refimpl_bisect"
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_OPAQUE = ("resource", "variant")


@dataclass(frozen=True, slots=True)
class TfOp:
    """An op of the model: its type, the tensors it reads, and those it makes, all named ``node:index``."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]  # without resources and variants, whose values cannot be fetched


@dataclass(frozen=True, slots=True)
class Segment:
    """One island in TensorFlow: the tensors that enter and leave it, in the engine's order, and its ops."""

    name: str
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    ops: frozenset[str]


class ReferenceGraph:
    """One converted signature in plain TensorFlow: CPU, one thread, no Grappler, oneDNN off where that can be chosen.

    Args:
        path: the bundle's directory.
        tags: of its meta graph.
        key: the signature.
        outputs: the signature's output names, in the manifest's order.

    Attributes:
        ops: every op that depends on an input of the signature, by name, in topological order.
        segments: the islands, in topological order.
        results: output name -> tensor.

    Raises:
        SourceError: TensorFlow cannot load it.
        BundleError: its graph is not what ``refimpl convert`` writes.
    """

    def __init__(self, path: Path, tags: Sequence[str], key: str, outputs: Sequence[str]) -> None:
        self._tf, _ = require_reference_tf()
        self._runner = SavedModelRunner(path, tags or None)
        self._session = self._runner.session
        self._graph = self._session.graph
        meta = self._runner.meta_graph
        self._library = {item.signature.name: item for item in meta.graph_def.library.function}
        definition = meta.signature_def[key]
        self._inputs = {name: info.name for name, info in definition.inputs.items()}
        try:
            call, args = self._stitched(definition, key)
            flat = _Flat(self._graph, self._library, call)
        except (KeyError, ValueError, IndexError) as error:
            raise BundleError(
                f"the graph of signature {key!r} is not one that refimpl writes: {first_line(error)}",
                hint="convert the model again with this version",
            ) from error
        self.results = dict(zip(outputs, flat.results, strict=True))
        own = self._tf.compat.v1.GraphDef()
        own.node.extend(flat.nodes.values())
        own.versions.CopyFrom(meta.graph_def.versions)
        with self._graph.as_default():
            self._tf.graph_util.import_graph_def(own, dict(zip(flat.args, args, strict=True)), name=_PREFIX)
        self.ops = self._dynamic(flat, args)
        ranks = {name: rank for rank, name in enumerate(self.ops)}
        self.segments = tuple(sorted(flat.segments, key=lambda item: max(ranks.get(op, -1) for op in item.ops)))

    def close(self) -> None:
        self._runner.close()

    def run(
        self, inputs: Mapping[str, Array], fetches: Iterable[str], feeds: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Values of tensors.

        Args:
            inputs: the signature's inputs by name.
            fetches: tensors, ``node:index``.
            feeds: tensors that get these values in place of their own.

        Raises:
            RunError: TensorFlow refuses these values.
        """
        fed = {self._inputs[name]: value for name, value in inputs.items()}
        given = {self._place(name): value for name, value in (feeds or {}).items()}
        names = list(dict.fromkeys(fetches))
        try:
            found = self._session.run([self._place(name) for name in names], {**fed, **given})
        except (self._tf.errors.OpError, ValueError, TypeError) as error:
            raise RunError(f"TensorFlow refused: {first_line(error)}") from error
        return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}

    def _place(self, name: str) -> str:
        return name if name in self._outside else f"{_PREFIX}/{name}"

    def _stitched(self, definition: Any, key: str) -> tuple[Any, list[Any]]:
        """The stitched function, and the session's tensors that it is called with."""
        op = self._graph.get_tensor_by_name(next(iter(definition.outputs.values())).name).op
        if op.type not in _CALLS:
            raise ValueError(f"signature {key!r} is no call")
        function, args = self._library[op.get_attr("f").name], list(op.inputs)
        if not any(node.op == "PyFunc" for node in function.node_def):
            (call,) = (node for node in function.node_def if node.op in _CALLS)
            place = {arg.name: number for number, arg in enumerate(function.signature.input_arg)}
            args = [args[place[name]] for name in call.input if not name.startswith("^")]
            function = self._library[call.attr["f"].func.name]
        return function, args

    def _dynamic(self, flat: _Flat, args: Sequence[Any]) -> dict[str, TfOp]:
        fed = set(self._inputs.values())
        names = {f"{arg}:0": tensor.name for arg, tensor in zip(flat.args, args, strict=True)}
        self._outside = {tensor.name for tensor in args}
        flat.rename(names)
        alive, ops = set(fed), {}
        for name in flat.order():
            if name in flat.args:
                continue
            op = self._graph.get_operation_by_name(f"{_PREFIX}/{name}")
            reads = tuple(tensor.name.removeprefix(f"{_PREFIX}/") for tensor in op.inputs)
            if alive & set(reads):
                made = [tensor.name.removeprefix(f"{_PREFIX}/") for tensor in op.outputs]
                alive |= set(made)
                seen = [item for item, tensor in zip(made, op.outputs, strict=True) if tensor.dtype.name not in _OPAQUE]
                ops[name] = TfOp(name, op.type, reads, tuple(seen))
        return ops


class _Flat:
    """The stitched function's nodes, with those of the islands in place of engine nodes and conditionals."""

    def __init__(self, graph: Any, library: Mapping[str, Any], function: Any) -> None:
        from refimpl import tf_private  # it imports TensorFlow, for which oneDNN must be off by now

        body, names = tf_private.body_of(function, graph)
        self.args = [arg.name for arg in function.signature.input_arg]
        self.nodes: dict[str, Any] = {}
        self.segments: tuple[Segment, ...] = ()
        engines = {node.name: node for node in body.node if node.op == "PyFunc"}
        branches = {node.name: node for node in body.node if node.name.removesuffix("_value") in engines}
        moved: dict[str, str] = {}
        found = []
        for node in body.node:
            if node.name not in engines and node.name not in branches:
                self.nodes[node.name] = node
        for name, engine in engines.items():
            found.append(self._inline(graph, library, name, engine, branches[f"{name}_value"], moved))
        for node in self.nodes.values():
            _redirect(node, moved, engines)
            node.attr.pop("_class", None)
        self.segments = tuple(
            Segment(item.name, tuple(moved.get(name, name) for name in item.entering), item.leaving, item.ops)
            for item in found
        )
        self.results = [
            moved.get(names[function.ret[arg.name]], names[function.ret[arg.name]])
            for arg in function.signature.output_arg
        ]

    def _inline(
        self, graph: Any, library: Mapping[str, Any], name: str, engine: Any, branch: Any, moved: dict[str, str]
    ) -> Segment:
        from refimpl import tf_private

        function = library[f"{name}_native_segment"]
        body, names = tf_private.body_of(function, graph)
        place = {
            arg.name: _tensor(text) for arg, text in zip(function.signature.input_arg, branch.input[1:], strict=False)
        }
        inside = [node for node in body.node if node.name not in place]
        for node in inside:
            reads = [place.get(text.split(":")[0], text) if not text.startswith("^") else text for text in node.input]
            node.input[:] = reads
            self.nodes.setdefault(node.name, node)  # constants that several islands read
        leaving = []
        for index, arg in enumerate(function.signature.output_arg):
            tensor = names[function.ret[arg.name]]
            leaving.append(place.get(tensor.split(":")[0], tensor))
            moved[f"{name}_value:{index}"] = leaving[-1]
        entering = tuple(_tensor(text) for text in engine.input[4:] if not text.startswith("^"))
        return Segment(name, entering, tuple(leaving), frozenset(node.name for node in inside))

    def rename(self, names: Mapping[str, str]) -> None:
        """Give the tensors of arguments the names that they have in the session."""
        self.segments = tuple(
            Segment(item.name, tuple(names.get(name, name) for name in item.entering), item.leaving, item.ops)
            for item in self.segments
        )
        self.results = [names.get(name, name) for name in self.results]

    def order(self) -> list[str]:
        """Names of all nodes, each after those that it reads."""
        done: dict[str, None] = {}
        for start in self.nodes:
            stack = [start]
            while stack:
                name = stack[-1]
                reads = [text.removeprefix("^").split(":")[0] for text in self.nodes[name].input]
                missing = [item for item in reads if item not in done and item in self.nodes]
                if missing:
                    stack += missing
                else:
                    done[stack.pop()] = None
        return list(done)


def _tensor(text: str) -> str:
    return text if ":" in text else f"{text}:0"


def _redirect(node: Any, moved: Mapping[str, str], engines: Mapping[str, Any]) -> None:
    """Read what an island left behind; what waited for an island waits for nothing, as its ops have no side effects."""
    reads = []
    for text in node.input:
        if text.startswith("^"):
            if text[1:].removesuffix("_value") not in engines:
                reads.append(text)
        else:
            reads.append(moved.get(_tensor(text), text))
    node.input[:] = reads
