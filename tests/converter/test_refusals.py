"""Answers that were once silently wrong: order of reads and writes, wide integers, checks only TensorFlow makes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl.errors import RunError
from refimpl.recipe import Recipe
from tests.models_ops import normal, save, spec

EVERYTHING = Recipe(min_segment_size=1)
WIDE = np.array([[16777217, 3, 16777219], [-16777221, 16777216, 7]], np.int32)


def test_a_variable_is_read_before_it_is_assigned(tmp_path):
    weight, bias = tf.Variable(normal(4, 4, seed=1)), tf.Variable(tf.zeros(4))

    def call(x):
        y = tf.nn.relu(x @ weight) * 2.0 + 1.0 + bias
        bias.assign_add(tf.ones(4))
        return {"y": y}

    save(tmp_path / "model", call, spec((None, 4), name="x"), holds=(weight, bias))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle")
    loaded, x = refimpl.load(tmp_path / "bundle"), normal(2, 4, seed=2)
    runs = np.stack([loaded.run({"x": x}).outputs["y"] for _ in range(30)])
    np.testing.assert_allclose(np.diff(runs, axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(runs[0], np.maximum(x @ weight.numpy(), 0) * 2 + 1, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x: x < 16777217, id="compare"),
        pytest.param(lambda x: tf.sort(x, 1), id="sort"),
        pytest.param(lambda x: tf.reduce_prod(x, 1), id="product"),
        pytest.param(lambda x: tf.pow(x, 5), id="power"),
        pytest.param(lambda x: x // 7 + x % 7, id="division"),
    ],
)
def test_wide_integers_keep_every_digit(call, tmp_path):
    save(tmp_path / "model", lambda x: {"y": call(x)}, spec((None, 3), tf.int32, "x"))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", EVERYTHING)
    got = refimpl.load(tmp_path / "bundle").run({"x": WIDE}).outputs["y"]
    np.testing.assert_array_equal(got, call(tf.constant(WIDE)).numpy(), strict=True)


# Between 2^31 and 2^32, many times over: only whole vectors of a processor go wrong.
BEYOND = np.tile(np.int64([2**31 - 1, 2**31, 2**31 + 9, 3 * 2**30, 2**32 - 1, 2**32, 2**40 + 2**31, -7]), (4, 8))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x: tf.maximum(x, 5), id="maximum"),
        pytest.param(lambda x: tf.minimum(x, x[::-1, ::-1]), id="minimum"),
        pytest.param(lambda x: tf.clip_by_value(x, -10, 2**31 + 9), id="clip"),
        pytest.param(tf.nn.relu, id="relu"),
        pytest.param(tf.nn.relu6, id="relu6"),
        pytest.param(tf.sign, id="sign"),
        pytest.param(lambda x: tf.reduce_max(x, 1), id="largest"),
        pytest.param(lambda x: tf.reduce_min(x, 1), id="smallest"),
        pytest.param(
            lambda x: tf.while_loop(lambda y: y[0, 0] > 9, lambda y: [tf.maximum(y, 5) - 9], [x], maximum_iterations=3)[
                0
            ],
            id="loop",
        ),
    ],
)
def test_extremes_of_64_bit_integers(call, tmp_path):
    """ONNX Runtime takes the upper half of 32 bits for negative numbers, on processors with AVX-512."""
    save(tmp_path / "model", lambda x: {"y": call(x)}, spec((None, BEYOND.shape[1]), tf.int64, "x"))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", EVERYTHING)
    got = refimpl.load(tmp_path / "bundle").run({"x": BEYOND}).outputs["y"]
    np.testing.assert_array_equal(got, call(tf.constant(BEYOND)).numpy(), strict=True)


def test_extremes_of_sizes_stay_in_their_island(tmp_path):
    """Sizes are 64-bit integers in ONNX, and small."""

    def call(x):
        size = tf.maximum(tf.shape(x, out_type=tf.int64)[0] // 2, 1)
        return {"y": tf.tanh(x) * tf.cast(size, tf.float32)}

    save(tmp_path / "model", call, spec((None, 4), name="x"))
    manifest = refimpl.convert(tmp_path / "model", tmp_path / "bundle", EVERYTHING)
    (record,) = (item for item in manifest.signatures if item.converted)
    assert "Maximum" in {kind for island in record.islands for _, kind in island.ops}


@pytest.mark.parametrize(
    ("call", "bad"),
    [
        pytest.param(lambda x, i: tf.ensure_shape(x, (3, 4)) * 2.0, 0, id="ensure_shape"),
        pytest.param(lambda x, i: tf.slice(x, [i, 0], [1, 4]) * 2.0, -1, id="slice"),
        pytest.param(lambda x, i: x[i] * 2.0, -9, id="index"),
        pytest.param(lambda x, i: tf.tensor_scatter_nd_update(x, [[i]], [[1.0] * 4]) * 2.0, -1, id="scatter"),
    ],
)
def test_what_tensorflow_refuses_is_refused(call, bad, tmp_path):
    specs = (spec((None, 4), name="x"), spec((), tf.int32, "i"))
    save(tmp_path / "model", lambda x, i: {"y": call(x, i)}, *specs)
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", EVERYTHING)
    with pytest.raises(RunError):
        refimpl.load(tmp_path / "bundle").run({"x": normal(5, 4, seed=3), "i": np.int32(bad)})


def test_switch_case_stays_whole(tmp_path):
    def call(x, i):
        return {"y": tf.switch_case(i, [lambda: x * 2.0, lambda: tf.tanh(x), lambda: -x]) + 1.0}

    save(tmp_path / "model", call, spec((None, 4), name="x"), spec((), tf.int32, "i"))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", EVERYTHING)
    loaded, x = refimpl.load(tmp_path / "bundle"), normal(2, 4, seed=4)
    for branch, want in enumerate((x * 2 + 1, np.tanh(x) + 1, 1 - x)):
        got = loaded.run({"x": x, "i": np.int32(branch)}).outputs["y"]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def _checked(x, n=None):
    return tf.debugging.check_numerics(tf.math.log(x - 1.0) * 0.5 + x, "not finite")


def _checked_in_a_loop(x, n):
    return tf.while_loop(lambda i, _: i < n, lambda i, y: (i + 1, _checked(y)), (tf.constant(0), x))[1]


@pytest.mark.parametrize("checked", [_checked, _checked_in_a_loop])
def test_a_nan_that_is_made_on_the_way_is_refused(checked, tmp_path):
    """The inputs are finite, so TensorFlow does not run in place of the engine for their sake."""
    specs = (spec((None, 4), name="x"), spec((), tf.int32, "n"))
    save(tmp_path / "model", lambda x, n: {"y": checked(tf.nn.relu(x * 2.0 + 1.0), n) * 2.0 + 1.0}, *specs)
    refimpl.convert(tmp_path / "model", tmp_path / "bundle")
    loaded, once = refimpl.load(tmp_path / "bundle"), np.int32(1)
    loaded.run({"x": np.full((2, 4), 3.0, np.float32), "n": once})
    for ask in (loaded.run, loaded.infer):
        with pytest.raises(RunError):
            ask({"x": np.full((2, 4), -1.0, np.float32), "n": once})
