"""TensorFlow ops that tf2onnx has no (true) lowering for, spelled in ops that it has. Used for lowering only.

Each rule says what it equals; whether it holds is not taken on trust: every island is verified against the original
ops.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import tensorflow as tf

from refimpl.converter import fake_quant_exact
from refimpl.converter import graphdefs as gd


def rewrite_op(node: gd.NodeDef, constant: Container[str]) -> list[gd.NodeDef]:
    """The nodes that stand for ``node``, the last of them under its name; ``[node]`` where there is no rule.

    Args:
        node: a node of the lowering graph.
        constant: names of nodes whose values are constants.
    """
    rule = RULES.get(node.op)
    return rule(node, constant) if rule else [node]


def _erfc(node: gd.NodeDef, constant: Container[str]) -> list[gd.NodeDef]:
    """erfc(x) = 1 - erf(x). Keras writes the exact GELU with it."""
    del constant
    dtype = node.attr["T"]
    one = _const(f"{node.name}/one", 1.0, dtype)
    erf = gd.make_node(f"{node.name}/erf", "Erf", node.input, T=dtype)
    return [one, erf, gd.make_node(node.name, "Sub", [one.name, erf.name], T=dtype)]


def _gather(node: gd.NodeDef, constant: Container[str]) -> list[gd.NodeDef]:
    """A negative index is an error in TensorFlow, and in ONNX counts from the end: make it one that is too large.

    The engine then refuses it as TensorFlow does, and the native segment gives TensorFlow's own error.
    """
    return _guarded(node, 1, node.attr["Tindices"], constant)


def _one_hot(node: gd.NodeDef, constant: Container[str]) -> list[gd.NodeDef]:
    """A negative index is no class in TensorFlow, and in ONNX counts from the end: make it one that is too large."""
    dtype = node.attr["TI"]
    wide = dtype.type in (tf.int32.as_datatype_enum, tf.int64.as_datatype_enum)
    return _guarded(node, 0, dtype, constant) if wide else [node]


def _guarded(node: gd.NodeDef, place: int, dtype: Any, constant: Container[str]) -> list[gd.NodeDef]:
    """The node, reading 2^31 - 1 instead of every negative index among the input at ``place``."""
    indices = node.input[place]
    if gd.parse_ref(indices).node in constant:
        return [node]
    zero = _const(f"{node.name}/zero", 0, dtype)
    beyond = _const(f"{node.name}/beyond", 2**31 - 1, dtype)
    negative = gd.make_node(f"{node.name}/negative", "Less", [indices, zero.name], T=dtype)
    guarded = gd.make_node(f"{node.name}/guarded", "SelectV2", [negative.name, beyond.name, indices], T=dtype)
    copy = gd.new_node_def()
    copy.CopyFrom(node)
    copy.input[place] = guarded.name
    return [zero, beyond, negative, guarded, copy]


def _const(name: str, value: float, dtype: Any) -> gd.NodeDef:
    node = gd.make_node(name, "Const", [], dtype=dtype)
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype=tf.as_dtype(dtype.type)))
    return node


RULES: dict[str, Callable[[gd.NodeDef, Container[str]], list[gd.NodeDef]]] = {
    "Erfc": _erfc,
    "GatherV2": _gather,
    "GatherNd": _gather,
    "OneHot": _one_hot,
    **fake_quant_exact.RULES,
}
