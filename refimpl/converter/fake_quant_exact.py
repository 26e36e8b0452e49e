"""Fake quantization, the ops of quantization-aware training, spelled exactly in float ops. Used for lowering only.

tf2onnx writes these ops as uint8 or int8 QuantizeLinear and DequantizeLinear pairs. Those ignore ``num_bits`` and
``round_mode``, mistake the clamp of ``narrow_range``, and have zero points, which TensorRT refuses. The rules here say
what TensorFlow's kernels compute, operation by operation: a value half way between two levels that is rounded the other
way is off by a whole step. The order of operations is that of the kernels' headers, ``fake_quant_ops_functor.h`` and
``quantize_and_dequantize_op.h``, which TensorFlow 2.21 installs under ``include/tensorflow/core/kernels``.

The arithmetic on the range is spelled as nodes too. Where the range is constant, constant folding does away with it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import tensorflow as tf

from refimpl import tf_private
from refimpl.converter import graphdefs as gd

VARS, ARGS, CHANNELS = "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVarsPerChannel"
V2, V3, V4 = "QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4"
FAKE_QUANTS = frozenset([VARS, ARGS, CHANNELS])
TYPES = FAKE_QUANTS | {V2, V3, V4}


def why_not_exact(node: gd.NodeDef, constant: Container[str]) -> str:
    """Why an op cannot be spelled so that it equals TensorFlow's; "" when it can, and for ops of other types.

    Args:
        node: the op.
        constant: names of nodes whose values are constants.
    """
    if node.op not in TYPES - FAKE_QUANTS:
        return ""
    if op_dtype(node) != tf.float32:
        return f"{node.op} rounds in {op_dtype(node).name} after every step, and engines do not"
    used = [1, 2] if attribute(node, "range_given").b else []
    used += [3] if node.op == V3 else []
    if any(gd.parse_ref(node.input[position]).node not in constant for position in used):
        return (
            f"TensorFlow refuses a range or a number of bits that makes no sense, and those of {node.op} are computed"
        )
    return ""


def attribute(node: gd.NodeDef, key: str) -> Any:
    """An attribute's AttrValue; exporters may strip those that have the default value."""
    if key in node.attr:
        return node.attr[key]
    definition = tf_private.op_def(node.op)
    return next(attr.default_value for attr in definition.attr if attr.name == key) if definition else None


def op_dtype(node: gd.NodeDef) -> tf.DType:
    """What the op computes in."""
    return tf.float32 if node.op in FAKE_QUANTS else tf.as_dtype(node.attr["T"].type)


class _Speller:
    """Collects the primitive nodes that stand for one op."""

    def __init__(self, node: gd.NodeDef) -> None:
        self.nodes: list[gd.NodeDef] = []
        self._name, self._dtype = node.name, op_dtype(node)

    def const(self, value: Any, dtype: tf.DType | None = None) -> str:
        dtype = dtype or self._dtype
        node = gd.make_node(self._next("Const"), "Const", [], dtype=gd.type_attr(dtype.as_datatype_enum))
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype=dtype))
        self.nodes.append(node)
        return str(node.name)

    def add(self, kind: str, *inputs: Any, last: bool = False, **attrs: Any) -> str:
        """Append a node that computes in the op's own dtype; a number among the inputs becomes a constant."""
        named = [item if isinstance(item, str) else self.const(item) for item in inputs]
        attrs.setdefault("T", gd.type_attr(self._dtype.as_datatype_enum))
        node = gd.make_node(self._name if last else self._next(kind), kind, named, **attrs)
        self.nodes.append(node)
        return str(node.name)

    def flag(self, kind: str, *inputs: Any) -> str:
        """1 where a comparison holds, else 0."""
        types = {"SrcT": tf.bool, "DstT": self._dtype}
        attrs = {key: gd.type_attr(value.as_datatype_enum) for key, value in types.items()}
        self.nodes.append(gd.make_node(self._next("Cast"), "Cast", [self.add(kind, *inputs)], **attrs))
        return str(self.nodes[-1].name)

    def shape_op(self, kind: str, *inputs: Any, **attrs: Any) -> str:
        """Append a node that computes in int32, as shapes are; lists among the inputs become constants."""
        int32 = gd.type_attr(tf.int32.as_datatype_enum)
        named = [item if isinstance(item, str) else self.const(item, tf.int32) for item in inputs]
        return self.add(kind, *named, T=int32, **attrs)

    def reshape(self, value: str, shape: str, *, last: bool = False) -> str:
        return self.add("Reshape", value, shape, last=last, Tshape=gd.type_attr(tf.int32.as_datatype_enum))

    def _next(self, kind: str) -> str:
        return f"{self._name}/{len(self.nodes)}/{kind}"


def _fake_quant(node: gd.NodeDef, constant: Container[str]) -> list[gd.NodeDef]:
    """floor((clamp(x) - min) / scale - zero + 0.5) * scale, with min and max nudged so that zero is a level.

    The kernel of the op with attributes and that of the op per channel multiply by 1 / scale, the third one divides.
    """
    del constant
    s = _Speller(node)
    x = node.input[0]
    if node.op == ARGS:
        low, high = s.const(attribute(node, "min").f), s.const(attribute(node, "max").f)
    else:
        low, high = node.input[1], node.input[2]
    one: str | float = 1.0
    if node.op != ARGS:  # these kernels give zero for a range from zero to zero, which is no range
        nothing = s.add("Mul", s.flag("Equal", low, 0.0), s.flag("Equal", high, 0.0))
        high, one = s.add("AddV2", high, nothing), s.add("Sub", 1.0, nothing)
    first, last = float(attribute(node, "narrow_range").b), float(2 ** attribute(node, "num_bits").i - 1)
    width = s.add("Sub", high, low)
    scale, inverse = s.add("RealDiv", width, last - first), s.add("RealDiv", last - first, width)
    from_min = s.add("Sub", first, s.add("RealDiv", low, scale))
    point = _half_away(s, s.add("Maximum", s.add("Minimum", from_min, last), first))
    nudged_low = s.add("Mul", s.add("Sub", first, point), scale)
    nudged_high = s.add("Mul", s.add("Sub", last, point), scale)
    zero = s.add("Floor", s.add("AddV2", s.add("Mul", s.add("Neg", nudged_low), inverse), 0.5))
    clamped = s.add("Maximum", s.add("Minimum", x, nudged_high), nudged_low)
    shifted = s.add("Sub", clamped, nudged_low)
    steps = s.add("RealDiv", shifted, scale) if node.op == VARS else s.add("Mul", shifted, inverse)
    level = s.add("Floor", s.add("AddV2", s.add("Sub", steps, zero), 0.5))
    s.add("Mul", level, s.add("Mul", scale, one), last=True)
    return s.nodes


def _half_away(s: _Speller, value: str) -> str:
    """std::round of a number that is not negative. floor(v + 0.5) would be wrong right below a half."""
    whole = s.add("Floor", value)
    rest = s.add("Sub", value, whole)  # exact, and so is doubling it
    return s.add("AddV2", whole, s.add("Floor", s.add("AddV2", rest, rest)))


def _quantize_dequantize(node: gd.NodeDef, constant: Container[str]) -> list[gd.NodeDef]:
    """round(clamp(x) * scale) / scale, the scale from the side that needs the smaller one; zero stays zero.

    With an axis the kernel sees [before, channels, behind], and so does this.
    """
    del constant
    s = _Speller(node)
    axis, given = attribute(node, "axis").i, attribute(node, "range_given").b
    x, shape = (node.input[0], "") if axis < 0 else _by_channel(s, node.input[0], axis)
    low, high = (_given if given else _observed)(s, node, x, by_channel=axis >= 0)
    first, last = _levels(s, node)
    from_low, from_high = _largest_scale(s, first, low), _largest_scale(s, last, high)
    scale = s.add("Minimum", s.add("Minimum", from_low, from_high), float(op_dtype(node).max))
    step, top = s.add("RealDiv", high, last), high
    if attribute(node, "signed_input").b:
        by_low = s.add("Less", from_low, from_high)
        step = s.add("SelectV2", by_low, s.add("RealDiv", low, first), step)
        top = s.add("SelectV2", by_low, s.add("Mul", last, step), high)
        bottom = s.add("SelectV2", by_low, low, s.add("Mul", first, step))
    else:
        bottom = s.add("Mul", first, step)
    if given:
        x = s.add("Maximum", s.add("Minimum", x, top), bottom)
    scaled = s.add("Mul", x, scale)
    half_up = node.op != V3 and attribute(node, "round_mode").s == b"HALF_UP"
    level = s.add("Floor", s.add("AddV2", scaled, 0.5)) if half_up else s.add("Round", scaled)
    y = s.add("Mul", level, step, last=axis < 0)
    if axis >= 0:
        s.reshape(y, shape, last=True)
    return s.nodes


def _by_channel(s: _Speller, x: str, axis: int) -> tuple[str, str]:
    """The tensor as [before, channels, behind], and its own shape."""
    int32 = gd.type_attr(tf.int32.as_datatype_enum)
    shape = s.add("Shape", x, out_type=int32)
    channels = s.shape_op("Slice", shape, [axis], [1], Index=int32)
    behind = s.shape_op("Slice", shape, [axis + 1], [-1], Index=int32)
    axes = s.const(0, tf.int32)
    behind = s.shape_op("ConcatV2", [1], behind, axes, N=2, Tidx=int32)  # the product of nothing is not everywhere 1
    product = s.shape_op("Prod", behind, [0], keep_dims=True, Tidx=int32)
    view = s.shape_op("ConcatV2", [-1], channels, product, axes, N=3, Tidx=int32)
    return s.reshape(x, view), shape


def _given(s: _Speller, node: gd.NodeDef, x: str, *, by_channel: bool) -> tuple[str, str]:
    del x
    low, high = node.input[1], node.input[2]
    if not by_channel:
        return low, high
    view = s.const([1, -1, 1], tf.int32)
    return s.reshape(low, view), s.reshape(high, view)


def _observed(s: _Speller, node: gd.NodeDef, x: str, *, by_channel: bool) -> tuple[str, str]:
    del node
    values = x if by_channel else s.reshape(x, s.const([-1], tf.int32))
    axes = s.const([0, 2] if by_channel else [0], tf.int32)
    attrs: dict[str, Any] = {"keep_dims": by_channel, "Tidx": gd.type_attr(tf.int32.as_datatype_enum)}
    return s.add("Min", values, axes, **attrs), s.add("Max", values, axes, **attrs)


def _levels(s: _Speller, node: gd.NodeDef) -> tuple[str, str]:
    """The first and the last integer of the quantized type."""
    signed, narrow = attribute(node, "signed_input").b, attribute(node, "narrow_range").b
    if node.op != V3:
        first, last = integers(attribute(node, "num_bits").i, signed, narrow)
        return s.const(float(first)), s.const(float(last))
    int32, dtype = tf.int32.as_datatype_enum, op_dtype(node).as_datatype_enum
    bits = s.add("Cast", node.input[3], SrcT=gd.type_attr(int32), DstT=gd.type_attr(dtype))
    s.nodes[-1].attr.pop("T")
    half = s.add("Pow", 2.0, s.add("Sub", bits, 1.0))
    if not signed:
        return s.const(0.0), s.add("Sub", s.add("AddV2", half, half), 1.0)
    return s.add("Sub", float(narrow), half), s.add("Sub", half, 1.0)


def integers(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """The first and the last integer that QuantizeAndDequantize rounds to."""
    if not signed:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


def _largest_scale(s: _Speller, level: str, value: str) -> str:
    """The scale that takes a bound of the range to the last level on its side; infinity where it has another sign.

    tf2onnx selects by a sum of products, in which an infinity that is not selected leaves a NaN, unless it sees an
    infinite constant. So selections have that, or are between finite values.
    """
    same_side = s.add("Greater", s.add("Mul", level, value), 0.0)
    return s.add("SelectV2", same_side, s.add("RealDiv", level, value), float("inf"))


RULES: dict[str, Callable[[gd.NodeDef, Container[str]], list[gd.NodeDef]]] = {
    **dict.fromkeys(FAKE_QUANTS, _fake_quant),
    **dict.fromkeys([V2, V3, V4], _quantize_dequantize),
}
