"""ImageNet networks without a download, and real photographs to feed them with.

As Keras makes them, untrained networks give nearly the same answer for every image, so that errors hide. With the
statistics of photographs in their normalizations alone they are chaotic: a change of the image of a thousandth changes
the answer by 2 % (EfficientNetB0) to 4.6 % (MobileNetV2), which no float16 engine stands, and no trained network does.
So normalizations get two more properties of trained ones: residual branches add little to what they are added to, and
activations mostly let pass what they are given. The same change then makes one of about 0.2 %: see :func:`gain`.
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
_BRANCH = 0.2  # scale of what a residual branch adds, against what it is added to
_BEFORE_ACTIVATION = 1.0  # mean of what an activation is given, in standard deviations


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
    """Export a network with random weights and settled statistics; its logits have a standard deviation of two."""
    made(name).export(target, verbose=False)


def gain(name: str) -> float:
    """Relative change of the answers over that of the images, for noise of a thousandth of the images' norm."""
    model, images = made(name), prepared(name, crops(4, seed=3))
    noise = np.random.default_rng(1).standard_normal(images.shape).astype(np.float32)
    noise *= np.float32(1e-3) * np.linalg.norm(images) / np.linalg.norm(noise)
    plain, changed = np.asarray(model(images)), np.asarray(model(images + noise))
    return float(np.linalg.norm(changed - plain) / np.linalg.norm(plain) / 1e-3)


def made(name: str) -> keras.Model:
    """The network itself."""
    keras.utils.set_random_seed(11)
    make: Callable[..., keras.Model] = getattr(keras.applications, name)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    model = make(weights=None, input_tensor=image, classifier_activation=None)
    model = keras.Model(model.inputs[0], model.outputs[0])  # one tensor in, not a list of one
    shown = prepared(name, crops(16, seed=3))
    rng = np.random.default_rng(7)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
        readers = _readers(layer)
        branch = layers.Add in readers and "_0_" not in layer.name  # so Keras calls projections of what is added to
        scale = _BRANCH if branch else 1.0
        mean = _BEFORE_ACTIVATION if readers & {layers.Activation, layers.ReLU} else 0.0
        layer.gamma.assign(scale * rng.uniform(0.7, 1.3, layer.gamma.shape))
        layer.beta.assign(rng.normal(mean, 0.2, layer.beta.shape))
        layer.momentum = 0.0  # one training step then leaves exactly this batch's statistics
    model(shown, training=True)
    head = model.layers[-1]
    head.kernel.assign(head.kernel * (2.0 / np.asarray(model(shown)).std()))
    return model


def _readers(layer: keras.Layer) -> set[type]:
    """Kinds of layers that read a layer's output; what drops out in training reads for its own reader."""
    found = [node.operation for node in layer._outbound_nodes]  # noqa: SLF001  (Keras shows no other way)
    return {kind for item in found for kind in (_readers(item) if isinstance(item, layers.Dropout) else {type(item)})}
