"""Wrong answers that random models found: each op here computes otherwise in an engine than in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl.errors import RunError
from refimpl.recipe import Recipe
from tests.models_ops import save, spec

EVERYTHING = Recipe(min_segment_size=1)
IDS = np.int64([[3, -1, 0, 5], [-4, 2, -2, 1]])
MANY = np.tile(np.float32([[255.0, 256.0, 300.0, -1.0, -129.0, 127.5, 1e9, 3.7]]), (16, 4))


def converted(folder: Path, call: Callable[[Any], Any], *shape: int | None, dtype: Any = tf.float32) -> Any:
    save(folder / "model", lambda x: {"y": call(x)}, spec(shape, dtype, "x"))
    refimpl.convert(folder / "model", folder / "bundle", EVERYTHING)
    return refimpl.load(folder / "bundle")


@pytest.mark.parametrize(
    ("call", "value"),
    [
        pytest.param(lambda x: tf.one_hot(tf.where(x > 0, x, -1), 4) * 2.0, IDS, id="one_hot of -1"),
        pytest.param(lambda x: tf.one_hot(tf.cast(-x, tf.int32), 4) * 2.0, IDS, id="one_hot of int32"),
        pytest.param(lambda x: tf.one_hot(tf.cast(x, tf.int8), 4) * 2.0, IDS, id="one_hot of int8"),
        pytest.param(lambda x: tf.cast(x, tf.uint8), MANY, id="uint8 of floats out of range"),
        pytest.param(lambda x: tf.cast(x, tf.int8), MANY, id="int8 of floats out of range"),
        pytest.param(lambda x: tf.math.floormod(x, 0.1), np.float32([[1e6, 0.3, 12345.678, -7.7]]), id="remainder"),
        pytest.param(
            lambda x: tf.quantization.quantize_and_dequantize_v2(x, -1.0, 1.0, range_given=False),
            np.float32([[np.nan, 2.0, -3.0, 0.5]]),
            id="NaN that is quantized",
        ),
    ],
)
def test_the_bundle_answers_as_tensorflow_does(call, value, tmp_path):
    loaded = converted(tmp_path, call, None, value.shape[1], dtype=tf.as_dtype(value.dtype))
    want = call(tf.constant(value)).numpy()
    for got in (loaded.run({"x": value}).outputs["y"], loaded.infer({"x": value})["y"]):
        np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x: tf.slice(x, [0, 0], [2, -1]) * 2.0, id="slice"),
        pytest.param(lambda x: tf.split(x, 2, axis=0)[0] * 2.0, id="split"),
        pytest.param(lambda x: tf.split(x, [2, 3], axis=-2)[0] * 2.0, id="split in parts"),
    ],
)
def test_more_than_an_open_dimension_has_is_refused(call, tmp_path):
    loaded = converted(tmp_path, call, None, 4)
    short = np.ones((1, 4), np.float32)
    with pytest.raises((tf.errors.OpError, ValueError)):
        call(tf.constant(short))
    with pytest.raises(RunError):
        loaded.infer({"x": short})


def test_what_fits_whatever_the_size_is_stays_in_its_island(tmp_path):
    loaded = converted(tmp_path, lambda x: tf.slice(x, [0, 1], [-1, 2]) + tf.split(x, 2, axis=1)[0], None, 4)
    (record,) = (item for item in loaded.manifest.signatures if item.converted)
    assert {"Slice", "Split"} <= {kind for island in record.islands for _, kind in island.ops}


def test_the_exact_gelu_stays_in_its_island(tmp_path):
    loaded = converted(tmp_path, lambda x: 0.5 * x * tf.math.erfc(-x * 0.70710678), None, 4)
    (record,) = (item for item in loaded.manifest.signatures if item.converted)
    assert "Erfc" in {kind for island in record.islands for _, kind in island.ops}


def test_the_tail_of_erfc(tmp_path):
    loaded = converted(tmp_path, lambda x: tf.math.log(tf.math.erfc(x)), None, 4)
    value = np.full((2, 4), 5.0, np.float32)
    want = tf.math.log(tf.math.erfc(tf.constant(value))).numpy()
    np.testing.assert_allclose(loaded.infer({"x": value})["y"], want, rtol=1e-5)
