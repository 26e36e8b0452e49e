"""SavedModels made of TensorFlow ops: control flow, detector tails, strings and tables, ops that no engine has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Rng = np.random.Generator
KEEP_ALIVE: list[Any] = []  # modules whose Python functions a SavedModel of this process calls


def spec(shape: tuple[int | None, ...] | None, dtype: Any = tf.float32, name: str | None = None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


def save(target: Path, call: Callable[..., Any], *specs: tf.TensorSpec, holds: Any = ()) -> None:
    """Save one function as ``serving_default``; ``holds`` are the variables and tables that it captures."""
    module = tf.Module()
    module.holds = list(holds)
    module.call = tf.function(call, input_signature=specs)
    tf.saved_model.save(module, str(target), signatures={"serving_default": module.call})


def normal(*shape: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """float32 weights: standard normal times ``scale``."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def conv(x: Any, weight: tf.Variable, strides: int = 1) -> Any:
    return tf.nn.relu(tf.nn.conv2d(x, weight, strides=strides, padding="SAME"))


def vectors(*shape: int, name: str = "x") -> Callable[[Rng], dict[str, np.ndarray]]:
    return lambda rng: {name: rng.standard_normal(shape).astype(np.float32)}


def while_loop(target: Path) -> None:
    """A loop whose number of turns depends on the data, between two dense layers."""
    a, b = tf.Variable(normal(8, 8, seed=1, scale=0.4)), tf.Variable(normal(8, 5, seed=2))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def more(i: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            return tf.logical_and(i < 12, tf.reduce_sum(tf.abs(y)) < 40.0)

        def step(i: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, tf.tanh(y @ a) + y * 1.1

        turns, y = tf.while_loop(more, step, (tf.constant(0), tf.nn.relu(x @ a)))
        return {"y": y @ b, "turns": turns}

    save(target, call, spec((None, 8), name="x"), holds=(a, b))


def cond(target: Path) -> None:
    """Two branches with different weights, chosen by the data; plus a choice by a bool input."""
    a, b = tf.Variable(normal(8, 8, seed=3)), tf.Variable(normal(8, 8, seed=4))

    def call(x: tf.Tensor, flip: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.cond(tf.reduce_mean(x) > 0.0, lambda: tf.nn.relu(x @ a), lambda: tf.tanh(x @ b))
        z = tf.cond(flip, lambda: tf.reverse(y, [1]), lambda: tf.identity(y))
        return {"y": tf.nn.softmax(z @ b)}

    save(target, call, spec((None, 8), name="x"), spec((), tf.bool, "flip"), holds=(a, b))


def cond_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((3, 8)).astype(np.float32), "flip": np.array(True)}


def tensor_array(target: Path) -> None:
    """A running mean that writes a TensorArray, step after step."""
    a = tf.Variable(normal(6, 6, seed=5, scale=0.5))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        steps = tf.transpose(x, [1, 0, 2])
        seen = tf.TensorArray(tf.float32, size=tf.shape(steps)[0])

        def body(i: tf.Tensor, mean: tf.Tensor, out: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            mean = 0.9 * mean + 0.1 * tf.tanh(steps[i] @ a)
            return i + 1, mean, out.write(i, mean)

        first = tf.zeros_like(steps[0])
        last = tf.while_loop(lambda i, *_: i < tf.shape(steps)[0], body, (0, first, seen))
        return {"means": tf.transpose(last[2].stack(), [1, 0, 2]), "last": last[1]}

    save(target, call, spec((None, None, 6), name="x"), holds=(a,))


def detector(target: Path) -> None:
    """A convolutional backbone, box and score heads, CombinedNonMaxSuppression behind."""
    w = [tf.Variable(normal(3, 3, i, o, seed=s, scale=0.2)) for s, (i, o) in enumerate([(3, 16), (16, 24), (24, 24)])]
    box, score = tf.Variable(normal(1, 1, 24, 4, seed=8, scale=0.1)), tf.Variable(normal(1, 1, 24, 3, seed=9))

    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        x = image / 127.5 - 1.0
        for weight in w:
            x = conv(x, weight, strides=2)
        batch = tf.shape(x)[0]
        centre = tf.nn.sigmoid(tf.reshape(tf.nn.conv2d(x, box, 1, "SAME"), [batch, -1, 1, 4]))
        boxes = tf.concat([centre[..., :2] - 0.2, centre[..., :2] + 0.1 + 0.3 * centre[..., 2:]], -1)
        scores = tf.nn.sigmoid(tf.reshape(tf.nn.conv2d(x, score, 1, "SAME"), [batch, -1, 3]))
        kept = tf.image.combined_non_max_suppression(boxes, scores, 20, 30, iou_threshold=0.4, score_threshold=0.3)
        names = ("boxes", "scores", "classes", "count")
        return dict(zip(names, kept, strict=True))

    save(target, call, spec((None, 64, 64, 3), name="image"), holds=(*w, box, score))


def detector_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"image": rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)}


def decode_and_label(target: Path) -> None:
    """Encoded images in, labels as text out: DecodeImage and resize in front, a table with a vocabulary behind."""
    w = [tf.Variable(normal(3, 3, i, o, seed=20 + o, scale=0.3)) for i, o in [(3, 8), (8, 16), (16, 16)]]
    head, bias = tf.Variable(normal(16, 6, seed=29, scale=2.0)), tf.Variable([0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    words = ["cat", "dog", "heron", "newt", "otter", "wren"]
    vocabulary = target.parent / (target.name + "-words.txt")
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    by_number = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
        ),
        default_value="?",
    )
    by_word = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(words, tf.range(len(words), dtype=tf.int64)), num_oov_buckets=3
    )

    def one(data: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
        image = tf.image.resize(image, (48, 48))
        return tf.ensure_shape(image, (48, 48, 3))

    def call(encoded: tf.Tensor, hint: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.map_fn(one, encoded, fn_output_signature=tf.float32) / 255.0 - 0.5
        for weight in w:
            x = conv(x, weight, strides=2)
        x = tf.reduce_mean(x, [1, 2])
        p = tf.nn.softmax((x - tf.reduce_mean(x, 1, keepdims=True)) @ head + bias)
        best = tf.argmax(p, -1)
        label = tf.strings.join([by_number.lookup(best), tf.strings.as_string(best)], "#")
        return {"label": label, "probabilities": p, "hint_number": by_word.lookup(hint)}

    specs = (spec((None,), tf.string, "encoded"), spec((None,), tf.string, "hint"))
    save(target, call, *specs, holds=(*w, head, bias, by_number, by_word))
    vocabulary.unlink()  # the SavedModel has its own copy


def decode_and_label_inputs(rng: Rng) -> dict[str, np.ndarray]:
    pictures = [
        rng.integers(low, high, (size, size + 7, 3)).astype(np.uint8)
        for size, low, high in [(40, 0, 60), (64, 90, 256)]
    ]
    encoded = [tf.io.encode_jpeg(pictures[0]).numpy(), tf.io.encode_png(pictures[1]).numpy()]
    return {"encoded": np.array(encoded, object), "hint": np.array([b"otter", b"unheard of"], object)}


def odd_ops(target: Path) -> None:
    """Dense layers around ops without a lowering: Svd, Erfc, stateless random."""
    a, b = tf.Variable(normal(12, 12, seed=30, scale=0.3)), tf.Variable(normal(12, 7, seed=31))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a + 0.1)
        y = tf.math.erfc(y @ a) * tf.sigmoid(y)
        values = tf.linalg.svd(tf.matmul(y, y, transpose_a=True), compute_uv=False)
        noise = tf.random.stateless_normal(tf.shape(y), seed=[3, 5])
        y = tf.nn.softmax((y + 0.1 * noise + values[None, :] * 0.01) @ a)
        return {"y": tf.tanh(y @ b), "values": values}

    save(target, call, spec((None, 12), name="x"), holds=(a, b))


def stateful_random(target: Path) -> None:
    """A stateful random op whose values are multiplied by zero: outputs can be compared, the op must still run."""
    a = tf.Variable(normal(9, 9, seed=32))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a)
        noise = tf.random.normal(tf.shape(y))
        return {"y": tf.tanh(y @ a), "noise_shape": tf.shape(noise), "calm": (y + 0.0 * noise) @ a}

    save(target, call, spec((None, 9), name="x"), holds=(a,))


def python_function(target: Path) -> None:
    """``tf.py_function`` and ``tf.numpy_function`` in the middle; runs only in the process that made it."""
    a, b = tf.Variable(normal(9, 9, seed=33)), tf.Variable(normal(9, 4, seed=34))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a)
        y = tf.ensure_shape(tf.py_function(lambda t: tf.cumsum(t, 1), [y], tf.float32), (None, 9))
        y = tf.tanh(y @ a)
        y = tf.ensure_shape(tf.numpy_function(lambda t: np.sort(t, axis=1), [y], tf.float32), (None, 9))
        return {"y": tf.nn.softmax(y @ b)}

    module = tf.Module()
    module.a, module.b = a, b
    module.call = tf.function(call, input_signature=[spec((None, 9), name="x")])
    KEEP_ALIVE.append(module)
    tf.saved_model.save(module, str(target), signatures={"serving_default": module.call})
