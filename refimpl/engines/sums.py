"""How a GPU sums a product of float16 numbers, written as ONNX that any CPU runs.

A tensor core multiplies and adds 16 terms at once, exactly as far as float16 can tell, and adds them to a running sum
that is float16 again. TensorRT takes these kernels for products in float16, so an answer carries one rounding for
every 16 terms, not one in all: a sum of 4096 terms is ten times less exact than one that is rounded at its end.
``tools/gpu/arithmetic.py`` holds answers of a GPU against this, element by element: most products are equal to it bit
for bit; convolutions with larger kernels sum in another order, with the same error. Convolutions of one channel each
(depthwise) and products of a single row are summed in float32. Where a result is small and its sums are long, TensorRT
cuts the sums in parts, which makes them up to three times as good as what is written here.

Float32 products with TF32 round their operands to 10 bits of mantissa, and sum in float32. Most kernels round to
nearest. Those for convolutions of few channels cut the bits off, which is three times worse, since it makes everything
smaller: on an H100 it was seen of 16 channels into 16 and of 3 into 24, but not of 8 into 16 with a kernel of one tap.
Whole networks (``tools/gpu/prediction.py``) are as far from TensorFlow there as they are with :data:`_CUT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

TERMS = 16  # that a tensor core adds at once
PRODUCTS = frozenset(["MatMul", "Gemm", "Conv"])
_VELTKAMP = np.float32(2**13 + 1)  # leaves 24 - 13 bits of the significand, rounded to nearest
_DOWN = np.float32(1 - 1.01 * 2.0**-11)  # from a TF32 number to nearer the one below it, if that is rounded to nearest
_CUT = (range(2, 17), range(1, 64))  # channels, in (of a group) and out, of a convolution that cuts bits off
_SAFE = np.float32(2.0**100)  # beyond it the multiplication could overflow


@dataclass
class Expansion:
    """Nodes and constants that stand for one op.

    Attributes:
        name: of the op; every new name begins with it.
        nodes: in order.
        constants: initializers to add to the graph.
    """

    name: str
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def op(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node with one result; returns its name."""
        result = f"{self.name}/{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A constant; returns its name."""
        result = f"{self.name}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), result))
        return result


def narrow(node: Any, dims: Sequence[int] | None, name: str) -> Expansion | None:
    """A product with a float16 running sum.

    Args:
        node: MatMul, Gemm or Conv whose inputs are float32 tensors that hold float16 values.
        dims: shape of the second operand where it is a constant.
        name: prefix of every new name.

    Returns:
        Nodes whose last one writes ``node``'s output, float32; None for what is summed in float32 (depthwise
        convolutions) or cannot be written so (weights that are no constant, paddings that depend on the input).
    """
    made = Expansion(name)
    if node.op_type == "Conv":
        result = _conv(made, node, dims)
    elif node.op_type == "Gemm":
        result = _gemm(made, node)
    else:
        result = _matmul(made, node.input[0], node.input[1])
    if not result:
        return None
    made.nodes.append(helper.make_node("Identity", [result], [node.output[0]]))
    return made


def with_tf32(node: Any, dims: Sequence[int] | None, name: str) -> Expansion | None:
    """A float32 product whose operands are rounded to TF32; arguments and result as for :func:`narrow`."""
    if node.op_type == "Conv" and dims is not None and dims[1] == 1 and _attribute(node, "group", 1) > 1:
        return None
    made = Expansion(name)
    cuts = node.op_type == "Conv" and dims is not None and dims[1] in _CUT[0] and dims[0] in _CUT[1]
    operands = [_cut(made, value) if cuts else _tf32(made, value) for value in node.input[:2]]
    if node.op_type != "Conv" and not _attribute(node, "transA", 0):
        row = _one_row(made, node.input[0])
        operands = [made.op("Where", [row, *pair]) for pair in zip(node.input, operands, strict=False)]
    product = helper.make_node(node.op_type, [*operands, *node.input[2:]], list(node.output), name=node.name)
    product.attribute.extend(node.attribute)
    made.nodes.append(product)
    return made


def _tf32(made: Expansion, value: str) -> str:
    """A float32 tensor rounded to TF32, to nearest (T. J. Dekker's splitting with Veltkamp's constant)."""
    scaled = made.op("Mul", [value, made.constant(_VELTKAMP, np.float32)])
    high = made.op("Sub", [scaled, made.op("Sub", [scaled, value])])
    fine = made.op("Less", [made.op("Abs", [value]), made.constant(_SAFE, np.float32)])
    return made.op("Where", [fine, high, value])


def _cut(made: Expansion, value: str) -> str:
    """A float32 tensor rounded to TF32 toward zero: where to nearest is farther from zero, the number before that.

    Of what :func:`_tf32` rounds: not beyond 2^100, and not of subnormal numbers.
    """
    near = _tf32(made, value)
    over = made.op("Greater", [made.op("Abs", [near]), made.op("Abs", [value])])
    return made.op("Where", [over, _tf32(made, made.op("Mul", [near, made.constant(_DOWN, np.float32)])), near])


def _one_row(made: Expansion, left: str) -> str:
    """Whether a product is one of a vector: those are not computed by tensor cores, and summed in float32."""
    rows = made.op("Slice", [made.op("Shape", [left]), made.constant([-2]), made.constant([-1])])
    return made.op("Equal", [made.op("ReduceProd", [rows], keepdims=0), made.constant(1)])


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _matmul(made: Expansion, left: str, right: str) -> str:
    size = made.op("Gather", [made.op("Shape", [left]), made.constant(-1)], axis=0)
    terms = made.op("Where", [_one_row(made, left), size, made.constant(TERMS)])
    steps = made.op("Div", [made.op("Sub", [made.op("Add", [size, terms]), made.constant(1)]), terms])
    terms = made.op("Unsqueeze", [terms, made.constant([0])])
    none, rows, columns = made.constant([0]), made.constant([-1]), made.constant([-2])
    empty = [made.op("Slice", [left, none, none, rows]), made.op("Slice", [right, none, none, columns])]
    first = made.op("MatMul", empty)  # of no terms: zeros of the right shape
    body = Expansion(f"{made.name}/step")
    start = body.op("Mul", [body.op("Unsqueeze", [_step(body), body.constant([0])]), terms])
    end = body.op("Add", [start, terms])
    parts = [body.op("Slice", [left, start, end, rows]), body.op("Slice", [right, start, end, columns])]
    return _loop(made, body, body.op("MatMul", parts), first, steps)


def _gemm(made: Expansion, node: Any) -> str:
    left, right = node.input[0], node.input[1]
    if _attribute(node, "transA", 0):
        left = made.op("Transpose", [left], perm=[1, 0])
    if _attribute(node, "transB", 0):
        right = made.op("Transpose", [right], perm=[1, 0])
    result = _matmul(made, left, right)
    if (alpha := _attribute(node, "alpha", 1.0)) != 1.0:
        result = made.op("Mul", [result, made.constant(alpha, np.float32)])
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        if (beta := _attribute(node, "beta", 1.0)) != 1.0:
            bias = made.op("Mul", [bias, made.constant(beta, np.float32)])
        result = made.op("Add", [result, bias])
    return result


def _conv(made: Expansion, node: Any, dims: Sequence[int] | None) -> str:
    if dims is None or _attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return ""
    out, channels, *kernel = dims
    group, rank = _attribute(node, "group", 1), len(kernel)
    if channels == 1 and group > 1:
        return ""
    strides, dilations = _attribute(node, "strides", [1] * rank), _attribute(node, "dilations", [1] * rank)
    pads = _attribute(node, "pads", [0] * (2 * rank))
    extra = -channels % TERMS
    batch = made.op("Slice", [made.op("Shape", [node.input[0]]), made.constant([0]), made.constant([1])])
    x = _grouped(made, node.input[0], group, channels)
    x = made.op("Pad", [x, made.constant([0, 0, 0, *pads[:rank], 0, 0, extra, *pads[rank:]])])
    padded = made.op("Slice", [made.op("Shape", [x]), made.constant([3]), made.constant([3 + rank])])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    steps = made.op("Div", [made.op("Sub", [padded, made.constant(reach)]), made.constant(strides)])
    sizes = made.op("Add", [steps, made.constant([1] * rank)])
    span = made.op("Add", [made.op("Mul", [steps, made.constant(strides)]), made.constant([1] * rank)])
    span = made.op("Concat", [made.constant([TERMS]), span], axis=0)
    blocks = (channels + extra) // TERMS
    starts = [
        (block * TERMS, *(tap * d for tap, d in zip(taps, dilations, strict=True)))
        for taps in np.ndindex(*kernel)
        for block in range(blocks)
    ]
    weights = _blocks(made, node.input[1], (group, out // group, channels, extra, int(np.prod(kernel))))
    pixels = made.op("ReduceProd", [sizes], keepdims=1)
    shape = made.op("Concat", [batch, made.constant([group, out // group]), pixels], axis=0)
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    first = made.op("ConstantOfShape", [shape], value=zero)
    body = Expansion(f"{made.name}/step")
    start = body.op("Gather", [made.constant(starts), _step(body)], axis=0)
    weight = body.op("Gather", [weights, _step(body)], axis=0)
    axes, by = made.constant([*range(2, 3 + rank)]), made.constant([1, *strides])
    part = body.op("Slice", [x, start, body.op("Add", [start, span]), axes, by])
    part = body.op("MatMul", [weight, body.op("Reshape", [part, made.constant([0, 0, TERMS, -1])])])
    result = _loop(made, body, part, first, made.constant(len(starts)))
    result = made.op("Reshape", [result, made.op("Concat", [batch, made.constant([out]), sizes], axis=0)])
    if len(node.input) > 2 and node.input[2]:
        bias = made.op("Reshape", [node.input[2], made.constant([1, out, *[1] * rank])])
        result = made.op("Add", [result, bias])
    return result


def _grouped(made: Expansion, x: str, group: int, channels: int) -> str:
    """``[batch, channels, ...]`` as ``[batch, group, channels of a group, ...]``."""
    if group == 1:
        return made.op("Unsqueeze", [x, made.constant([1])])
    shape = made.op("Shape", [x])
    batch = made.op("Slice", [shape, made.constant([0]), made.constant([1])])
    rest = made.op("Slice", [shape, made.constant([2]), made.constant([2**31])])
    return made.op("Reshape", [x, made.op("Concat", [batch, made.constant([group, channels]), rest], axis=0)])


def _blocks(made: Expansion, weights: str, sizes: tuple[int, int, int, int, int]) -> str:
    """The weights ``[out, channels, taps]`` as ``[taps * blocks, group, out of a group, 16]``."""
    group, out, channels, extra, taps = sizes
    w = made.op("Reshape", [weights, made.constant([group, out, channels, taps])])
    if extra:
        w = made.op("Pad", [w, made.constant([0, 0, 0, 0, 0, 0, extra, 0])])
    w = made.op("Reshape", [w, made.constant([group, out, (channels + extra) // TERMS, TERMS, taps])])
    w = made.op("Transpose", [w], perm=[4, 2, 0, 1, 3])
    return made.op("Reshape", [w, made.constant([-1, group, out, TERMS])])


def _loop(made: Expansion, body: Expansion, part: str, first: str, count: str) -> str:
    """Add ``part`` of every step to a running sum that is rounded to float16."""
    before, go = f"{body.name}/sum", f"{body.name}/go"
    rounded = body.op("Cast", [body.op("Add", [before, part])], to=TensorProto.FLOAT16)
    after = body.op("Cast", [rounded], to=TensorProto.FLOAT)
    on = body.op("Identity", [go])
    graph = helper.make_graph(
        body.nodes,
        f"{made.name}/sum",
        [
            helper.make_tensor_value_info(_step(body), TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            helper.make_tensor_value_info(before, TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info(on, TensorProto.BOOL, []),
            helper.make_tensor_value_info(after, TensorProto.FLOAT, None),
        ],
        body.constants,
    )
    return made.op("Loop", [count, made.constant(True, np.bool_), first], body=graph)


def _step(body: Expansion) -> str:
    """The number of the step, inside of a loop's body."""
    return f"{body.name}/number"
