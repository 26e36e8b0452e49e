"""SavedModels as TensorFlow 1 and Keras 2 wrote them: sessions, ref variables, main ops, optimizer slots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.models_ops import normal

v1 = tf.compat.v1


def write_v1(
    target: Path,
    session: Any,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    main_op: Any = None,
) -> None:
    """Save a session's graph as a TensorFlow 1 SavedModel with one signature."""
    signature = v1.saved_model.build_signature_def(
        {name: v1.saved_model.build_tensor_info(tensor) for name, tensor in inputs.items()},
        {name: v1.saved_model.build_tensor_info(tensor) for name, tensor in outputs.items()},
        v1.saved_model.signature_constants.PREDICT_METHOD_NAME,
    )
    builder = v1.saved_model.Builder(str(target))
    builder.add_meta_graph_and_variables(
        session,
        [v1.saved_model.tag_constants.SERVING],
        {v1.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature},
        assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        main_op=main_op,
    )
    builder.save()


def batch_norm(x: Any, scope: str, *, use_resource: bool, seed: int) -> Any:
    """Inference-time batch normalization from four variables, as ``tf.layers`` names them."""
    width = x.shape[-1]
    rng = np.random.default_rng(seed)

    def variable(name: str, low: float, high: float) -> Any:
        value = rng.uniform(low, high, width).astype(np.float32)
        return v1.get_variable(name, initializer=value, use_resource=use_resource)

    with v1.variable_scope(scope):
        scale, offset = variable("gamma", 0.7, 1.3), variable("beta", -0.2, 0.2)
        mean, variance = variable("moving_mean", -0.3, 0.3), variable("moving_variance", 0.5, 2.0)
    return v1.nn.fused_batch_norm(x, scale, offset, mean, variance, epsilon=1e-3, is_training=False)[0]


def _session_model(target: Path, *, use_resource: bool) -> None:
    with tf.Graph().as_default(), v1.Session() as session:

        def weight(name: str, value: np.ndarray) -> Any:
            return v1.get_variable(name, initializer=value, use_resource=use_resource)

        image = v1.placeholder(tf.float32, (None, 20, 20, 3), "image")
        keep = v1.placeholder_with_default(tf.constant(1.0), (), "keep")  # not part of the signature
        x = tf.nn.conv2d(image, weight("first/kernel", normal(3, 3, 3, 8, seed=50, scale=0.3)), 2, "SAME")
        x = tf.nn.relu(batch_norm(x, "norm", use_resource=use_resource, seed=51)) * keep
        x = tf.nn.conv2d(x, weight("second/kernel", normal(3, 3, 8, 12, seed=52, scale=0.2)), 2, "SAME")
        x = tf.nn.relu(tf.nn.bias_add(x, weight("second/bias", normal(12, seed=53, scale=0.2))))
        logits = v1.matmul(x[:, 2, 2, :], weight("head/kernel", normal(12, 6, seed=54)))
        session.run(v1.global_variables_initializer())
        outputs = {"scores": tf.nn.softmax(logits, name="scores"), "classes": tf.argmax(logits, 1, name="classes")}
        write_v1(target, session, {"image": image}, outputs)


def tf1_resource_variables(target: Path) -> None:
    _session_model(target, use_resource=True)


def tf1_ref_variables(target: Path) -> None:
    _session_model(target, use_resource=False)


def tf1_table(target: Path) -> None:
    """Words to vectors: a hash table that a main op fills from an asset file."""
    words = target.parent / (target.name + "-words.txt")
    words.write_text("red\ngreen\nblue\ncyan\n", encoding="utf-8")
    with tf.Graph().as_default(), v1.Session() as session:
        asset = tf.constant(str(words))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        numbers = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                asset, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            ),
            default_value=4,
        )
        word = v1.placeholder(tf.string, (None,), "word")
        table = v1.get_variable("table", initializer=normal(5, 8, seed=55), use_resource=True)
        kernel = v1.get_variable("kernel", initializer=normal(8, 8, seed=56), use_resource=True)
        number = numbers.lookup(word)
        hidden = tf.nn.relu(tf.matmul(tf.gather(table, number), kernel))
        vector = tf.tanh(tf.matmul(hidden, kernel) * 0.2)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        write_v1(target, session, {"word": word}, {"vector": vector, "number": number}, main_op=v1.tables_initializer())
    words.unlink()  # the SavedModel has its own copy


def words_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    words = np.array([b"blue", b"mauve", b"red", b"cyan"], object)
    return {"word": rng.permutation(words)}


def keras2_optimizer_slots(target: Path) -> None:
    """A model saved with its Adam slots, in the object graph that Keras 2.4 left behind.

    ``tf.saved_model.load`` of TensorFlow 2.21 fails on it: the optimizer comes back as an object without ``add_slot``.
    The slots are written into the object graph by hand, because no TensorFlow that installs today can write them;
    the object graph of a real export (the trained model ``basic_pitch``) has the same nodes.
    """
    root = tf.Module()
    root.kernel = tf.Variable(normal(10, 16, seed=57, scale=0.2), name="dense/kernel")
    root.head = tf.Variable(normal(16, 3, seed=58, scale=0.7), name="head/kernel")
    root.optimizer = tf.Module()
    root.optimizer.m = tf.Variable(tf.zeros((10, 16)), name="Adam/dense/kernel/m")
    root.optimizer.v = tf.Variable(tf.ones((10, 16)), name="Adam/dense/kernel/v")

    @tf.function(input_signature=[tf.TensorSpec((None, 10), tf.float32, "features")])
    def serve(features: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": tf.nn.softmax(tf.nn.relu(features @ root.kernel) @ root.head)}

    tf.saved_model.save(root, str(target), signatures={"serving_default": serve})
    file = target / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    nodes = proto.meta_graphs[0].object_graph_def.nodes
    children = {child.local_name: child.node_id for child in nodes[0].children}
    optimizer = nodes[children["optimizer"]]
    optimizer.user_object.identifier = "optimizer"
    for child in optimizer.children:
        optimizer.slot_variables.add(
            original_variable_node_id=children["kernel"],
            slot_name=child.local_name,
            slot_variable_node_id=child.node_id,
        )
    file.write_bytes(proto.SerializeToString())
