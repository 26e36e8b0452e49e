"""A digits network that is really trained, in seconds, and INT8 calibration of it that goes well and badly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

Array = Any
PLANTED = "conv3"  # the last convolution, which planted() makes sensitive
TRAINED_ON = 1000  # of 1797 images; the rest is held out


def digits() -> tuple[Array, Array]:
    """Images [1797, 8, 8, 1] float32 in 0 to 1, and the digits they show, in a fixed random order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order, ..., None] / 16.0).astype(np.float32), data.target[order]


def held_out() -> tuple[Array, Array]:
    """What no network here is trained or calibrated on."""
    images, labels = digits()
    return images[TRAINED_ON:], labels[TRAINED_ON:]


def digits_cnn(target: Path) -> None:
    """Three convolutions with batch normalization and a dense layer; right for about 99 % of the held-out images."""
    _trained().export(target, verbose=False)


def _trained() -> keras.Model:
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for number, (width, pool) in enumerate(((32, False), (64, True), (64, True)), 1):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))  # 160 steps: 0.99 would keep a fifth of the start
        x = layers.MaxPooling2D()(x) if pool else x
    model = keras.Model(image, layers.Dense(10, name="logits")(layers.Flatten()(x)))
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = digits()
    model.fit(images[:TRAINED_ON], labels[:TRAINED_ON], batch_size=50, epochs=8, verbose=0)
    return model


def calibration_batches(count: int = 20, rows: int = 50, *, labels: bool = False) -> list[dict[str, Array]]:
    """The images that the network was trained on, in batches; with labels, for a metric that wants them."""
    images, numbers = digits()
    parts = [slice(index * rows, (index + 1) * rows) for index in range(count)]
    return [{"image": images[part], **({"label": numbers[part]} if labels else {})} for part in parts]


def with_outliers(
    batches: list[dict[str, Array]], *, batch: int, pixels: int, brightness: float
) -> list[dict[str, Array]]:
    """The same with one batch damaged: some pixels of its first image are far brighter than white (1.0)."""
    damaged = batches[batch]["image"].copy()
    places = np.random.default_rng(1).choice(64, pixels, replace=False)
    damaged[0].reshape(-1)[places] = brightness
    return [*batches[:batch], {**batches[batch], "image": damaged}, *batches[batch + 1 :]]


def correct(outputs: Mapping[str, Array], sample: Mapping[str, Array]) -> float:
    """A metric for ``--precision auto``: the share of images whose label the network finds."""
    return float(np.mean(outputs["output_0"].argmax(1) == sample["label"]))


def planted(target: Path, *, factor: float = 256.0, kept: int = 16) -> None:
    """The trained network with one layer that int8 cannot hold: the same function, in other numbers.

    Most of the channels that the last convolution reads are made smaller by a factor, and the weights that they meet
    larger by it. One scale for the whole tensor then holds the few channels that were kept, or the many, not both.

    Args:
        target: where the SavedModel is written.
        factor: a power of two, so that float32 computes exactly the same.
        kept: how many of the 64 channels stay as they are.
    """
    model = _trained()
    after = model.get_layer(PLANTED)
    norm = model.layers[model.layers.index(model.get_layer("conv2")) + 1]
    small = np.full(64, factor, np.float32)
    small[:kept] = 1.0
    kernel, *rest = after.get_weights()
    after.set_weights([kernel * small[:, None], *rest])
    for part in (norm.gamma, norm.beta):
        part.assign(part.numpy() / small)
    model.export(target, verbose=False)
