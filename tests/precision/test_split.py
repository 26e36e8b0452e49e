"""Float32 products as sums of three: what TF32 rounds is small then, and a GPU that always rounds gets them right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

import refimpl
from refimpl.converter.precision import split, tf32
from refimpl.converter.verify import Finding
from refimpl.engines import onnxruntime
from refimpl.engines.rounding import TF32
from refimpl.recipe import Recipe
from tests.fake_gpu import FakeGpu


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def test_parts_are_exact_and_the_high_one_is_a_tf32_number() -> None:
    values = np.concatenate([draw(1000), 1e30 * draw(100), 1e-30 * draw(100), np.float32([0, -0.0, 1, 2**-126])])
    high, rest = split.parts_of(values)
    assert high.dtype == rest.dtype == np.float32
    assert not np.any(high.view(np.uint32) & np.uint32((1 << 13) - 1))
    np.testing.assert_array_equal(high.astype(np.float64) + rest, values.astype(np.float64))
    assert np.all(np.abs(rest) <= np.abs(values) * 2.0**-11)


def test_what_is_not_finite_is_its_own_high_part() -> None:
    values = np.float32([np.inf, -np.inf, np.nan, np.finfo(np.float32).max])
    high, rest = split.parts_of(values)
    np.testing.assert_array_equal(high, values)
    assert rest.tolist() == [0, 0, 0, 0]


def one(op: str, given: list[np.ndarray], weights: list[np.ndarray], **attributes: Any) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(len(given))] + [f"w{i}" for i in range(len(weights))]
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], "product", **attributes)],
        "one",
        [helper.make_tensor_value_info(f"x{i}", float32, list(value.shape)) for i, value in enumerate(given)],
        [helper.make_tensor_value_info("y", float32, None)],
        [numpy_helper.from_array(value, f"w{i}") for i, value in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(model: onnx.ModelProto, given: list[np.ndarray], file: Path) -> np.ndarray:
    onnx.save(model, file)
    return onnxruntime.open(file).run(given)[0].astype(np.float64)


@pytest.mark.parametrize(
    ("op", "given", "weights", "attributes"),
    [
        ("MatMul", [draw(5, 300)], [draw(300, 7)], {}),
        ("MatMul", [draw(2, 5, 64), draw(2, 64, 6)], [], {}),
        ("Gemm", [draw(5, 64)], [draw(7, 64), draw(7)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("Gemm", [draw(64, 5)], [draw(64, 7)], {"transA": 1}),
        ("Conv", [draw(2, 32, 9, 9)], [draw(8, 32, 3, 3), draw(8)], {"strides": [2, 2], "pads": [1, 1, 0, 1]}),
        ("Conv", [draw(2, 16, 9, 9)], [draw(4, 8, 3, 3)], {"group": 2}),
        ("ConvTranspose", [draw(2, 32, 5, 5)], [draw(32, 4, 3, 3)], {"strides": [2, 2]}),
    ],
    ids=["weight", "both flow", "transposed weight", "transposed", "convolution", "groups", "transposed convolution"],
)
def test_rounded_to_tf32_it_is_as_good_as_float32(
    op: str, given: list[np.ndarray], weights: list[np.ndarray], attributes: dict[str, Any], tmp_path: Path
) -> None:
    model = one(op, given, weights, **attributes)
    want = answers(model, given, tmp_path / "float32.onnx")
    made = split.taken_apart(model)
    assert [node.op_type for node in made.graph.node].count(op) == 3
    assert {item.name for item in made.graph.initializer}.isdisjoint({"w0"} if weights else ())
    plain = answers(made, given, tmp_path / "apart.onnx")
    rounded = answers(made, given, tmp_path / f"apart{TF32}onnx")
    size = np.linalg.norm(want)
    assert np.linalg.norm(plain - want) < 1e-6 * size
    assert np.linalg.norm(rounded - want) < 3e-6 * size
    if op != "ConvTranspose":  # which the embedded engine does not round
        assert np.linalg.norm(answers(model, given, tmp_path / f"whole{TF32}onnx") - want) > 1e-4 * size


def test_what_several_products_read_is_taken_apart_once() -> None:
    model = one("MatMul", [draw(3, 8)], [draw(8, 8)])
    model.graph.node.append(helper.make_node("MatMul", ["x0", "w0"], ["z"], "again"))
    model.graph.node.append(helper.make_node("Relu", ["w0"], ["r"], "else"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    made = split.taken_apart(model)
    assert [node.op_type for node in made.graph.node].count("Cast") == 2
    weights = [item.name for item in made.graph.initializer if not item.name.startswith("bfloat16/")]
    assert sorted(weights) == ["w0", "w0/high", "w0/rest"]
    (z,) = onnxruntime_answers(made, draw(3, 8))
    np.testing.assert_allclose(z, draw(3, 8) @ draw(8, 8), rtol=1e-5, atol=1e-5)


def onnxruntime_answers(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["z"], {"x0": x})


def test_only_products_of_float32_that_tensor_cores_compute() -> None:
    assert split.taken_apart(one("Relu", [draw(3)], [])) is None
    assert split.taken_apart(one("Conv", [draw(1, 4, 5, 5)], [draw(4, 1, 3, 3)], group=4)) is None
    doubles = one("MatMul", [draw(3, 8)], [draw(8, 8)])
    for item in (*doubles.graph.input, *doubles.graph.output):
        item.type.tensor_type.elem_type = TensorProto.DOUBLE
    doubles.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(8), "w0"))
    assert split.taken_apart(doubles) is None


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, np.finfo(np.float32).max, -np.finfo(np.float32).max])
def test_infinities_and_what_is_nearly_so_come_out_as_they_do(special: float, tmp_path: Path) -> None:
    x = draw(2, 64)
    x[0, 0] = special
    model = one("MatMul", [x], [np.abs(draw(64, 7)) / 64])
    with np.errstate(all="ignore"):
        want = answers(model, [x], tmp_path / "float32.onnx")
        got = answers(split.taken_apart(model), [x], tmp_path / f"apart{TF32}onnx")
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_an_infinite_weight_and_an_old_opset_are_left_alone() -> None:
    assert split.taken_apart(one("MatMul", [draw(2, 8)], [np.full((8, 2), np.inf, np.float32)])) is None
    old = one("MatMul", [draw(2, 8)], [draw(8, 2)])
    old.opset_import[0].version = 12
    assert split.taken_apart(old) is None


class Compares(tf.Module):
    """What it makes of a large number is seen by a comparison only."""

    def __init__(self) -> None:
        super().__init__()
        self.a = tf.Variable(draw(64, 4) / 8)

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, "x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(x, self.a) > 0.5}


@pytest.mark.parametrize("verify", [True, False])
def test_a_comparison_of_the_largest_numbers_is_right(
    verify: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu().install(monkeypatch)
    (island,) = converted(tmp_path, gpu, Compares(), min_segment_size=1, verify=verify).islands
    assert island.finite_only
    assert [engine.kind for engine in island.engines] == ["onnxruntime", "tensorrt"]
    serve = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
    for special in (np.finfo(np.float32).max, -np.finfo(np.float32).max, np.inf):
        x = np.zeros((2, 64), np.float32)
        x[0, 0] = special
        got = refimpl.load(tmp_path / "b").run({"x": x}).outputs["y"]
        np.testing.assert_array_equal(got, serve(x=tf.constant(x))["y"].numpy())


class Layers(tf.Module):
    """Two dense layers with a large bias between them: what comes out keeps few bits."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = tf.Variable(draw(64, 64) / 8), tf.Variable(draw(64, 8) / 8)

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, "x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(tf.nn.relu(tf.matmul(x, self.a) + 1.0), self.b)}


def converted(folder: Path, gpu: FakeGpu, module: tf.Module | None = None, **recipe: Any) -> refimpl.Manifest:
    gpu.rounds, gpu.rounds_to_tf32 = "float32 products are rounded to TF32", True
    module = module or Layers()
    tf.saved_model.save(module, str(folder / "m"), signatures=module.serve)
    return refimpl.convert(folder / "m", folder / "b", Recipe(engines=("onnxruntime", "tensorrt"), **recipe))


def test_on_a_gpu_that_always_rounds_float32_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu().install(monkeypatch)
    (island,) = converted(tmp_path, gpu).islands
    assert [(engine.kind, engine.precision) for engine in island.engines] == [
        ("onnxruntime", "fp32"),
        ("tensorrt", "fp32"),
    ]
    assert split.NOTE in island.notes
    assert [node.op_type for node in gpu.built[-1].graph.node].count("MatMul") == 6
    x = draw(9, 64, seed=4)
    result = refimpl.load(tmp_path / "b", engines=("tensorrt",)).run({"x": x})
    assert [run.engine for run in result.islands] == ["tensorrt"]
    want = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"](x=tf.constant(x))["y"].numpy()
    assert np.linalg.norm(result.outputs["y"] - want) < 3e-6 * np.linalg.norm(want)


def test_without_taking_apart_nothing_would_be_right_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu().install(monkeypatch)
    monkeypatch.setattr(split, "taken_apart", lambda model: None)
    (island,) = converted(tmp_path, gpu).islands
    assert [engine.kind for engine in island.engines] == ["onnxruntime"]
    assert "rounds its float32 products to TF32, which is not allowed" in " ".join(island.notes)


def test_where_tf32_is_allowed_and_stood_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu().install(monkeypatch)
    (island,) = converted(tmp_path, gpu, tf32=True).islands
    assert island.precision == "tf32"
    assert [node.op_type for node in gpu.built[-1].graph.node].count("MatMul") == 2


@pytest.mark.parametrize("allowed", [True, False])
def test_nearly_float32_is_taken_where_tf32_is_allowed(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU whose sums are a little off, and an island that does not stand TF32 as a whole."""
    gpu = FakeGpu(lambda nodes: nodes.of("MatMul"), factor=1.0005).install(monkeypatch)
    monkeypatch.setattr(tf32, "attempt", lambda island, *_: (island.model, Finding(problem="too far")))
    (island,) = converted(tmp_path, gpu, tf32=allowed).islands
    kinds = {engine.kind: engine.precision for engine in island.engines}
    assert kinds == ({"onnxruntime": "tf32", "tensorrt": "tf32"} if allowed else {"onnxruntime": "fp32"})
    assert "also taken apart" in " ".join(island.notes)
    assert [node.op_type for node in gpu.built[-1].graph.node].count("MatMul") == (6 if allowed else 2)


@pytest.mark.parametrize("change", ["exact", "others", "unknown: out of memory"])
def test_only_for_a_gpu_that_is_here_and_rounds(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu().install(monkeypatch)
    monkeypatch.setattr(split, "attempt", lambda *_: pytest.fail("taken apart"))
    monkeypatch.setattr("refimpl.engines.tensorrt.check_targets", lambda targets: None)
    if change != "others":
        monkeypatch.setattr("refimpl.engines.tensorrt.tf32_problem", lambda: change.removeprefix("exact"))
    converted(tmp_path, gpu, targets=("sm86",) if change == "others" else ())
