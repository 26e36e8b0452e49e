"""Lower a whole signature with markers, and sort the ONNX nodes into atoms: one per TensorFlow op or tight group."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from refimpl.artifacts import Op
from refimpl.converter import lower, onnxgraphs
from refimpl.converter.lower import OpGraph
from refimpl.errors import first_line
from refimpl.specs import TensorSpec

# Handled by tf2onnx's rewriters, not by its table of ops.
_REWRITTEN = frozenset(
    """While StatelessWhile If StatelessIf PartitionedCall StatefulPartitionedCall TensorListReserve
    TensorListFromTensor TensorListStack TensorListGetItem TensorListSetItem TensorListResize TensorListLength
    EmptyTensorList TensorListPushBack TensorListElementShape FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 FusedBatchNormV3""".split()
)
_REFUSED_DTYPES = {
    "string": "strings have no place in TensorRT",
    "float64": "float64 is not computed by TensorRT (it would be rounded to float32)",
    "complex64": "complex numbers are not computed by TensorRT",
    "complex128": "complex numbers are not computed by TensorRT",
    "bfloat16": "bfloat16 values do not cross into engines yet",
    "resource": "it works on a table, an iterator or another resource that lives in TensorFlow",
}


_UNFAITHFUL = {
    **dict.fromkeys(
        """SegmentSum SegmentMean SegmentProd SegmentMax SegmentMin UnsortedSegmentSum UnsortedSegmentProd
        UnsortedSegmentMax UnsortedSegmentMin SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN""".split(),
        "its lowering goes through float32 matrix products and drops TensorFlow's checks of the segment ids",
    ),
}


@dataclass(frozen=True)
class Atoms:
    """The marked ONNX graph of a signature, sorted by the ops it came from."""

    graph: gs.Graph
    nodes: Mapping[str, tuple[gs.Node, ...]]  # TensorFlow op -> ONNX nodes of its atom
    refused: Mapping[str, str]  # TensorFlow op -> why it cannot be in an island


def refuse_statically(graph: OpGraph, keep_in_tf: Sequence[str], written: frozenset[str]) -> dict[str, str]:
    """Ops that are known to stay in TensorFlow before anything is lowered, each with its reason."""
    import tf2onnx.tfonnx

    known = set(tf2onnx.tfonnx.handler.tf_op.create_mapping(lower.OPSET, None)) | _REWRITTEN
    shapes = _shape_values(graph)
    used = {tensor for op in graph.ops.values() for tensor in op.inputs} | set(graph.results)
    refused = {}
    for op in graph.ops.values():
        outputs = [spec for spec in op.outputs if spec.name in used]
        reason = _static_refusal(op, outputs, graph, known, keep_in_tf, written)
        if reason := reason or _overflows(op, shapes):
            refused[op.name] = reason
    return _spread_over_groups(graph, refused)


def _shape_values(graph: OpGraph) -> set[str]:
    """Tensors computed from shapes alone: integers too small to overflow."""
    found: set[str] = set()
    for op in graph.ops.values():
        if op.type in ("Shape", "ShapeN", "Size", "Rank") or (op.inputs and found.issuperset(op.inputs)):
            found.update(spec.name for spec in op.outputs)
    return found


def _overflows(op: Op, shapes: set[str]) -> str:
    if (
        op.type in ("Prod", "Pow")
        and op.outputs[0].dtype.startswith(("int", "uint"))
        and not shapes.issuperset(op.inputs)
    ):
        return "products of integers that overflow wrap around in TensorFlow, and do not in engines"
    return ""


def _static_refusal(
    op: Op,
    outputs: Sequence[TensorSpec],
    graph: OpGraph,
    known: set[str],
    keep_in_tf: Sequence[str],
    written: frozenset[str],
) -> str:
    for pattern in keep_in_tf:
        if fnmatch.fnmatchcase(op.type, pattern) or fnmatch.fnmatchcase(op.name, pattern):
            return f"kept in TensorFlow as asked ({pattern})"
    reads = [graph.specs[tensor] for tensor in op.inputs]
    for spec in reads:
        if spec.name.rsplit(":", 1)[0] in written:
            return "it reads or writes a variable that a signature of this model assigns"
    for spec in [*reads, *outputs]:
        if spec.dtype in _REFUSED_DTYPES:
            return _REFUSED_DTYPES[spec.dtype]
        if spec.shape is None and spec.dtype != "variant":
            return f"the rank of {spec.name} is unknown, and engines need a fixed one (export with a fixed rank)"
    if op.type in _UNFAITHFUL:
        return _UNFAITHFUL[op.type]
    if "Random" in op.type or op.type in ("Multinomial", "StatelessMultinomial"):
        return "random numbers are drawn by TensorFlow, so that seeds keep their meaning"
    if op.type not in known and all(node.op not in known for node in graph.lowering.bodies[op.name][-1:]):
        return f"tf2onnx has no lowering for {op.type}"
    if not op.outputs:
        return "it only runs for its side effect"
    return ""


def lower_atoms(graph: OpGraph, refused: Mapping[str, str]) -> Atoms:
    """Lower every op that is not refused, all at once; if tf2onnx breaks down, find the op that breaks it.

    Args:
        graph: the signature.
        refused: ops to leave out, with reasons.
    """
    reasons = dict(refused)
    parts = _lower_parts(graph, [name for name in graph.ops if name not in refused], reasons)
    whole = parts[0] if parts else gs.Graph(nodes=[], inputs=[], outputs=[], opset=lower.OPSET)
    for index, part in enumerate(parts[1:], 1):
        _merge(whole, part, f"part{index}/")
    nodes = {}
    markers = {node.name: node for node in whole.nodes if node.name.startswith("mk/")}
    for op in graph.ops.values():
        if op.name in reasons:
            continue
        found = _walk(markers, op)
        nodes[op.name] = found
        if reason := next(filter(None, map(onnxgraphs.refusal_of, found)), "") or _rounds_integers(op, found, graph):
            reasons[op.name] = reason
    return Atoms(whole, nodes, _spread_over_groups(graph, reasons))


def _rounds_integers(op: Op, nodes: Sequence[gs.Node], graph: OpGraph) -> str:
    """Whether an op on integers alone is computed in float32, as tf2onnx does for some."""
    specs = [graph.specs[tensor] for tensor in op.inputs] + list(op.outputs)
    if any(spec.dtype.startswith(("float", "bfloat")) or spec.dtype == "variant" for spec in specs):
        return ""
    for node in nodes:
        if node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT and node.inputs[0].dtype != np.bool_:
            return "its lowering computes integers in float32, which is exact only up to 2^24"
    return ""


def _lower_parts(graph: OpGraph, ops: list[str], reasons: dict[str, str]) -> list[gs.Graph]:
    if not ops:
        return []
    try:
        model, weights = lower.to_onnx(graph, ops, marked=True)
        return [onnxgraphs.import_with_weights(model, weights)]
    except Exception as error:  # noqa: BLE001  tf2onnx raises anything; which op made it do so is found by halving
        groups = list(dict.fromkeys(graph.ops[name].group for name in ops))
        if len(groups) == 1:
            text = first_line(error)
            reasons.update(dict.fromkeys(ops, f"tf2onnx fails on it: {type(error).__name__}: {text}"))
            return []
        first = set(groups[: len(groups) // 2])
        return [
            *_lower_parts(graph, [name for name in ops if graph.ops[name].group in first], reasons),
            *_lower_parts(graph, [name for name in ops if graph.ops[name].group not in first], reasons),
        ]


def _merge(whole: gs.Graph, part: gs.Graph, prefix: str) -> None:
    """Move a part into the whole graph; cut tensors are shared by name, all other names get a prefix."""
    tensors = whole.tensors()
    for tensor in part.tensors().values():
        if not tensor.name.startswith("mk/"):
            tensor.name = prefix + tensor.name
    for node in part.nodes:
        if not node.name.startswith("mk/"):
            node.name = prefix + node.name
    for node in part.nodes:
        node.inputs = [_shared(tensor, tensors) for tensor in node.inputs]
        node.outputs = [_shared(tensor, tensors) for tensor in node.outputs]
        whole.nodes.append(node)
    whole.inputs += [tensor for tensor in part.inputs if tensor.name not in tensors]


def _shared(tensor: gs.Tensor, tensors: dict[str, gs.Tensor]) -> gs.Tensor:
    if not tensor.name.startswith("mk/"):
        return tensor
    return tensors.setdefault(tensor.name, tensor)


def _walk(by_marker: Mapping[str, gs.Node], op: Op) -> tuple[gs.Node, ...]:
    """The ONNX nodes from an op's markers back to the markers before them."""
    stack = [by_marker[name] for spec in op.outputs if (name := lower.marker(spec.name)) in by_marker]
    found: dict[int, gs.Node] = {}
    while stack:
        node = stack.pop()
        if id(node) in found:
            continue
        found[id(node)] = node
        for tensor in onnxgraphs.outer_tensors(node):
            stack += [maker for maker in tensor.inputs if not maker.name.startswith("mk/")]
    return tuple(found.values())


def _spread_over_groups(graph: OpGraph, reasons: Mapping[str, str]) -> dict[str, str]:
    """What is said of one op of a group is true of them all."""
    by_group: dict[int, str] = {}
    for name, reason in reasons.items():
        by_group.setdefault(graph.ops[name].group, reason)
    return {name: reasons.get(name) or by_group[op.group] for name, op in graph.ops.items() if op.group in by_group}
