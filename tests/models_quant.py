"""SavedModels of quantization-aware training: fake-quantization ops on weights and activations.

``digits_qat`` is really trained, in seconds, on scikit-learn's handwritten digits; the others have random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

from tests.models_ops import normal, save, spec

Rng = np.random.Generator
DEAD = 5  # the channel without weights in ``per_channel``


def _symmetric(x: Any, most: Any) -> Any:
    """Int8 levels -127 to 127, as TensorFlow's model optimization and NVIDIA's toolkits train them."""
    return tf.quantization.fake_quant_with_min_max_vars(x, -most, most, num_bits=8, narrow_range=True)


def symmetric_conv(target: Path) -> None:
    """Conv, pool, dense; every range symmetric and narrow, in variables: INT8 levels are exactly TensorFlow's."""
    kernel = tf.Variable(normal(3, 3, 4, 8, seed=1, scale=0.2))
    dense = tf.Variable(normal(8 * 16, 5, seed=2, scale=0.1))
    bias = tf.Variable(normal(8, seed=3, scale=0.2))
    most = [tf.Variable(value) for value in (4.0, 0.75, 3.0, 0.375)]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        x = _symmetric(x, most[0])
        y = tf.nn.conv2d(x, _symmetric(kernel, most[1]), 1, "SAME")
        y = tf.nn.max_pool2d(tf.nn.relu(tf.nn.bias_add(y, bias)), 2, 2, "VALID")
        y = tf.reshape(_symmetric(y, most[2]), [-1, 8 * 16])
        return {"y": y @ _symmetric(dense, most[3])}

    save(target, call, spec((None, 8, 8, 4), name="x"), holds=(kernel, dense, bias, *most))


def asymmetric_conv(target: Path) -> None:
    """The same shape of network with ranges that int8 levels around zero do not fit: 0 to 6, and -1 to 2.5."""
    kernel, point = tf.Variable(normal(3, 3, 4, 8, seed=4, scale=0.2)), tf.Variable(normal(1, 1, 8, 6, seed=5))
    low, high = tf.Variable(-1.0), tf.Variable(2.5)
    fake = tf.quantization

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        x = fake.fake_quant_with_min_max_vars(x, low, high)
        y = tf.nn.relu6(tf.nn.conv2d(x, _symmetric(kernel, 0.75), 1, "SAME"))
        y = fake.fake_quant_with_min_max_args(y, 0.0, 6.0)
        return {"y": tf.nn.conv2d(y, fake.fake_quant_with_min_max_vars(point, -3.0, 3.0), 1, "SAME")}

    save(target, call, spec((None, 8, 8, 4), name="x"), holds=(kernel, point, low, high))


def per_channel_weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two kernels and a matrix, float32; channels of the first differ in size, and one of them is all zeros."""
    first = normal(3, 3, 4, 8, seed=6, scale=0.2) * np.geomspace(0.2, 3.0, 8).astype(np.float32)
    first[..., DEAD] = 0.0
    return first, normal(3, 3, 8, 8, seed=7, scale=0.2), normal(8, 6, seed=8)


def per_channel(target: Path) -> None:
    """Weights with a range per channel, in variables, computed from the weights, and taken from the data."""
    first, second, third = map(tf.Variable, per_channel_weights())
    most = tf.Variable(np.abs(first.numpy()).max((0, 1, 2)))
    fake = tf.quantization

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        channels = fake.fake_quant_with_min_max_vars_per_channel(first, -most, most, narrow_range=True)
        y = tf.nn.relu(tf.nn.conv2d(_symmetric(x, 4.0), channels, 1, "SAME"))
        computed = tf.reduce_max(tf.abs(second), [0, 1, 2])
        channels = fake.fake_quant_with_min_max_vars_per_channel(second, -computed, computed, narrow_range=True)
        y = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(_symmetric(y, 8.0), channels, 2, "SAME")), [1, 2])
        unused = tf.zeros(6)
        seen = fake.quantize_and_dequantize_v2(third, unused, unused, range_given=False, axis=1, narrow_range=True)
        return {"y": _symmetric(y, 8.0) @ seen}

    save(target, call, spec((None, 8, 8, 4), name="x"), holds=(first, second, third, most))


def depthwise(target: Path) -> None:
    """Depthwise kernels with one range, and with one per channel on their third axis, and a transposed convolution."""
    first, second = tf.Variable(normal(3, 3, 4, 1, seed=14)), tf.Variable(normal(3, 3, 4, 1, seed=15))
    third = tf.Variable(normal(2, 2, 6, 4, seed=16, scale=0.5))
    most = np.abs(second.numpy()).max((0, 1, 3))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.depthwise_conv2d(_symmetric(x, 4.0), _symmetric(first, 3.0), [1, 1, 1, 1], "SAME")
        channels = tf.raw_ops.QuantizeAndDequantizeV3(
            input=second, input_min=-most, input_max=most, num_bits=8, axis=2, range_given=True, narrow_range=True
        )
        y = tf.nn.depthwise_conv2d(_symmetric(y, 64.0), channels, [1, 1, 1, 1], "SAME")
        y = tf.nn.conv2d_transpose(_symmetric(y, 256.0), _symmetric(third, 1.5), [tf.shape(x)[0], 16, 16, 6], 2)
        return {"y": y}

    save(target, call, spec((None, 8, 8, 4), name="x"), holds=(first, second, third))


def missing_range(target: Path) -> None:
    """The second layer's input has no range, and the third layer's has one of 4 bits."""
    kernels = [tf.Variable(normal(8, 8, seed=seed, scale=0.3)) for seed in (9, 10, 11)]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.tanh(tf.matmul(_symmetric(x, 4.0), _symmetric(kernels[0], 1.0), name="first"), name="bare")
        y = tf.nn.tanh(tf.matmul(y, _symmetric(kernels[1], 1.0), name="second"))
        four = tf.quantization.fake_quant_with_min_max_args(y, -1.0, 1.0, num_bits=4, name="four")
        return {"y": tf.matmul(four, _symmetric(kernels[2], 1.0), name="third")}

    save(target, call, spec((None, 8), name="x"), holds=kernels)


def images(rng: Rng) -> dict[str, np.ndarray]:
    return {"x": rng.uniform(-4.0, 4.0, (3, 8, 8, 4)).astype(np.float32)}


def rows(rng: Rng) -> dict[str, np.ndarray]:
    return {"x": rng.uniform(-4.0, 4.0, (5, 8)).astype(np.float32)}


class FakeQuantConv(layers.Conv2D):
    """A convolution whose kernel trains through int8 levels, one range per output channel."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        most = tf.reduce_max(tf.abs(kernel), [0, 1, 2])
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(kernel, -most, most, narrow_range=True)
        return super().convolution_op(inputs, kernel)


class FakeQuantDense(layers.Layer):
    """A dense layer whose kernel trains through int8 levels of one range."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        return inputs @ _symmetric(self.kernel, tf.reduce_max(tf.abs(self.kernel))) + self.bias


class FakeQuantActivation(layers.Layer):
    """Rounds an activation to int8 levels up to the largest magnitude that training saw, a variable."""

    def build(self, _: Any) -> None:
        self.most = self.add_weight(shape=(), initializer="zeros", trainable=False, name="most")

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.most.assign(tf.maximum(self.most, tf.reduce_max(tf.abs(inputs))))
        return _symmetric(inputs, self.most)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 images [n, 8, 8, 1] float32 in 0 to 1, and their digits; the last 360 are not trained on."""
    data = load_digits()
    return (data.images[..., None] / 16.0).astype(np.float32), data.target


def digits_qat(target: Path) -> None:
    """A CNN trained with fake quantization on every weight and activation; at least 90 % of unseen digits are right."""
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 1), name="image")
    x = FakeQuantActivation()(image)
    x = FakeQuantActivation()(FakeQuantConv(16, 3, padding="same", activation="relu")(x))
    x = FakeQuantConv(32, 3, padding="same", activation="relu")(x)
    x = FakeQuantActivation()(layers.MaxPooling2D()(x))
    x = FakeQuantActivation()(FakeQuantConv(32, 3, padding="same", activation="relu")(x))
    logits = FakeQuantDense(10)(layers.Flatten()(x))
    model = keras.Model(image, logits)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = digits()
    model.fit(images[:-360], labels[:-360], batch_size=64, epochs=8, verbose=0)
    model.export(target, verbose=False)


def digits_inputs(rng: Rng) -> dict[str, np.ndarray]:
    images, _ = digits()
    return {"image": images[-360:][rng.permutation(360)[:32]]}
