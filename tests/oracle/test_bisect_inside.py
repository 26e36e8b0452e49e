"""Inside an island: what is seen, what is replaced, which names are believed, and what an error looks like."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from refimpl import oracle
from refimpl.engines.inner import Inner
from refimpl.oracle.bisect import Origin, Place, bisect
from refimpl.oracle.bisect.inside import Inside
from refimpl.oracle.bisect.layout import Match, any_axes, guesses, named_after, rounded_for_reader, usual_axes
from refimpl.oracle.bisect.measure import pattern, relative, share
from refimpl.oracle.bisect.reference import Segment, TfOp
from refimpl.tolerance import EXACT, tolerance_for
from tests.models_ops import normal, spec
from tests.oracle.planting import edit_island, unguard
from tests.precision.helpers import Tiny, convert, graph, in_half

FP32 = tolerance_for("fp32", "float32")


def saved(model: onnx.ModelProto, folder: Path, name: str = "island.onnx") -> Inner:
    onnx.save(model, folder / name)
    return Inner(folder / name)


def rsqrt(*, epsilon: float = 0.5, last: str = "Reciprocal") -> onnx.ModelProto:
    """``out = 1 / sqrt(x + epsilon)``, with names as tf2onnx gives them: a step on the way is called as the result."""
    nodes = [
        helper.make_node("Add", ["mk/x/0:0", "epsilon"], ["add:0"], name="add"),
        helper.make_node("Sqrt", ["add:0"], ["Rsqrt:0"], name="Rsqrt"),
        helper.make_node(last, ["Rsqrt:0"], ["Rsqrt__7:0"], name="Rsqrt__7"),
        helper.make_node("Neg", ["Rsqrt__7:0"], ["mk/Neg/0:0"], name="Neg"),
    ]
    return graph(nodes, {"mk/x/0:0": [2, 3]}, "mk/Neg/0:0", epsilon=np.float32(epsilon))


OPS = {
    "add": TfOp("add", "AddV2", ("x:0",), ("add:0",)),
    "Rsqrt": TfOp("Rsqrt", "Rsqrt", ("add:0",), ("Rsqrt:0",)),
    "Neg": TfOp("Neg", "Neg", ("Rsqrt:0",), ("Neg:0",)),
}
SEGMENT = Segment("island", ("x:0",), ("Neg:0",), frozenset(OPS))


def values() -> dict[str, Any]:
    x = np.abs(normal(2, 3, seed=1)) + np.float32(1)
    added = x + np.float32(0.5)
    return {"x:0": x, "add:0": added, "Rsqrt:0": 1 / np.sqrt(added), "Neg:0": -1 / np.sqrt(added)}


def test_a_name_that_lies_is_not_believed(tmp_path: Path) -> None:
    inside = Inside(saved(rsqrt(), tmp_path), SEGMENT, OPS, values(), "fp32")
    assert inside.order == ["add:0", "Rsqrt__7:0", "mk/Neg/0:0"]
    assert inside.born() == []


def test_a_name_that_lies_about_the_last_step_is_not_believed(tmp_path: Path) -> None:
    """No other tensor is named after the op, so only values tell."""
    model = rsqrt()
    model.graph.node[2].output[0] = model.graph.node[3].input[0] = "somewhere"
    inside = Inside(saved(model, tmp_path), SEGMENT, OPS, values(), "fp32")
    assert inside.order == ["add:0", "mk/Neg/0:0"]
    assert inside.born() == []


@pytest.mark.parametrize(
    ("fault", "tensor", "op"),
    [({"epsilon": 0.6}, "add:0", "AddV2"), ({"last": "Exp"}, "Rsqrt__7:0", "Rsqrt")],
    ids=["epsilon", "last step"],
)
def test_a_wrong_node_is_told_from_a_name_that_lies(
    fault: dict[str, Any], tensor: str, op: str, tmp_path: Path
) -> None:
    inside = Inside(saved(rsqrt(**fault), tmp_path), SEGMENT, OPS, values(), "fp32")
    assert inside.born() == [tensor]
    assert inside.narrowed(tensor).main().type == op


def test_an_error_that_only_grows_inside_is_not_born_there(tmp_path: Path) -> None:
    weight = tf.Variable(normal(8, 4, seed=2))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(tf.nn.relu(x @ weight) * 50.0, name="wave")}

    Tiny(call, spec((None, 8), name="x"), holds=[weight]).save(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "bundle")
    np.savez(tmp_path / "sample.npz", x=normal(4, 8, seed=3))
    oracle.record(tmp_path / "model", tmp_path / "golden", cases=str(tmp_path / "sample.npz"))

    def nudge(model: onnx.ModelProto) -> None:
        for item in model.graph.initializer:
            value = numpy_helper.to_array(item)
            if value.shape == (8, 4):
                item.CopyFrom(numpy_helper.from_array(value * np.float32(1 + 8e-5), item.name))

    unguard(tmp_path / "bundle")
    edit_island(tmp_path / "bundle", nudge)
    found = bisect(tmp_path / "bundle", tmp_path / "golden").finding
    assert found is not None
    assert (found.place, found.origin) == (Place.ISLAND, Origin.AMPLIFIED)
    assert found.op[1] == "Sin"
    assert "only amplified here" in found.remarks[0]


# Seeing and replacing


def test_every_tensor_is_seen_and_can_be_replaced(tmp_path: Path) -> None:
    inner = saved(rsqrt(), tmp_path)
    x = values()["x:0"]
    seen = inner.run([x])
    assert list(seen) == ["add:0", "Rsqrt:0", "Rsqrt__7:0", "mk/Neg/0:0"]
    np.testing.assert_allclose(seen["mk/Neg/0:0"], values()["Neg:0"], rtol=1e-6)
    replaced = inner.run([x], {"Rsqrt:0": np.full((1, 5), 4.0)})
    np.testing.assert_array_equal(replaced["mk/Neg/0:0"], np.full((1, 5), -0.25, np.float32), "of another shape, too")
    np.testing.assert_array_equal(replaced["Rsqrt:0"], seen["Rsqrt:0"], "its own value is still told")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_are_seen_as_the_graph_rounds_them(precision: str, tmp_path: Path) -> None:
    model = in_half(rsqrt(), precision)
    inner = saved(model, tmp_path, "island.half.onnx")
    x = values()["x:0"]
    seen = inner.run([x])
    kind = {"fp16": np.float16, "bf16": tf.bfloat16.as_numpy_dtype}[precision]
    assert seen["add:0"].dtype == np.float32
    np.testing.assert_array_equal(seen["add:0"], (x.astype(kind) + kind(0.5)).astype(kind).astype(np.float32))
    replaced = inner.run([x], {"Rsqrt__7:0": np.full((2, 3), 1 / 3)})
    rounded = np.float32(1 / 3).astype(kind).astype(np.float32)
    np.testing.assert_array_equal(replaced["mk/Neg/0:0"], np.full((2, 3), -rounded, np.float32))


def test_booleans_and_small_integers_can_be_replaced(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Less", ["x", "one"], ["less"], name="less"),
        helper.make_node("Cast", ["less"], ["small"], name="small", to=TensorProto.INT8),
        helper.make_node("Cast", ["small"], ["y"], name="y", to=TensorProto.FLOAT),
    ]
    inner = saved(graph(nodes, {"x": [3]}, "y", one=np.float32(1)), tmp_path)
    x = np.array([0, 1, 2], np.float32)
    assert inner.run([x])["less"].tolist() == [1, 0, 0]
    assert inner.run([x], {"less": np.array([False, True, True])})["y"].tolist() == [0, 1, 1]
    assert inner.run([x], {"small": np.array([5, 6, 7])})["y"].tolist() == [5, 6, 7]


def test_a_node_can_be_left_out(tmp_path: Path) -> None:
    saved(rsqrt(), tmp_path)
    inner = Inner(tmp_path / "island.onnx", "Rsqrt__7")
    assert inner.outputs == ("mk/Neg/0:0",), "the island's, whatever is left of them"
    assert list(inner.run([values()["x:0"]])) == ["add:0", "Rsqrt:0"]


def test_a_part_runs_in_the_reference_evaluator(tmp_path: Path) -> None:
    inner = saved(rsqrt(), tmp_path)
    (found,) = inner.part(["add:0"], ["Rsqrt__7:0"], tmp_path).run([values()["add:0"]])
    np.testing.assert_allclose(found, values()["Rsqrt:0"], rtol=1e-6)


# Names and layouts


@pytest.mark.parametrize(
    ("name", "op", "index"),
    [
        ("a/b:0", "a/b", 0),
        ("a/split:2", "a/split", 2),
        ("a/b", "a/b", 0),
        ("mk/a/b/1:0", "a/b", 1),
        ("mk/a/b/1:0/half", "a/b", 1),
        ("a/b__12:0", "a/b", 0),
        ("a/b__12", "a/b", 0),
        ("a/b:0/half", "a/b", 0),
    ],
)
def test_names_tell_of_ops(name: str, op: str, index: int) -> None:
    assert named_after(name) == (op, index)


@pytest.mark.parametrize("axes", usual_axes(4) + usual_axes(3) + usual_axes(2))
def test_layouts_are_undone(axes: tuple[int, ...]) -> None:
    value = normal(*range(2, 2 + len(axes)), seed=1)
    match = Match("t", "t:0", axes)
    np.testing.assert_array_equal(match.to_tf(match.to_onnx(value), value.shape), value)


def test_layouts_come_from_values_where_shapes_do_not_tell(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a__1:0"], name="a__1", perm=[0, 3, 1, 2]),
        helper.make_node("Relu", ["a__1:0"], ["a"], name="a"),
        helper.make_node("Neg", ["a"], ["y"], name="y"),
    ]
    inner = saved(graph(nodes, {"x": [1, 4, 4, 4]}, "y"), tmp_path)
    x = normal(1, 4, 4, 4, seed=3)
    found = {match.tensor: match.axes for match in guesses(inner, inner.run([x]), {"a:0": np.maximum(x, 0)})}
    assert found == {"a": (0, 3, 1, 2)}
    for seed in range(4, 12):
        seen = inner.run([normal(1, 4, 4, 4, seed=seed)])
        wrong = {match.tensor: match.axes for match in guesses(inner, seen, {"a:0": np.maximum(x, 0)})}
        assert wrong == {"a": (0, 3, 1, 2)}, "where values tell nothing, from the nodes before"


def test_orders_of_axes_with_ones() -> None:
    assert any_axes(np.zeros((2, 3, 4)), (4, 1, 2, 3)) == [(2, 0, 1)]
    assert any_axes(np.zeros((2, 3)), (3, 3)) == []


def test_what_is_only_rounded_belongs_to_the_layer_that_reads_it(tmp_path: Path) -> None:
    scale, zero = np.float32(0.1), np.int8(0)
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"], name="relu"),
        helper.make_node("QuantizeLinear", ["relu", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dq"),
        helper.make_node("Transpose", ["dq"], ["moved"], name="moved", perm=[1, 0]),
        helper.make_node("MatMul", ["moved", "w"], ["y"], name="y"),
    ]
    inner = saved(graph(nodes, {"x": [2, 3]}, "y", scale=scale, zero=zero, w=normal(2, 2, seed=0)), tmp_path)
    assert rounded_for_reader(inner) == {"q", "dq", "moved"}


# Measures


@pytest.mark.parametrize(
    ("want", "got", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.inf], [1.0, math.inf], 0.0),
        ([1.0, math.inf], [1.0, -math.inf], math.inf),
        ([1.0, math.nan], [1.0, math.inf], math.inf),
        ([1.0, 2.0], [1.0, math.nan], math.inf),
        ([0.0], [1e-6], 1.0),
        ([[1.0]], [1.0], math.inf),
    ],
)
def test_share(want: list[float], got: list[float], expected: float) -> None:
    assert share(np.float32(want), np.float32(got), FP32) == pytest.approx(expected)


def test_share_of_whole_numbers() -> None:
    flips = tolerance_for("fp16", "int32")
    want = np.arange(1000)
    assert share(want, want.astype(np.int64), EXACT) == 0
    assert share(want, want + (want == 5), EXACT) == math.inf
    assert share(want, want + (want == 5), flips) == pytest.approx(0.1)


def test_relative() -> None:
    assert relative(np.float32([3, 4]), np.float32([3, 4.5])) == pytest.approx(0.1)
    assert relative(np.float32([0]), np.float32([1])) == math.inf
    assert relative(np.float32([1]), np.float32([np.nan])) == math.inf


VALUE = normal(4, 5, 6, seed=1)


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (VALUE * 1.5, "times 1.5"),
        (VALUE * 0, "zero everywhere"),
        (VALUE + np.arange(6, dtype=np.float32), "something is added"),
        (VALUE * np.float32([1, 1, 2, 1, 1, 1]), "only where axis 2 is 2"),
        (np.where(np.arange(120).reshape(4, 5, 6) % 50 == 0, 9, VALUE).astype(np.float32), "3 of 120 elements"),
        (np.where(VALUE > 1, np.inf, VALUE).astype(np.float32), "NaN or infinite"),
        (VALUE[:, :4], "the shape [4, 4, 6]"),
        (VALUE[::-1], ""),
    ],
)
def test_forms_of_an_error(got: np.ndarray, says: str) -> None:
    found = pattern(VALUE, got)
    assert says in found if says else found == ""
