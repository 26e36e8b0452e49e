"""SavedModels for the tests of TF-TRT's API: small, and made once per process."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from refimpl import trt_convert as trt
from refimpl.bundle import EngineRecord

_FOLDER = tempfile.TemporaryDirectory(prefix="refimpl-test-tftrt-")


def _weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


class Digits(tf.Module):
    """A small network for images of digits, with a variable, two signatures and a method of its own."""

    def __init__(self) -> None:
        self.kernel = tf.Variable(_weights(3, 3, 1, 4))
        self.dense = tf.Variable(_weights(13 * 13 * 4, 10, seed=1))

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], tf.float32, name="image")])
    def classify(self, image):
        y = tf.nn.relu(tf.nn.conv2d(image, self.kernel, 1, "VALID"))
        y = tf.reshape(tf.nn.max_pool2d(y, 2, 2, "VALID"), [-1, 13 * 13 * 4])
        logits = tf.matmul(y, self.dense)
        return {"logits": logits, "classes": tf.argmax(logits, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], tf.float32, name="image")])
    def brightness(self, image):
        return {"mean": tf.reduce_mean(image, [1, 2, 3])}


class TwoInputs(tf.Module):
    """Two inputs of one shape, declared in the opposite of alphabetical order; an op in the middle stays."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 6], tf.float32, name="query"),
            tf.TensorSpec([None, None, 6], tf.float32, name="key"),
        ]
    )
    def attend(self, query, key):
        scores = tf.matmul(query * 2.0, key, transpose_b=True)
        odd = tf.math.igamma(tf.abs(scores) + 1.0, tf.abs(scores) + 0.5)
        return {"b": tf.nn.softmax(odd * 3.0 - 1.0), "a": tf.nn.tanh(query * 0.5) - 0.25}


class Wide(tf.Module):
    """Products that are wide enough for INT8."""

    def __init__(self) -> None:
        self.first, self.second = tf.Variable(_weights(32, 64)), tf.Variable(_weights(64, 16, seed=1))

    @tf.function(input_signature=[tf.TensorSpec([None, 32], tf.float32, name="x")])
    def run(self, x):
        return {"y": tf.matmul(tf.nn.relu(tf.matmul(x, self.first)), self.second)}


@functools.cache
def saved_model(name: str) -> Path:
    """The directory of ``digits``, ``two`` or ``wide``."""
    folder = Path(_FOLDER.name) / name
    if name == "digits":
        module = Digits()
        signatures = {"serving_default": module.classify, "brightness": module.brightness}
    elif name == "wide":
        module = Wide()
        signatures = {"serving_default": module.run}
    else:
        module = TwoInputs()
        signatures = {"serving_default": module.attend}
    tf.saved_model.save(module, str(folder), signatures)
    return folder


def images(count: int = 3) -> np.ndarray:
    """A batch of random images for ``digits``."""
    return np.random.default_rng(count).random((count, 28, 28, 1), np.float32)


def call(folder: Path | str, signature: str = "serving_default", **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """One call of a SavedModel's signature."""
    model = tf.saved_model.load(str(folder))
    found = model.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in found.items()}


def assert_same(got: Mapping[str, object], want: Mapping[str, np.ndarray]) -> None:
    """The same outputs by name, within roundings of float32."""
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(np.asarray(got[name]), value, rtol=1e-4, atol=1e-5, err_msg=name)


DIGITS, TWO, WIDE = saved_model("digits"), saved_model("two"), saved_model("wide")
RNG = np.random.default_rng(0)
QUERY, KEY = RNG.random((2, 3, 6), np.float32), RNG.random((2, 5, 6), np.float32)


def converter(model: Path = DIGITS, **options: object) -> trt.TrtGraphConverterV2:
    """A converter of a model."""
    return trt.TrtGraphConverterV2(input_saved_model_dir=str(model), **options)


def converted(model: Path = DIGITS, **options: object) -> trt.TrtGraphConverterV2:
    """A converter that has converted."""
    made = converter(model, **options)
    made.convert()
    return made


def tensorrt_records(made: trt.TrtGraphConverterV2) -> list[EngineRecord]:
    """The records of TensorRT engines, one per island."""
    return [engine for island in made._manifest.islands for engine in island.engines if engine.kind == "tensorrt"]
