"""Keras 3 models written by ``tf.saved_model.save``: TensorFlow's loader of sessions leaves their variables empty."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import oracle


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, keras.Model]:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((8,), name="x"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(4),
        ]
    )
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.standard_normal((64, 8)), rng.standard_normal((64, 4)), epochs=2, verbose=0)
    folder = tmp_path_factory.mktemp("keras") / "saved"
    tf.saved_model.save(model, str(folder))
    return folder, model


def test_its_session_has_no_values_of_its_own(saved: tuple[Path, keras.Model]) -> None:
    """The reason for all this; when it fails, TensorFlow or Keras has mended it."""
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        definition = tf.compat.v1.saved_model.load(session, ["serve"], str(saved[0])).signature_def["serving_default"]
        (given,), (made,) = definition.inputs.values(), definition.outputs.values()
        with pytest.raises(tf.errors.FailedPreconditionError):
            session.run(made.name, {given.name: np.ones((2, 8), np.float32)})


def test_it_converts_and_gives_keras_answers(saved: tuple[Path, keras.Model], tmp_path: Path) -> None:
    folder, model = saved
    manifest = refimpl.convert(folder, tmp_path / "bundle")
    (island,) = manifest.islands
    assert sum(kind == "MatMul" for _, kind in island.ops) == 2
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    result = refimpl.load(tmp_path / "bundle").run({next(iter(manifest.signatures[-1].signature.inputs)).name: x})
    assert [run.engine for run in result.islands] == ["onnxruntime"]
    (got,) = result.outputs.values()
    np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_it_is_recorded_and_checked(saved: tuple[Path, keras.Model], tmp_path: Path) -> None:
    refimpl.convert(saved[0], tmp_path / "bundle")
    oracle.record(saved[0], tmp_path / "golden")
    v = oracle.check(tmp_path / "bundle", tmp_path / "golden")
    assert v.passed, v.problems + tuple((c.case, c.reason, c.notes) for c in v.cases if c.reason)
