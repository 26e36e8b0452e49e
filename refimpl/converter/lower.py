"""Lower: from TensorFlow ops to ONNX, so that every tensor a cut may fall on is carried exactly.

Every op output gets an Identity *marker* that all consumers read. tf2onnx puts its layout transposes between markers,
so the ONNX tensor of a marker equals the TensorFlow tensor. The nodes between markers are an *atom*.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import tensorflow as tf

from refimpl import tf_private
from refimpl.artifacts import Array, Op, SignatureGraph
from refimpl.converter import fake_quant
from refimpl.converter import graphdefs as gd
from refimpl.converter.constants import WEIGHT, LoweringGraph
from refimpl.errors import InternalError
from refimpl.partition import convex_groups
from refimpl.specs import TensorSpec

OPSET = 18  # the newest that tf2onnx 1.17 writes
_SINK = "refimpl/marked"  # the node that keeps all markers alive; no model has one of this name
_UNCUTTABLE = frozenset(["variant", "resource", "string"])


@dataclass(frozen=True)
class OpGraph:
    """A signature as a graph of ops and tensors, for everything that cuts it (lower, partition, stitch)."""

    source: SignatureGraph
    lowering: LoweringGraph
    ops: Mapping[str, Op]  # computed ops in topological order; constants and results left out
    specs: Mapping[str, TensorSpec]  # every tensor of a computed op or an input: "node:index"
    results: tuple[str, ...]  # per signature output, the tensor that it is
    nodes: Mapping[str, gd.NodeDef]  # the signature's own nodes by name

    def onnx_name(self, tensor: str) -> str:
        """The name that a cut tensor has in every ONNX graph of this signature."""
        return f"{marker(tensor)}:0"


def marker(tensor: str) -> str:
    """The name of the Identity behind a tensor ``"node:index"``, or of the Placeholder before it."""
    ref = gd.parse_ref(tensor)
    return f"mk/{ref.node}/{ref.index}"


def op_graph(source: SignatureGraph, lowering: LoweringGraph) -> OpGraph:
    """Sort a signature's nodes into ops and infer the dtype and shape of every tensor."""
    shapes = _infer_shapes(lowering)
    specs: dict[str, TensorSpec] = {}
    skip = lowering.constant
    for node in lowering.order:
        if node.name in skip or node.name.startswith("result/"):
            continue
        made = lowering.bodies[node.name][-1]  # where variables arrive by value, its dtypes are the values'
        dtypes = [node.attr["dtype"].type] if node.op == "Placeholder" else gd.output_dtypes(made)
        for index, dtype in enumerate(dtypes):
            tensor = f"{node.name}:{index}"
            specs[tensor] = TensorSpec(tensor, gd.dtype_name(dtype), shapes.get(tensor))
    computed = [
        node
        for node in lowering.order
        if node.name not in skip and node.op != "Placeholder" and not node.name.startswith("result/")
    ]
    groups = _group(computed, specs)
    ops = {node.name: _op(node, specs, skip, groups[node.name]) for node in computed}
    ops = {name: replace(ops[name], group=group) for name, group in convex_groups(ops).items()}
    by_name = {node.name: node for node in lowering.order}
    results = tuple(gd.data_inputs(by_name[gd.parse_ref(name).node])[0].tensor for name in source.results)
    return OpGraph(source, lowering, ops, specs, results, by_name)


def _op(node: gd.NodeDef, specs: Mapping[str, TensorSpec], constant: frozenset[str], group: int) -> Op:
    refs = gd.data_inputs(node)
    outputs: list[TensorSpec] = []
    while (tensor := f"{node.name}:{len(outputs)}") in specs:
        outputs.append(specs[tensor])
    return Op(
        name=node.name,
        type=node.op,
        inputs=tuple(dict.fromkeys(ref.tensor for ref in refs if ref.node not in constant)),
        controls=tuple(ref.node for ref in map(gd.parse_ref, node.input) if ref.index < 0 and ref.node not in constant),
        outputs=tuple(outputs),
        constants=tuple(dict.fromkeys(ref.node for ref in refs if ref.node in constant)),
        group=group,
    )


def _group(nodes: Sequence[gd.NodeDef], specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Ops joined by a variant tensor (a TensorList and the loop that fills it) form one group."""
    group = {node.name: index for index, node in enumerate(nodes)}
    members = {index: [name] for name, index in group.items()}
    for node in nodes:
        for ref in gd.data_inputs(node):
            if ref.node in group and specs[ref.tensor].dtype == "variant" and group[ref.node] != group[node.name]:
                moved = members.pop(group[node.name])
                members[group[ref.node]] += moved
                group.update(dict.fromkeys(moved, group[ref.node]))
    return group


def _infer_shapes(lowering: LoweringGraph) -> dict[str, tuple[int | None, ...] | None]:
    nodes = [node for name in lowering.bodies for node in lowering.bodies[name]]
    graph = import_graph(nodes, lowering)
    shapes = {}
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            shapes[tensor.name] = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return shapes


def import_graph(nodes: Iterable[gd.NodeDef], lowering: LoweringGraph) -> tf.Graph:
    """A tf.Graph of these nodes with the functions they call, shapes inferred, devices dropped."""
    graph_def = gd.new_graph_def(node=nodes, versions=lowering.versions)
    for node in graph_def.node:
        node.device = ""
    graph_def.library.function.extend(gd.functions_of(graph_def.node, lowering.library).values())
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    return graph


def subgraph_nodes(
    graph: OpGraph, ops: Sequence[str], *, marked: bool
) -> tuple[list[gd.NodeDef], list[str], list[str]]:
    """The nodes that compute ``ops`` alone: Placeholders at the cut, constants copied in.

    Args:
        graph: the whole signature.
        ops: names of ops, in topological order.
        marked: put a marker behind every tensor, not only on the ones that leave.

    Returns:
        Nodes, cut tensors that enter, cut tensors that leave (both in a stable order).
    """
    inside = set(ops)
    entering = list(
        dict.fromkeys(
            tensor for name in ops for tensor in graph.ops[name].inputs if gd.parse_ref(tensor).node not in inside
        )
    )
    leaving = leaving_tensors(graph, inside)
    marked_tensors = {spec.name for name in ops for spec in graph.ops[name].outputs if spec.dtype not in _UNCUTTABLE}
    if not marked:
        marked_tensors &= set(leaving)
    redirect = {gd.parse_ref(tensor): marker(tensor) for tensor in [*entering, *(marked_tensors if marked else ())]}
    nodes = [_placeholder(graph.specs[tensor]) for tensor in entering]
    for name in _with_constants(graph, ops):
        nodes += [_redirected(node, redirect) for node in graph.lowering.lowered(name)]
    for tensor in sorted(marked_tensors):
        dtype = tf.as_dtype(graph.specs[tensor].dtype).as_datatype_enum
        nodes.append(gd.make_node(marker(tensor), "Identity", [tensor], T=gd.type_attr(dtype)))
    return nodes, entering, leaving


def leaving_tensors(graph: OpGraph, inside: set[str]) -> list[str]:
    """Tensors made inside that something outside, or a signature output, reads; in the order the ops make them."""
    wanted = {tensor for name, op in graph.ops.items() if name not in inside for tensor in op.inputs} | set(
        graph.results
    )
    return [
        spec.name for name in graph.ops if name in inside for spec in graph.ops[name].outputs if spec.name in wanted
    ]


def _cuttable(graph: OpGraph, ops: Sequence[str]) -> list[str]:
    """Tensors of these ops that an op of another group, or a signature output, reads."""
    made = {
        spec.name: graph.ops[name].group
        for name in ops
        for spec in graph.ops[name].outputs
        if spec.dtype not in _UNCUTTABLE
    }
    read = {tensor for op in graph.ops.values() for tensor in op.inputs if made.get(tensor) != op.group} | set(
        graph.results
    )
    return [tensor for tensor in made if tensor in read]


def _with_constants(graph: OpGraph, ops: Sequence[str]) -> list[str]:
    lowering, constant = graph.lowering, graph.lowering.constant
    needed: dict[str, None] = {}

    def visit(name: str) -> None:
        stack = [name]
        while stack:
            current = stack[-1]
            waiting = [
                ref.node
                for node in lowering.lowered(current)
                for ref in gd.data_inputs(node)
                if ref.node in constant and ref.node in lowering.bodies and ref.node != current
            ]
            waiting = [name for name in waiting if name not in needed]
            if waiting:
                stack += waiting
            else:
                needed[current] = None
                stack.pop()

    for name in ops:
        visit(name)
    return list(needed)


def _placeholder(spec: TensorSpec) -> gd.NodeDef:
    node = gd.make_node(
        marker(spec.name), "Placeholder", [], dtype=gd.type_attr(tf.as_dtype(spec.dtype).as_datatype_enum)
    )
    if spec.shape is None:
        node.attr["shape"].shape.unknown_rank = True
    else:
        for size in spec.shape:
            node.attr["shape"].shape.dim.add(size=-1 if size is None else size)
    return node


def _redirected(node: gd.NodeDef, redirect: Mapping[gd.Ref, str]) -> gd.NodeDef:
    copy = gd.new_node_def()
    copy.CopyFrom(node)
    inputs = [redirect.get(gd.parse_ref(text), text) for text in node.input if not text.startswith("^")]
    copy.ClearField("input")
    copy.input.extend(inputs)
    return copy


def to_onnx(
    graph: OpGraph, ops: Sequence[str], *, marked: bool, quantized: bool = False
) -> tuple[Any, dict[str, Array]]:
    """Lower some ops with tf2onnx, its optimizer left out.

    Args:
        graph: the whole signature.
        ops: names of ops, in topological order.
        marked: put a marker behind every tensor, not only on the ones that leave.
        quantized: lower fake-quantization ops to int8 QuantizeLinear and DequantizeLinear, not to float arithmetic.

    Returns:
        An ONNX ModelProto whose inputs are the entering cut tensors and the hollow weights, whose outputs are the
        leaving cut tensors (each under :meth:`OpGraph.onnx_name`), and the value of each hollow weight by input name.

    Raises:
        Exception: whatever tf2onnx raises; the caller decides which ops are to blame.
    """
    quantizers: dict[str, fake_quant.Quantizer] = {}
    if quantized:
        graph, quantizers = fake_quant.with_quantizers(graph, ops)
    nodes, entering, leaving = subgraph_nodes(graph, ops, marked=marked)
    weights = {
        f"{node.name}:0": graph.lowering.weights[node.name]
        for node in nodes
        if node.name.startswith(WEIGHT) and node.op == "Placeholder"
    }
    inputs = [graph.onnx_name(tensor) for tensor in entering] + list(weights)
    outputs = [graph.onnx_name(tensor) for tensor in leaving]
    if marked and (read := _cuttable(graph, ops)):
        nodes.append(_sink(graph, read))
        outputs = [f"{_SINK}:0"]
    tf_graph = _without_calls(import_graph(nodes, graph.lowering), inputs, outputs)
    with quiet():
        import tf2onnx.tfonnx
        import tf2onnx.utils

        # It numbers what it adds. Calibration tables name tensors, which must not depend on what was lowered before.
        tf2onnx.utils.INTERNAL_NAME = 1
        with tf_graph.as_default():
            onnx_graph = tf2onnx.tfonnx.process_tf_graph(
                tf_graph,
                continue_on_error=True,
                opset=OPSET,
                input_names=inputs,
                output_names=outputs,
            )
        model = onnx_graph.make_model("island")
    _tidy(model.graph)
    _uncast_comparisons(model.graph, _integers(graph))
    names = {item.name for item in model.graph.output}
    if missing := set(outputs) - names:
        raise InternalError(f"lowering lost {sorted(missing)}")
    if marked:
        _remove(model.graph, _SINK)
    fake_quant.place(model, quantizers)
    return model, weights


def _sink(graph: OpGraph, tensors: Sequence[str]) -> gd.NodeDef:
    """One node that reads every tensor that a cut may fall on, or tf2onnx drops what a rewritten loop no longer reads.

    As outputs of the graph they would be kept too; but tf2onnx walks the whole graph once for every output.
    """
    dtypes = [tf.as_dtype(graph.specs[tensor].dtype).as_datatype_enum for tensor in tensors]
    inputs = [marker(tensor) for tensor in tensors]
    result = gd.types_attr([tf.bool.as_datatype_enum])
    # Any op that takes any number of tensors of any type and has no lowering in tf2onnx, which then leaves it alone.
    return gd.make_node(_SINK, "PyFunc", inputs, token="", Tin=gd.types_attr(dtypes), Tout=result)


def _remove(graph: Any, name: str) -> None:
    for field in (graph.node, graph.output):
        for index in reversed([index for index, item in enumerate(field) if item.name.removesuffix(":0") == name]):
            del field[index]


def _tidy(graph: Any) -> None:
    """Repair what tf2onnx leaves to its optimizer, and spell what TensorRT refuses in an equal way that it takes."""
    for node in graph.node:
        if node.op_type == "Resize":
            _respell_nearest(node)
        # An Identity that still has TensorListFromTensor's second input.
        if node.op_type == "Identity" and len(node.input) > 1:
            del node.input[1:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _tidy(attribute.g)


def _integers(graph: OpGraph) -> dict[str, int]:
    """The ONNX element type of every int32 and int64 tensor, by its TensorFlow name and by its marker's."""
    types = {"int32": int(onnx.TensorProto.INT32), "int64": int(onnx.TensorProto.INT64)}
    found = {name: types[spec.dtype] for name, spec in graph.specs.items() if spec.dtype in types}
    return {**found, **{graph.onnx_name(name): kind for name, kind in found.items()}}


def _uncast_comparisons(graph: Any, known: Mapping[str, int]) -> None:
    """Compare integers as integers: tf2onnx casts them to float32 first, which confuses values beyond 2^24."""
    kinds = {item.name: item.type.tensor_type.elem_type for item in [*graph.value_info, *graph.input]}
    kinds = {**known, **kinds}
    kinds.update({item.name: item.data_type for item in graph.initializer})
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    for node in graph.node:
        if node.op_type in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"):
            sources = [casts.get(name, "") for name in node.input]
            found = {kinds.get(name) for name in sources}
            if len(found) == 1 and found <= set(integers):
                node.input[:] = sources


def _respell_nearest(node: Any) -> None:
    """floor((i + 0.5) * s) is also (i + 0.5) * s - 0.5 rounded half up; TensorRT has the second spelling only."""
    modes = {attribute.name: attribute for attribute in node.attribute}
    if {"coordinate_transformation_mode", "nearest_mode"} <= set(modes):
        transform, nearest = modes["coordinate_transformation_mode"], modes["nearest_mode"]
        if (transform.s, nearest.s) == (b"tf_half_pixel_for_nn", b"floor"):
            transform.s, nearest.s = b"half_pixel", b"round_prefer_ceil"


def _without_calls(graph: tf.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> tf.Graph:
    """Inline the calls that Keras marks ``jit_compile`` (grouped convolutions); Grappler spares them otherwise."""
    if not any(op.type in ("PartitionedCall", "StatefulPartitionedCall") for op in graph.get_operations()):
        return graph
    graph_def = graph.as_graph_def()
    for holder in [*graph_def.node, *graph_def.library.function]:
        for key in ("_XlaMustCompile", "_noinline"):
            holder.attr.pop(key, None)
    graph_def = tf_private.inline_functions(graph_def, inputs, outputs)
    result = tf.Graph()
    with result.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    return result


@contextlib.contextmanager
def quiet() -> Any:
    """Keep tf2onnx from logging errors for ops that refimpl reports itself."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
