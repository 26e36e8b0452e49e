"""Fold what depends on no input, once, with TensorFlow itself, so that lowering never meets it.

tf2onnx folds every op on constants in a session of its own: 2.4 ms an op, and a batch normalization has four of them.
Here all of them are computed in one run, and each becomes a constant: a large one a hollow weight, whose value travels
by reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from refimpl.artifacts import Array
from refimpl.converter import graphdefs as gd
from refimpl.converter.constants import WEIGHT, LoweringGraph, constant_body, flow_into_functions
from refimpl.converter.fake_quant_exact import TYPES as FAKE_QUANT

# A result larger than this, and larger than all that it is made of, stays a computation: engines make it at less cost.
_LARGE = 1_000_000


def fold(lowering: LoweringGraph) -> LoweringGraph:
    """The same graph, with a body of its own for every constant that an op reads, computed by TensorFlow.

    The bodies as the model has them are kept beside (refusals and quantization look at those). What is made by fake
    quantization is left as it is, since INT8 is made of its ranges; so is what TensorFlow cannot compute alone, or
    would make much larger.

    Args:
        lowering: the signature's graph, state read as constants.
    """
    frontier = _frontier(lowering)
    solid = flow_into_functions(lowering.order)
    weights = dict(lowering.weights)
    folded: dict[str, tuple[gd.NodeDef, ...]] = {}
    computed = []
    for name in frontier:
        root = _root(lowering, name)
        if root is None:
            computed.append(name)
        elif root != name and WEIGHT + root not in weights:
            folded[name] = (_renamed(lowering.bodies[root][-1], name),)
    for name, value in _computed(lowering, computed).items():
        folded[name] = tuple(constant_body(name, value, weights, hollow=name not in solid))
    return replace(lowering, folded=folded, weights=weights)


def _frontier(lowering: LoweringGraph) -> list[str]:
    """Constants that are read by ops which are none, in a stable order."""
    constant = lowering.constant
    found: dict[str, None] = {}
    for node in lowering.order:
        if node.name not in constant:
            for made in lowering.bodies[node.name]:
                found.update((ref.node, None) for ref in gd.data_inputs(made) if ref.node in constant)
    return [name for name in found if name in lowering.bodies]


def _root(lowering: LoweringGraph, name: str) -> str | None:
    """The constant that a node merely passes on, itself for one that stands in the graph; None for a computed one."""
    while True:
        body = lowering.bodies.get(name)
        if body is None:
            return None
        if body[-1].op == "Const" or body[0].op == "Placeholder":
            return name
        if len(body) > 1 or body[0].op != "Identity" or len(body[0].input) != 1:
            return None
        name = gd.parse_ref(body[0].input[0]).node


def _renamed(node: gd.NodeDef, name: str) -> gd.NodeDef:
    copy = gd.new_node_def()
    copy.CopyFrom(node)
    copy.name = name
    return copy


def _computed(lowering: LoweringGraph, names: Sequence[str]) -> dict[str, Array]:
    """The values of constants that are computed, all in one run; those that cannot or should not be are left out."""
    nodes = {node.name: node for name in lowering.constant for node in lowering.bodies.get(name, ())}
    # By the ops as the model has them: their bodies are spelled out.
    fake = frozenset(node.name for node in lowering.order if node.op in FAKE_QUANT)
    wanted = [name for name in names if _foldable(nodes, name, fake)]
    kept = [nodes[name] for name in gd.reachable(nodes, wanted)]
    graph_def = gd.new_graph_def(node=kept, versions=lowering.versions)
    graph_def.library.function.extend(gd.functions_of(kept, lowering.library).values())
    for node in graph_def.node:
        node.device = ""
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    fetches = [name for name in wanted if not _grows(graph, nodes, name)]
    feeds = {f"{node.name}:0": lowering.weights[node.name] for node in kept if node.name in lowering.weights}
    if not fetches:
        return {}
    try:
        with tf.compat.v1.Session(graph=graph, config=tf.compat.v1.ConfigProto(device_count={"GPU": 0})) as session:
            values = session.run([f"{name}:0" for name in fetches], feeds)
    except (tf.errors.OpError, ValueError, TypeError):
        return {}  # an op that fails in TensorFlow fails in lowering too, and is blamed by name there
    return {name: np.asarray(value) for name, value in zip(fetches, values, strict=True)}


def _foldable(nodes: Mapping[str, gd.NodeDef], name: str, fake: frozenset[str]) -> bool:
    """Whether TensorFlow can be asked for a constant: one output, of numbers, and no fake quantization behind it."""
    dtypes = gd.output_dtypes(nodes[name])
    kinds = [tf.as_dtype(dtype) for dtype in dtypes]
    if len(kinds) != 1 or not (kinds[0].is_floating or kinds[0].is_integer or kinds[0].is_bool):
        return False
    return fake.isdisjoint(gd.reachable(nodes, [name]))


def _grows(graph: tf.Graph, nodes: Mapping[str, gd.NodeDef], name: str) -> bool:
    """Whether the constant is large, and larger than all that it is made of together."""

    def size(item: str) -> int:
        count = graph.get_tensor_by_name(f"{item}:0").shape.num_elements()
        return _LARGE if count is None else int(count)

    behind = gd.reachable(nodes, [name]) - {name}
    leaves = [item for item in behind if not nodes[item].input]
    return size(name) > _LARGE and size(name) > sum(map(size, leaves))
