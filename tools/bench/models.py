"""Models that benchmarks convert and run: real architectures with made-up weights, and extremes of size.

``python -m tools.bench.models NAME DIR ...`` writes them; ``dense_stack:width=64,depth=2`` is one of another size.
Weights are random but not degenerate, so that a wrong value anywhere shows in the output: batch normalizations get the
statistics of real activations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def _images(make: Callable[..., Any], target: Path, scale: float = 1.0) -> None:
    """A network of Keras' applications for images of 224 x 224, ``float32[batch, 224, 224, 3]``."""
    keras.utils.set_random_seed(21)
    model = make(weights=None, input_tensor=keras.Input((224, 224, 3), name="image"))
    model = keras.Model(model.inputs[0], model.outputs[0])  # one tensor in, not a list of one
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0  # one training step then leaves exactly this batch's statistics
    model((scale * np.random.default_rng(3).standard_normal((2, 224, 224, 3))).astype(np.float32), training=bool(norms))
    for layer in norms:
        layer.momentum = 0.99
    model.export(target, verbose=False)


def resnet50(target: Path) -> None:
    """25.6 M parameters, 53 convolutions."""
    _images(keras.applications.ResNet50, target)


def efficientnetb0(target: Path) -> None:
    """5.3 M parameters, depthwise convolutions, swish and squeeze-and-excitation."""
    _images(keras.applications.EfficientNetB0, target, scale=60.0)


def vgg16(target: Path) -> None:
    """138 M parameters, nearly all in one Dense layer."""
    _images(keras.applications.VGG16, target)


def bert_base(target: Path) -> None:
    """An encoder of BERT-base's size: 12 layers of 768, 12 heads, 30,522 tokens; ``int32[batch, 128]`` ids and mask."""
    keras.utils.set_random_seed(22)
    ids = keras.Input((128,), dtype="int32", name="token_ids")
    mask = keras.Input((128,), dtype="int32", name="mask")
    positions = layers.Embedding(128, 768)(keras.ops.arange(128))
    x = layers.LayerNormalization(epsilon=1e-12)(layers.Embedding(30522, 768)(ids) + positions)
    allowed = keras.ops.expand_dims(keras.ops.cast(mask, "bool"), 1)
    for _ in range(12):
        x = layers.LayerNormalization(epsilon=1e-12)(
            x + layers.MultiHeadAttention(12, 64)(x, x, attention_mask=allowed)
        )
        y = layers.Dense(3072, activation=lambda v: keras.activations.gelu(v, approximate=False))(x)
        x = layers.LayerNormalization(epsilon=1e-12)(x + layers.Dense(768)(y))
    pooled = layers.Dense(768, activation="tanh")(x[:, 0])
    keras.Model([ids, mask], {"tokens": x, "pooled": pooled}).export(target, verbose=False)


def dense_stack(target: Path, width: int = 8192, depth: int = 8) -> None:
    """Dense layers of ``width`` x ``width`` x 4 bytes each: 2.1 GB by default, more than a protobuf may hold."""
    module, rng = tf.Module(), np.random.default_rng(23)

    def kernel() -> Any:
        return tf.Variable(rng.standard_normal((width, width), np.float32) / np.float32(np.sqrt(width)))

    module.kernels = [kernel() for _ in range(depth)]

    @tf.function(input_signature=[tf.TensorSpec((None, width), tf.float32, name="x")])  # type: ignore[untyped-decorator]
    def call(x: Any) -> dict[str, Any]:
        for variable in module.kernels:
            x = tf.nn.relu(x @ variable) * 1.4142135
        return {"y": x}

    tf.saved_model.save(module, str(target), signatures=call.get_concrete_function())


def large_embedding(target: Path, rows: int = 1_200_000, width: int = 512) -> None:
    """A table of 2.5 GB by default, and a small classifier behind it; ``int32[batch, 16]``."""
    module, rng = tf.Module(), np.random.default_rng(24)
    module.table = tf.Variable(rng.standard_normal((rows, width), np.float32))
    module.kernel = tf.Variable(rng.standard_normal((width, 8)).astype(np.float32) / np.float32(np.sqrt(width)))

    @tf.function(input_signature=[tf.TensorSpec((None, 16), tf.int32, name="ids")])  # type: ignore[untyped-decorator]
    def call(ids: Any) -> dict[str, Any]:
        return {"y": tf.tanh(tf.reduce_mean(tf.gather(module.table, ids), 1) @ module.kernel)}

    tf.saved_model.save(module, str(target), signatures=call.get_concrete_function())


def dilated_resnets(target: Path, count: int = 5, blocks: int = 240) -> None:
    """``count`` dilated 1-D ResNets over one sequence, averaged, ten ops a block; ``float32[batch, 400, 4]``."""
    keras.utils.set_random_seed(25)
    sequence = keras.Input((400, 4), name="sequence")

    def unit(x: Any, dilation: int) -> Any:
        y = layers.ReLU()(layers.BatchNormalization()(x))
        return layers.Conv1D(8, 3, dilation_rate=dilation, padding="same")(y)

    heads = []
    for _ in range(count):
        x = layers.Conv1D(8, 1)(sequence)
        for index in range(blocks):
            x = x + 0.3 * unit(x, 1 + index % 4)
        heads.append(layers.Conv1D(3, 1, activation="softmax")(x))
    keras.Model(sequence, layers.Average()(heads)).export(target, verbose=False)


def many_islands(target: Path, count: int = 200) -> None:
    """``count`` short runs of float ops with an op on strings between them, which stays in TensorFlow."""

    @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])  # type: ignore[untyped-decorator]
    def call(x: Any) -> dict[str, Any]:
        for index in range(count):
            x = tf.tanh(x * (1.0 + index / count)) + x / 2.0 - tf.sigmoid(x)
            x = tf.reshape(tf.strings.to_number(tf.strings.as_string(x, precision=6)), tf.shape(x))
        return {"y": x}

    tf.saved_model.save(tf.Module(), str(target), signatures=call.get_concrete_function())


def relu(target: Path) -> None:
    """One op: what a call costs beyond computing anything; ``float32[n]``."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="x")])  # type: ignore[untyped-decorator]
    def call(x: Any) -> dict[str, Any]:
        return {"y": tf.nn.relu(x)}

    tf.saved_model.save(tf.Module(), str(target), signatures=call.get_concrete_function())


MODELS: dict[str, Callable[..., None]] = {
    model.__name__: model
    for model in (
        relu,
        resnet50,
        efficientnetb0,
        vgg16,
        bert_base,
        dense_stack,
        large_embedding,
        dilated_resnets,
        many_islands,
    )
}


def make(spec: str, target: Path) -> None:
    """Write the model that a spec names: ``"resnet50"``, ``"many_islands:count=40"``.

    Raises:
        KeyError: there is no such model.
    """
    name, _, sizes = spec.partition(":")
    MODELS[name](target, **{key: int(value) for key, value in (item.split("=") for item in sizes.split(",") if item)})


if __name__ == "__main__":
    for wanted, place in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        make(wanted, Path(place))
