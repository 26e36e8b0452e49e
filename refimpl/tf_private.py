"""The only room that imports TensorFlow's private modules; everything else uses the public API.

Each function says what it needs that the public API does not give. Verified with TensorFlow 2.21.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.eager import context
from tensorflow.python.framework import function_def_to_graph, op_def_registry
from tensorflow.python.framework.convert_to_constants import disable_lower_using_switch_merge
from tensorflow.python.grappler import tf_optimizer


def op_def(op: str) -> op_def_pb2.OpDef | None:
    """The registered definition of a TensorFlow op type, or None when it is not registered here."""
    return op_def_registry.get(op)


def inline_functions(graph_def: Any, feeds: Sequence[str], fetches: Sequence[str]) -> Any:
    """Inline every function call of a GraphDef; If, While and Case stay single, functional ops.

    Args:
        graph_def: a GraphDef with its function library.
        feeds: tensor names that are fed from outside.
        fetches: tensor names that must survive.

    Returns:
        A new GraphDef, pruned by nothing but Grappler's ``function`` pass.
    """
    graph_def = disable_lower_using_switch_merge(graph_def)
    for node in [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]:
        if node.op in ("Case", "StatelessCase"):  # TensorFlow's own helper thinks of If and While only
            node.attr["_lower_using_switch_merge"].b = False
    for function in graph_def.library.function:
        # A GPU-only twin of an RNN that keeps Grappler from inlining the real one.
        function.attr.pop("api_implements", None)
    meta_graph = meta_graph_pb2.MetaGraphDef()
    meta_graph.graph_def.CopyFrom(graph_def)
    meta_graph.collection_def["train_op"].node_list.value.extend([*feeds, *fetches])
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.min_graph_nodes = -1
    rewrite.optimizers.append("function")
    rewrite.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def fill_missing(session: Any, graph: Any, signatures: Mapping[str, Any], path: str, tags: Sequence[str]) -> None:
    """Give values to variables that the loader of sessions leaves without, as ``tf.saved_model.load`` has them.

    ``tf.saved_model.save`` of a Keras 3 model writes a restore function that fills other variables than the signatures
    read. Only the object graph knows which belong together: a signature's captured inputs, in order, are what its call
    node reads behind its arguments.

    Args:
        session: holds the loaded model.
        graph: its graph; ops are added to it.
        signatures: the meta graph's signature definitions by key.
        path: the SavedModel's directory.
        tags: of the meta graph.
    """
    calls = {key: call for key, item in signatures.items() if (call := _call_behind(graph, item)) is not None}
    handles = {
        tensor.op.name: tensor for call in calls.values() for tensor in call.inputs if tensor.op.type == "VarHandleOp"
    }
    with graph.as_default():
        flags = session.run({name: tf.raw_ops.VarIsInitializedOp(resource=tensor) for name, tensor in handles.items()})
    if all(flags.values()):
        return
    with eagerly():
        try:
            loaded = tf.saved_model.load(path, list(tags))
        except Exception:  # noqa: BLE001  restoring runs arbitrary Keras code; the caller notices that values are missing
            return
        values = {}
        for key, call in calls.items():
            fed = {info.name for info in signatures[key].inputs.values()}
            read = [tensor for tensor in call.inputs if tensor.name not in fed]
            captured = loaded.signatures[key].captured_inputs if key in loaded.signatures else []
            for tensor, source in zip(read, captured, strict=True) if len(read) == len(captured) else ():
                if not flags.get(tensor.op.name, True):
                    dtype = tensor.op.get_attr("dtype")
                    values[tensor.op.name] = tf.raw_ops.ReadVariableOp(resource=source, dtype=dtype).numpy()
    with graph.as_default():
        for name, value in values.items():
            given = tf.compat.v1.placeholder(value.dtype, value.shape)
            session.run(tf.raw_ops.AssignVariableOp(resource=handles[name], value=given), {given: value})


def _call_behind(graph: Any, signature: Any) -> Any:
    """The call that computes a signature; None for one that is spread over the graph."""
    for info in signature.outputs.values():
        try:
            op = graph.get_tensor_by_name(info.name).op
        except (KeyError, ValueError):
            return None
        while op.type == "Identity":
            op = op.inputs[0].op
        return op if op.type in ("StatefulPartitionedCall", "PartitionedCall") else None
    return None


def eagerly() -> AbstractContextManager[None]:
    """A context in which TensorFlow executes eagerly, in programs of TF1 too."""
    manager: AbstractContextManager[None] = context.eager_mode()
    return manager


def body_of(function: Any, graph: Any) -> tuple[Any, dict[str, str]]:
    """The body of a FunctionDef as a GraphDef: one Placeholder per argument, tensors named ``node:index``.

    Args:
        function: the FunctionDef; the functions that it calls are in ``graph``.
        graph: a tf.Graph.

    Returns:
        The GraphDef, and from the names that tensors have in a FunctionDef (``node:output:index``, or an argument's) to
        those that they have in the GraphDef.
    """
    with graph.as_default():
        body, names = function_def_to_graph.function_def_to_graph_def(function)
    return body, dict(names)
