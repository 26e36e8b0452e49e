"""The only room that imports TensorFlow's private modules; everything else uses the public API.

Each function says what it needs that the public API does not give. Verified with TensorFlow 2.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry
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


def eagerly() -> AbstractContextManager[None]:
    """A context in which TensorFlow executes eagerly, in programs of TF1 too."""
    manager: AbstractContextManager[None] = context.eager_mode()
    return manager
