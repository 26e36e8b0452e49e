"""TF-TRT's narrower set of ops (``Recipe.op_set = "tf-trt"``): what its converters refused, in its words.

Today's TensorRT takes much more. Who wants the same engines as before, in tests that count them for example, gets them
by these rules; where TF-TRT allowed more than a rule here says, the model only keeps more ops in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from refimpl.artifacts import Array, Op
from refimpl.converter import graphdefs as gd
from refimpl.converter.lower import OpGraph
from refimpl.converter.refusals import spread_over_groups
from refimpl.specs import Shape

_FLOAT = ("float32", "float16")
_NUMBER = (*_FLOAT, "int32")
_UNARY = """Exp Log Sqrt Rsqrt Reciprocal Abs Neg Sin Cos Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh Ceil Floor Erf
Round Sign""".split()
_ARITHMETIC = "Add AddV2 Mul Sub Div FloorDiv RealDiv Minimum Maximum Pow".split()
_COMPARISONS = "Greater Less Equal GreaterEqual LessEqual".split()
_LOGIC = "LogicalOr LogicalAnd LogicalNot".split()
_REDUCTIONS = "Max Mean Min Prod Sum".split()
# Op type -> dtypes of its first input.
_TYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        """AddN ArgMax ArgMin AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BiasAdd ClipByValue CombinedNonMaxSuppression
        Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 DepthwiseConv2dNative Einsum FusedBatchNorm
        FusedBatchNormV2 FusedBatchNormV3 LogSoftmax MatMul MaxPool MaxPool3D Pad ResizeBilinear ResizeNearestNeighbor
        Softmax Square SquaredDifference TopKV2 LeakyRelu Relu Relu6 Sigmoid Tanh Elu Selu Softsign Softplus
        Cast""".split(),
        _FLOAT,
    ),
    **dict.fromkeys(_UNARY + _REDUCTIONS, _FLOAT),
    **dict.fromkeys(
        """ConcatV2 DataFormatVecPermute DepthToSpace ExpandDims Fill GatherV2 OnesLike Pack Range Reshape Select
        SelectV2 Slice SpaceToDepth Split Squeeze StridedSlice Tile Transpose Unpack ZerosLike""".split(),
        _NUMBER,
    ),
    **dict.fromkeys(_ARITHMETIC + _COMPARISONS, _NUMBER),
    **dict.fromkeys("Identity IdentityN Snapshot StopGradient".split(), (*_NUMBER, "bool")),
    **dict.fromkeys(_LOGIC, ("bool",)),
    "Shape": (*_NUMBER, "bool"),
}
_ALL_INPUTS_LEAD = frozenset([*_ARITHMETIC, "BiasAdd", "SquaredDifference", "BatchMatMul", "BatchMatMulV2"])
_BATCH = "TensorRT does not allow manipulation of the batch dimension"
_CALIBRATED = frozenset(
    "QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 FakeQuantWithMinMaxVars FakeQuantWithMinMaxArgs".split()
)


@dataclass(frozen=True)
class _Seen:
    """One op, as TF-TRT's converters looked at it."""

    graph: OpGraph
    op: Op
    implicit: bool

    @property
    def node(self) -> Any:
        return self.graph.nodes[self.op.name]

    @property
    def refs(self) -> list[gd.Ref]:
        return gd.data_inputs(self.node)

    def is_constant(self, index: int) -> bool:
        return index < len(self.refs) and self.refs[index].node in self.graph.lowering.constant

    def value(self, index: int) -> Array | None:
        """A constant input; None when it is computed, or too large to be written down in the graph."""
        body = self.graph.lowering.bodies.get(self.refs[index].node) if self.is_constant(index) else None
        if not body or body[-1].op != "Const":
            return None
        value: Array = tf.make_ndarray(body[-1].attr["value"].tensor)
        return value

    def shape(self, index: int) -> Shape:
        if self.is_constant(index):
            name = self.refs[index].node
            weight = self.graph.lowering.weights.get(name)
            value = weight if weight is not None else self.value(index)
            return None if value is None else tuple(value.shape)
        spec = self.graph.specs.get(self.refs[index].tensor)
        return spec.shape if spec else None

    def rank(self, index: int = 0) -> int:
        return len(self.shape(index) or ())

    def axis(self, value: int, extra: int = 0) -> int:
        return value + self.rank() + extra if value < 0 else value


def refuse_like_tftrt(graph: OpGraph, op_set: str, precision: str) -> dict[str, str]:
    """Judge every op as TF-TRT's validator did.

    Args:
        graph: the signature.
        op_set: ``tf-trt`` for explicit batch (dynamic shape mode), ``tf-trt-implicit`` for implicit batch.
        precision: quantization ops convert in ``int8`` only.

    Returns:
        Op -> reason, for those that stay.
    """
    refused = {}
    for op in graph.ops.values():
        seen = _Seen(graph, op, op_set == "tf-trt-implicit")
        if reason := _by_batch(seen) or _by_type(seen, precision) or _CHECKS.get(op.type, _by_batch)(seen):
            refused[op.name] = reason
    return spread_over_groups(graph, refused)


def batches(graph: OpGraph) -> dict[str, int]:
    """The batch of every op in implicit batch mode, -1 for an open one: ops of different batches share no engine."""
    seen = {op.name: _Seen(graph, op, implicit=True) for op in graph.ops.values()}
    return {name: batch for name, item in seen.items() if item.refs and (batch := _leading_batch(item)) is not None}


def _leading_batch(seen: _Seen) -> int | None:
    """The batch, by the inputs of the highest rank among those that determine it; None when they do not say one."""
    position = {"Conv2DBackpropInput": 2, "Conv3DBackpropInputV2": 2, "Split": 1}.get(seen.op.type, 0)
    leading = range(len(seen.refs)) if seen.op.type in _ALL_INPUTS_LEAD else [position]
    shapes = [seen.shape(index) for index in leading]
    highest = max(len(shape or ()) for shape in shapes)
    if None in shapes or highest < 2:
        return None
    sizes = {-1 if shape[0] is None else shape[0] for shape in shapes if shape and len(shape) == highest}
    return max(sizes - {1}, default=1) if len(sizes - {1}) < 2 or -1 not in sizes else None


def _by_batch(seen: _Seen) -> str:
    if not seen.implicit or not seen.refs or _leading_batch(seen) is not None:
        return ""
    return "implicit batch mode requires input shape with at least two dimensions"


def _by_type(seen: _Seen, precision: str) -> str:
    op = seen.op
    if op.type in _CALIBRATED and precision == "int8":
        return ""
    if op.type not in _TYPES:
        return f"Op type {op.type} is not supported."
    dtype = next((seen.graph.specs[tensor].dtype for tensor in op.inputs), op.outputs[0].dtype if op.outputs else "")
    if op.type in ("GatherV2", "Select", "SelectV2", "Range", "Fill") and op.outputs:
        dtype = op.outputs[0].dtype
    if dtype not in _TYPES[op.type]:
        allowed = ", ".join(_TYPES[op.type])
        return f"{op.type} op is not supported - Allowed input dtypes: [{allowed}]. Received: {dtype}"
    if seen.implicit and (op.type in _LOGIC + _COMPARISONS or dtype == "bool"):
        return f"{op.type} is not supported in implicit batch mode"
    return ""


def _cast(seen: _Seen) -> str:
    target = seen.op.outputs[0].dtype
    return "" if target in _FLOAT else f"Cast op is not supported - Allowed output dtypes: [{', '.join(_FLOAT)}]"


def _convolution(seen: _Seen) -> str:
    if not seen.is_constant(1):
        return f'The input "filter" for {seen.op.type} must be a constant'
    padding = seen.node.attr["padding"].s.decode()
    if padding not in ("SAME", "VALID"):
        return f"{padding} padding type not implemented, only VALID and SAME are supported"
    image = 2 if seen.op.type.startswith("Conv") and "Backprop" in seen.op.type else 0
    shape = seen.shape(image)
    channel = _channel(seen)
    if not shape or shape[channel] is None:
        return "Channel dimension must be static"
    for key in ("strides", "dilations"):
        sizes = list(seen.node.attr[key].list.i)
        if sizes and (sizes[0] != 1 or sizes[channel] != 1):
            return f"{key} must be 1 for the batch and channel dimensions"
    if image and any(size != 1 for size in seen.node.attr["dilations"].list.i):
        return "Dilation with Conv2DBackpropInput (conv2d_transpose) is not supported"
    return ""


def _channel(seen: _Seen) -> int:
    layout = seen.node.attr["data_format"].s.decode()
    return 1 if layout.startswith("NC") else len(layout or "NHWC") - 1


def _normalisation(seen: _Seen) -> str:
    if seen.node.attr["is_training"].b:
        return f"{seen.op.type} only supports is_training=false"
    shape = seen.shape(0)
    return "" if shape and shape[_channel(seen)] is not None else "Channel dimension must be static"


def _resize(seen: _Seen) -> str:
    if not seen.node.attr["align_corners"].b:
        kind = "Bilinear" if seen.op.type == "ResizeBilinear" else "Nearest Neighbor"
        return f"Cannot Convert {kind} Resize when align_corners=False"
    return "" if seen.is_constant(1) or not seen.implicit else 'The input "size" must be a constant'


def _pad(seen: _Seen) -> str:
    if seen.rank() < 4:
        return "Convertpad requires at least 4D input"
    value = seen.value(1)
    if value is None or value.dtype != np.int32:
        return 'The input "paddings" for Pad must be a constant'
    padded = [axis for axis, pair in enumerate(value) if pair.any()]
    if seen.implicit and 0 in padded:
        return _BATCH
    return "Padding layer does not support padding on > 2" if len(padded) > 2 else ""


def _squeeze(seen: _Seen) -> str:
    axes = list(seen.node.attr["squeeze_dims"].list.i)
    if not axes:
        return "Squeeze is not implemented for empty squeeze_dims"
    return _BATCH if seen.implicit and 0 in map(seen.axis, axes) else ""


def _strided_slice(seen: _Seen) -> str:
    if seen.node.attr["new_axis_mask"].i:
        return "new_axis_mask is not supported for StridedSlice"
    if not seen.implicit:
        return ""
    begin, end, step = (seen.value(index) for index in (1, 2, 3))
    if begin is None or end is None or step is None:
        return 'The inputs "begin", "end" and "strides" must be constants'
    masks = seen.node.attr
    whole = masks["begin_mask"].i & 1 or begin[0] == 0, masks["end_mask"].i & 1
    if masks["ellipsis_mask"].i & 1:
        return ""
    return "" if all(whole) and step[0] == 1 and not masks["shrink_axis_mask"].i & 1 else _BATCH


def _slice(seen: _Seen) -> str:
    begin, size = seen.value(1), seen.value(2)
    if begin is None or size is None:
        return 'The inputs "begin" and "size" for Slice must be constants'
    return _BATCH if seen.implicit and (begin[0] or size[0] != -1) else ""


def _reshape(seen: _Seen) -> str:
    shape = seen.value(1)
    if shape is None:
        return 'The input "shape" for Reshape must be a constant' if seen.implicit else ""
    if not shape.size:
        return "Reshape to shape=[] is not supported"
    source = seen.shape(0)
    if not seen.implicit or source is None:
        return ""
    target = [int(size) for size in shape.reshape(-1)]
    if target[0] > 0 and source[0] is not None:
        return "" if target[0] == source[0] else _BATCH
    rest = [size for size in source[1:] if size is not None]
    same = len(rest) == len(source) - 1 and -1 not in target[1:] and np.prod(rest) == np.prod(target[1:])
    return "" if target[0] == -1 and same else _BATCH


def _matmul(seen: _Seen) -> str:
    attr = seen.node.attr
    if seen.implicit and (attr["transpose_a"].b or not seen.is_constant(1)):
        return (
            "MatMul with 2D tensors requires explicit batch mode, or that tensor A is not transposed and B is a "
            "constant tensor."
        )
    return ""


def _einsum(seen: _Seen) -> str:
    equation = seen.node.attr["equation"].s.decode()
    inputs, _, output = equation.partition("->")
    operands = inputs.split(",")
    bad = "..." in equation or not output or any(len(set(item)) != len(item) for item in operands)
    return "No conversion for einsum equation." if seen.implicit or bad or len(operands) != 2 else ""


def _gather(seen: _Seen) -> str:
    if seen.graph.specs.get(seen.refs[1].tensor) and seen.graph.specs[seen.refs[1].tensor].dtype != "int32":
        return "GatherV2 op is not supported - Allowed input dtypes of indices: [int32]"
    axis = seen.value(2)
    if axis is None:
        return 'The input "axis" for GatherV2 must be a constant'
    if seen.node.attr["batch_dims"].i > (0 if seen.implicit else 1):
        return "GatherV2 with this batch_dims is not supported"
    return _BATCH if seen.implicit and not seen.is_constant(0) and seen.axis(int(axis)) == 0 else ""


def _top_k(seen: _Seen) -> str:
    if not seen.node.attr["sorted"].b:
        return "Only sorted=True is supported"
    if seen.value(1) is None:
        return 'The input "k" for TopKV2 must be a constant'
    return _BATCH if seen.implicit and seen.rank() < 2 else ""


def _arg_extreme(seen: _Seen) -> str:
    if seen.op.outputs[0].dtype != "int32":
        return f"Output type {seen.op.outputs[0].dtype} is not supported"
    return _constant_axis(seen)


def _constant_axis(seen: _Seen) -> str:
    axes = seen.value(1)
    if axes is None:
        return f'The input "axis" for {seen.op.type} must be a constant'
    return _BATCH if seen.implicit and 0 in [seen.axis(int(axis)) for axis in axes.reshape(-1)] else ""


def _split(seen: _Seen) -> str:
    axis, shape = seen.value(0), seen.shape(1)
    if axis is None or shape is None or len(shape) < 2:
        return f"Dimension for {seen.op.type} must be rank 2 or greater"
    position = int(axis) % len(shape)
    if seen.implicit and position == 0:
        return _BATCH
    return "" if shape[position] is not None else "Dimension along which it is split must be static"


def _unpack(seen: _Seen) -> str:
    axis = seen.axis(seen.node.attr["axis"].i)
    if seen.rank() < 2:
        return "Input shape must be rank 2 or greater"
    return _BATCH if seen.implicit and axis == 0 else ""


def _pack(seen: _Seen) -> str:
    return _BATCH if seen.implicit and seen.axis(seen.node.attr["axis"].i, 1) == 0 else ""


def _concat(seen: _Seen) -> str:
    axis = seen.value(len(seen.refs) - 1)
    if axis is None:
        return 'The input "axis" for ConcatV2 must be a constant'
    rank = max(seen.rank(index) for index in range(len(seen.refs) - 1))
    return _BATCH if seen.implicit and int(axis) % max(rank, 1) == 0 else ""


def _transpose(seen: _Seen) -> str:
    order = seen.value(1)
    if order is None:
        return 'The input "perm" for Transpose must be a constant'
    return _BATCH if seen.implicit and order[0] != 0 else ""


def _expand_dims(seen: _Seen) -> str:
    axis = seen.value(1)
    if axis is None:
        return 'The input "axis" for ExpandDims must be a constant'
    return _BATCH if seen.implicit and seen.axis(int(axis.reshape(-1)[0]), 1) == 0 else ""


def _explicit_only(seen: _Seen) -> str:
    return f"{seen.op.type} is only supported for explicit batch mode." if seen.implicit else ""


def _unary(seen: _Seen) -> str:
    return "" if seen.rank() else "At least 1 dimension is required for UNARY operation"


def _suppression(seen: _Seen) -> str:
    if seen.implicit:
        return _explicit_only(seen)
    fixed = all(shape is not None and None not in shape for shape in map(seen.shape, (0, 1)))
    return "" if fixed else "CombinedNonMaxSuppression requires input with static shape"


_CHECKS: dict[str, Callable[[_Seen], str]] = {
    **dict.fromkeys(
        "Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 DepthwiseConv2dNative".split(), _convolution
    ),
    **dict.fromkeys("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3".split(), _normalisation),
    **dict.fromkeys(["ResizeBilinear", "ResizeNearestNeighbor"], _resize),
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_REDUCTIONS, _constant_axis),
    **dict.fromkeys(["ArgMax", "ArgMin"], _arg_extreme),
    **dict.fromkeys(["Shape", "Fill", "Range"], _explicit_only),
    "Cast": _cast,
    "CombinedNonMaxSuppression": _suppression,
    "ConcatV2": _concat,
    "Einsum": _einsum,
    "ExpandDims": _expand_dims,
    "GatherV2": _gather,
    "MatMul": _matmul,
    "Pack": _pack,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "TopKV2": _top_k,
    "Transpose": _transpose,
    "Unpack": _unpack,
}
