"""Turn a signature's graph into one that can be lowered: state read as constants, large weights left out.

A *hollow* graph has a Placeholder where a large constant was. Every step of tf2onnx copies and folds constants, so on a
hollow graph lowering takes a fifth of the time and memory; the weights are put back into the ONNX once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from refimpl.artifacts import Arg, Array, SignatureGraph
from refimpl.converter import graphdefs as gd
from refimpl.converter.rewrites import rewrite_op
from refimpl.specs import Shape

HOLLOW_ELEMENTS = 1024  # smaller constants may be shapes, axes or scales that lowering must see
_FLOATS = frozenset(["float16", "bfloat16", "float32", "float64"])
_READ_OPS = frozenset(["ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "Identity"])
WEIGHT = "weight/"  # prefix of the Placeholder of a hollow constant


@dataclass(frozen=True)
class LoweringGraph:
    """A signature's graph without state, ready for tf2onnx, still sorted by the ops it came from."""

    bodies: Mapping[str, tuple[gd.NodeDef, ...]]  # op -> the nodes that compute it; the last one has the op's name
    order: tuple[gd.NodeDef, ...]  # the signature's own nodes, in topological order
    constant: frozenset[str]  # ops that depend on no input and on no side effect
    weights: Mapping[str, Array]  # Placeholder of a hollow constant -> value
    library: Mapping[str, gd.FunctionDef]
    versions: Any
    # What to lower in place of a body: the constant that it comes to (folding).
    folded: Mapping[str, tuple[gd.NodeDef, ...]] = field(default_factory=dict)

    def lowered(self, name: str) -> tuple[gd.NodeDef, ...]:
        """The nodes that an op, or a constant, is lowered as."""
        return self.folded.get(name) or self.bodies[name]


def assigned_variables(graph: SignatureGraph) -> frozenset[str]:
    """Names of variable arguments that the signature may write to; they are no constants."""
    library = {function.signature.name: function for function in graph.graph_def.library.function}
    variables = {arg.name for arg in graph.args if arg.kind == "variable"}
    written: set[str] = set()
    for node in graph.graph_def.node:
        refs = gd.data_inputs(node)
        for position, ref in enumerate(refs):
            if ref.node in variables and _writes(node, position, library):
                written.add(ref.node)
    return frozenset(written)


def _writes(node: gd.NodeDef, position: int, library: Mapping[str, gd.FunctionDef], depth: int = 0) -> bool:
    if node.op in _READ_OPS:
        return False
    called = [name for name in gd.called_functions(node) if name in library]
    if not called or depth > 20:
        return True
    skip = 1 if node.op in ("If", "StatelessIf", "Case", "StatelessCase") else 0
    for name in called:
        function = library[name]
        arg = function.signature.input_arg[position - skip].name
        for inner in function.node_def:
            for inner_position, text in enumerate(text for text in inner.input if not text.startswith("^")):
                if text.split(":")[0] == arg and _writes(inner, inner_position, library, depth + 1):
                    return True
    return False


def lowering_graph(graph: SignatureGraph, values: Mapping[str, Array], frozen: frozenset[str]) -> LoweringGraph:
    """Replace every variable in ``frozen`` by its value and every large constant by a Placeholder.

    Args:
        graph: the signature's graph.
        values: value of each variable in ``frozen``.
        frozen: names of the arguments that hold constants.
    """
    library = {function.signature.name: function for function in graph.graph_def.library.function}
    order = gd.topological(graph.graph_def)
    solid = flow_into_functions(order)
    specialiser = _Specialiser(library, {arg.name: arg for arg in graph.args if arg.name in frozen})
    weights: dict[str, Array] = {}
    constant = _constant_nodes(order, {arg.name for arg in graph.args} - frozen, library)
    bodies: dict[str, tuple[gd.NodeDef, ...]] = {}
    for node in order:
        if node.name in frozen:
            body = constant_body(node.name, values[node.name], weights, hollow=node.name not in solid)
        elif node.op == "Const" and node.name not in solid and _is_large(node):
            body = constant_body(node.name, tf.make_ndarray(node.attr["value"].tensor), weights, hollow=True)
        else:
            body = [made for new in specialiser.node(node) for made in rewrite_op(new, constant)]
        bodies[node.name] = tuple(body)
    library = _with_branch_shapes(specialiser.library, bodies)
    return LoweringGraph(bodies, tuple(order), frozenset(constant), weights, library, graph.graph_def.versions)


def constant_body(name: str, value: Array, weights: dict[str, Array], *, hollow: bool) -> list[gd.NodeDef]:
    """The nodes of a constant; a large one, if it may be hollow, is a Placeholder whose value goes into ``weights``."""
    dtype = tf.as_dtype(value.dtype if value.dtype != object else tf.string)
    if hollow and value.size >= HOLLOW_ELEMENTS and dtype.name in _FLOATS:
        node = gd.make_node(WEIGHT + name, "Placeholder", [], dtype=gd.type_attr(dtype.as_datatype_enum))
        for size in value.shape:
            node.attr["shape"].shape.dim.add(size=size)
        weights[node.name] = value
        return [node, gd.make_node(name, "Identity", [node.name], T=gd.type_attr(dtype.as_datatype_enum))]
    node = gd.make_node(name, "Const", [], dtype=gd.type_attr(dtype.as_datatype_enum))
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype=dtype))
    return [node]


def _is_large(node: gd.NodeDef) -> bool:
    tensor = node.attr["value"].tensor
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    return int(np.prod(sizes, dtype=np.int64)) >= HOLLOW_ELEMENTS and gd.dtype_name(tensor.dtype) in _FLOATS


def flow_into_functions(order: Sequence[gd.NodeDef]) -> set[str]:
    """Constants that reach If, While and the like: tf2onnx reads RNN weights there and must see them."""
    nodes = {node.name: node for node in order}
    solid: set[str] = set()
    for node in order:
        if any(True for _ in gd.called_functions(node)):
            stack = [ref.node for ref in gd.data_inputs(node)]
            while stack:
                name = stack.pop()
                if name in solid or name not in nodes:
                    continue
                solid.add(name)
                if nodes[name].op in ("Identity", "ReadVariableOp", "TensorListFromTensor"):
                    stack += [ref.node for ref in gd.data_inputs(nodes[name])]
    return solid


def _constant_nodes(order: list[gd.NodeDef], live: set[str], library: Mapping[str, gd.FunctionDef]) -> set[str]:
    constant: set[str] = set()
    for node in order:
        if node.name in live or (gd.is_stateful(node, library) and node.op != "VarHandleOp"):
            continue
        if all(ref.node in constant for ref in map(gd.parse_ref, node.input)):
            constant.add(node.name)
    return constant


@dataclass(frozen=True, slots=True)
class _Value:
    dtype: int  # DataType enum
    shape: Shape


class _Specialiser:
    """Rewrites nodes and functions so that constants arrive by value where variable handles arrived."""

    def __init__(self, library: Mapping[str, gd.FunctionDef], frozen: Mapping[str, Arg]) -> None:
        self.library = dict(library)
        # Tensors that hold a value now where they held a handle, in the syntax of the graph they are in.
        self._values = {
            name: _Value(int(tf.as_dtype(arg.dtype).as_datatype_enum), arg.shape)
            for name, arg in frozen.items()
            if arg.kind == "variable"
        }
        self._made: dict[tuple[str, tuple[tuple[int, _Value], ...]], str] = {}

    def node(self, node: gd.NodeDef) -> list[gd.NodeDef]:
        """The nodes that stand for one node of the signature's graph; the last one has its name."""
        return self._rewrite(node, self._values)

    def _rewrite(self, node: gd.NodeDef, values: dict[str, _Value]) -> list[gd.NodeDef]:
        inputs = [text for text in node.input if not text.startswith("^")]
        arrived = [values.get(text.removesuffix(":0") if text.count(":") < 2 else text) for text in inputs]
        if not any(arrived):
            return [node]
        first = arrived[0].dtype if arrived[0] else 0
        if node.op in ("ReadVariableOp", "Identity"):
            if node.op == "Identity":
                values[node.name] = values[f"{node.name}:output:0"] = values[inputs[0]]
            return [gd.make_node(node.name, "Identity", node.input, T=gd.type_attr(first))]
        if node.op == "ResourceGather":
            return _gather(node, first, in_function=values is not self._values)
        if node.op == "ResourceGatherNd":
            indices = node.attr["Tindices"]
            return [gd.make_node(node.name, "GatherNd", node.input, Tparams=gd.type_attr(first), Tindices=indices)]
        return [self._call(node, arrived)]

    def _call(self, node: gd.NodeDef, arrived: list[_Value | None]) -> gd.NodeDef:
        copy = gd.new_node_def()
        copy.CopyFrom(node)
        skip = 1 if node.op in ("If", "StatelessIf", "Case", "StatelessCase") else 0
        changes = {index - skip: value for index, value in enumerate(arrived) if value}
        for key, value in copy.attr.items():
            for func in [value.func] if value.HasField("func") else list(value.list.func):
                func.name = self._function(func.name, changes)
            if key in ("Tin", "T") and value.list.type:
                for index, change in changes.items():
                    value.list.type[index] = change.dtype
            if key == "output_shapes" and value.list.shape and node.op in ("While", "StatelessWhile"):
                for index, change in changes.items():
                    value.list.shape[index].CopyFrom(tf.TensorShape(change.shape).as_proto())
        return copy

    def _function(self, name: str, changes: dict[int, _Value]) -> str:
        """The function with the arguments in ``changes`` passed by value."""
        key = (name, tuple(sorted(changes.items())))
        if key in self._made:
            return self._made[key]
        new = gd.new_function_def()
        new.CopyFrom(self.library[name])
        new.signature.name = self._made[key] = f"{name}_by_value_{len(self._made)}"
        values: dict[str, _Value] = {}
        for index, value in changes.items():
            arg = new.signature.input_arg[index]
            arg.type = value.dtype
            arg.ClearField("handle_data")
            new.arg_attr.pop(index, None)
            _set_arg_shape(new, index, value.shape)
            values[arg.name] = value
        reads = {
            f"{node.name}:value:0": f"{node.name}:output:0" for node in new.node_def if node.op == "ReadVariableOp"
        }
        body = [made for node in new.node_def for made in self._rewrite(node, values)]
        reads = {old: made for old, made in reads.items() if _became_identity(body, old)}
        for node in body:
            inputs = [reads.get(text, text) for text in node.input]
            node.ClearField("input")
            node.input.extend(inputs)
        new.ClearField("node_def")
        new.node_def.extend(body)
        for out in new.signature.output_arg:
            new.ret[out.name] = reads.get(new.ret[out.name], new.ret[out.name])
            if new.ret[out.name] in values:
                out.type = values[new.ret[out.name]].dtype
                out.ClearField("handle_data")
        self.library[new.signature.name] = new
        return str(new.signature.name)


def _set_arg_shape(function: gd.FunctionDef, index: int, shape: Shape) -> None:
    shapes = function.arg_attr[index].attr["_output_shapes"].list.shape
    shapes.add().CopyFrom(tf.TensorShape(shape).as_proto())


def _with_branch_shapes(
    library: Mapping[str, gd.FunctionDef], bodies: Mapping[str, tuple[gd.NodeDef, ...]]
) -> dict[str, gd.FunctionDef]:
    """Give every argument of an If or Case branch a shape, be it an unknown one.

    tf2onnx gives arguments without one the shapes of the If's inputs, the predicate first: off by one.
    """
    result = dict(library)
    nodes = [node for body in bodies.values() for node in body] + [n for f in library.values() for n in f.node_def]
    branches = {name for node in nodes if node.op.endswith(("If", "Case")) for name in gd.called_functions(node)}
    for name in branches & set(library):
        function = gd.new_function_def()
        function.CopyFrom(library[name])
        for index in range(len(function.signature.input_arg)):
            if "_output_shapes" not in function.arg_attr[index].attr:
                _set_arg_shape(function, index, None)
        result[name] = function
    return result


def _became_identity(body: list[gd.NodeDef], tensor: str) -> bool:
    name = tensor.split(":", maxsplit=1)[0]
    return any(node.name == name and node.op == "Identity" for node in body)


def _gather(node: gd.NodeDef, dtype: int, in_function: bool) -> list[gd.NodeDef]:
    int32 = tf.int32.as_datatype_enum
    axis = gd.make_node(f"{node.name}/axis", "Const", [], dtype=gd.type_attr(int32))
    axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(node.attr["batch_dims"].i, dtype=tf.int32))
    suffix = ":output:0" if in_function else ""
    return [
        axis,
        gd.make_node(
            node.name,
            "GatherV2",
            [*list(node.input)[:2], axis.name + suffix],
            Tparams=gd.type_attr(dtype),
            Tindices=node.attr["Tindices"],
            Taxis=gd.type_attr(int32),
            batch_dims=int(node.attr["batch_dims"].i),
        ),
    ]
