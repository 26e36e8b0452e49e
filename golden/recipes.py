"""The models of ``golden/``: pure ``tf.Module``, no Keras, every weight drawn from a seed of its own model.

A recipe is a function that makes the module; its ``call`` becomes ``serving_default``. What is drawn is kept in
variables, in the order of drawing, so that a rebuilt model can be compared weight by weight.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Array = np.ndarray[Any, Any]


class Weights:
    """Draws the weights of one model and hangs them on its module.

    Args:
        seed: of the model.
    """

    def __init__(self, seed: int) -> None:
        self.module = tf.Module()
        self.module.weights = []
        self._rng = np.random.default_rng(seed)

    def normal(self, *shape: int, dtype: Any = np.float32) -> Any:
        """Values that keep the variance of what they are multiplied with: normal, over the root of the inputs."""
        inputs = int(np.prod(shape[:-1]))
        return self._keep(self._rng.standard_normal(shape) / np.sqrt(inputs), dtype)

    def uniform(self, low: float, high: float, *shape: int, dtype: Any = np.float32) -> Any:
        """Biases, scales and the like."""
        return self._keep(self._rng.uniform(low, high, shape), dtype)

    def _keep(self, values: Array, dtype: Any) -> Any:
        variable = tf.Variable(drawn(values).astype(dtype))
        self.module.weights.append(variable)
        return variable


def drawn(values: Array) -> Array:
    """Every weight on its way into a model. Here a test plants its faults."""
    return values


def spec(name: str, dtype: Any, *shape: int | None) -> Any:
    """An input of a signature."""
    return tf.TensorSpec(shape, dtype, name=name)


def finish(weights: Weights, call: Callable[..., Any], *inputs: Any) -> Any:
    """The module with its signature."""
    weights.module.call = tf.function(call, input_signature=inputs)
    return weights.module


def convnet() -> Any:
    """An image network: convolutions, an inference batch norm, a depthwise step, a residual, pooling."""
    w = Weights(101)
    first, offset = w.normal(3, 3, 3, 8), w.uniform(-0.1, 0.1, 8)
    scale, shift = w.uniform(0.5, 1.5, 8), w.uniform(-0.2, 0.2, 8)
    mean, variance = w.uniform(-0.2, 0.2, 8), w.uniform(0.5, 1.5, 8)
    depthwise, pointwise = w.normal(3, 3, 8, 1), w.normal(1, 1, 8, 8)
    head, bias = w.normal(8, 10), w.uniform(-0.1, 0.1, 10)

    def call(image: Any) -> dict[str, Any]:
        x = tf.nn.bias_add(tf.nn.conv2d(image, first, 2, "SAME"), offset)
        x = tf.nn.relu6(tf.nn.batch_normalization(x, mean, variance, shift, scale, 1e-3))
        y = tf.nn.relu(tf.nn.depthwise_conv2d(x, depthwise, [1, 1, 1, 1], "SAME"))
        x = x + tf.nn.conv2d(y, pointwise, 1, "VALID")
        x = tf.reduce_mean(tf.nn.max_pool2d(x, 2, 2, "VALID"), axis=[1, 2])
        return {"logits": x @ head + bias}

    return finish(w, call, spec("image", tf.float32, None, 16, 16, 3))


def classifier() -> Any:
    """Two dense layers and a softmax."""
    w = Weights(102)
    hidden, hidden_bias = w.normal(20, 16), w.uniform(-0.1, 0.1, 16)
    head, head_bias = w.normal(16, 5), w.uniform(-0.1, 0.1, 5)

    def call(x: Any) -> dict[str, Any]:
        return {"probabilities": tf.nn.softmax(tf.nn.relu(x @ hidden + hidden_bias) @ head + head_bias)}

    return finish(w, call, spec("x", tf.float32, None, 20))


def lstm() -> Any:
    """A recurrent cell in a ``tf.while_loop``, projections before and after it."""
    w = Weights(103)
    into, kernel, recurrent = w.normal(6, 8), w.normal(8, 32), w.normal(8, 32)
    bias, head = w.uniform(-0.1, 0.1, 32), w.normal(8, 4)

    def call(sequence: Any) -> dict[str, Any]:
        x = tf.tanh(tf.einsum("bti,ij->btj", sequence, into))
        batch = tf.shape(x)[0]

        def step(t: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
            i, f, g, o = tf.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=-1)
            c = tf.sigmoid(f + 1) * c + tf.sigmoid(i) * tf.tanh(g)
            return t + 1, tf.sigmoid(o) * tf.tanh(c), c

        def going(t: Any, *_: Any) -> Any:
            return t < 10

        zeros = tf.zeros([batch, 8])
        _, h, c = tf.while_loop(going, step, (0, zeros, zeros))
        return {"state": c, "scores": tf.nn.softmax(tf.tanh(h) @ head)}

    return finish(w, call, spec("sequence", tf.float32, None, 10, 6))


def words() -> Any:
    """Strings and tables in the middle: what a first network picks is a word, and the word feeds a second one."""
    w = Weights(104)
    first, bias = w.normal(12, 16), w.uniform(-0.1, 0.1, 16)
    pick, embedding, head = w.normal(16, 4), w.normal(5, 12), w.normal(24, 3)
    names = tf.constant(["cat", "dog", "bird", "fish"])
    numbers = tf.lookup.KeyValueTensorInitializer(["CAT", "DOG", "BIRD", "FISH"], tf.range(4, dtype=tf.int64))
    w.module.table = tf.lookup.StaticHashTable(numbers, 4)

    def call(x: Any, text: Any) -> dict[str, Any]:
        hidden = tf.nn.relu(x @ first + bias)
        picked = tf.gather(names, tf.argmax(hidden @ pick, axis=-1))
        word = tf.where(text == "", picked, text)
        ids = w.module.table.lookup(tf.strings.upper(word))
        both = tf.concat([tf.gather(embedding, ids), tf.tanh(hidden[:, :12])], axis=-1)
        return {"word": word, "scores": tf.nn.softmax(tf.nn.relu(both) @ head)}

    return finish(w, call, spec("x", tf.float32, None, 12), spec("text", tf.string, None))


def encoder() -> Any:
    """A sentence encoder: embedding, one block of masked attention, GELU, layer norms, a mean over the tokens."""
    w = Weights(105)
    size, heads = 16, 2
    embedding, position = w.uniform(-1, 1, 100, size), w.uniform(-0.5, 0.5, 12, size)
    query, key, value, out = (w.normal(size, size) for _ in range(4))
    wide, narrow = w.normal(size, 2 * size), w.normal(2 * size, size)
    gain, offset = w.uniform(0.8, 1.2, size), w.uniform(-0.1, 0.1, size)

    def norm(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-6) * gain + offset

    def split(x: Any) -> Any:
        return tf.transpose(tf.reshape(x, [-1, 12, heads, size // heads]), [0, 2, 1, 3])

    def times(x: Any, weight: Any) -> Any:
        return tf.einsum("bti,ij->btj", x, weight)

    def call(ids: Any, mask: Any) -> dict[str, Any]:
        seen = tf.cast(mask > 0, tf.float32)
        x = norm(tf.gather(embedding, ids) + position)
        scores = tf.matmul(split(times(x, query)), split(times(x, key)), transpose_b=True) / np.sqrt(size / heads)
        scores += (1 - seen[:, None, None, :]) * -1e4
        mixed = tf.matmul(tf.nn.softmax(scores), split(times(x, value)))
        x = norm(x + times(tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, 12, size]), out))
        x = norm(x + times(tf.nn.gelu(times(x, wide)), narrow))
        total = tf.reduce_sum(x * seen[..., None], axis=1) / (tf.reduce_sum(seen, axis=1, keepdims=True) + 1e-6)
        return {"sentence": tf.math.l2_normalize(total, axis=-1, epsilon=1e-6)}

    return finish(w, call, spec("ids", tf.int32, None, 12), spec("mask", tf.int32, None, 12))


def ranking() -> Any:
    """Two outputs, one of them whole numbers: the best three of eight, and their places."""
    w = Weights(106)
    hidden, bias, head = w.normal(10, 24), w.uniform(-0.1, 0.1, 24), w.normal(24, 8)

    def call(x: Any) -> dict[str, Any]:
        best = tf.math.top_k(tf.sigmoid(tf.tanh(x @ hidden + bias) @ head), k=3)
        return {"scores": best.values, "places": best.indices}

    return finish(w, call, spec("x", tf.float32, None, 10))


def half() -> Any:
    """A network that computes in float16 itself."""
    w = Weights(107)
    first, bias = w.normal(24, 16, dtype=np.float16), w.uniform(-0.1, 0.1, 16, dtype=np.float16)
    second = w.normal(16, 6, dtype=np.float16)

    def call(x: Any) -> dict[str, Any]:
        return {"y": tf.tanh(tf.nn.relu(x @ first + bias) @ second)}

    return finish(w, call, spec("x", tf.float16, None, 24))


RECIPES: dict[str, Callable[[], Any]] = {
    recipe.__name__: recipe for recipe in (convnet, classifier, lstm, words, encoder, ranking, half)
}


def build(name: str, out: Path) -> Path:
    """Write the model of a recipe as a SavedModel.

    Args:
        name: a key of ``RECIPES``.
        out: the directory to make.

    Returns:
        ``out``.
    """
    module = RECIPES[name]()
    tf.saved_model.save(module, str(out), signatures={"serving_default": module.call})
    return out
