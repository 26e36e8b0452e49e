"""Keras networks for the tests: applications without a download, encoders, recurrent and fully convolutional ones.

Weights are random but not degenerate: batch-normalization statistics are those of real activations, layer scales are
well away from zero and the classifier's logits have a spread of two: a wrong value anywhere shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

Rng = np.random.Generator


def _images(size: int, *, scale: float = 1.0) -> Callable[[Rng], dict[str, np.ndarray]]:
    return lambda rng: {"image": (scale * rng.standard_normal((2, size, size, 3))).astype(np.float32)}


def _settle(model: keras.Model, image: np.ndarray) -> None:
    """Give every normalization layer statistics and every layer scale a size that trained networks have."""
    rng = np.random.default_rng(7)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
        if layer.gamma is not None:
            layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape))
        layer.beta.assign(rng.normal(0.0, 0.2, layer.beta.shape))
        layer.momentum = 0.0  # one training step then leaves exactly this batch's statistics
    for layer in model.layers:
        if type(layer).__name__ == "LayerScale":
            layer.gamma.assign(rng.uniform(0.1, 0.5, layer.gamma.shape))
    model(image, training=True)
    for layer in norms:
        layer.momentum = 0.99


def _spread_logits(model: keras.Model, image: np.ndarray) -> None:
    """Scale the head of a softmax classifier so that its logits have a standard deviation of two."""
    head = model.layers[-1]
    logits = np.log(np.asarray(model(image)) + 1e-30)
    head.kernel.assign(head.kernel * (2.0 / logits.std()))


def _application(make: Callable[..., keras.Model], size: int, target: Path, *, scale: float = 1.0) -> None:
    keras.utils.set_random_seed(11)
    model = make(weights=None, input_tensor=keras.Input((size, size, 3), name="image"))
    model = keras.Model(model.inputs[0], model.outputs[0])  # one tensor in, not a list of one
    image = (scale * np.random.default_rng(3).standard_normal((4, size, size, 3))).astype(np.float32)
    _settle(model, image)
    _spread_logits(model, image)
    model.export(target, verbose=False)


def resnet50(target: Path) -> None:
    _application(keras.applications.ResNet50, 224, target)


def mobilenetv2(target: Path) -> None:
    _application(keras.applications.MobileNetV2, 224, target)


def efficientnetb0(target: Path) -> None:
    _application(keras.applications.EfficientNetB0, 224, target, scale=60.0)


def convnexttiny(target: Path) -> None:
    _application(keras.applications.ConvNeXtTiny, 224, target, scale=60.0)


def inceptionv3(target: Path) -> None:
    _application(keras.applications.InceptionV3, 299, target)


class Position(keras.Layer):
    """Adds a learned vector to every token."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(0.0, 0.5))

    def call(self, x: Any) -> Any:
        return x + self.table


class Double(keras.Layer):
    """Doubles height and width, bilinear with half-pixel centres; Keras' own layer needs static sizes for it."""

    def call(self, x: Any) -> Any:
        return tf.image.resize(x, 2 * tf.shape(x)[1:3])


def _encoder_block(x: Any, width: int, heads: int, mask: Any = None, *, before: bool) -> Any:
    """One transformer block, normalized before (ViT) or after (BERT) each half."""
    attention = layers.MultiHeadAttention(heads, width // heads)

    def feed_forward(y: Any) -> Any:
        y = layers.Dense(4 * width)(y)
        return layers.Dense(width)(keras.activations.gelu(y, approximate=False))

    if before:
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + attention(y, y, attention_mask=mask)
        return x + feed_forward(layers.LayerNormalization(epsilon=1e-6)(x))
    x = layers.LayerNormalization(epsilon=1e-12)(x + attention(x, x, attention_mask=mask))
    return layers.LayerNormalization(epsilon=1e-12)(x + feed_forward(x))


def vit(target: Path) -> None:
    keras.utils.set_random_seed(12)
    image = keras.Input((96, 96, 3), name="image")
    x = layers.Conv2D(192, 16, strides=16)(image)
    x = Position()(layers.Reshape((36, 192))(x))
    for _ in range(3):
        x = _encoder_block(x, 192, 3, before=True)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    model = keras.Model(image, layers.Dense(50, activation="softmax")(x))
    _spread_logits(model, _images(96)(np.random.default_rng(3))["image"])
    model.export(target, verbose=False)


def bert(target: Path) -> None:
    """BERT-like encoder: int32[batch, 48] token ids and mask; dict outputs ``tokens`` and ``pooled``."""
    keras.utils.set_random_seed(13)
    ids = keras.Input((48,), dtype="int32", name="token_ids")
    mask = keras.Input((48,), dtype="int32", name="mask")
    x = Position()(layers.Embedding(1000, 128, embeddings_initializer=keras.initializers.RandomNormal(0.0, 1.0))(ids))
    x = layers.LayerNormalization(epsilon=1e-12)(x)
    allowed = ops.expand_dims(ops.cast(mask, "bool"), 1)
    for _ in range(3):
        x = _encoder_block(x, 128, 4, allowed, before=False)
    pooled = layers.Dense(128, activation="tanh")(x[:, 0])
    keras.Model([ids, mask], {"tokens": x, "pooled": pooled}).export(target, verbose=False)


def bert_inputs(rng: Rng) -> dict[str, np.ndarray]:
    lengths = rng.integers(10, 48, 3)
    return {
        "token_ids": rng.integers(0, 1000, (3, 48)).astype(np.int32),
        "mask": (np.arange(48) < lengths[:, None]).astype(np.int32),
    }


def fully_convolutional(target: Path) -> None:
    """A small U-shaped net: float32[batch, height, width, 3], height and width any multiple of four."""
    keras.utils.set_random_seed(14)

    def block(x: Any, width: int, strides: int = 1) -> Any:
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    image = keras.Input((None, None, 3), name="image")
    fine = block(image, 16)
    middle = block(fine, 24, strides=2)
    coarse = block(middle, 32, strides=2)
    x = layers.UpSampling2D(2, interpolation="nearest")(coarse)
    x = block(layers.Concatenate()([x, middle]), 24)
    x = Double()(x)
    x = block(layers.Concatenate()([x, fine]), 16)
    model = keras.Model(image, layers.Conv2D(5, 1, activation="sigmoid")(x))
    _settle(model, _images(64)(np.random.default_rng(3))["image"])
    model.export(target, verbose=False)


def fully_convolutional_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"image": rng.standard_normal((2, 64, 96, 3)).astype(np.float32)}


def _recurrent(layer: Callable[[], Any], target: Path) -> None:
    keras.utils.set_random_seed(15)
    series = keras.Input((20, 16), name="series")
    x = layer()(series)
    keras.Model(series, layers.Dense(4)(x)).export(target, verbose=False)


def lstm(target: Path) -> None:
    _recurrent(lambda: layers.LSTM(32, return_sequences=True), target)


def gru(target: Path) -> None:
    _recurrent(lambda: layers.GRU(32), target)


def bidirectional(target: Path) -> None:
    _recurrent(lambda: layers.Bidirectional(layers.LSTM(24, return_sequences=True)), target)


def series_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"series": rng.standard_normal((3, 20, 16)).astype(np.float32)}


images = _images
