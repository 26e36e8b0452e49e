"""Promises that are easy to break: TensorFlow's errors stay errors, gradients are not made up, state is not frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl.converter.plan import mutable_state
from refimpl.converter.source import Source
from refimpl.errors import RunError, SourceError
from refimpl.recipe import Recipe
from tests.models_ops import normal, save, spec

EVERYTHING = Recipe(min_segment_size=1)


@pytest.fixture
def lookup(tmp_path: Path) -> Path:
    """A bundle of a gather and a matmul."""
    table, weight = tf.Variable(normal(10, 6, seed=1)), tf.Variable(normal(6, 6, seed=2))

    def call(rows):
        return {"y": tf.nn.relu(tf.gather(table, rows) @ weight), "z": tf.gather_nd(weight, rows[:, None] % 6)}

    save(tmp_path / "model", call, spec((None,), tf.int64, "rows"), holds=(table, weight))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", EVERYTHING)
    return tmp_path / "bundle"


def test_a_good_index_runs_in_the_engine(lookup):
    ran = refimpl.load(lookup).run({"rows": np.array([0, 9, 3])})
    assert "onnxruntime" in {run.engine for run in ran.islands}
    assert not any(run.reason for run in ran.islands)


@pytest.mark.parametrize("bad", [-1, -10, 10, 2**40])
def test_an_index_that_tensorflow_refuses_stays_an_error(lookup, bad):
    with pytest.raises(RunError, match=r"not in \[0, 10\)"):
        refimpl.load(lookup).run({"rows": np.array([0, bad])})


def test_a_gradient_through_an_engine_raises(tmp_path):
    weight = tf.Variable(normal(4, 4, seed=3))
    save(tmp_path / "model", lambda x: {"y": tf.tanh(x @ weight) * 2.0}, spec((None, 4), name="x"), holds=(weight,))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle")
    loaded = tf.saved_model.load(str(tmp_path / "bundle"))
    serve = loaded.signatures["serving_default"]
    x = tf.constant(normal(2, 4, seed=4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        with tape.stop_recording():
            serve(x=x)
        with pytest.raises(LookupError, match="for inference"):
            serve(x=x)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = serve(x=x)["y"]
        return tape.gradient(y, x)

    with pytest.raises(Exception, match="for inference"):  # TensorFlow wraps what happens while it traces
        gradient(x)


def test_a_bundle_is_not_converted_again(lookup, tmp_path):
    with pytest.raises(SourceError, match="a bundle already"):
        refimpl.convert(lookup, tmp_path / "again")
    # Saved anew, the manifest is lost, but the engine nodes are still there.
    tf.saved_model.save(loaded := tf.saved_model.load(str(lookup)), str(tmp_path / "saved"), loaded.signatures)
    with pytest.raises(SourceError, match="a bundle already"):
        refimpl.convert(tmp_path / "saved", tmp_path / "again")


def test_a_bundle_saved_anew_still_answers(lookup, tmp_path):
    """Without its engines beside it, every island falls back."""
    loaded = tf.saved_model.load(str(lookup))
    want = loaded.signatures["serving_default"](rows=tf.constant([1, 2], tf.int64))
    tf.saved_model.save(loaded, str(tmp_path / "saved"), loaded.signatures)
    got = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"](rows=tf.constant([1, 2], tf.int64))
    for name, value in want.items():
        np.testing.assert_allclose(got[name].numpy(), value.numpy(), rtol=1e-5, strict=True)


def test_static_shapes_survive(lookup, tmp_path):
    original, converted = tf.saved_model.load(str(tmp_path / "model")), tf.saved_model.load(str(lookup))
    rows = tf.TensorSpec([None], tf.int64)

    def shapes_in_a_graph(loaded):
        serve = loaded.signatures["serving_default"]
        traced = tf.function(lambda rows: serve(rows=rows)).get_concrete_function(rows)
        return {name: tensor.shape.as_list() for name, tensor in traced.structured_outputs.items()}

    assert shapes_in_a_graph(converted) == shapes_in_a_graph(original) == {"y": [None, 6], "z": [None, 6]}


def ref_variable_model(target: Path) -> None:
    """A TF1 model whose second signature assigns the variable that the first one reads."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4), name="x")
        weight = tf.compat.v1.get_variable("w", initializer=normal(4, 4, seed=5), use_resource=False)
        y = tf.nn.relu(x @ weight) * 2.0 + 1.0
        update = tf.compat.v1.assign_add(weight, tf.ones((4, 4)))
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(target))
        info = tf.compat.v1.saved_model.build_tensor_info
        define = tf.compat.v1.saved_model.build_signature_def
        signatures = {
            "serving_default": define({"x": info(x)}, {"y": info(y)}, "predict"),
            "update": define({}, {"w": info(update)}, "update"),
        }
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()


def test_a_variable_that_a_signature_assigns_by_reference_is_not_frozen(tmp_path):
    ref_variable_model(tmp_path / "model")
    with Source(tmp_path / "model") as source:
        assert mutable_state(source) == {"w:0"}
    with pytest.raises(SourceError, match="reference variable"):
        refimpl.convert(tmp_path / "model", tmp_path / "bundle", Recipe(signatures=("update",)))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", Recipe(signatures=("*",), min_segment_size=1))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "bundle"))
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "bundle")).signature_def
        serve, update = signatures["serving_default"], signatures["update"]
        feed = {serve.inputs["x"].name: normal(2, 4, seed=6)}
        before = session.run(serve.outputs["y"].name, feed)
        weight = session.run(update.outputs["w"].name)
        after = session.run(serve.outputs["y"].name, feed)
    want = np.maximum(normal(2, 4, seed=6) @ weight, 0) * 2 + 1
    np.testing.assert_allclose(after, want, rtol=1e-5)
    assert not np.allclose(before, after)
