"""A model with two islands, and what tests ask of a cache and of a bundle that may come from it."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from refimpl.bundle import Manifest
from refimpl.cache import Cache, Entry
from refimpl.converter import reuse
from tests.converter.small import write_model
from tests.models_ops import normal, spec


def two_islands(target: Path, seed: int = 2, scale: float = 0.4) -> Path:
    """Dense layers before and after an op that no engine takes."""
    a, b = tf.Variable(normal(8, 16, seed=1, scale=0.4)), tf.Variable(normal(16, 4, seed=seed, scale=scale))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = tf.nn.relu(x @ a) * 0.5 + 0.1
        between = tf.cast(tf.cast(hidden, tf.float64) * 2.0, tf.float32)
        return {"y": tf.tanh(tf.nn.relu(between @ b) + 0.2)}

    return write_model(target, call, spec((None, 8), name="x"), holds=(a, b))


def signatures(cache: Cache) -> list[Entry]:
    return [entry for entry in cache.entries() if entry.kind == reuse.KIND]


def from_cache(manifest: Manifest) -> bool:
    return any("from the cache" in note for note in manifest.notes)
