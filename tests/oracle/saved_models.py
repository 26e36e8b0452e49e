"""Tiny SavedModels, made on the spot: one for each way that TensorFlow writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refimpl.oracle.runners import require_reference_tf

tf: Any = require_reference_tf()[0]


def spec(shape: tuple[int | None, ...] | None, dtype: Any, name: str) -> Any:
    return tf.TensorSpec(shape, dtype, name=name)


class Several(tf.Module):  # type: ignore[misc]
    """Three signatures: floats with a variable, strings with a table, and integers used as indices."""

    def __init__(self) -> None:
        super().__init__()
        weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
        self.weights = tf.Variable(weights)
        self.words = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["cat", "x"], [1, 2]), -1)

    @tf.function
    def dense(self, x: Any) -> dict[str, Any]:
        y = x @ self.weights
        return {"logits": y, "best": tf.argmax(y, -1), "output_10": y[:, 0], "output_2": y[:, 1]}

    @tf.function
    def look_up(self, text: Any) -> dict[str, Any]:
        return {"id": self.words.lookup(text), "upper": tf.strings.upper(text)}

    @tf.function
    def embed(self, ids: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_less(ids, 50)]):
            return {"row": tf.gather(tf.reshape(tf.range(100.0), [50, 2]), ids)}


def several(out: Path) -> Path:
    module = Several()
    signatures = {
        "serving_default": module.dense.get_concrete_function(spec([None, 4], tf.float32, "x")),
        "look_up": module.look_up.get_concrete_function(spec([None], tf.string, "text")),
        "embed": module.embed.get_concrete_function(spec([None, 6], tf.int32, "ids")),
    }
    tf.saved_model.save(module, str(out), signatures=signatures)
    return out


def from_function(out: Path, call: Any, *specs: Any) -> Path:
    module = tf.Module()
    module.call = tf.function(call, input_signature=specs)
    tf.saved_model.save(module, str(out), signatures={"serving_default": module.call})
    return out


def tf1_style(out: Path, tags: tuple[str, ...] = ("serve",)) -> Path:
    """A graph of the TF1 builder with a reference variable and tags of its own."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, [None, 2], name="x")
        scale = v1.get_variable("scale", initializer=np.float32([2.0, 3.0]), use_resource=False)
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"images": x}, {"scaled": x * scale})
        builder = v1.saved_model.Builder(str(out))
        builder.add_meta_graph_and_variables(session, list(tags), {"predict": signature})
        if tags != ("serve",):
            builder.add_meta_graph(["train"], {"predict": signature})
        builder.save()
    return out
