"""SavedModels with every kind of interface: many signatures, odd names, dtypes, ranks, no inputs, state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.models_ops import Rng, normal, save, spec, vectors


def several_signatures(target: Path) -> None:
    """Three signatures that share variables: the whole network, its first half, its second half."""
    module = tf.Module()
    module.a = tf.Variable(normal(12, 20, seed=60, scale=0.4))
    module.b = tf.Variable(normal(20, 4, seed=61, scale=0.4))

    @tf.function(input_signature=[spec((None, 12), name="x")])
    def encode(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"code": tf.tanh(tf.nn.relu(x @ module.a) * 0.5 + 0.1)}

    @tf.function(input_signature=[spec((None, 20), name="code")])
    def decide(code: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"p": tf.nn.softmax(tf.nn.relu(code) @ module.b)}

    @tf.function(input_signature=[spec((None, 12), name="x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return decide(encode(x)["code"])

    module.serve = serve
    signatures = {"serving_default": serve, "encode": encode, "decide": decide}
    tf.saved_model.save(module, str(target), signatures=signatures)


SEVERAL_OTHERS = {"encode": vectors(2, 12), "decide": vectors(2, 20, name="code")}


def odd_names(target: Path) -> None:
    """Input and output names whose alphabetical, numeric and declared orders all differ."""
    a = tf.Variable(normal(6, 6, seed=62))

    def call(zulu: tf.Tensor, alpha: tf.Tensor, input_10: tf.Tensor, input_2: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.nn.relu((zulu - 2.0 * alpha) @ a)
        y = tf.sigmoid((x + input_10 / (1.0 + tf.square(input_2))) @ a)
        return {"output_10": y, "output_2": x, "zeta": y - x, "Alpha": y * x, "class-0": tf.reduce_sum(y, 1)}

    names = ("zulu", "alpha", "input_10", "input_2")
    save(target, call, *(spec((None, 6), name=name) for name in names), holds=(a,))


def odd_names_inputs(rng: Rng) -> dict[str, np.ndarray]:
    names = ("zulu", "alpha", "input_10", "input_2")
    return {name: rng.standard_normal((3, 6)).astype(np.float32) for name in names}


def many_dtypes(target: Path) -> None:
    """uint8, bool, int64, string and float inputs; int, bool, uint8 and string come out again."""
    a = tf.Variable(normal(27, 9, seed=63, scale=0.3))

    def call(
        image: tf.Tensor, flip: tf.Tensor, row: tf.Tensor, text: tf.Tensor, gain: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        x = tf.cast(tf.reshape(image, (-1, 27)), tf.float32) / 255.0
        y = tf.nn.relu(tf.where(flip[:, None], tf.reverse(x, [1]), x) @ a * gain[:, None])
        y = tf.nn.softmax(y @ tf.transpose(a))
        return {
            "y": y,
            "row": tf.gather(y, row, batch_dims=1),
            "bright": tf.reduce_mean(x, 1) > 0.5,
            "inverse": 255 - image,
            "length": tf.strings.length(text),
            "upper": tf.strings.upper(text),
            "not_flip": tf.logical_not(flip),
        }

    specs = (
        spec((None, 3, 3, 3), tf.uint8, "image"),
        spec((None,), tf.bool, "flip"),
        spec((None,), tf.int64, "row"),
        spec((None,), tf.string, "text"),
        spec((None,), tf.float32, "gain"),
    )
    save(target, call, *specs, holds=(a,))


def many_dtypes_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {
        "image": rng.integers(0, 256, (4, 3, 3, 3)).astype(np.uint8),
        "flip": np.array([True, False, False, True]),
        "row": rng.integers(0, 27, 4).astype(np.int64),
        "text": np.array([b"one", b"", "zwölf".encode(), b"\xff\x00raw"], object),
        "gain": rng.uniform(0.5, 3.0, 4).astype(np.float32),
    }


def unknown_rank(target: Path) -> None:
    """An input of any rank whose last axis is the features."""
    a = tf.Variable(normal(8, 8, seed=64))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        flat = tf.reshape(x, (-1, 8))
        y = tf.nn.softmax(tf.nn.relu(flat @ a) @ a * 0.3)
        return {"y": tf.reshape(y, tf.shape(x)), "mean": tf.reduce_mean(x), "twice": tf.nn.elu(x) * 2.0}

    save(target, call, spec(None, name="x"), holds=(a,))


def no_input(target: Path) -> None:
    """A signature without inputs: everything comes from variables."""
    a = tf.Variable(normal(5, 5, seed=65))

    def call() -> dict[str, tf.Tensor]:
        x = tf.nn.relu(a @ tf.transpose(a))
        return {"gram": x, "p": tf.nn.softmax(x @ a)}

    save(target, call, holds=(a,))


def captured_table(target: Path) -> None:
    """Captured variables, a captured constant and a captured mutable table next to dense layers."""
    a, shift = tf.Variable(normal(7, 7, seed=66)), tf.constant(normal(7, seed=67))
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant([3, 5, 8], tf.int64), tf.constant([0.5, -1.5, 2.5], tf.float32)
        ),
        default_value=0.25,
    )

    def call(x: tf.Tensor, key: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a + shift)
        return {"y": tf.tanh((y * table.lookup(key)[:, None]) @ a), "factor": table.lookup(key)}

    save(target, call, spec((None, 7), name="x"), spec((None,), tf.int64, "key"), holds=(a, table))


def captured_table_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((4, 7)).astype(np.float32), "key": np.array([3, 4, 5, 8], np.int64)}


def counter(target: Path) -> None:
    """A signature that changes a variable: it counts its calls and keeps a running sum of the rows it saw."""
    a = tf.Variable(normal(6, 6, seed=68))
    calls, total = tf.Variable(0, dtype=tf.int64), tf.Variable(tf.zeros(6))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(tf.tanh(x @ a) + 0.2)
        count = calls.assign_add(1)
        seen = total.assign_add(tf.reduce_sum(y, 0))
        return {"y": y @ a, "calls": tf.identity(count), "total": tf.identity(seen)}

    save(target, call, spec((None, 6), name="x"), holds=(a, calls, total))


def pass_through(target: Path) -> None:
    """Outputs that are inputs, constants, and twice the same tensor."""
    a = tf.Variable(normal(4, 4, seed=69))

    def call(x: tf.Tensor, note: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a) @ a
        return {"x": x, "y": y, "y_again": y, "note": note, "version": tf.constant([1, 2, 3])}

    save(target, call, spec((None, 4), name="x"), spec((), tf.string, "note"), holds=(a,))


def pass_through_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((2, 4)).astype(np.float32), "note": np.array(b"as it is", object)}
