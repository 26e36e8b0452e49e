"""Which nodes of an island compute in half precision, which stay in float32 and why, and the graph that comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refimpl.converter.precision.half import FEW, to_half, weight_problem
from refimpl.engines import BuildOptions, Profile, onnxruntime, rounding, tensorrt
from tests.onnx_models import info, node
from tests.precision.helpers import DTYPES, KINDS, graph, rounded, weights_of

HALVES = pytest.mark.parametrize("precision", ["fp16", "bf16"])
W = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32) * 0.25
K = np.random.default_rng(1).standard_normal((16, 16, 3, 3)).astype(np.float32) * 0.1


def chain(*, first: np.ndarray = W, middle: str = "Relu", **attributes: Any) -> onnx.ModelProto:
    """A product, an op between, another product."""
    nodes = [node("MatMul", "x first", "a"), node(middle, "a", "b", **attributes), node("MatMul", "b second", "y")]
    return graph(nodes, {"x": (4, 16)}, "y", first=first, second=W)


def half_of(model: onnx.ModelProto, precision: str = "fp16", keep: Any = None, **maxima: float) -> Any:
    """Rewritten, checked, and what it computes compared with a float32 run."""
    before = model.SerializeToString()
    found = to_half(model, precision, maxima, keep or {})
    assert model.SerializeToString() == before, "the model was changed"
    check(found.model)
    return found


def check(model: onnx.ModelProto) -> None:
    """Valid, every tensor's dtype as the ops that touch it want it, no cast that is not needed, no weight unread."""
    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    names = [item.name for item in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    made = [name for item in model.graph.node for name in item.output]
    assert len(set(made)) == len(made)
    casts = [(item.input[0], item.attribute[0].i) for item in model.graph.node if item.op_type == "Cast"]
    assert len(set(casts)) == len(casts), "one cast per tensor and direction"
    session(model)


def session(model: onnx.ModelProto) -> Any:
    import onnxruntime as ort

    spelled = rounding.spelled_out(model).SerializeToString()
    return ort.InferenceSession(spelled, onnxruntime.session_options(), providers=["CPUExecutionProvider"])


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(tensor, dtype that it is cast to)."""
    kinds = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    return sorted((item.input[0], kinds[item.attribute[0].i]) for item in model.graph.node if item.op_type == "Cast")


@HALVES
def test_products_and_what_follows_them_are_half(precision: str) -> None:
    found = half_of(chain(), precision)
    assert found.layers == {"a": "", "b": "", "y": ""}
    assert casts(found.model) == [("x", precision), ("y/half", "fp32")]
    weights = weights_of(found.model)
    assert weights.keys() == {"first/half", "second/half"}
    for name, value in weights.items():
        assert value.dtype == DTYPES[precision], name
        np.testing.assert_array_equal(value.astype(np.float32), rounded(W, precision))
    types = rounding.tensor_types(found.model)
    assert {types[name] for name in ("a", "b", "y/half")} == {KINDS[precision]}


@HALVES
def test_cut_tensors_keep_name_and_dtype(precision: str) -> None:
    found = half_of(chain(), precision)
    kept = [(item.name, item.type.tensor_type.elem_type) for item in [*found.model.graph.input]]
    kept += [(item.name, item.type.tensor_type.elem_type) for item in found.model.graph.output]
    assert kept == [("x", TensorProto.FLOAT), ("y", TensorProto.FLOAT)]


@pytest.mark.parametrize("op", ["Softmax", "Exp", "Sqrt", "Softplus", "LogSoftmax", "Reciprocal"])
@HALVES
def test_unsafe_ops_are_float32(op: str, precision: str) -> None:
    found = half_of(chain(middle=op), precision)
    assert (found.layers["a"], found.layers["y"]) == ("", "")
    assert found.layers["b"]
    assert found.decided("b")
    assert casts(found.model) == [("a", "fp32"), ("b", precision), ("x", precision), ("y/half", "fp32")]


def test_sums_are_float32_and_the_tail_follows() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("ReduceMean", "a axes", "m", keepdims=0),
        node("Relu", "m", "r"),
        node("Neg", "r", "y"),
    ]
    found = half_of(graph(nodes, {"x": (4, 16)}, "y", w=W, axes=np.array([1])))
    assert found.layers == {
        "a": "",
        "m": "it sums many values",
        "r": "it follows the float32 values it reads",
        "y": "it follows the float32 values it reads",
    }
    assert [found.decided(name) for name in "amry"] == [False, True, False, False]
    assert casts(found.model) == [("a", "fp32"), ("x", "fp16")]


def test_light_ops_before_the_first_product_are_float32() -> None:
    nodes = [node("Mul", "x two", "s"), node("Sub", "s two", "c"), node("MatMul", "c w", "y")]
    found = half_of(graph(nodes, {"x": (4, 16)}, "y", w=W, two=np.float32(2)))
    assert [bool(found.layers[name]) for name in "scy"] == [True, True, False]
    assert casts(found.model) == [("c", "fp16"), ("y/half", "fp32")]


def test_what_the_user_keeps_comes_first() -> None:
    found = half_of(chain(middle="Softmax"), keep={"a": "as asked", "b": "as asked"})
    assert found.layers == {"a": "as asked", "b": "as asked", "y": ""}
    assert casts(found.model) == [("b", "fp16"), ("y/half", "fp32")]
    assert weights_of(found.model).keys() == {"first", "second/half"}


def test_nothing_left_to_round_gives_the_model_back() -> None:
    model = chain()
    found = to_half(model, "fp16", {}, dict.fromkeys("aby", "as asked"))
    assert found.model is model
    assert set(found.layers.values()) == {"as asked"}


def test_only_some_layers() -> None:
    found = to_half(chain(), "fp16", {}, {}, only={"y"})
    check(found.model)
    assert found.layers["a"] == "it is not among the layers chosen"
    assert found.layers["y"] == ""


# What float16 cannot hold.

BIG, SMALL, ONE_SMALL = W.copy(), W * np.float32(1e-6), W.copy()
BIG[3, 4] = 70000
ONE_SMALL[3, 4] = 1e-9


@pytest.mark.parametrize(
    ("weight", "says"),
    [(BIG, "overflows float16 (|w| up to 7e+04"), (SMALL, "underflows float16 (the tensor loses"), (ONE_SMALL, "")],
    ids=["overflow", "underflow", "one underflows"],
)
def test_weights_that_float16_cannot_hold(weight: np.ndarray, says: str) -> None:
    found = half_of(chain(first=weight))
    assert (f"weight first {says}" if says else "") in found.layers["a"]
    assert bool(found.layers["a"]) == bool(says)
    assert found.layers["y"] == ""
    assert half_of(chain(first=weight), "bf16").layers["a"] == "", "bfloat16 has the range of float32"


@pytest.mark.parametrize(
    ("value", "bad"),
    [
        ([65504.0], False),
        ([65505.0], True),
        ([np.inf], True),
        ([np.nan], True),
        ([1.0, 1e-8], False),
        ([1e-8], True),
        ([2.0**-14], False),
        ([0.0], False),
        ([], False),
    ],
)
def test_the_edges_of_float16(value: list[float], bad: bool) -> None:
    assert bool(weight_problem(np.array(value, np.float32))) == bad


@pytest.mark.parametrize("tensor", ["a", "x"])
def test_large_activations_are_float32(tensor: str) -> None:
    found = half_of(chain(), **{tensor: 600.0})
    assert f"|x| up to 600 was seen at {tensor}" in found.layers["a"]
    assert half_of(chain(), "bf16", **{tensor: 600.0}).layers["a"] == ""
    assert half_of(chain(), **{tensor: np.nextafter(FEW, 0)}).layers["a"] == ""
    assert half_of(chain(), **{tensor: FEW}).layers["a"] != ""


def test_a_large_tensor_keeps_all_that_touch_it() -> None:
    found = half_of(chain(), b=1e4)
    assert [bool(found.layers[name]) for name in "aby"] == [False, True, True]


# Dtypes that ops do not leave open.


def test_decisions_are_made_in_float32() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("ArgMax", "a", "i", axis=1),
        node("Greater", "a zero", "g"),
        node("Floor", "a", "f"),
        node("Cast", "a", "n", to=TensorProto.INT32),
        node("Where", "g a zero", "y"),
    ]
    found = half_of(graph(nodes, {"x": (4, 16)}, "i g f n y", w=W, zero=np.float32(0)))
    for name, op in {"i": "ArgMax", "g": "Greater", "f": "Floor", "n": "Cast"}.items():
        assert found.layers[name] == f"{op} makes discrete values of its input"
        assert not found.decided(name)
    assert found.layers["y"] == ""
    inputs = {item.name: list(item.input) for item in found.model.graph.node}
    assert all(inputs[name][0] == "a/float" for name in "igfn")
    assert inputs["y"] == ["g", "a", "zero/half"]


def tail(*nodes: Any, outputs: str, **constants: Any) -> Any:
    """A product and what is made of it."""
    return graph(
        [node("MatMul", "x w", "a"), node("Relu", "a", "r"), *nodes], {"x": (4, 16)}, outputs, w=W, **constants
    )


UNSEEN = {
    "argmax": tail(node("ArgMax", "r", "i", axis=1), outputs="i"),
    "comparison": tail(node("Greater", "r one", "g"), node("Not", "g", "n"), outputs="n", one=np.float32(1)),
    "top": tail(node("TopK", "r k", "v i"), outputs="i", k=np.array([2])),
    "cast": tail(node("Cast", "r", "i", to=TensorProto.INT32), outputs="i"),
    "shape": tail(node("Shape", "r", "s"), node("ArgMax", "r", "i"), node("Reshape", "x s", "y"), outputs="i y"),
    "mask": tail(node("Greater", "r one", "g"), node("Where", "g x one", "y"), outputs="y", one=np.float32(1)),
}
SEEN = {
    "values of top": tail(node("TopK", "r k", "v i"), outputs="v i", k=np.array([2])),
    "beside it": tail(node("ArgMax", "r", "i", axis=1), outputs="i r"),
    "before it": tail(node("ArgMax", "r", "i", axis=1), outputs="i a"),
    "double": tail(node("Cast", "r", "d", to=TensorProto.DOUBLE), outputs="d"),
}


@pytest.mark.parametrize("name", [*UNSEEN, *SEEN])
def test_an_overflow_must_show(name: str) -> None:
    """Infinite values go to TensorFlow; an index that was made of them looks like any other."""
    found = half_of({**UNSEEN, **SEEN}[name])
    assert (found.layers["a"] == "") == (name in SEEN), found.layers
    if name in UNSEEN:
        assert found.layers["a"].startswith("it leads to indices or truth values only")
        assert found.decided("a")
    assert half_of({**UNSEEN, **SEEN}[name], "bf16").layers["a"] == "", "bfloat16 has the range of float32"


def test_integers_and_shapes_are_left_alone() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Add", "k one", "k1"),
        node("MatMul", "x w", "a"),
        node("Reshape", "a s", "r"),
        node("Gather", "r k1", "y", axis=0),
    ]
    model = graph(nodes, {"x": (4, 16)}, "y", w=W, one=np.array([1]), k=np.array([0]))
    found = half_of(model)
    assert "k1" not in found.layers
    assert found.layers["r"] == found.layers["y"] == ""
    assert "s" in found.layers  # it reads a float tensor, and makes none


def test_a_resize_keeps_its_scales() -> None:
    nodes = [
        node("Conv", "x k", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["c", "", "scales"], ["r"], "r", mode="nearest"),
        node("Conv", "r k", "y"),
    ]
    model = graph(nodes, {"x": (1, 16, 4, 4)}, "y", k=K, scales=np.array([1, 1, 2, 2], np.float32))
    found = half_of(model)
    assert found.layers == {"c": "", "r": "", "y": ""}
    assert weights_of(found.model)["scales"].dtype == np.float32


# Sharing.


def test_a_weight_that_both_precisions_read_is_stored_twice() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]
    found = half_of(graph(nodes, {"x": (4, 16)}, "y", w=W), keep={"a": "as asked"})
    weights = weights_of(found.model)
    assert weights.keys() == {"w", "w/half"}
    np.testing.assert_array_equal(weights["w"], W)


def test_one_cast_for_all_who_read_a_tensor() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "x w", "b"),
        node("Exp", "a", "e"),
        node("Sqrt", "a", "s"),
        node("Add", "e s", "t"),
        node("MatMul", "t w", "c"),
        node("MatMul", "t w", "d"),
        node("Sum", "b c d", "y"),
    ]
    found = half_of(graph(nodes, {"x": (4, 16)}, "y", w=W))
    assert casts(found.model) == [("a", "fp32"), ("t", "fp16"), ("x", "fp16"), ("y/half", "fp32")]


def test_an_output_that_is_read_inside_too() -> None:
    """Half readers take the half form, float32 readers the cut tensor itself."""
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Exp", "a", "c")]
    found = half_of(graph(nodes, {"x": (4, 16)}, "a b c", w=W))
    inputs = {item.name: list(item.input) for item in found.model.graph.node}
    assert inputs["b"] == ["a/half", "w/half"]
    assert inputs["c"] == ["a"]
    assert casts(found.model) == [("a/half", "fp32"), ("b/half", "fp32"), ("x", "fp16")]
    x = np.random.default_rng(2).standard_normal((4, 16)).astype(np.float32)
    a, b, c = session(found.model).run(None, {"x": x})
    w = rounded(W, "fp16")
    np.testing.assert_allclose(a, rounded(x, "fp16") @ w, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(b, a @ w, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(c, np.exp(a), rtol=1e-5)


def body(output: str, *nodes: Any, like: Any = None) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), output, [], [info(output, like)])


@HALVES
def test_what_bodies_read_is_float32(precision: str) -> None:
    """Captured two levels deep, returned without an op, and hidden by a name of the body's own."""
    inner = helper.make_node(
        "If",
        ["yes"],
        ["deep"],
        "deep",
        then_branch=body("t1", node("Add", "a a", "t1", "n1")),
        else_branch=body("t2", node("Neg", "a", "t2", "n2")),
    )
    shadow = [node("Constant", "", "own", "n3", value=numpy_helper.from_array(np.float32(1))), inner]
    del shadow[0].input[:]
    choice = helper.make_node(
        "If",
        ["yes"],
        ["c"],
        "c",
        then_branch=body("t3", *shadow, node("Mul", "deep own", "t3", "n4")),
        else_branch=body("a2", node("Identity", "a", "a2", "n5")),
    )
    nodes = [node("MatMul", "x w", "a"), choice, node("MatMul", "c w", "y")]
    found = half_of(graph(nodes, {"x": (4, 16)}, "y", w=W, yes=np.array(True)), precision)
    assert found.layers == {"a": "", "c": "If runs a body of its own", "y": ""}
    assert casts(found.model) == [("a", "fp32"), ("c", precision), ("x", precision), ("y/half", "fp32")]
    x = np.random.default_rng(3).standard_normal((4, 16)).astype(np.float32)
    (y,) = session(found.model).run(None, {"x": x})
    step = 2.0**-10 if precision == "fp16" else 2.0**-7
    np.testing.assert_allclose(y, 2 * (x @ W) @ W, atol=20 * step)


# Engines.


@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
@HALVES
def test_tensorrt_builds_it(precision: str, tmp_path: Path) -> None:
    """A convolution, an unsafe op, a shape, a residual sum, an output read inside, and an int8-like decision."""
    nodes = [
        node("Conv", "x k bias", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r k", "d", pads=[1, 1, 1, 1]),
        node("Add", "d r", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w", "g"),
        node("Softmax", "g", "y", axis=1),
        node("ArgMax", "g", "i", axis=1),
    ]
    model = graph(nodes, {"x": ("n", 16, 8, 8)}, "s y i", k=K, w=W, bias=np.ones(16, np.float32))
    found = to_half(model, precision, {}, {})
    check(found.model)
    onnx.save(found.model, tmp_path / "m.onnx")
    profile = Profile(((1, 16, 8, 8),), ((2, 16, 8, 8),), ((4, 16, 8, 8),))
    tensorrt.build(tmp_path / "m.onnx", tmp_path / "e.engine", [profile], BuildOptions(tf32=False, workspace_bytes=0))
    assert (tmp_path / "e.engine").stat().st_size > 1000
