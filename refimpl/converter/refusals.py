"""Refusals: ops that are known to stay in TensorFlow before anything is lowered, each with its reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import tensorflow as tf

from refimpl import tf_private
from refimpl.artifacts import Array, Op
from refimpl.converter import fake_quant_exact
from refimpl.converter import graphdefs as gd
from refimpl.converter.lower import OPSET, OpGraph
from refimpl.specs import TensorSpec

# Handled by tf2onnx's rewriters, not by its table of ops.
_REWRITTEN = frozenset(
    """While StatelessWhile If StatelessIf PartitionedCall StatefulPartitionedCall TensorListReserve
    TensorListFromTensor TensorListStack TensorListGetItem TensorListSetItem TensorListResize TensorListLength
    EmptyTensorList TensorListPushBack TensorListElementShape FusedBatchNormV3""".split()
)
_REFUSED_DTYPES = {
    "string": "strings have no place in TensorRT",
    "float64": "float64 is not computed by TensorRT (it would be rounded to float32)",
    "complex64": "complex numbers are not computed by TensorRT",
    "complex128": "complex numbers are not computed by TensorRT",
    "bfloat16": "bfloat16 values do not cross into engines yet",
    "resource": "it works on a table, an iterator or another resource that lives in TensorFlow",
}


# Known to differ from TensorFlow's op: type -> how.
UNFAITHFUL = {
    **dict.fromkeys(
        """SegmentSum SegmentMean SegmentProd SegmentMax SegmentMin UnsortedSegmentSum UnsortedSegmentProd
        UnsortedSegmentMax UnsortedSegmentMin SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN""".split(),
        "its lowering goes through float32 matrix products and drops TensorFlow's checks of the segment ids",
    ),
    "CropAndResize": "TensorRT's parser crashes on its lowering inside loops",
    **dict.fromkeys(["CheckNumerics", "EnsureShape"], "it is a check that only TensorFlow makes"),
    "SparseSoftmaxCrossEntropyWithLogits": "TensorFlow refuses labels out of range, an engine does not",
    **dict.fromkeys(
        "TensorScatterUpdate TensorScatterAdd TensorScatterSub TensorScatterMax TensorScatterMin ScatterNd".split(),
        "TensorFlow refuses indices out of range, an engine does not",
    ),
}
# TensorFlow refuses values of these inputs that an engine clamps or wraps; constants and shapes are known to be sane.
_CHECKED_INPUTS = {
    **dict.fromkeys(["Slice", "StridedSlice"], (1, 2)),
    **dict.fromkeys(["Pad", "PadV2", "MirrorPad"], (1,)),
    "Range": (0, 1, 2),
    "Split": (0,),
    "SplitV": (1,),
    "ResizeNearestNeighbor": (1,),
}
_OPEN_CUT = "TensorFlow refuses to cut more out of a dimension than it has, an engine does not, and its size is open"
_CUT_INPUT = {"Slice": 0, "Split": 1, "SplitV": 0}  # which input is cut
# ONNX Runtime 1.31 compares vectors of 64-bit integers by their lower halves in these, on processors with AVX-512.
_EXTREMES = frozenset(["ClipByValue", "Max", "Maximum", "Min", "Minimum", "Relu", "Relu6", "Sign"])
_EXTREME_REASON = "engines take 64-bit integers from 2^31 to 2^32 for negative ones here"
_DIVISIONS = frozenset(["FloorDiv", "FloorMod", "TruncateDiv", "TruncateMod", "Div", "Mod"])


def refuse_statically(graph: OpGraph, keep_in_tf: Sequence[str], written: frozenset[str]) -> dict[str, str]:
    """Judge every op by its type, its dtypes and its shapes.

    Args:
        graph: the signature.
        keep_in_tf: op types and node names (``fnmatch`` patterns) that the user keeps in TensorFlow.
        written: names of the arguments that stand for variables which some signature assigns.

    Returns:
        Op -> reason, for those that stay.
    """
    known = lowered_types()
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
            or _by_faith(graph, op)
            or fake_quant_exact.why_not_exact(graph.nodes[op.name], graph.lowering.constant)
            or _by_type(op, {op.type, lowered}, known)
            or _by_shape(specs)
            or _by_overflow(op, shapes)
            or _by_width(op, shapes)
            or _by_rounding(graph, op)
            or _by_division(graph, op, shapes)
            or _by_checked_inputs(graph, op, shapes)
            or _by_open_sizes(graph, op)
            or _by_sizes(op, reads)
        )
        if reason:
            refused[op.name] = reason
    return spread_over_groups(graph, refused)


def lowered_types() -> frozenset[str]:
    """TensorFlow op types that can be lowered at all, by tf2onnx or by a rewrite."""
    import tf2onnx.tfonnx

    return frozenset(tf2onnx.tfonnx.handler.tf_op.create_mapping(OPSET, None)) | _REWRITTEN


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


def random_type(kind: str) -> str:
    """Why an op of this type stays, if it draws random numbers."""
    if "Random" in kind or kind in ("Multinomial", "StatelessMultinomial"):
        return "random numbers are drawn by TensorFlow, so that seeds keep their meaning"
    return ""


def dtype_of_type(kind: str) -> str:
    """Why an op of this type stays, if one of its tensors has a refused dtype whatever the op's attributes are."""
    definition = tf_private.op_def(kind)
    if definition is None:
        return ""
    allowed = {attr.name: attr.allowed_values.list.type for attr in definition.attr}
    for arg in (*definition.input_arg, *definition.output_arg):
        possible = [gd.dtype_name(dtype) for dtype in allowed.get(arg.type_attr) or [arg.type] if dtype]
        if possible and set(possible) <= _REFUSED_DTYPES.keys():
            return _REFUSED_DTYPES[possible[0]]
    return ""


def _by_type(op: Op, types: set[str], known: AbstractSet[str]) -> str:
    if reason := random_type(op.type):
        return reason
    if not types & known:
        return f"tf2onnx has no lowering for {op.type}"
    return "" if op.outputs else "it only runs for its side effect"


def _by_faith(graph: OpGraph, op: Op) -> str:
    """Ops whose lowering is known to differ, also inside the loops and branches that an op runs."""
    if op.type in UNFAITHFUL:
        return UNFAITHFUL[op.type]
    for function in gd.functions_of([graph.lowering.bodies[op.name][-1]], graph.lowering.library).values():
        for node in function.node_def:
            if node.op in UNFAITHFUL:
                return f"{UNFAITHFUL[node.op]} ({node.op} inside {op.type})"
            if node.op in fake_quant_exact.TYPES:
                return (
                    f"fake quantization inside loops and branches is translated inexactly ({node.op} inside {op.type})"
                )
            if node.op in _DIVISIONS and tf.as_dtype(node.attr["T"].type).is_integer:
                return f"integers are divided differently by engines ({node.op} inside {op.type})"
            if node.op in _EXTREMES and tf.as_dtype(node.attr["T"].type) == tf.int64:
                return f"{_EXTREME_REASON} ({node.op} inside {op.type})"
    return ""


def _by_division(graph: OpGraph, op: Op, shapes: set[str]) -> str:
    """Integer division by zero is an error in TensorFlow, and ends the process in an engine; and // and % of a negative
    number round towards minus infinity in TensorFlow and towards zero in an engine. Sizes are not negative.
    """
    if op.type not in _DIVISIONS or not op.outputs[0].dtype.startswith(("int", "uint")):
        return ""
    divisor = gd.data_inputs(graph.nodes[op.name])[1].node
    value = _constant_value(graph, divisor)
    if value is None or not value.size or bool(np.isin(value, (0, -1)).any()):
        return "integers are divided by something that may be zero, which only TensorFlow reports"
    if not shapes.issuperset(op.inputs):
        return "TensorFlow rounds the quotient of integers towards minus infinity, engines round it towards zero"
    return ""


def _by_checked_inputs(graph: OpGraph, op: Op, shapes: set[str]) -> str:
    refs = gd.data_inputs(graph.nodes[op.name])
    for position in _CHECKED_INPUTS.get(op.type, ()):
        ref = refs[position]
        if ref.node not in graph.lowering.constant and ref.tensor not in shapes:
            return "TensorFlow refuses positions and sizes out of range, an engine does not, and these are computed"
    return ""


def _by_open_sizes(graph: OpGraph, op: Op) -> str:
    """A constant may ask for more than an open dimension has: an error in TensorFlow, a shorter result in an engine."""
    refs = gd.data_inputs(graph.nodes[op.name])
    place = _CUT_INPUT.get(op.type)
    if place is None or not op.inputs:
        return ""
    spec = graph.specs.get(refs[place].tensor)
    if spec is None or spec.shape is None or None not in spec.shape:
        return ""
    axes = [axis for axis, size in enumerate(spec.shape) if size is None]
    if op.type == "Slice":
        begin, size = (_constant_value(graph, ref.node) for ref in refs[1:3])
        if begin is None or size is None:
            return ""  # computed of shapes, or refused already: see _CHECKED_INPUTS
        whole = all(begin[axis] == 0 and size[axis] == -1 for axis in axes)
    else:
        axis = _constant_value(graph, refs[0 if op.type == "Split" else 2].node)
        whole = axis is not None and int(axis) % len(spec.shape) not in axes
    return "" if whole else _OPEN_CUT


def _by_rounding(graph: OpGraph, op: Op) -> str:
    """Floats whose remainder, or whose 8-bit integer, an engine computes otherwise."""
    made = op.outputs[0].dtype if op.outputs else ""
    if op.type in ("FloorMod", "Mod", "TruncateMod") and not made.startswith(("int", "uint")):
        return "the remainder of floats is computed as x - floor(x / y) * y, which loses digits where x / y is large"
    if op.type == "Cast" and made in ("int8", "uint8"):
        source = tf.as_dtype(graph.nodes[op.name].attr["SrcT"].type)
        if source.is_floating:
            return "floats out of range of 8-bit integers become others in TensorFlow than in an engine"
    if op.type == "Erfc":  # rewritten as 1 - erf(x); the product of the exact GELU hides what that loses
        readers = {
            reader.type for reader in graph.ops.values() if set(reader.inputs) & {spec.name for spec in op.outputs}
        }
        return "" if readers == {"Mul"} else "its lowering is 1 - erf(x), which loses the tail"
    if op.type == "OneHot" and op.inputs and graph.nodes[op.name].attr["TI"].type == tf.int8.as_datatype_enum:
        return "negative 8-bit indices count from the end in an engine"
    return ""


def _by_sizes(op: Op, reads: Sequence[TensorSpec]) -> str:
    """Which pixel is nearest can depend on the last bit of a scale: only sizes that were verified are safe."""
    open_size = any(spec.shape is not None and len(spec.shape) == 4 and None in spec.shape[1:3] for spec in reads)
    if op.type == "ResizeNearestNeighbor" and open_size:
        return "nearest-neighbour resizing of an image whose size is not fixed rounds differently at some sizes"
    return ""


def _constant_value(graph: OpGraph, name: str) -> Array | None:
    """The value of a constant that stands in the graph as one; None for anything computed."""
    body = graph.lowering.bodies.get(name)
    if name not in graph.lowering.constant or not body or body[-1].op != "Const":
        return None
    return tf.make_ndarray(body[-1].attr["value"].tensor)  # type: ignore[no-any-return]


def _by_shape(specs: Sequence[TensorSpec]) -> str:
    for spec in specs:
        if spec.shape is None and spec.dtype != "variant":
            return f"the rank of {spec.name} is unknown, and engines need a fixed one (export with a fixed rank)"
    return ""


def _by_overflow(op: Op, shapes: set[str]) -> str:
    if op.type not in ("Prod", "Pow", "Sum", "Mean") or shapes.issuperset(op.inputs):
        return ""
    if op.outputs[0].dtype.startswith(("int", "uint")):
        return "integers that overflow here wrap around in TensorFlow, and do not in engines"
    return ""


def _by_width(op: Op, shapes: set[str]) -> str:
    wide = op.type in _EXTREMES and op.outputs[0].dtype == "int64"
    return _EXTREME_REASON if wide and not shapes.issuperset(op.inputs) else ""


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
