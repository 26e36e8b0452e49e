"""The function that ``convert()`` returns: a bundle's signature in this process, its engine nodes in plain sight."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from refimpl.converter import graphdefs as gd
from refimpl.converter.stitch import identifier
from refimpl.runtime import TOKEN
from refimpl.specs import Shape, Signature


@dataclass(frozen=True)
class Converted:
    """A bundle's signature in this process.

    Attributes:
        function: a concrete function; positional arguments in the model's order or keywords, a dict by output name.
        watch: like it, but returns the values at the cuts of every island: name -> (entering, leaving).
    """

    function: Any
    watch: Callable[[Mapping[str, Any]], dict[str, tuple[list[Any], list[Any]]]]


def load_function(folder: Path, signature: Signature, order: Sequence[str], tags: Sequence[str]) -> Converted:
    """Load a signature of a bundle.

    The function's graph has the engine nodes on top, where a loaded SavedModel hides them two calls deep.

    Args:
        folder: the bundle.
        signature: which one.
        order: names of its inputs, for positional arguments.
        tags: of the meta graph.
    """
    loaded = tf.saved_model.load(str(folder), tags=list(tags))
    concrete = loaded.signatures[signature.key]
    stitched = _Stitched.of(concrete)
    specs = {spec.name: tf.TensorSpec(_shape(spec.shape), spec.dtype, spec.name) for spec in signature.inputs}
    ordered = {name: specs[name] for name in order}
    made = _concrete(stitched.run if stitched else lambda values: concrete(**values), ordered)
    made.refimpl_model = loaded  # the variables must live as long as the function does
    watching: list[Any] = []

    def watch(sample: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
        if stitched is None:
            return {}
        if not watching:
            watching.append(_concrete(stitched.run_to_cuts, ordered))
        found = watching[0](*(sample[name] for name in order)) if order else watching[0]()
        return {
            name: ([np.asarray(value) for value in entering], [np.asarray(value) for value in leaving])
            for name, (entering, leaving) in found.items()
        }

    return Converted(made, watch)


def _shape(shape: Shape) -> list[int | None] | None:
    return None if shape is None else list(shape)


def _concrete(body: Callable[[Mapping[str, Any]], Any], specs: Mapping[str, Any]) -> Any:
    """A concrete function of a body; what cannot be a parameter's name in Python gets underscores, as in TensorFlow."""
    names = {name if _is_name(name) else f"arg_{identifier(name)}": name for name in specs}
    signature = inspect.Signature([inspect.Parameter(item, inspect.Parameter.POSITIONAL_OR_KEYWORD) for item in names])

    def converted(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        return body({names[name]: value for name, value in bound.items()})

    converted.__signature__ = signature  # type: ignore[attr-defined]
    return tf.function(converted, autograph=False).get_concrete_function(*specs.values())


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


@dataclass(frozen=True)
class _Stitched:
    """The stitched function inside a loaded signature."""

    concrete: Any
    call: Any  # the operation of the signature's graph that calls it, or a wrapper that calls it
    arguments: tuple[Any, ...]  # tensors of the signature's graph
    function: Any  # its FunctionDef
    body: Any  # its nodes as a GraphDef
    results: tuple[str, ...]  # tensors of the body, one per output of ``call``

    @staticmethod
    def of(concrete: Any) -> _Stitched | None:
        """None when the signature calls no function that holds engine nodes."""
        graph_def = concrete.graph.as_graph_def()
        functions = {function.signature.name: function for function in graph_def.library.function}
        for call in concrete.graph.get_operations():
            called = functions.get(call.get_attr("f").name) if call.type.endswith("PartitionedCall") else None
            for function, arguments, picked in _bodies(call, called, functions) if called is not None else ():
                if any(is_engine(node) for node in function.node_def):
                    body, results = gd.function_body(function)
                    body.library.CopyFrom(graph_def.library)
                    return _Stitched(concrete, call, arguments, function, body, tuple(results[i] for i in picked))
        return None

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Import the body into the current graph; the signature's outputs by name."""
        found = self._imported(values, self.results)
        return {name: tf.identity(found[index]) for name, index in self._result_of().items()}

    def run_to_cuts(self, values: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
        """Import the body; for every island the tensors that enter it and those that leave it."""
        nodes = {node.name: node for node in self.body.node}
        engines = [node for node in self.body.node if is_engine(node)]
        wanted: list[str] = []
        sizes = []
        for node in engines:
            entering = [text if ":" in text else f"{text}:0" for text in node.input[4:] if not text.startswith("^")]
            count = len(nodes[f"{node.name}_value"].attr["Tout"].list.type)
            wanted += [*entering, *(f"{node.name}_value:{index}" for index in range(count))]
            sizes.append((len(entering), count))
        found = iter([tf.identity(tensor) for tensor in self._imported(values, wanted)])
        return {
            node.name: ([next(found) for _ in range(entering)], [next(found) for _ in range(leaving)])
            for node, (entering, leaving) in zip(engines, sizes, strict=True)
        }

    def _imported(self, values: Mapping[str, Any], wanted: Sequence[str]) -> list[Any]:
        arguments = [argument.name for argument in self.function.signature.input_arg]
        fed = {f"{name}:0": tensor for name, tensor in zip(arguments, self._arguments(values), strict=True)}
        own = [name for name in wanted if name not in fed]
        found = dict(zip(own, self._import(self.body, fed, own), strict=True))
        return [fed[name] if name in fed else found[name] for name in wanted]

    def _arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """What the body is called with: inputs, state, and in TF1 models what is computed from state (its path)."""
        graph = tf.compat.v1.get_default_graph()
        given = len(self.concrete.inputs) - len(self.concrete.captured_inputs)
        known = {
            tensor.name: values[self._keys()[index]]
            if index < given
            else graph.capture(self.concrete.captured_inputs[index - given])
            for index, tensor in enumerate(self.concrete.inputs)
        }
        computed = [tensor.name for tensor in self.arguments if tensor.name not in known]
        if computed:
            before = tf.compat.v1.graph_util.extract_sub_graph(
                self.concrete.graph.as_graph_def(), [name.split(":")[0] for name in computed]
            )
            names = {node.name for node in before.node}
            fed = {name: value for name, value in known.items() if name.split(":")[0] in names}
            known.update(zip(computed, self._import(before, fed, computed), strict=True))
        return [known[tensor.name] for tensor in self.arguments]

    @staticmethod
    def _import(graph_def: Any, fed: Mapping[str, Any], wanted: Sequence[str]) -> list[Any]:
        found: list[Any] = tf.graph_util.import_graph_def(
            graph_def, input_map=fed, return_elements=list(wanted), name=""
        )
        return found

    def _keys(self) -> list[str]:
        """The input's name by its position; a placeholder may be called otherwise when that is no name for a node."""
        return sorted(self.concrete.structured_input_signature[1])

    def _result_of(self) -> dict[str, int]:
        """Output name -> which result of the call it is."""
        found = {}
        for name, output in zip(sorted(self.concrete.structured_outputs), self.concrete.outputs, strict=True):
            tensor = output
            while tensor.op is not self.call:
                tensor = tensor.op.inputs[0]  # behind an Identity
            found[name] = tensor.value_index
        return found


def _bodies(call: Any, called: Any, functions: Mapping[str, Any]) -> Iterator[tuple[Any, tuple[Any, ...], list[int]]]:
    """What a call may run: the function that it calls, and the one that this calls in turn, if it is a mere wrapper.

    Yields:
        The function, the tensors that become its arguments, and which of its results each output of the call is.
    """
    yield called, tuple(call.inputs), list(range(len(call.outputs)))
    position = {arg.name: index for index, arg in enumerate(called.signature.input_arg)}
    for node in called.node_def:
        name = node.attr["f"].func.name
        if node.op.endswith("PartitionedCall") and name in functions and position.keys() >= set(node.input):
            picked = [int(called.ret[arg.name].rsplit(":", 1)[1]) for arg in called.signature.output_arg]
            yield functions[name], tuple(call.inputs[position[text]] for text in node.input), picked


def is_engine(node: Any) -> bool:
    """Whether a NodeDef is an engine node."""
    return bool(node.op == "PyFunc" and node.attr["token"].s.decode() == TOKEN)
