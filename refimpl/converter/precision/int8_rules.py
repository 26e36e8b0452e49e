"""Which nodes may become INT8 layers, and why the others may not.

The rules are those by which NVIDIA's ModelOpt decides what TensorRT runs faster in INT8 (nvidia-modelopt 0.47,
``onnx/quantization/graph_utils.py``: ``find_nodes_from_convs_to_exclude``, ``find_nodes_from_matmul_to_exclude``), and
TensorRT's own for Q/DQ (scales per channel on constant weights only). Where a rule is ours, it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from refimpl.converter.precision.graph_view import View, attribute

LAYER_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_LEAST = 16  # rows of weights that an INT8 tensor-core kernel takes at once: of K and N, or of channels
_STEP = 8  # channels of small convolutions come in eights


@dataclass(frozen=True)
class Candidate:
    """A node that could be quantized.

    Attributes:
        node: its name.
        op: its type: Conv, ConvTranspose, Gemm or MatMul.
        activation: the tensor that it reads as its activation, input 0.
        weight: the tensor that it reads as its weight, input 1.
        axis: the axis of the weight that holds the output channels, each with a scale of its own.
        depthwise: whether each of its groups has one input channel. ModelOpt's rules let TensorRT run those in INT8.
            TensorRT-RTX 1.7 seems to keep their pairs apart from them: for fixed shapes its engines store a constant of
            3 bytes an input element, as for no other layer, so there it costs speed and accuracy (see ``keep``).
        refused: why TensorRT would not run it in INT8; "" if it would.
    """

    node: str
    op: str
    activation: str
    weight: str
    axis: int
    depthwise: bool
    refused: str


def find_candidates(view: View) -> tuple[Candidate, ...]:
    """Every node of a :data:`LAYER_OPS` type in the main graph, in graph order."""
    nodes = (node for node in view.nodes if node.op_type in LAYER_OPS and node.domain in {"", "ai.onnx"})
    return tuple(_candidate(view, node) for node in nodes)


def _candidate(view: View, node: onnx.NodeProto) -> Candidate:
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0 if attribute(node, "transB", 0) else 1}[node.op_type]
    refused = _refusal(view, node)
    depthwise = not refused and attribute(node, "group", 1) > 1 and view.constant(node.input[1]).shape[1] == 1
    return Candidate(node.name, node.op_type, node.input[0], node.input[1], axis, depthwise, refused)


def _refusal(view: View, node: onnx.NodeProto) -> str:
    if any((maker := view.maker(name)) and maker.op_type == "DequantizeLinear" for name in node.input[:2]):
        return "the model itself quantizes it"
    if view.is_constant(node.input[0]):
        return "its left operand is a constant, and TensorRT takes weights on the right"
    if not view.is_constant(node.input[1]):
        return "its weight is not a constant"
    weight = view.constant(node.input[1])
    if weight.dtype != np.float32:
        return f"it computes in {weight.dtype}"
    if not weight.size:
        return "its weight is empty"
    if not np.isfinite(weight).all():
        return "its weight has NaN or infinities"
    if node.op_type in {"Gemm", "MatMul"}:
        return _product_refusal(view, node, weight.shape)
    return _conv_refusal(view, node, weight.shape)


def _product_refusal(view: View, node: onnx.NodeProto, weight: tuple[int, ...]) -> str:
    if len(weight) != 2:
        return f"its weight has rank {len(weight)}"  # ours: one axis of scales would not name one output column
    inner, columns = weight[::-1] if attribute(node, "transB", 0) else weight
    rows = view.shapes.get(node.input[0])
    if rows is not None:
        if len(rows) < 2:
            return "it multiplies a vector (GEMV), and TensorRT runs that in float"
        kept = rows[1:] if attribute(node, "transA", 0) else rows[:-1]
        if all(size == 1 for size in kept):
            return "it multiplies one row (GEMV), and TensorRT runs that in float"
    if columns == 1:
        return "it has one column (GEMV), and TensorRT runs that in float"
    if min(inner, columns) < _LEAST:
        return f"its weight is {inner} x {columns}; INT8 kernels need {_LEAST} of both"
    return ""


def _conv_refusal(view: View, node: onnx.NodeProto, weight: tuple[int, ...]) -> str:
    group, kernel = attribute(node, "group", 1), weight[2:]
    image = (view.shapes.get(node.input[0]) or ())[2:]
    if image and all(size == 1 for size in [*image, *kernel]):
        # Ours, after the GEMV rule: the layers of squeeze-and-excitation blocks, one row of work for each image.
        return "it runs on 1x1 images, one row each (GEMV), and TensorRT runs that in float"
    if group > 1 and node.op_type == "ConvTranspose":
        return "it is a grouped transposed convolution"  # ours: its axis 1 holds the channels of one group only
    ins, outs = (weight[1], weight[0]) if node.op_type == "Conv" else (weight[0], weight[1])  # ins: of one group
    if min(ins, outs) >= _LEAST:
        return ""
    if group > 1:
        if outs % _STEP == 0 and min(kernel) >= 3:
            return ""
        return f"it has {outs} channels in {group} groups; INT8 kernels need a multiple of {_STEP} and a 3x3 window"
    eights = outs % _STEP == 0 or ins % _STEP == 0
    wide = max(ins, outs) >= _LEAST or node.input[0] in view.inputs
    if eights and wide and len(set(kernel)) == 1:
        return ""
    return f"it has {ins} input and {outs} output channels; INT8 kernels need {_LEAST}"
