"""ImageNet networks without a download, and real photographs to feed them with.

As Keras makes them, untrained networks give nearly the same answer for every image, so that errors hide; and on noise
they are chaotic. Here normalizations get the statistics of photographs, and networks are judged on other crops.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import sklearn.datasets
import tensorflow as tf
from keras import layers

Array = Any
SIZE = 224
NETWORKS = ("ResNet50", "MobileNetV2", "EfficientNetB0")


def photographs() -> list[Array]:
    """The two that scikit-learn ships, [height, width, 3] float32 in 0 to 255."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [tf.io.decode_jpeg((folder / f"{name}.jpg").read_bytes()).numpy().astype(np.float32) for name in _NAMES]


_NAMES = ("china", "flower")


def crops(count: int, seed: int) -> Array:
    """Random squares of them, of 160 pixels or more, some mirrored: [count, SIZE, SIZE, 3] float32 in 0 to 255."""
    rng = np.random.default_rng(seed)
    pictures, found = photographs(), []
    for index in range(count):
        picture = pictures[index % 2]
        height, width, _ = picture.shape
        side = int(rng.integers(160, height))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        crop = tf.image.resize(picture[top : top + side, left : left + side], (SIZE, SIZE)).numpy()
        found.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(found)


def prepared(name: str, images: Array) -> Array:
    """As the network wants its pixels: in -1 to 1, or as they are (EfficientNet scales them itself)."""
    return images if name.startswith("EfficientNet") else images / np.float32(127.5) - np.float32(1.0)


def network(name: str, target: Path) -> None:
    """A network with random weights and settled statistics; its logits have a standard deviation of two."""
    keras.utils.set_random_seed(11)
    make: Callable[..., keras.Model] = getattr(keras.applications, name)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    model = make(weights=None, input_tensor=image, classifier_activation=None)
    model = keras.Model(model.inputs[0], model.outputs[0])  # one tensor in, not a list of one
    shown = prepared(name, crops(16, seed=3))
    rng = np.random.default_rng(7)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
        layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape))
        layer.beta.assign(rng.normal(0.0, 0.2, layer.beta.shape))
        layer.momentum = 0.0  # one training step then leaves exactly this batch's statistics
    model(shown, training=True)
    head = model.layers[-1]
    head.kernel.assign(head.kernel * (2.0 / np.asarray(model(shown)).std()))
    model.export(target, verbose=False)
