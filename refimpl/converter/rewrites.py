"""TensorFlow ops that tf2onnx has no lowering for, spelled in ops that it has. Used for lowering only.

Each rule says what it equals; whether it holds is not taken on trust: every island is verified against the original
ops.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from refimpl.converter import graphdefs as gd


def rewrite_op(node: gd.NodeDef) -> list[gd.NodeDef]:
    """The nodes that stand for ``node``, the last of them under its name; ``[node]`` where there is no rule."""
    rule = RULES.get(node.op)
    return rule(node) if rule else [node]


def _erfc(node: gd.NodeDef) -> list[gd.NodeDef]:
    """erfc(x) = 1 - erf(x). Keras writes the exact GELU with it."""
    dtype = node.attr["T"]
    one = gd.make_node(f"{node.name}/one", "Const", [], dtype=dtype)
    one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0, dtype=tf.as_dtype(dtype.type)))
    erf = gd.make_node(f"{node.name}/erf", "Erf", node.input, T=dtype)
    return [one, erf, gd.make_node(node.name, "Sub", [one.name, erf.name], T=dtype)]


RULES: dict[str, Callable[[gd.NodeDef], list[gd.NodeDef]]] = {"Erfc": _erfc}
