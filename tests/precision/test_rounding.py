"""Half precision and int8 on a CPU: every tensor is rounded as the graph says, in both engines, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refimpl.engines import numpy as numpy_engine
from refimpl.engines import onnxruntime, rounding
from tests.onnx_models import info, make_model, node
from tests.precision import qdq
from tests.precision.helpers import KINDS, graph, in_half, rounded

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
BOTH = pytest.mark.parametrize("engine", [onnxruntime, numpy_engine], ids=["onnxruntime", "numpy"])
HALVES = pytest.mark.parametrize("precision", ["fp16", "bf16"])


def run(model: onnx.ModelProto, folder: Path, engine: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    onnx.save(model, folder / f"m{onnxruntime.HALF_SUFFIX}")
    return engine.open(folder / f"m{onnxruntime.HALF_SUFFIX}").run(inputs)


def integers(*shape: int, seed: int, most: int = 8) -> np.ndarray:
    """Small integers: products and sums of them are exact in float32, so only the rounding of results is left."""
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32)


@BOTH
@HALVES
def test_every_result_of_a_chain_is_rounded(precision: str, engine: Any, tmp_path: Path) -> None:
    """Each step loses what the step after it would otherwise bring back."""
    nodes = [
        node("Add", "x large", "a"),
        node("Sub", "a large", "b"),
        node("Mul", "b third", "c"),
        node("Mul", "c three", "d"),
        node("Relu", "d", "e"),
        node("Concat", "e d", "f", axis=0),
        node("Reshape", "f shape", "g"),
        node("Add", "g g", "y"),
    ]
    third = rounded(np.float32(1 / 3), precision)
    model = graph(
        nodes, {"x": (64,)}, "y", large=np.float32(96), third=third, three=np.float32(3), shape=np.array([2, 64])
    )
    x = rounded(np.random.default_rng(0).standard_normal(64), precision)

    def r(value: np.ndarray) -> np.ndarray:
        return rounded(value, precision)

    b = r(r(x + np.float32(96)) - np.float32(96))
    d = r(r(b * third) * np.float32(3))
    want = r(2 * np.concatenate([np.maximum(d, 0), d]).reshape(2, 64))
    assert np.abs(want / 2 - np.concatenate([np.maximum(x, 0), x]).reshape(2, 64)).max() > 1e-2, "nothing was lost"
    (got,) = run(in_half(model, precision), tmp_path, engine, x)
    np.testing.assert_array_equal(got, want)


@BOTH
@HALVES
def test_products_are_rounded_once(precision: str, engine: Any, tmp_path: Path) -> None:
    """A MatMul and a convolution of small integers, whose sums float32 has exactly; a bias is a rounding more."""
    x, w = integers(5, 40, seed=1), integers(40, 12, seed=2)
    model = graph([node("MatMul", "x w", "p"), node("Add", "p b", "y")], {"x": (5, 40)}, "p y", w=w, b=np.float32(0.37))
    p, y = run(in_half(model, precision), tmp_path, engine, x)
    bias = rounded(np.float32(0.37), precision)
    np.testing.assert_array_equal(p, rounded(x @ w, precision))
    np.testing.assert_array_equal(y, rounded(rounded(x @ w, precision) + bias, precision))

    x, w = integers(2, 3, 6, 6, seed=3), integers(5, 3, 3, 3, seed=4)
    model = graph([node("Conv", "x w", "y")], {"x": (2, 3, 6, 6)}, "y", w=w)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    want = rounded(np.einsum("nchwij,ocij->nohw", windows, w), precision)
    (got,) = run(in_half(model, precision), tmp_path, engine, x)
    np.testing.assert_array_equal(got, want)


EDGES = {
    "fp16": [65504, 65519.996, 65520, 1e6, -65520, 2049, 2051, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 5.9e-8, 1e-8, 0.1],
    "bf16": [3.3895e38, 3.4e38, -3.4e38, 257, 259, 1.00390625, 1.01171875, 1e-40, 2.0**-133, 9.2e-41, 0.1, 1e-8],
}


@BOTH
@HALVES
def test_ties_overflow_and_subnormals(precision: str, engine: Any, tmp_path: Path) -> None:
    """A cast of float32 values at the edges of the dtype, then an op on them."""
    x = np.array(EDGES[precision], np.float32)
    nodes = [
        node("Cast", "x", "h", to=KINDS[precision]),
        node("Identity", "h", "i"),
        node("Add", "i i", "s"),
        node("Cast", "i", "y", to=TensorProto.FLOAT),
        node("Cast", "s", "z", to=TensorProto.FLOAT),
    ]
    y, z = run(graph(nodes, {"x": x.shape}, "y z"), tmp_path, engine, x)
    np.testing.assert_array_equal(y, rounded(x, precision))
    np.testing.assert_array_equal(z, rounded(2 * rounded(x, precision), precision))
    assert np.isinf(y).sum() >= 1 + (precision == "fp16")
    assert (y[np.abs(x) < 1e-7] != x[np.abs(x) < 1e-7]).any()


def branch(output: str, *nodes: Any) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), output, [], [info(output, None)])


def captured() -> onnx.ModelProto:
    """A choice between two bodies that read a tensor from outside, and an op behind it."""
    nodes = [
        node("Add", "x large", "a"),
        node("ReduceSum", "a", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node(
            "If",
            ["positive"],
            ["chosen"],
            "If",
            then_branch=branch("t", node("Add", "a x", "t")),
            else_branch=branch("e", node("Sub", "a x", "e")),
        ),
        node("Sub", "chosen large", "y"),
    ]
    return graph(nodes, {"x": (8,)}, "y", large=np.float32(96), zero=np.float32(0))


@pytest.mark.parametrize("sign", [1, -1])
def test_what_a_branch_reads_keeps_its_dtype(sign: int, tmp_path: Path) -> None:
    """The bodies of If are left as they are, so the tensors that they capture must be there in half precision."""
    x = rounded(np.random.default_rng(3).standard_normal(8), "fp16")
    model = in_half(captured(), "fp16")
    large = np.float32(96 * sign)
    for item in model.graph.initializer:
        if item.name == "large":
            item.CopyFrom(numpy_helper.from_array(np.float16(96 * sign), "large"))
    a = rounded(x + large, "fp16")
    want = rounded(rounded(a + sign * x, "fp16") - large, "fp16")
    (got,) = run(model, tmp_path, onnxruntime, x)
    np.testing.assert_array_equal(got, want)
    spelled = rounding.spelled_out(model)
    (kept,) = [item for item in spelled.graph.node if item.op_type == "If"]
    assert list(kept.output) == ["chosen"]


def test_a_loop_with_half_state_runs(tmp_path: Path) -> None:
    """Its inputs must have the dtype that its body declares: widened, the model would not load."""
    body = helper.make_graph(
        [node("Add", "state state", "next"), node("Identity", "go", "on")],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("state", [4], TensorProto.FLOAT16)],
        [info("on", [], TensorProto.BOOL), info("next", [4], TensorProto.FLOAT16)],
    )
    nodes = [
        node("Mul", "x two", "start"),
        helper.make_node("Loop", ["count", "yes", "start"], ["end"], "Loop", body=body),
        node("Mul", "end two", "y"),
    ]
    stored = [np.float16(2), np.array(3), np.array(True)]
    model = make_model(
        nodes,
        [info("x", [4], TensorProto.FLOAT16)],
        [info("y", [4], TensorProto.FLOAT16)],
        [numpy_helper.from_array(np.asarray(v), n) for v, n in zip(stored, ["two", "count", "yes"], strict=True)],
    )
    x = np.array([1, 0.1, -3, 5000], np.float16)
    (got,) = run(model, tmp_path, onnxruntime, x)
    np.testing.assert_array_equal(got, np.where(np.arange(4) < 3, 32 * x, np.inf).astype(np.float16))


def test_a_graph_without_half_is_returned_as_it_is() -> None:
    model = graph([node("Relu", "x", "y")], {"x": (3,)}, "y")
    assert rounding.spelled_out(model) is model


def test_nothing_is_cast_that_only_moves() -> None:
    nodes = [node("Transpose", "x", "t"), node("Concat", "t t", "c", axis=0), node("Reshape", "c s", "y")]
    model = in_half(graph(nodes, {"x": (3, 4)}, "y", s=np.array([-1])), "fp16")
    ops = [item.op_type for item in rounding.spelled_out(model).graph.node]
    assert ops == ["Cast", "Transpose", "Concat", "Reshape", "Cast"]


def test_an_operand_is_widened_once() -> None:
    nodes = [node("Mul", "x w", "a"), node("Add", "x w", "b"), node("Sub", "a b", "y")]
    spelled = rounding.spelled_out(in_half(graph(nodes, {"x": (3,)}, "y", w=np.float32(2)), "fp16"))
    onnx.checker.check_model(spelled, full_check=True)
    up = [item.input[0] for item in spelled.graph.node if item.op_type == "Cast" and item.output[0].endswith("/wide")]
    assert sorted(up) == ["a", "b", "w", "x"]


@BOTH
def test_weights_may_lie_beside_the_model(engine: Any, tmp_path: Path) -> None:
    w = integers(64, 32, seed=5)
    model = in_half(graph([node("MatMul", "x w", "y")], {"x": (2, 64)}, "y", w=w), "fp16")
    file = tmp_path / f"m{onnxruntime.HALF_SUFFIX}"
    onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=0)
    assert (tmp_path / f"{file.name}.data").stat().st_size >= 2 * w.size
    x = integers(2, 64, seed=6)
    (got,) = engine.open(file).run([x])
    np.testing.assert_array_equal(got, rounded(x @ w, "fp16"))


# int8.

STEPS = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127, 127.5, 128, 500, -127, -127.5, -128, -128.5, -500, 3.49])


@BOTH
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.1], ids=str)
def test_int8_steps_are_exact(scale: float, engine: Any, tmp_path: Path) -> None:
    """Halves go to the even step, and what lies beyond saturates at 127 and -128."""
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("Relu", "d", "y")]
    model = graph(nodes, {"x": STEPS.shape}, "q d y", s=np.float32(scale), z=np.int8(0))
    model.opset_import[0].version = 19
    x = (STEPS * np.float32(scale)).astype(np.float32)
    steps = np.clip(np.rint(x / np.float32(scale)), -128, 127)
    onnx.save(model, tmp_path / "m.onnx")
    q, d, y = engine.open(tmp_path / "m.onnx").run([x])
    assert q.dtype == np.int8
    np.testing.assert_array_equal(q, steps.astype(np.int8))
    np.testing.assert_array_equal(d, steps.astype(np.float32) * np.float32(scale))
    np.testing.assert_array_equal(y, np.maximum(d, 0))
    if scale == 1.0:
        assert q.tolist() == [0, 2, 2, 0, -2, -2, 126, 127, 127, 127, 127, -127, -128, -128, -128, -128, 3]


@BOTH
def test_an_int8_product_is_exact(engine: Any, tmp_path: Path) -> None:
    """Integers times a power of two: the sum over int8 products is exact, saturating kernels would show."""
    w = np.where(np.random.default_rng(7).random((64, 16)) < 0.5, 127, -127).astype(np.float32)
    model = qdq.quantized(graph([node("MatMul", "x w", "y")], {"x": (4, 64)}, "y", w=w), x=127.0).model
    model.opset_import[0].version = 19
    x = np.where(np.random.default_rng(8).random((4, 64)) < 0.7, 300, -300).astype(np.float32)
    onnx.save(model, tmp_path / "m.onnx")
    (got,) = engine.open(tmp_path / "m.onnx").run([x])
    np.testing.assert_array_equal(got, np.clip(x, -128, 127) @ w)


@HALVES
def test_the_engines_agree_on_a_whole_graph(precision: str, tmp_path: Path) -> None:
    """Real numbers, where sums in another order may round to the next half: at most a few do."""
    w = np.random.default_rng(9).standard_normal((16, 4, 3, 3)).astype(np.float32) * 0.2
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("MaxPool", "r", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("Sigmoid", "m", "s"),
        node("Mul", "m s", "y"),
    ]
    model = in_half(graph(nodes, {"x": (2, 4, 8, 8)}, "y", w=w), precision)
    x = np.random.default_rng(10).standard_normal((2, 4, 8, 8)).astype(np.float32)
    a, b = (run(model, tmp_path, engine, x)[0] for engine in (onnxruntime, numpy_engine))
    step = 2.0**-10 if precision == "fp16" else 2.0**-7
    assert np.abs(a - b).max() <= 2 * step * np.abs(a).max()
    assert np.mean(a != b) < 0.05
