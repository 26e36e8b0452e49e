"""Stitch: write the model's SavedModel protobuf again, each island one engine node with a native fallback.

Nothing is loaded or traced for this. The signature's function is replaced by one that holds the stitched graph;
variables, tables, assets, other signatures and the Python object graph stay what they were, weights are stored once,
and a model of any size costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from refimpl.artifacts import Arg
from refimpl.converter import graphdefs as gd
from refimpl.converter.lower import OpGraph
from refimpl.runtime import TOKEN
from refimpl.specs import Shape

ASSET_ARG = "refimpl_bundle"
_STRING = tf.string.as_datatype_enum
_BOOL = tf.bool.as_datatype_enum


@dataclass(frozen=True)
class Cut:
    """What the graph needs to know of an island: its ops, and the tensors that enter and leave it."""

    ops: tuple[str, ...]
    entering: tuple[str, ...]
    leaving: tuple[str, ...]


@dataclass(frozen=True)
class Stitched:
    """A signature's new function and the functions it needs."""

    key: str
    outputs: tuple[str, ...]  # the signature's output keys, one per result
    shapes: tuple[Shape, ...]  # of the results, as the signature states them
    function: gd.FunctionDef
    helpers: tuple[gd.FunctionDef, ...]
    args: tuple[Arg, ...]  # of the function, before the asset's path
    result_types: tuple[int, ...]


def stitch_signature(
    graph: OpGraph, islands: Mapping[str, Cut], bundle_id: str, attributes: Mapping[str, str]
) -> Stitched:
    """The stitched function of one signature.

    Args:
        graph: the signature.
        islands: by name, ``TRTEngineOp_GGG_SSS``.
        bundle_id: identity that every engine node carries.
        attributes: private attributes (``_precision_mode`` ...) for every engine node.
    """
    source = graph.source
    nodes = {node.name: node for node in graph.lowering.order}
    moved: dict[gd.Ref, str] = {}  # an island's tensor -> the tensor that carries it now
    owner: dict[str, str] = {}  # op inside an island -> node that control edges must name instead
    for name, island in islands.items():
        for index, tensor in enumerate(island.leaving):
            moved[gd.parse_ref(tensor)] = f"{name}_value:{index}"
        owner.update(dict.fromkeys(island.ops, f"{name}_value"))
    body: list[gd.NodeDef] = []
    helpers: list[gd.FunctionDef] = []
    for name, island in islands.items():
        native, branches = _branches(graph, name, island, nodes)
        helpers += [native.function, *branches]
        body += _engine_nodes(graph, name, island, native, bundle_id, attributes, moved, owner)
    for node in graph.lowering.order:
        if node.name not in owner and node.op != "Placeholder":
            body.append(_redirect(node, moved, owner))
    args = [(arg.name, arg_type(arg)) for arg in source.args] + [(ASSET_ARG, _STRING)]
    body, control = _prune(body, {name for name, _ in args}, source.results)
    types = tuple(int(nodes[gd.parse_ref(name).node].attr["T"].type) for name in source.results)
    results = [
        (f"result{index}", dtype, name) for index, (dtype, name) in enumerate(zip(types, source.results, strict=True))
    ]
    function = gd.make_function(f"refimpl_{bundle_id}_{identifier(source.signature.key)}", body, args, results, control)
    library = {function.signature.name: function for function in source.graph_def.library.function}
    helpers += gd.functions_of([*body, *(node for helper in helpers for node in helper.node_def)], library).values()
    unique = {helper.signature.name: helper for helper in helpers}
    outputs = tuple(spec.name for spec in source.signature.outputs)
    shapes = tuple(spec.shape for spec in source.signature.outputs)
    return Stitched(source.signature.key, outputs, shapes, function, tuple(unique.values()), source.args, types)


@dataclass(frozen=True)
class _Native:
    function: gd.FunctionDef
    captured: tuple[Arg, ...]  # state that the native segment reads


def _branches(
    graph: OpGraph, name: str, island: Cut, nodes: Mapping[str, gd.NodeDef]
) -> tuple[_Native, tuple[gd.FunctionDef, gd.FunctionDef]]:
    """The two branches behind an engine node: the original ops, and passing the engine's outputs on."""
    constant = graph.lowering.constant
    state = {arg.name: arg for arg in graph.source.args if arg.kind != "input"}
    stop = frozenset(gd.parse_ref(tensor).node for tensor in island.entering)
    inside = set(island.ops)
    names = gd.reachable(nodes, island.ops, stop=stop | frozenset(state) | (frozenset(nodes) - inside - constant))
    captured = tuple(state[item] for item in sorted(names & set(state)))
    keep = [
        node
        for node in graph.lowering.order
        if node.name in names and (node.name in inside or node.name in constant) and node.name not in state
    ]
    entering = {gd.parse_ref(tensor): f"entering/{index}" for index, tensor in enumerate(island.entering)}
    present = {node.name for node in keep}
    body = []
    for node in keep:
        copy = _redirect(node, entering, {})
        inputs = [text for text in copy.input if not text.startswith("^") or text[1:] in present]
        copy.ClearField("input")
        copy.input.extend(inputs)
        body.append(copy)
    in_types = _types(graph, island.entering)
    out_types = _types(graph, island.leaving)
    args = [(f"entering/{index}", dtype) for index, dtype in enumerate(in_types)]
    args += [(arg.name, arg_type(arg)) for arg in captured]
    args += [(f"engine/{index}", dtype) for index, dtype in enumerate(out_types)]
    results = [
        (f"result{index}", dtype, tensor)
        for index, (dtype, tensor) in enumerate(zip(out_types, island.leaving, strict=True))
    ]
    native = gd.make_function(f"{name}_native_segment", body, args, results)
    passing = gd.make_function(
        f"{name}_engine_result",
        [
            gd.make_node(
                # An engine has no gradient, and an Identity would let TensorFlow take it for zero.
                f"pass/{index}",
                "PreventGradient",
                [f"engine/{index}"],
                T=gd.type_attr(dtype),
                message=f"{name} is an engine of a refimpl bundle, which is for inference: call it under "
                "tape.stop_recording(), and train the original model",
            )
            for index, dtype in enumerate(out_types)
        ],
        args,
        [(f"result{index}", dtype, f"pass/{index}:0") for index, dtype in enumerate(out_types)],
    )
    # Called from the branch, not made the branch itself: TensorFlow optimizes a call as it does a whole model, and its
    # fused and oneDNN kernels make other things of a NaN than the plain ones that a branch would get.
    call = gd.make_node(
        "call",
        "StatefulPartitionedCall",
        [arg for arg, _ in args],
        f=gd.func_attr(native.signature.name),
        Tin=gd.types_attr([dtype for _, dtype in args]),
        Tout=gd.types_attr(out_types),
    )
    calling = gd.make_function(
        f"{name}_native_call",
        [call],
        args,
        [(f"result{index}", dtype, f"call:{index}") for index, dtype in enumerate(out_types)],
    )
    return _Native(native, captured), (calling, passing)


def _engine_nodes(
    graph: OpGraph,
    name: str,
    island: Cut,
    native: _Native,
    bundle_id: str,
    attributes: Mapping[str, str],
    moved: Mapping[gd.Ref, str],
    owner: Mapping[str, str],
) -> list[gd.NodeDef]:
    """The engine node, and the conditional that runs the native segment when the engine could not."""
    entering = [moved.get(gd.parse_ref(tensor), tensor) for tensor in island.entering]
    in_types, out_types = _types(graph, island.entering), _types(graph, island.leaving)
    dtypes = ",".join(
        graph.specs[tensor].dtype for tensor in island.leaving
    )  # enough to fall back if the files are gone
    texts = (("name", name), ("bundle", bundle_id), ("dtypes", dtypes))
    constants = [string_const(f"{name}_{what}", text) for what, text in texts]
    inside = set(island.ops)
    controls = sorted(
        {f"^{owner.get(op, op)}" for member in island.ops for op in graph.ops[member].controls if op not in inside}
    )
    engine = gd.make_node(
        name,
        "PyFunc",
        [ASSET_ARG, *(node.name for node in constants), *entering, *controls],
        token=TOKEN,
        Tin=gd.types_attr([_STRING] * 4 + in_types),
        Tout=gd.types_attr([_BOOL, *out_types]),
        **attributes,
    )
    outputs = [f"{name}:{index + 1}" for index in range(len(out_types))]
    captured = [arg.name for arg in native.captured]
    branch = gd.make_node(
        f"{name}_value",
        "If",
        [f"{name}:0", *entering, *captured, *outputs],
        Tcond=gd.type_attr(_BOOL),
        Tin=gd.types_attr(in_types + [arg_type(arg) for arg in native.captured] + out_types),
        Tout=gd.types_attr(out_types),
        then_branch=gd.func_attr(f"{name}_engine_result"),
        else_branch=gd.func_attr(f"{name}_native_call"),
    )
    for tensor in island.leaving:
        branch.attr["output_shapes"].list.shape.add().CopyFrom(tf.TensorShape(graph.specs[tensor].shape).as_proto())
    return [*constants, engine, branch]


def string_const(name: str, text: str) -> gd.NodeDef:
    """A Const node that holds one string."""
    node = gd.make_node(name, "Const", [], dtype=gd.type_attr(_STRING))
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text.encode()))
    return node


def _redirect(node: gd.NodeDef, moved: Mapping[gd.Ref, str], owner: Mapping[str, str]) -> gd.NodeDef:
    copy = gd.new_node_def()
    copy.CopyFrom(node)
    copy.ClearField("input")
    for text in node.input:
        ref = gd.parse_ref(text)
        copy.input.append(f"^{owner.get(ref.node, ref.node)}" if ref.index < 0 else moved.get(ref, text))
    return copy


def _prune(body: list[gd.NodeDef], args: set[str], results: Sequence[str]) -> tuple[list[gd.NodeDef], list[str]]:
    """Drop what nothing needs any more; effects that no result waits for are kept as control outputs."""
    nodes = {node.name: node for node in body}
    placeholders = {name: gd.new_node_def(name=name) for name in args}
    alive = gd.reachable({**nodes, **placeholders}, [gd.parse_ref(name).node for name in results], stop=frozenset(args))
    kept = [node for node in body if node.name in alive]
    control = [
        node.name
        for node in kept
        if node.op.startswith(("Assign", "Assert", "Print", "LookupTableInsert", "ResourceScatter"))
    ]
    return kept, control


def _types(graph: OpGraph, tensors: Sequence[str]) -> list[int]:
    return [tf.as_dtype(graph.specs[tensor].dtype).as_datatype_enum for tensor in tensors]


def arg_type(arg: Arg) -> int:
    """The DataType enum of an argument: a handle, or a value."""
    if arg.kind in ("variable", "resource"):
        return int(tf.resource.as_datatype_enum)
    return int(tf.as_dtype(arg.dtype).as_datatype_enum)


def identifier(text: str) -> str:
    """``text`` with everything that a node name may not hold replaced."""
    return "".join(char if char.isalnum() else "_" for char in text)
