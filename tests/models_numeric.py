"""SavedModels whose numbers are easy to get wrong: integer division, resizing, int64, float64, empty, NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.models_ops import Rng, conv, normal, save, spec


def integer_division(target: Path) -> None:
    """``//``, ``%``, truncating division and remainder of int32 and int64 with mixed signs."""

    def call(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "quotient32": a // b,
            "remainder32": a % b,
            "quotient64": c // d,
            "remainder64": c % d,
            "truncated": tf.truncatediv(a, b),
            "truncated_remainder": tf.truncatemod(a, b),
            "float_quotient": tf.math.floordiv(tf.cast(a, tf.float32), tf.cast(b, tf.float32)),
        }

    save(
        target,
        call,
        spec((None,), tf.int32, "a"),
        spec((None,), tf.int32, "b"),
        spec((None,), tf.int64, "c"),
        spec((None,), tf.int64, "d"),
    )


def integer_division_inputs(rng: Rng) -> dict[str, np.ndarray]:
    divisors = np.array([3, -3, 7, -7, 5, -5, 1, -1, 2, -2])
    numbers = np.concatenate([[7, 7, -7, -7, -15, 15, -1, 1, -9, 9], rng.integers(-99, 99, 30)])
    divisors = np.tile(divisors, 4)
    return {
        "a": numbers.astype(np.int32),
        "b": divisors.astype(np.int32),
        "c": numbers.astype(np.int64) * 3_000_000_019,
        "d": divisors.astype(np.int64) * 11,
    }


def integer_matmul(target: Path) -> None:
    """Integer arithmetic in a network: uint8 pixels, int32 sums that wrap over, casts back and forth."""
    weight = tf.Variable(np.random.default_rng(40).integers(-90, 90, (12, 6)).astype(np.int32))

    def call(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.cast(pixels, tf.int32)
        y = tf.matmul(x, weight)
        return {
            "sums": y,
            "wrapped": y * 100_003,
            "bytes": tf.cast(tf.abs(y) % 256, tf.uint8),
            "halves": tf.cast(tf.cast(y, tf.float32) * 0.5, tf.int32),
            "rounded": tf.round(tf.cast(y, tf.float32) * 0.5),
        }

    save(target, call, spec((None, 12), tf.uint8, "pixels"), holds=(weight,))


def pixels_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"pixels": rng.integers(0, 256, (4, 12)).astype(np.uint8)}


def resizes(target: Path) -> None:
    """Every resize method that networks use, up and down, each after a convolution."""
    weight = tf.Variable(normal(3, 3, 3, 4, seed=41, scale=0.3))

    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        x = conv(image, weight)
        return {
            "area_down": tf.image.resize(x, (5, 7), method="area"),
            "area_up": tf.image.resize(x, (24, 22), method="area"),
            "nearest_down": tf.image.resize(x, (5, 7), method="nearest"),
            "nearest_up": tf.image.resize(x, (29, 23), method="nearest"),
            "bilinear_down": tf.image.resize(x, (5, 7), method="bilinear"),
            "bilinear_up": tf.image.resize(x, (29, 23), method="bilinear"),
            "bicubic_up": tf.image.resize(x, (29, 23), method="bicubic"),
            "corners": tf.compat.v1.image.resize_bilinear(x, (29, 23), align_corners=True),
            "corners_nearest": tf.compat.v1.image.resize_nearest_neighbor(x, (29, 23), align_corners=True),
            "legacy": tf.compat.v1.image.resize_bilinear(x, (29, 23)),
            "legacy_nearest": tf.compat.v1.image.resize_nearest_neighbor(x, (29, 23)),
        }

    save(target, call, spec((None, 16, 11, 3), name="image"), holds=(weight,))


def resizes_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"image": rng.standard_normal((2, 16, 11, 3)).astype(np.float32)}


def argmax_gather(target: Path) -> None:
    """int64 indices: argmax, top_k, gather and gather_nd with them; ties go to the first."""
    a = tf.Variable(normal(10, 10, seed=42))
    table = tf.Variable(normal(10, 6, seed=43))

    def call(x: tf.Tensor, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a)
        best = tf.argmax(y, -1)
        worst = tf.argmin(y, -1, output_type=tf.int32)
        top = tf.math.top_k(y, 3)
        picked = tf.gather(table, best)
        return {
            "best": best,
            "worst": worst,
            "picked": picked,
            "rows": tf.gather(table, rows),
            "batched": tf.gather(y, rows[:, None], batch_dims=1),
            "top": top.values,
            "top_at": top.indices,
            "one_hot": tf.one_hot(best, 10),
            "far": best + 3_000_000_000,
        }

    save(target, call, spec((None, 10), name="x"), spec((None,), tf.int64, "rows"), holds=(a, table))


def argmax_gather_inputs(rng: Rng) -> dict[str, np.ndarray]:
    x = rng.standard_normal((5, 10)).astype(np.float32)
    x[0] = 0.0  # every value of the first row is a tie
    return {"x": x, "rows": rng.integers(0, 10, 5).astype(np.int64)}


def float64(target: Path) -> None:
    """A float32 network with a float64 part that float32 cannot stand in for."""
    a, b = tf.Variable(normal(8, 8, seed=44)), tf.Variable(normal(8, 8, seed=45).astype(np.float64))

    def call(x: tf.Tensor, tiny: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a)
        z = tf.matmul(tf.cast(y, tf.float64), b) + 1e9
        z = (z - 1e9) * tf.constant(1.0 + 1e-12, tf.float64)
        return {"y": tf.tanh(tf.cast(z, tf.float32) @ a), "z": z, "kept": (1.0 + tiny) - 1.0}

    save(target, call, spec((None, 8), name="x"), spec((None,), tf.float64, "tiny"), holds=(a, b))


def float64_inputs(rng: Rng) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((3, 8)).astype(np.float32), "tiny": np.array([1e-12, -3e-13, 1e-10])}


def half(target: Path) -> None:
    """float16 and bfloat16 layers inside a float32 network, as mixed-precision training leaves them."""
    a = tf.Variable(normal(16, 16, seed=46, scale=0.25))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(tf.cast(x, tf.float16) @ tf.cast(a, tf.float16))
        z = tf.tanh(tf.cast(x, tf.bfloat16) @ tf.cast(a, tf.bfloat16))
        return {"half": y, "y": tf.cast(y, tf.float32) @ a, "z": tf.cast(z, tf.float32)}

    save(target, call, spec((None, 16), name="x"), holds=(a,))


def not_finite(target: Path) -> None:
    """Ops that NaN and Inf pass through in their own ways."""

    def call(x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        image = tf.reshape(x, [-1, 4, 4, 2])
        return {
            "relu": tf.nn.relu(x),
            "relu6": tf.nn.relu6(x),
            "leaky": tf.nn.leaky_relu(x, 0.1),
            "elu": tf.nn.elu(x),
            "softplus": tf.nn.softplus(x),
            "clip": tf.clip_by_value(x, -1.0, 1.0),
            "maximum": tf.maximum(x, y),
            "minimum": tf.minimum(x, y),
            "sigmoid": tf.sigmoid(x),
            "tanh": tf.tanh(x),
            "softmax": tf.nn.softmax(x),
            "log_softmax": tf.nn.log_softmax(x),
            "reduce_max": tf.reduce_max(x, -1),
            "reduce_min": tf.reduce_min(x, -1),
            "reduce_sum": tf.reduce_sum(x, -1),
            "max_pool": tf.nn.max_pool2d(image, 2, 2, "VALID"),
            "avg_pool": tf.nn.avg_pool2d(image, 2, 2, "SAME"),
            "quotient": x / y,
            "is_nan": tf.math.is_nan(x),
            "greater": x > y,
            "where": tf.where(tf.math.is_finite(x), x, tf.zeros_like(x)),
            "sign": tf.sign(x),
            "argmax": tf.argmax(x, -1),
        }

    save(target, call, spec((None, 32), name="x"), spec((None, 32), name="y"))


def not_finite_inputs(rng: Rng) -> dict[str, np.ndarray]:
    x = (5 * rng.standard_normal((6, 32))).astype(np.float32)
    y = rng.standard_normal((6, 32)).astype(np.float32)
    for row, value in enumerate([np.nan, np.inf, -np.inf, 0.0, -0.0]):
        x[row, rng.integers(0, 32, 5)] = value
        y[row, rng.integers(0, 32, 3)] = value
    x[4] = np.nan  # a row of nothing else
    return {"x": x, "y": y}


def empty_and_dynamic(target: Path) -> None:
    """Dynamic batch and length: products, pooling, reductions and concatenation that must take zero rows.

    No convolution: TensorFlow's own with oneDNN gives an empty batch the wrong shape.
    """
    a, b = tf.Variable(normal(2, 5, seed=47)), tf.Variable(normal(5, 3, seed=48))

    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.nn.relu(tf.tensordot(image, a, 1))
        pooled = tf.reduce_mean(x, [1, 2])
        y = tf.concat([pooled @ b, pooled[:, :2]], -1)
        return {
            "y": tf.nn.softmax(y),
            "total": tf.reduce_sum(y, 0),
            "highest": tf.reduce_max(y, 0),
            "mean": tf.reduce_mean(x, [0, 3]),
            "pool": tf.nn.max_pool2d(x, 2, 2, "VALID"),
            "count": tf.shape(y),
            "flat": tf.reshape(x, [tf.shape(x)[0], -1]),
            "none_of_it": x[:0],
        }

    save(target, call, spec((None, 6, 6, 2), name="image"), holds=(a, b))


def images(rows: int) -> Callable[[Rng], dict[str, np.ndarray]]:
    """Inputs for ``empty_and_dynamic`` with this many images."""
    return lambda rng: {"image": rng.standard_normal((rows, 6, 6, 2)).astype(np.float32)}
