"""Networks that only these tools ask about: an encoder as large as BERT's layers, a detector with TensorFlow inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tools.figures import photos

Array = Any
POSITIONS, WIDTH = 128, 768  # of the encoder
SIZE, CELLS, CLASSES = 96, 6, 3  # of the detector's image, of its grid, and what it tells apart
_KEPT = 2 * CELLS * CELLS  # boxes: as many as there are, so that nearly equal scores do not decide who is kept


def encoder(target: Path, blocks: int = 6, width: int = WIDTH) -> None:
    """Blocks of a transformer's encoder over float32[batch, 128, width], 64 wide in each head."""
    keras.utils.set_random_seed(5)
    x = given = keras.Input((POSITIONS, width), name="x")
    for _ in range(blocks):
        y = layers.MultiHeadAttention(width // 64, 64)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, y]))
        y = layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, y]))
    keras.Model(given, x).export(target, verbose=False)


def encoded(seed: int) -> dict[str, Array]:
    """Inputs of the encoder: two sequences."""
    return {"x": np.random.default_rng(seed).standard_normal((2, POSITIONS, WIDTH)).astype(np.float32)}


class _Detector(tf.Module):  # type: ignore[misc]
    """Backbone, boxes and scores, suppression in TensorFlow, and a second stage over what was kept.

    Each cell of the grid has two boxes that overlap by four fifths, so one of them is suppressed, and boxes of other
    cells hardly touch. What is kept therefore does not hang on the last bits of a score, and the second stage sums over
    boxes in no order: rounding may change the answers a little, and never at a jump.
    """

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(4)

        def weight(*shape: int, gain: float = 1.0) -> Any:
            scale = gain / np.sqrt(np.prod(shape[:-1]))
            return tf.Variable((scale * rng.standard_normal(shape)).astype(np.float32))

        self.backbone = [weight(3, 3, i, o, gain=1.5) for i, o in ((3, 24), (24, 32), (32, 48), (48, 64))]
        self.shift, self.score = weight(1, 1, 64, 2), weight(1, 1, 64, CLASSES)
        self.first, self.second = weight(64 + 5, 128, gain=1.5), weight(128, 10, gain=2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="image")])  # type: ignore[untyped-decorator]
    def serve(self, image: Any) -> dict[str, Any]:
        """From pixels between -1 and 1 to ten logits, and how many boxes were kept."""
        x = image
        for weight in self.backbone:
            x = tf.nn.relu(tf.nn.conv2d(x, weight, 2, "SAME"))
        batch = tf.shape(x)[0]
        corner = tf.constant(np.stack(np.meshgrid(*[np.arange(CELLS)] * 2, indexing="ij"), -1), tf.float32)
        low = (corner + 0.1 * tf.nn.sigmoid(tf.nn.conv2d(x, self.shift, 1, "SAME"))) / CELLS
        boxes = tf.concat([tf.concat([low, low + size / CELLS], -1) for size in (0.8, 0.9)], -1)
        boxes = tf.reshape(boxes, [batch, _KEPT, 1, 4])
        scores = tf.nn.sigmoid(tf.nn.conv2d(x, self.score, 1, "SAME"))
        scores = tf.reshape(tf.stack([scores, 0.5 * scores], -2), [batch, _KEPT, CLASSES])
        kept, strength, kinds, count = tf.image.combined_non_max_suppression(
            boxes, scores, _KEPT, CLASSES * _KEPT, iou_threshold=0.5, score_threshold=0.0
        )
        whole = tf.tile(tf.reduce_mean(x, [1, 2])[:, None], [1, CLASSES * _KEPT, 1])
        seen = tf.concat([kept, kinds[..., None] / CLASSES, whole], -1)
        hidden = tf.nn.relu(tf.reshape(seen, [-1, 64 + 5]) @ self.first)
        told = tf.reshape(hidden @ self.second, [batch, CLASSES * _KEPT, 10])
        return {"logits": tf.reduce_sum(told * strength[..., None], 1) / 10.0, "count": count}


def detector(target: Path) -> None:
    """Export the detector."""
    module = _Detector()
    tf.saved_model.save(module, str(target), signatures={"serving_default": module.serve})


def pictures(count: int, seed: int) -> dict[str, Array]:
    """Inputs of the detector: squares of photographs."""
    shown = tf.image.resize(photos.crops(count, seed), (SIZE, SIZE)).numpy()
    return {"image": shown / np.float32(127.5) - np.float32(1.0)}
