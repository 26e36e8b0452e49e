"""What the nodes of an island are called by people, and what each of them is assigned to compute in."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COUNTER = re.compile(r"__\d+$")  # tf2onnx numbers the nodes that it adds


@dataclass(frozen=True, slots=True)
class Assigned:
    """One ONNX node that computes floats, and its precision in a rewritten island."""

    name: str
    op: str  # ONNX op type
    precision: str  # "int8", "fp16", "bf16" or "fp32"
    reason: str  # why not the precision that was asked for; "" when it is that

    def to_json(self) -> list[str]:
        return [self.name, self.op, self.precision, self.reason]


def tf_op_of(node: Any, ops: Mapping[str, str]) -> str:
    """The TensorFlow op that a node came from, by name: the longest op name that begins the node's or its output's.

    A guess for people to read and to match patterns with; nothing is cut or verified by it.

    Args:
        node: an ONNX node of the island.
        ops: TensorFlow op name -> op type, of the island.
    """
    names = [_COUNTER.sub("", node.name), *(name.rsplit(":", 1)[0] for name in node.output)]
    for name in names:
        if name in ops:
            return str(name)
    under = [op for op in ops for name in names if name.startswith(f"{op}/")]
    return max(under, key=len, default="")


def matching(model: Any, patterns: Sequence[str], ops: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """Nodes that patterns name.

    Args:
        model: an island's ModelProto, its nodes named.
        patterns: ``fnmatch`` patterns of ONNX op types, node names, TensorFlow op names or TensorFlow op types.
        ops: TensorFlow op name -> op type, of the island.

    Returns:
        Node name -> reason, and the patterns that named something.
    """
    found: dict[str, str] = {}
    used: set[str] = set()
    for node in model.graph.node if patterns else ():
        op = tf_op_of(node, ops)
        for pattern in patterns:
            if any(
                fnmatch.fnmatchcase(name, pattern) for name in (node.op_type, node.name, op, ops.get(op, "")) if name
            ):
                found.setdefault(node.name, f"kept in float32 as asked ({pattern})")
                used.add(pattern)
    return found, used


def summary(layers: Iterable[Assigned]) -> str:
    """How many layers compute in what: ``"53 int8, 1 fp16, 4 fp32"``."""
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.precision] = counts.get(layer.precision, 0) + 1
    return ", ".join(f"{counts[kind]} {kind}" for kind in ("int8", "fp16", "bf16", "fp32") if kind in counts)
