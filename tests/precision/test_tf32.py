"""``--tf32``: the embedded engine rounds as a GPU does, and an island that does not stand it is left in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle
from refimpl.bundle import IslandRecord
from refimpl.recipe import Recipe


class Stable(tf.Module):
    """Two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.a = tf.Variable(rng.standard_normal((64, 64)).astype(np.float32) / 8)
        self.b = tf.Variable(rng.standard_normal((64, 8)).astype(np.float32) / 8)

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, "x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(tf.nn.relu(tf.matmul(x, self.a)), self.b)}


class Fragile(Stable):
    """The same, less its own answer made of a matrix that is nearly the same: what is left are the last bits."""

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, "x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.matmul(x, self.a)
        return {"y": 1e3 * tf.matmul(y - tf.matmul(x, 1.0001 * self.a), self.b)}


def converted(model: tf.Module, folder: Path, *, tf32: bool) -> IslandRecord:
    tf.saved_model.save(model, str(folder / "model"), signatures={"serving_default": model.serve})
    manifest = refimpl.convert(folder / "model", folder / "bundle", Recipe(tf32=tf32, engines=("onnxruntime",)))
    (island,) = manifest.islands
    return island


def error(model: tf.Module, folder: Path) -> float:
    x = np.random.default_rng(9).standard_normal((7, 64)).astype(np.float32)
    want = model.serve(x)["y"].numpy()
    result = refimpl.load(folder / "bundle").run({"x": x})
    assert {run.engine for run in result.islands} == {"onnxruntime"}
    return float(np.linalg.norm(result.outputs["y"] - want) / np.linalg.norm(want))


def test_the_embedded_engine_rounds_to_tf32(tmp_path: Path) -> None:
    model = Stable()
    island = converted(model, tmp_path, tf32=True)
    assert island.precision == island.engines[0].precision == "tf32"
    assert ".tf32." in island.engines[0].file
    assert bundle.read(tmp_path / "bundle").precision == "tf32"
    assert 1e-4 < error(model, tmp_path) < 1e-3


@pytest.mark.parametrize(("make", "tf32"), [(Stable, False), (Fragile, True)])
def test_float32_is_left_where_tf32_is_not_wanted_or_not_stood(
    make: type[tf.Module], tf32: bool, tmp_path: Path
) -> None:
    model = make()
    island = converted(model, tmp_path, tf32=tf32)
    assert island.precision == island.engines[0].precision == "fp32"
    assert any("TF32 is off for it" in note for note in island.notes) is tf32
    assert error(model, tmp_path) < (1e-2 if tf32 else 1e-5)  # the last bits of float32 are all that is left
