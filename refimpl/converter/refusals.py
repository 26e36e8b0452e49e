"""Refusals: ops that are known to stay in TensorFlow before anything is lowered, each with its reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from refimpl.artifacts import Op
from refimpl.converter.lower import OPSET, OpGraph
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


def refuse_statically(graph: OpGraph, keep_in_tf: Sequence[str], written: frozenset[str]) -> dict[str, str]:
    """Judge every op by its type, its dtypes and its shapes.

    Args:
        graph: the signature.
        keep_in_tf: op types and node names (``fnmatch`` patterns) that the user keeps in TensorFlow.
        written: names of the arguments that stand for variables which some signature assigns.

    Returns:
        Op -> reason, for those that stay.
    """
    import tf2onnx.tfonnx

    known = set(tf2onnx.tfonnx.handler.tf_op.create_mapping(OPSET, None)) | _REWRITTEN
    shapes = _shape_values(graph)
    used = {tensor for op in graph.ops.values() for tensor in op.inputs} | set(graph.results)
    refused = {}
    for op in graph.ops.values():
        reads = [graph.specs[tensor] for tensor in op.inputs]
        specs = [*reads, *(spec for spec in op.outputs if spec.name in used)]
        lowered = graph.lowering.bodies[op.name][-1].op
        reason = (
            _by_user(op, keep_in_tf)
            or _by_state(reads, written)
            or _by_dtype(specs)
            or _by_type(op, {op.type, lowered}, known)
            or _by_shape(specs)
            or _by_overflow(op, shapes)
        )
        if reason:
            refused[op.name] = reason
    return spread_over_groups(graph, refused)


def _by_user(op: Op, keep_in_tf: Sequence[str]) -> str:
    for pattern in keep_in_tf:
        if fnmatch.fnmatchcase(op.type, pattern) or fnmatch.fnmatchcase(op.name, pattern):
            return f"kept in TensorFlow as asked ({pattern})"
    return ""


def _by_state(reads: Sequence[TensorSpec], written: frozenset[str]) -> str:
    if any(spec.name.rsplit(":", 1)[0] in written for spec in reads):
        return "it reads or writes a variable that a signature of this model assigns"
    return ""


def _by_dtype(specs: Sequence[TensorSpec]) -> str:
    return next((_REFUSED_DTYPES[spec.dtype] for spec in specs if spec.dtype in _REFUSED_DTYPES), "")


def _by_type(op: Op, types: set[str], known: set[str]) -> str:
    if op.type in _UNFAITHFUL:
        return _UNFAITHFUL[op.type]
    if "Random" in op.type or op.type in ("Multinomial", "StatelessMultinomial"):
        return "random numbers are drawn by TensorFlow, so that seeds keep their meaning"
    if not types & known:
        return f"tf2onnx has no lowering for {op.type}"
    return "" if op.outputs else "it only runs for its side effect"


def _by_shape(specs: Sequence[TensorSpec]) -> str:
    for spec in specs:
        if spec.shape is None and spec.dtype != "variant":
            return f"the rank of {spec.name} is unknown, and engines need a fixed one (export with a fixed rank)"
    return ""


def _by_overflow(op: Op, shapes: set[str]) -> str:
    if op.type not in ("Prod", "Pow") or shapes.issuperset(op.inputs):
        return ""
    if op.outputs[0].dtype.startswith(("int", "uint")):
        return "products of integers that overflow wrap around in TensorFlow, and do not in engines"
    return ""


def _shape_values(graph: OpGraph) -> set[str]:
    """Tensors computed from shapes alone: integers too small to overflow."""
    found: set[str] = set()
    for op in graph.ops.values():
        if op.type in ("Shape", "ShapeN", "Size", "Rank") or (op.inputs and found.issuperset(op.inputs)):
            found.update(spec.name for spec in op.outputs)
    return found


def spread_over_groups(graph: OpGraph, reasons: Mapping[str, str]) -> dict[str, str]:
    """What is said of one op of a group holds for all of them: a group is never parted."""
    by_group: dict[int, str] = {}
    for name, reason in reasons.items():
        by_group.setdefault(graph.ops[name].group, reason)
    return {name: reasons.get(name) or by_group[op.group] for name, op in graph.ops.items() if op.group in by_group}
