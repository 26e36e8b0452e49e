"""Find out why an op stays in TensorFlow, rewrite it, and see the islands join.

python docs/examples/why_an_op_stays.py
"""

import tempfile
from pathlib import Path

import tensorflow as tf

import refimpl

place = Path(tempfile.mkdtemp(prefix="refimpl-"))


class Scorer(tf.Module):
    """Two layers, and between them a rescaling that somebody wrote in float64 "to be exact"."""

    def __init__(self, exact):
        self.first = tf.Variable(tf.random.stateless_normal((16, 32), seed=(1, 1)))
        self.second = tf.Variable(tf.random.stateless_normal((32, 4), seed=(2, 2)))
        self.dtype = tf.float64 if exact else tf.float32

    @tf.function(input_signature=[tf.TensorSpec((None, 16), name="x")])
    def call(self, x):
        hidden = tf.nn.relu(x @ self.first)
        wide = tf.cast(hidden, self.dtype)
        scaled = tf.cast(wide / (1 + tf.reduce_max(wide, axis=1, keepdims=True)), tf.float32)
        return {"scores": tf.nn.softmax(tf.nn.relu(scaled @ self.second))}


for exact in (True, False):
    module = Scorer(exact)
    path = place / ("float64" if exact else "float32")
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.call})
    (plan,) = refimpl.explain(path, refimpl.Recipe(min_segment_size=1)).signatures
    print(f"{path.name}: {plan.ops_converted} of {plan.ops_total} ops in {len(plan.islands)} island(s)")
    for op in plan.left:
        print(f"  {op.type} stays: {op.reason}")
