"""``--shape`` beside real samples: engines take the shapes that were given, and those of the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl.errors import RecipeError
from refimpl.recipe import Recipe
from tests.fake_gpu import FakeGpu

KINDS = ("onnxruntime", "tensorrt")


class Dense(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x"), tf.TensorSpec([None, 4], name="bias")])
    def serve(self, x: tf.Tensor, bias: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.tanh(tf.matmul(x, self.weight) + bias)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    module = Dense()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    return tmp_path / "m"


def sample(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {name: rng.standard_normal((rows, size)).astype(np.float32) for name, size in (("x", 6), ("bias", 4))}


def test_profiles_span_given_shapes_and_samples(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu().install(monkeypatch)
    shapes = (("x", (1, 6)), ("x", (8, 6)), ("bias", (1, 4)), ("bias", (8, 4)))
    recipe = Recipe(engines=KINDS, shapes=shapes, min_segment_size=1)
    refimpl.convert(model, tmp_path / "b", recipe, samples=[sample(3), sample(12)])
    ((profile,), _) = gpu.asked[-1]
    rows = [sorted({shape[0] for shape in side}) for side in (profile.min, profile.max)]
    assert rows == [[1], [12]]


def test_shapes_of_an_input_that_has_fewer_come_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu().install(monkeypatch)
    recipe = Recipe(engines=KINDS, shapes=(("x", (2, 6)), ("x", (5, 6)), ("bias", (1, 4))), min_segment_size=1)
    refimpl.convert(model, tmp_path / "b", recipe, samples=[sample(3)])
    ((profile,), _) = gpu.asked[-1]
    assert {(low[0], high[0]) for low, high in zip(profile.min, profile.max, strict=True)} == {(2, 5), (1, 3)}


def test_without_tensorrt_shapes_beside_samples_mean_nothing(model: Path, tmp_path: Path) -> None:
    refimpl.convert(model, tmp_path / "b", Recipe(shapes=(("x", (2, 7)),), min_segment_size=1), samples=[sample(3)])


class Ordered(tf.Module):
    """Takes numbers in order only, and none is fine."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x"), tf.TensorSpec([None], tf.int32, "rows")])
    def serve(self, x: tf.Tensor, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(rows[1:] - rows[:-1])]):
            return {"y": tf.tanh(tf.tile(x, [1, 2])) * 2.0, "last": tf.reduce_max(rows)}


@pytest.mark.parametrize("rows", [[0, 1, 2], []])
def test_where_repeated_values_do_not_do_made_up_ones_are_tried(
    rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu().install(monkeypatch)
    module = Ordered()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    given = {"x": np.ones((3, 3), np.float32), "rows": np.array(rows, np.int32)}
    recipe = Recipe(engines=KINDS, shapes=(("x", (1, 3)), ("rows", (5,))), min_segment_size=1)
    refimpl.convert(tmp_path / "m", tmp_path / "b", recipe, samples=[given])
    ranges = {
        (low, high)
        for (profile, *_), _ in gpu.asked
        for low, high in zip(profile.min, profile.max, strict=True)
        if len(low) == 2
    }
    assert ranges == {((1, 3), (3, 3))}


def test_a_shape_that_the_model_does_not_take_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeGpu().install(monkeypatch)
    recipe = Recipe(engines=KINDS, shapes=(("x", (2, 7)),))
    with pytest.raises(RecipeError, match=r"--shape x=2x7: TensorFlow fails on inputs of these shapes") as caught:
        refimpl.convert(model, tmp_path / "b", recipe, samples=[sample(3)])
    assert "shapes of all inputs" in str(caught.value.hint)
    assert not (tmp_path / "b").exists()
