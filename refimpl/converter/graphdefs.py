"""Small, pure helpers over GraphDef and FunctionDef protobufs: names, walks, functions. No session, no kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tensorflow.core.framework import attr_value_pb2, function_pb2, graph_pb2, node_def_pb2

from refimpl import tf_private
from refimpl.errors import InternalError

# TensorFlow's generated protobuf classes come without types.
GraphDef: TypeAlias = Any
NodeDef: TypeAlias = Any
FunctionDef: TypeAlias = Any
new_graph_def, new_node_def, new_function_def = graph_pb2.GraphDef, node_def_pb2.NodeDef, function_pb2.FunctionDef

# Ops that read state but change none: they may be reordered, and need no control edges.
READS = frozenset(
    """ReadVariableOp ResourceGather ResourceGatherNd VarHandleOp VariableV2 Variable VarIsInitializedOp VariableShape
    LookupTableFind LookupTableFindV2 LookupTableSize LookupTableSizeV2 LookupTableExportV2 HashTableV2
    MutableHashTableV2 Placeholder AnonymousHashTable""".split()
)
_FUNCTIONAL = frozenset(
    "If StatelessIf While StatelessWhile Case StatelessCase PartitionedCall StatefulPartitionedCall".split()
)


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed NodeDef input: a tensor ``node:index``, or a control edge (``index == -1``)."""

    node: str
    index: int

    @property
    def tensor(self) -> str:
        return f"{self.node}:{self.index}"


def parse_ref(text: str) -> Ref:
    """Parse ``"a"``, ``"a:1"`` or ``"^a"``."""
    if text.startswith("^"):
        return Ref(text[1:], -1)
    node, _, index = text.partition(":")
    return Ref(node, int(index or 0))


def data_inputs(node: NodeDef) -> list[Ref]:
    """The tensors that a node reads, in order; control edges left out."""
    return [ref for ref in map(parse_ref, node.input) if ref.index >= 0]


def format_ref(ref: Ref) -> str:
    """The shortest spelling that TensorFlow itself writes."""
    if ref.index < 0:
        return f"^{ref.node}"
    return ref.node if ref.index == 0 else ref.tensor


def reachable(nodes: Mapping[str, NodeDef], roots: Iterable[str], stop: frozenset[str] = frozenset()) -> set[str]:
    """Names of all ancestors of ``roots`` (themselves included), not walking past ``stop``."""
    seen: set[str] = set()
    stack = list(roots)
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in stop:
            stack.extend(parse_ref(text).node for text in nodes[name].input)
    return seen


def topological(graph_def: GraphDef) -> list[NodeDef]:
    """The nodes in an order that respects data and control edges.

    Raises:
        InternalError: the graph has a cycle (TF1 while loops must have been refused before).
    """
    nodes = {node.name: node for node in graph_def.node}
    waiting = {name: len({parse_ref(text).node for text in node.input}) for name, node in nodes.items()}
    consumers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for source in {parse_ref(text).node for text in node.input}:
            consumers[source].append(name)
    ready = [name for name, count in waiting.items() if count == 0]
    order = []
    while ready:
        name = ready.pop()
        order.append(nodes[name])
        for consumer in consumers[name]:
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                ready.append(consumer)
    if len(order) != len(nodes):
        raise InternalError(f"cycle through {sorted(name for name, count in waiting.items() if count)[:5]}")
    return order


def called_functions(node: NodeDef) -> Iterator[str]:
    """Names of the functions that a node refers to in its attributes."""
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (func.name for func in value.list.func)


def functions_of(nodes: Iterable[NodeDef], library: Mapping[str, FunctionDef]) -> dict[str, FunctionDef]:
    """Every library function that the nodes reach, directly or through other functions."""
    found: dict[str, FunctionDef] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        for name in [*called_functions(node), node.op]:
            if name in library and name not in found:
                found[name] = library[name]
                stack.extend(library[name].node_def)
    return found


def is_stateful(node: NodeDef, library: Mapping[str, FunctionDef]) -> bool:
    """Whether running the node twice, or not at all, could be noticed (reading state does not count, drawing does)."""
    if node.op in READS:
        return False
    if node.op in _FUNCTIONAL or node.op in library:
        inner = functions_of([node], library)
        return any(
            is_stateful(child, {})
            for function in inner.values()
            for child in function.node_def
            if child.op not in _FUNCTIONAL
        )
    definition = tf_private.op_def(node.op)
    return definition is None or definition.is_stateful


def output_dtypes(node: NodeDef) -> list[int]:
    """The DataType enum of every output of a node (reference types as their base type)."""
    definition = tf_private.op_def(node.op)
    if definition is None:
        raise InternalError(f"{node.name}: op {node.op} is not registered")
    return [dtype for _, dtypes in _output_args(definition, node) for dtype in dtypes]


def _output_args(definition: Any, node: NodeDef) -> Iterator[tuple[str, list[int]]]:
    for arg in definition.output_arg:
        if arg.type_list_attr:
            yield arg.name, [t % 100 for t in node.attr[arg.type_list_attr].list.type]
            continue
        dtype = arg.type or node.attr[arg.type_attr].type
        count = node.attr[arg.number_attr].i if arg.number_attr else 1
        yield arg.name, [dtype % 100] * count


def make_node(name: str, op: str, inputs: Sequence[str], **attrs: Any) -> NodeDef:
    """A NodeDef; attribute values may be str, bool, int, DataType as ``("type", enum)``, AttrValue, or a list of
    types.
    """
    node = new_node_def(name=name, op=op, input=list(inputs))
    for key, value in attrs.items():
        if isinstance(value, attr_value_pb2.AttrValue):
            node.attr[key].CopyFrom(value)
        elif isinstance(value, bool):
            node.attr[key].b = value
        elif isinstance(value, int):
            node.attr[key].i = value
        elif isinstance(value, str):
            node.attr[key].s = value.encode()
        else:
            raise InternalError(f"attribute {key}={value!r}")
    return node


def type_attr(dtype: int) -> attr_value_pb2.AttrValue:
    """An attribute value that holds one DataType."""
    return attr_value_pb2.AttrValue(type=dtype)


def types_attr(dtypes: Sequence[int]) -> attr_value_pb2.AttrValue:
    """An attribute value that holds a list of DataTypes."""
    return attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(type=dtypes))


def func_attr(name: str) -> attr_value_pb2.AttrValue:
    """An attribute value that refers to a library function."""
    return attr_value_pb2.AttrValue(func=attr_value_pb2.NameAttrList(name=name))


def dtype_name(dtype: int) -> str:
    """TensorFlow's name of a DataType enum value: ``"float32"``."""
    import tensorflow as tf

    return str(tf.dtypes.as_dtype(dtype).base_dtype.name)


def make_function(
    name: str,
    nodes: Sequence[NodeDef],
    args: Sequence[tuple[str, int]],
    results: Sequence[tuple[str, int, str]],
    control: Sequence[str] = (),
) -> FunctionDef:
    """A FunctionDef from graph nodes.

    Args:
        name: the function's name.
        nodes: body nodes in graph syntax (inputs ``"node:index"``); an input may name an argument.
        args: (graph name, DataType) of each argument: the Placeholder whose place it takes in the body.
        results: (name, DataType, tensor) of each result; ``tensor`` in graph syntax.
        control: names of body nodes that must run although no result needs them.
    """
    function = new_function_def()
    function.signature.name = name
    # Graph names such as "a/B" are no legal argument names, so arguments are numbered.
    arg_names = {arg: f"arg{index}" for index, (arg, _) in enumerate(args)}
    slots = {node.name: _function_slots(node) for node in nodes}

    def rename(ref: Ref) -> str:
        if ref.index < 0:
            return format_ref(ref)
        return arg_names.get(ref.node) or f"{ref.node}:{slots[ref.node][ref.index]}"

    for index, (_, dtype) in enumerate(args):
        function.signature.input_arg.add(name=f"arg{index}", type=dtype)
    for node in nodes:
        copy = function.node_def.add()
        copy.CopyFrom(node)
        refs = [parse_ref(text) for text in node.input]
        copy.ClearField("input")
        copy.input.extend(rename(ref) for ref in refs if not (ref.index < 0 and ref.node in arg_names))
    for result, dtype, tensor in results:
        function.signature.output_arg.add(name=result, type=dtype)
        function.ret[result] = rename(parse_ref(tensor))
    for node_name in control:
        function.signature.control_output.append(node_name)
        function.control_ret[node_name] = node_name
    function.signature.is_stateful = any(
        (definition := tf_private.op_def(node.op)) is None or definition.is_stateful for node in nodes
    )
    return function


def function_body(function: FunctionDef, names: Mapping[int, str] | None = None) -> tuple[GraphDef, list[str]]:
    """The other way round from :func:`make_function`: a function's nodes as a graph.

    Args:
        function: to take apart.
        names: what to call the Placeholder of an argument, by its index; its own name by default.

    Returns:
        The graph, without a library, and the tensor of each result.
    """
    args = {arg.name: (names or {}).get(index, arg.name) for index, arg in enumerate(function.signature.input_arg)}
    slots = {
        f"{node.name}:{slot}": f"{node.name}:{index}"
        for node in function.node_def
        for index, slot in enumerate(_function_slots(node))
    }
    tensors = {**slots, **{arg: f"{name}:0" for arg, name in args.items()}}
    graph_def = new_graph_def()
    for arg in function.signature.input_arg:
        graph_def.node.append(make_node(args[arg.name], "Placeholder", [], dtype=type_attr(arg.type)))
    for node in function.node_def:
        copy = graph_def.node.add()
        copy.CopyFrom(node)
        copy.ClearField("input")
        copy.input.extend(text if text.startswith("^") else tensors[text] for text in node.input)
    return graph_def, [tensors[function.ret[arg.name]] for arg in function.signature.output_arg]


def _function_slots(node: NodeDef) -> list[str]:
    """For every flat output index, the ``argname:position`` that a FunctionDef uses."""
    definition = tf_private.op_def(node.op)
    if definition is None:
        raise InternalError(f"{node.name}: op {node.op} is not registered")
    return [f"{arg}:{position}" for arg, dtypes in _output_args(definition, node) for position in range(len(dtypes))]


def rename_functions(graph_def: GraphDef, suffix: str) -> None:
    """Give every library function a suffix, in place, so that the graph can meet another that has them too."""
    names = {function.signature.name: f"{function.signature.name}{suffix}" for function in graph_def.library.function}
    for function in graph_def.library.function:
        function.signature.name = names[function.signature.name]
    for node in [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]:
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            for func in [value.func] if value.HasField("func") else list(value.list.func):
                func.name = names.get(func.name, func.name)


def restore_lowering(graph_def: GraphDef) -> None:
    """Let TensorFlow lower functional control flow again when it runs the graph, as it does by default."""
    for node in [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]:
        if "_lower_using_switch_merge" in node.attr:
            node.attr["_lower_using_switch_merge"].b = True
