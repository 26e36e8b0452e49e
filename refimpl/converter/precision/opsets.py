"""Whether a model may be given a newer opset: only when that changes the meaning of none of its nodes.

The converter of ONNX (``onnx.version_converter``) is not used: it serializes the model with all its weights, twice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import defs

# Attributes that came later and whose default is what the op did before.
_HARMLESS = frozenset(["saturate", "dilations", "block_size", "output_dtype", "precision"])


def can_raise(model: onnx.ModelProto, opset: int, version: int) -> bool:
    """Whether every node of a model means the same at a newer opset: the same signature, at most of wider types."""
    return all(_unchanged(op, domain, opset, version) for op, domain in set(_op_types(model.graph)))


def with_opset(model: Any, version: int) -> Any:
    """The model at this opset where that changes nothing else; itself, at its own, where it would or is not needed."""
    now = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if now >= version or not can_raise(model, now, version):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    next(item for item in result.opset_import if item.domain in ("", "ai.onnx")).version = version
    return result


def _op_types(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    for node in graph.node:
        yield node.op_type, node.domain
        for item in node.attribute:
            for body in [item.g] if item.type == onnx.AttributeProto.GRAPH else item.graphs:
                yield from _op_types(body)


@functools.cache
def _unchanged(op: str, domain: str, opset: int, version: int) -> bool:
    if domain not in ("", "ai.onnx"):
        return True
    try:
        old, new = defs.get_schema(op, opset, ""), defs.get_schema(op, version, "")
    except defs.SchemaError:
        return False
    if new.deprecated or old.since_version == new.since_version:
        return not new.deprecated
    for a, b in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        if len(a) != len(b) or any(p.option != q.option or not p.types <= q.types for p, q in zip(a, b, strict=True)):
            return False
    before, after = ({name: _meaning(item) for name, item in s.attributes.items()} for s in (old, new))
    return all(after.get(name) == value for name, value in before.items()) and set(after) - set(before) <= _HARMLESS


def _meaning(item: Any) -> tuple[str, bool, bytes]:
    return str(item.type), bool(item.required), bytes(item.default_value.SerializeToString())
