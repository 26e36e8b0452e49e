"""INT8 layers: which nodes TensorRT would run in INT8, and what becomes of their weights."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from refimpl.converter.precision.quantize import candidates, place, quantize_weight, tensors_to_observe
from tests.onnx_models import make_model, node
from tests.precision.qdq import (
    conv,
    cosine,
    evaluate,
    graph,
    int8_weights,
    pairs,
    quantized,
    refusals,
    run,
    scales,
    structure,
    weights,
)

CHANNELS = {
    "Conv": (conv("x w", "y"), (2, 32, 6, 6), weights(48, 32, 3, 3), 0),
    "Conv of one axis": (conv("x w", "y"), (2, 32, 9), weights(48, 32, 3), 0),
    "Conv of three axes": (conv("x w", "y"), (2, 32, 4, 4, 4), weights(48, 32, 3, 3, 3), 0),
    "depthwise": (conv("x w", "y", group=32), (2, 32, 6, 6), weights(32, 1, 3, 3), 0),
    "stem": (conv("x w", "y"), (2, 3, 9, 9), weights(24, 3, 3, 3), 0),
    "ConvTranspose": (node("ConvTranspose", "x w", "y"), (2, 32, 6, 6), weights(32, 48, 2, 2), 1),
    "Gemm": (node("Gemm", "x w", "y"), (4, 32), weights(32, 48), 1),
    "Gemm, transB": (node("Gemm", "x w", "y", transB=1, alpha=0.5), (4, 32), weights(48, 32), 0),
    "Gemm, transA": (node("Gemm", "x w", "y", transA=1), (32, 4), weights(32, 48), 1),
    "MatMul": (node("MatMul", "x w", "y"), (2, 4, 32), weights(32, 48), 1),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_weights_have_a_scale_for_each_output_channel(name):
    layer, shape, weight, axis = CHANNELS[name]
    sizes = np.geomspace(1e-3, 1e3, weight.shape[axis], dtype=np.float32)
    weight = weight * np.expand_dims(sizes, [other for other in range(weight.ndim) if other != axis])
    model = graph([layer], {"x": shape}, "y", w=weight)
    x = weights(*shape, seed=3)
    got = quantized(model, x=float(np.abs(x).max()))
    assert structure(got.model)[2] == {"y": (axis, weight.shape[axis])}
    values, scale, _ = int8_weights(got.model)["y"]
    for channel in range(weight.shape[axis]):
        part, step = weight.take(channel, axis), scale[channel]
        assert step == np.abs(part).max() / np.float32(127)
        np.testing.assert_array_equal(values.take(channel, axis), np.rint(part / step))
    (want,), (answer,) = run(model, {"x": x}), run(got.model, {"x": x})
    for channel in range(want.shape[1 if "Conv" in layer.op_type else -1]):
        at = {"axis": 1 if "Conv" in layer.op_type else -1}
        assert cosine(want.take(channel, **at), answer.take(channel, **at)) > 0.99, "every channel, the small ones too"
    (reference,) = evaluate(got.model, {"x": x})
    np.testing.assert_allclose(answer, reference, rtol=1e-4, atol=1e-4 * np.abs(reference).max())


def test_weights_are_rounded_half_to_even_and_zeros_have_a_scale():
    weight = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -127], [0] * 7, [1e-42] * 7], np.float32)
    values, steps = quantize_weight(weight, 0)
    assert values.tolist() == [[127, 0, 2, 2, 0, -2, -127], [0] * 7, [0] * 7]
    assert steps.tolist() == [1.0, 1.0, 1.0]
    assert (values.dtype, steps.dtype) == (np.int8, np.float32)


def by_onnx_runtime(model, thresholds):
    """The model quantized by ONNX Runtime's own quantizer, told every choice."""
    copy = make_model([], [], [])
    copy.CopyFrom(model)
    ops = ["Conv", "Gemm", "MatMul"]
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    library = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range={
            tensor: TensorData(lowest=np.float32(-value), highest=np.float32(value))
            for tensor, value in thresholds.items()
        },
        nodes_to_quantize=[item.name for item in model.graph.node if item.op_type in ops],
        nodes_to_exclude=[],
        op_types_to_quantize=ops,
        extra_options={**options, "OpTypesToExcludeOutputQuantization": ops},
    )
    library.quantize_model()
    library.model.topological_sort()
    return library.model.model


def test_onnx_runtimes_quantizer_computes_the_same():
    """Where all readers of a tensor are quantized, both place the same pairs, bit for bit."""
    nodes = [
        conv("x w1 b", "c"),
        node("Relu", "c", "r"),
        conv("r w2", "c2"),
        node("GlobalAveragePool", "c2", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat w3 b", "g", transB=1),
        node("Sigmoid", "g", "s"),
        node("MatMul", "s w4", "y"),
    ]
    constants = {
        "w1": weights(32, 3, 3, 3),
        "w2": weights(48, 32, 1, 1, seed=1) * np.geomspace(1e-20, 1e20, 48, dtype=np.float32).reshape(-1, 1, 1, 1),
        "w3": weights(32, 48, seed=2),
        "w4": weights(32, 40, seed=3),
        "b": weights(32, seed=4),
    }
    constants["w2"][7] = 0
    model = graph(nodes, {"x": (2, 3, 9, 9)}, "y", **constants)
    ranges = {"x": 1 / 3, "r": 0.7, "flat": 1e-4, "s": 123.456}
    ours, theirs = place(model, {**ranges, "pool": ranges["flat"]}, {}).model, by_onnx_runtime(model, ranges)
    moved = pairs(ours)
    assert moved.pop("pool") == {"flat:0"}, "a pair that only we move above the Flatten"
    assert pairs(theirs) == {**moved, "flat": {"g:0"}}
    assert scales(theirs) == {tensor: scales(ours)["pool" if tensor == "flat" else tensor] for tensor in scales(theirs)}
    for layer, (values, steps, axis) in int8_weights(theirs).items():
        np.testing.assert_array_equal(int8_weights(ours)[layer][0], values)
        np.testing.assert_array_equal(int8_weights(ours)[layer][1], steps)
        assert int8_weights(ours)[layer][2] == axis


def test_weights_are_what_quantize_linear_makes_of_them():
    weight = weights(32, 40, seed=8)
    values, steps = quantize_weight(weight, 1)
    op = node("QuantizeLinear", "w scale zero", "q", axis=1)
    typed = node("Cast", "q", "y", to=6)
    model = graph([op, typed], {"w": weight.shape}, "y", scale=steps, zero=np.zeros(40, np.int8))
    np.testing.assert_array_equal(run(model, {"w": weight})[0], values)


def product(left, right, **attributes):
    op = "Gemm" if attributes else "MatMul"
    return graph([node(op, "x w", "y", **attributes)], {"x": left}, "y", w=weights(*right))


def window(channels, shape, image=6, op="Conv", **attributes):
    """A convolution behind a Relu, so that it is not the first layer."""
    nodes = [node("Relu", "x", "r"), node(op, "r w", "y", **attributes)]
    return graph(nodes, {"x": ("n", channels, image, image)}, "y", w=weights(*shape))


def other(*inputs, w=None, **more):
    constants = {"w": w} if w is not None else {}
    return graph([node("MatMul", " ".join(inputs), "y")], {"x": ("n", 32), **more}, "y", **constants)


REFUSED = {
    "one row": (product((1, 64), (64, 64)), "one row (GEMV)"),
    "one row, transposed": (product((64, 1), (64, 64), transA=1), "one row (GEMV)"),
    "rows of ones": (product((1, 1, 64), (64, 64)), "one row (GEMV)"),
    "vector": (product((64,), (64, 64)), "a vector"),
    "one column": (product(("n", 64), (64, 1)), "one column"),
    "small K": (product(("n", 8), (8, 64)), "8 x 64; INT8 kernels need 16"),
    "small N": (product(("n", 64), (8, 64), transB=1), "64 x 8; INT8 kernels need 16"),
    "stack of weights": (product((3, 4, 32), (3, 32, 32)), "rank 3"),
    "few channels": (window(8, (8, 8, 3, 3)), "8 input and 8 output channels"),
    "odd channels": (window(13, (21, 13, 3, 3)), "13 input and 21 output channels"),
    "narrow window": (window(32, (8, 32, 1, 3)), "32 input and 8 output channels"),
    "depthwise 1x1": (window(32, (32, 1, 1, 1), group=32), "3x3 window"),
    "depthwise of 20": (window(20, (20, 1, 3, 3), group=20), "20 channels in 20 groups"),
    "squeeze": (window(64, (32, 64, 1, 1), image=1), "1x1 images"),
    "grouped transposed": (window(32, (32, 16, 3, 3), op="ConvTranspose", group=2), "grouped transposed"),
    "two activations": (other("x", "z", z=(32, 32)), "not a constant"),
    "constant on the left": (other("w", "x", w=weights(32, 32)), "left operand"),
    "float64": (graph([node("MatMul", "x w", "y")], {"x": (4, 32)}, "y", w=np.ones((32, 32))), "float64"),
    "NaN": (other("x", "w", w=np.full((32, 32), np.nan, np.float32)), "NaN or infinities"),
}  # fmt: skip
TAKEN = {
    "any batch": product(("n", 64), (64, 64)),
    "rows in two axes": product((2, 1, 64), (64, 64)),
    "8 of 32": window(32, (8, 32, 3, 3)),
    "13 to 24": window(13, (24, 13, 3, 3)),
    "1x1 images, 3x3 window": window(64, (32, 64, 3, 3), image=1, pads=[1, 1, 1, 1]),
    "groups of 16": window(64, (64, 16, 1, 1), group=4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_tensorrt_would_not_run_in_int8_stays(name):
    model, reason = REFUSED[name]
    (layer,) = candidates(model)
    assert reason in layer.refused
    assert tensors_to_observe(model) == ()
    got = place(model, {"x": 1.0, "r": 1.0}, {})
    assert got.layers == {"y": layer.refused}
    assert got.model.graph.node == model.graph.node


@pytest.mark.parametrize("name", TAKEN)
def test_what_tensorrt_runs_in_int8(name):
    assert refusals(TAKEN[name]) == {"y": ""}


def test_depthwise_convolutions_can_be_told_apart():
    """TensorRT-RTX may have them kept in float."""
    (one,) = candidates(window(32, (64, 1, 3, 3), group=32))
    (other,) = candidates(window(64, (64, 16, 1, 1), group=4))
    assert (one.depthwise, other.depthwise) == (True, False)


def test_the_first_layer_may_have_few_channels():
    first = graph([conv("x w", "y")], {"x": ("n", 3, 9, 9)}, "y", w=weights(8, 3, 3, 3))
    assert refusals(first) == {"y": ""}
    assert refusals(window(3, (8, 3, 3, 3))) != {"y": ""}
