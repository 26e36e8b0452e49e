"""Load: cut one signature out of a SavedModel as an inlined graph.

Variables and tables become arguments of the graph, control flow stays functional (one If, While or Case op each).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from refimpl import tf_private
from refimpl.artifacts import Arg, SignatureGraph
from refimpl.converter import graphdefs as gd
from refimpl.converter.source import Source
from refimpl.errors import SourceError
from refimpl.specs import Signature, TensorSpec

# Nodes that own state: they stay in the model's own graph and are passed into the stitched function.
_VARIABLES = frozenset("VarHandleOp VariableV2 Variable".split())
_RESOURCES = frozenset("HashTableV2 MutableHashTableV2 MutableDenseHashTableV2 MutableHashTableOfTensorsV2".split())
_READS = frozenset(["ResourceGather", "ResourceGatherNd"])
_TF1_CONTROL_FLOW = frozenset(
    "Enter Exit NextIteration Switch Merge LoopCond RefEnter RefSwitch RefMerge _SwitchN".split()
)


def read_signature(source: Source, key: str) -> Signature:
    """The names, dtypes and shapes of a signature.

    Inputs keep the order in which the exported function takes them, outputs the order in which it returns them.

    Raises:
        SourceError: an input or output is a composite tensor (sparse, ragged).
    """
    definition = source.meta_graph.signature_def[key]
    for name, info in [*definition.inputs.items(), *definition.outputs.items()]:
        if info.WhichOneof("encoding") != "name":
            raise SourceError(
                f"{name!r} is a {info.WhichOneof('encoding') or 'nameless'} tensor",
                hint="sparse and ragged inputs or outputs cannot be converted; leave this signature in TensorFlow",
                signature=key,
            )
    order = _caller_order(source.meta_graph, definition)
    inputs = sorted(definition.inputs, key=lambda name: (order.get(definition.inputs[name].name, 0), name))
    outputs = sorted(definition.outputs, key=lambda name: (gd.parse_ref(definition.outputs[name].name).index, name))
    if len({gd.parse_ref(info.name).node for info in definition.outputs.values()}) > 1:
        outputs = sorted(definition.outputs)
    return Signature(
        key,
        tuple(_spec(name, definition.inputs[name]) for name in inputs),
        tuple(_spec(name, definition.outputs[name]) for name in outputs),
    )


def signature_graph(source: Source, key: str) -> SignatureGraph:
    """Cut one signature out of the model's graph, with every function call inlined; done once, and remembered.

    Control flow stays functional (one If, While or Case op each). State (variables, tables) becomes arguments.

    Raises:
        SourceError: the signature cannot be cut out (composite tensors, TF1 control flow, state passed by reference).
    """
    if key not in source.cut_out:
        source.cut_out[key] = _cut_out(source, key)
    return source.cut_out[key]


def _cut_out(source: Source, key: str) -> SignatureGraph:
    signature = read_signature(source, key)
    definition = source.meta_graph.signature_def[key]
    graph_def = source.meta_graph.graph_def
    nodes = {node.name: node for node in graph_def.node}
    feeds = {gd.parse_ref(definition.inputs[spec.name].name): spec for spec in signature.inputs}
    results = [gd.parse_ref(definition.outputs[spec.name].name) for spec in signature.outputs]
    for name, info in definition.inputs.items():
        if gd.parse_ref(info.name).node not in nodes:
            raise SourceError(f"input {name!r} names {info.name!r}, which is not in the graph", signature=key)
    state = frozenset(name for name, node in nodes.items() if node.op in _VARIABLES | _RESOURCES)
    names = gd.reachable(nodes, (ref.node for ref in results), stop=state | {ref.node for ref in feeds})
    if bad := sorted({nodes[name].op for name in names} & _TF1_CONTROL_FLOW):
        raise SourceError(
            f"TF1 control flow ({', '.join(bad)}) cannot be cut",
            hint="re-export the model with tf.compat.v1.enable_control_flow_v2()",
            signature=key,
        )
    if by_reference := _reference_users(nodes, names):
        raise SourceError(
            f"{by_reference[0]} works on a TF1 reference variable",
            hint="only reading such variables can be cut out; leave this signature in TensorFlow",
            signature=key,
        )
    args: list[Arg] = []
    body: list[gd.NodeDef] = []
    for ref, spec in feeds.items():
        info = definition.inputs[spec.name]
        args.append(Arg(f"arg/{len(args)}", "input", spec.name, spec.dtype, ref.tensor, spec.shape))
        body.append(_placeholder(args[-1].name, info.dtype, info.tensor_shape))
    renamed = {ref: arg.name for ref, arg in zip(feeds, args, strict=True)}
    for name in sorted(names & state):
        arg, node = _state_arg(nodes[name])
        args.append(arg)
        body.append(node)
    fed = {ref.node for ref in feeds} - {ref.node for ref in results if ref not in feeds}
    body += [_rewired(nodes[name], renamed) for name in sorted(names - state - fed)]
    pruned = gd.new_graph_def(node=body, versions=graph_def.versions, library=graph_def.library)
    outs = [renamed.get(ref, ref.node) + (":0" if ref in renamed else f":{ref.index}") for ref in results]
    return _inlined(signature, pruned, tuple(args), outs)


def _reference_users(nodes: Mapping[str, gd.NodeDef], names: Iterable[str]) -> list[str]:
    """Ops among ``names`` that take a TF1 variable by reference (Assign and the like), as ``type name``."""
    found = []
    for name in sorted(names):
        node = nodes[name]
        definition = tf_private.op_def(node.op)
        if definition is not None and any(arg.is_ref for arg in definition.input_arg):
            found.append(f"{node.op} {name}")
    return found


def suspect_variables(source: Source, key: str) -> frozenset[str]:
    """Tensors of the variables that a signature reaches, if anything it reaches could assign a variable.

    For signatures that cannot be cut out, and so cannot be looked at more closely.
    """
    graph_def = source.meta_graph.graph_def
    nodes = {node.name: node for node in graph_def.node}
    outputs = source.meta_graph.signature_def[key].outputs.values()
    roots = [gd.parse_ref(info.name).node for info in outputs if info.WhichOneof("encoding") == "name"]
    names = gd.reachable(nodes, roots)
    library = {function.signature.name: function for function in graph_def.library.function}
    inner = gd.functions_of([nodes[name] for name in names], library).values()
    ops = {nodes[name].op for name in names} | {node.op for function in inner for node in function.node_def}
    if not any(
        op.startswith(("Assign", "Scatter", "Apply", "SparseApply", "Resource")) and op not in _READS for op in ops
    ):
        return frozenset()
    return frozenset(f"{name}:0" for name in names if nodes[name].op in _VARIABLES)


def _inlined(signature: Signature, pruned: Any, args: tuple[Arg, ...], outs: list[str]) -> SignatureGraph:
    # An Identity per result keeps the fetched name alive whatever the inliner does with the call that made it.
    library = {function.signature.name: function for function in pruned.library.function}
    dtypes = {node.name: node for node in pruned.node}
    for index, out in enumerate(outs):
        ref = gd.parse_ref(out)
        node = dtypes[ref.node]
        dtype = _result_dtype(node, ref.index)
        pruned.node.append(gd.make_node(f"result/{index}", "Identity", [gd.format_ref(ref)], T=gd.type_attr(dtype)))
    pruned.library.Clear()
    pruned.library.function.extend(gd.functions_of(pruned.node, library).values())
    results = tuple(f"result/{index}:0" for index in range(len(outs)))
    graph_def = tf_private.inline_functions(pruned, [f"{arg.name}:0" for arg in args], list(results))
    clean = _without_idle_control(graph_def)
    gd.restore_lowering(clean)
    gd.rename_functions(clean, f"_{zlib.crc32(signature.key.encode()):08x}")
    if bad := sorted({node.op for node in clean.node} & _TF1_CONTROL_FLOW):
        raise SourceError(
            f"TF1 control flow ({', '.join(bad)}) cannot be cut",
            hint="leave this signature in TensorFlow",
            signature=signature.key,
        )
    return SignatureGraph(signature, clean, args, results)


def _result_dtype(node: gd.NodeDef, index: int) -> int:
    if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
        return int(node.attr["Tout"].list.type[index])
    if node.op == "Placeholder":
        return int(node.attr["dtype"].type)
    return gd.output_dtypes(node)[index]


def _without_idle_control(graph_def: Any) -> Any:
    """Drop control edges that order nothing, and nodes that only such edges kept alive.

    Inlining leaves a control edge from every former call to every node inside it. They matter where they come, however
    indirectly, from an op with a side effect, or lead from a read to one: a variable is read before it is assigned.
    """
    library = {function.signature.name: function for function in graph_def.library.function}
    order = gd.topological(graph_def)
    actors = {node.name for node in order if gd.is_stateful(node, library) and "Random" not in node.op}
    effect: set[str] = set()
    read: set[str] = set()
    through: dict[gd.Ref, str] = {}  # an Identity that names nothing the user knows -> what it reads
    for node in order:
        controls = {ref.node for ref in map(gd.parse_ref, node.input) if ref.index < 0}
        relay = node.op in ("NoOp", "Identity")  # inlining hangs such nodes between calls
        acts = node.name in actors
        if acts or (relay and controls & effect):
            effect.add(node.name)
        if actors and (node.op in gd.READS or (relay and controls & read)):
            read.add(node.name)
        ordering = effect | read if acts or relay else effect
        if node.op == "Const":
            ordering = set()
        kept = [text for text in node.input if not text.startswith("^") or text[1:] in ordering]
        node.attr.pop("_class", None)  # colocation with calls that are gone
        node.attr.pop("_output_shapes", None)  # true of the handles, not of the values that will take their place
        kept = [through.get(gd.parse_ref(text), text) for text in kept]
        node.ClearField("input")
        node.input.extend(kept)
        if node.op == "Identity" and len(kept) == 1 and not node.name.startswith("result/"):
            through[gd.Ref(node.name, 0)] = kept[0]
    nodes = {node.name: node for node in order}
    alive = gd.reachable(nodes, [name for name in nodes if name.startswith(("result/", "arg/"))])
    kept_nodes = [node for node in order if node.name in alive]
    functions = gd.functions_of(kept_nodes, library)
    clean = gd.new_graph_def(node=kept_nodes, versions=graph_def.versions)
    clean.library.function.extend(functions.values())
    return clean


def _state_arg(node: gd.NodeDef) -> tuple[Arg, gd.NodeDef]:
    """A variable or table as an argument: by its handle, or by value where TF1 passes a reference."""
    if node.op == "VarHandleOp":
        shape = node.attr["shape"].shape
        dtype = gd.dtype_name(node.attr["dtype"].type)
        size = None if shape.unknown_rank else tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)
        return Arg(node.name, "variable", "", dtype, f"{node.name}:0", size), _placeholder(
            node.name, tf.resource.as_datatype_enum
        )
    if node.op in ("VariableV2", "Variable"):
        dtype_enum = node.attr["dtype"].type
        arg = Arg(node.name, "value", "", gd.dtype_name(dtype_enum), f"{node.name}:0", None)
        return arg, _placeholder(node.name, dtype_enum)
    return Arg(node.name, "resource", "", "resource", f"{node.name}:0", ()), _placeholder(
        node.name, tf.resource.as_datatype_enum
    )


def _placeholder(name: str, dtype: int, shape: Any = None) -> gd.NodeDef:
    node = gd.make_node(name, "Placeholder", [], dtype=gd.type_attr(dtype))
    if shape is None:
        node.attr["shape"].shape.unknown_rank = True
    else:
        node.attr["shape"].shape.CopyFrom(shape)
    return node


def _rewired(node: gd.NodeDef, renamed: dict[gd.Ref, str]) -> gd.NodeDef:
    copy = gd.new_node_def()
    copy.CopyFrom(node)
    inputs = [renamed.get(gd.parse_ref(text), text) for text in node.input]
    copy.ClearField("input")
    copy.input.extend(inputs)
    if copy.op == "PlaceholderWithDefault":  # nobody feeds it here, so its default is its value
        copy.op = "Identity"
        copy.attr["T"].type = copy.attr.pop("dtype").type
        copy.attr.pop("shape", None)
    return copy


def _caller_order(meta_graph: Any, definition: Any) -> dict[str, int]:
    """The position of each fed tensor in the call that makes the outputs; empty for a TF1 graph."""
    callers = {gd.parse_ref(info.name).node for info in definition.outputs.values()}
    for node in meta_graph.graph_def.node:
        if node.name in callers and node.op == "StatefulPartitionedCall":
            return {gd.parse_ref(text).tensor: index for index, text in enumerate(node.input)}
    return {}


def _spec(name: str, info: Any) -> TensorSpec:
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
    return TensorSpec(name, gd.dtype_name(info.dtype), sizes)
