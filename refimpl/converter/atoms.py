"""Lower a whole signature with markers, and sort the ONNX nodes into atoms: one per TensorFlow op or tight group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from refimpl.artifacts import Op
from refimpl.converter import lower, onnxgraphs
from refimpl.converter.lower import OpGraph
from refimpl.converter.refusals import spread_over_groups
from refimpl.errors import first_line


@dataclass(frozen=True)
class Atoms:
    """The marked ONNX graph of a signature, sorted by the ops it came from."""

    graph: gs.Graph
    nodes: Mapping[str, tuple[gs.Node, ...]]  # TensorFlow op -> ONNX nodes of its atom
    refused: Mapping[str, str]  # TensorFlow op -> why it cannot be in an island
    folder: Path  # where weights lie that are too large to be in the graph


def lower_atoms(graph: OpGraph, refused: Mapping[str, str], folder: Path) -> Atoms:
    """Lower every op that is not refused, all at once; if tf2onnx breaks down, find the op that breaks it.

    Args:
        graph: the signature.
        refused: ops to leave out, with reasons.
        folder: where weights are written that are too large to be in the graph.
    """
    reasons = dict(refused)
    parts = _lower_parts(graph, [name for name in graph.ops if name not in refused], reasons, folder)
    whole = parts[0] if parts else gs.Graph(nodes=[], inputs=[], outputs=[], opset=lower.OPSET)
    for index, part in enumerate(parts[1:], 1):
        _merge(whole, part, f"part{index}/")
    nodes = {}
    markers = {node.name: node for node in whole.nodes if node.name.startswith("mk/")}
    for op in graph.ops.values():
        if op.name in reasons:
            continue
        found = _walk(markers, op)
        nodes[op.name] = found
        if reason := next(filter(None, map(onnxgraphs.refusal_of, found)), "") or _rounds_integers(op, found, graph):
            reasons[op.name] = reason
    return Atoms(whole, nodes, spread_over_groups(graph, reasons), folder)


def _rounds_integers(op: Op, nodes: Sequence[gs.Node], graph: OpGraph) -> str:
    """Whether an op on integers alone is computed in float32, as tf2onnx does for some."""
    specs = [graph.specs[tensor] for tensor in op.inputs] + list(op.outputs)
    if any(spec.dtype.startswith(("float", "bfloat")) or spec.dtype == "variant" for spec in specs):
        return ""
    for node in nodes:
        if node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT and node.inputs[0].dtype != np.bool_:
            return "its lowering computes integers in float32, which is exact only up to 2^24"
    return ""


def _lower_parts(graph: OpGraph, ops: list[str], reasons: dict[str, str], folder: Path) -> list[gs.Graph]:
    if not ops:
        return []
    try:
        model, weights = lower.to_onnx(graph, ops, marked=True)
        return [onnxgraphs.import_with_weights(model, weights, folder)]
    except Exception as error:  # noqa: BLE001  tf2onnx raises anything; which op made it do so is found by halving
        groups = list(dict.fromkeys(graph.ops[name].group for name in ops))
        if len(groups) == 1:
            text = first_line(error)
            reasons.update(dict.fromkeys(ops, f"tf2onnx fails on it: {type(error).__name__}: {text}"))
            return []
        first = set(groups[: len(groups) // 2])
        return [
            *_lower_parts(graph, [name for name in ops if graph.ops[name].group in first], reasons, folder),
            *_lower_parts(graph, [name for name in ops if graph.ops[name].group not in first], reasons, folder),
        ]


def _merge(whole: gs.Graph, part: gs.Graph, prefix: str) -> None:
    """Move a part into the whole graph; cut tensors are shared by name, all other names get a prefix."""
    tensors = whole.tensors()
    for tensor in part.tensors().values():
        if not tensor.name.startswith("mk/"):
            tensor.name = prefix + tensor.name
    for node in part.nodes:
        if not node.name.startswith("mk/"):
            node.name = prefix + node.name
    for node in part.nodes:
        node.inputs = [_shared(tensor, tensors) for tensor in node.inputs]
        node.outputs = [_shared(tensor, tensors) for tensor in node.outputs]
        whole.nodes.append(node)
    whole.inputs += [tensor for tensor in part.inputs if tensor.name not in tensors]


def _shared(tensor: gs.Tensor, tensors: dict[str, gs.Tensor]) -> gs.Tensor:
    if not tensor.name.startswith("mk/"):
        return tensor
    return tensors.setdefault(tensor.name, tensor)


def _walk(by_marker: Mapping[str, gs.Node], op: Op) -> tuple[gs.Node, ...]:
    """The ONNX nodes from an op's markers back to the markers before them."""
    stack = [by_marker[name] for spec in op.outputs if (name := lower.marker(spec.name)) in by_marker]
    found: dict[int, gs.Node] = {}
    while stack:
        node = stack.pop()
        if id(node) in found:
            continue
        found[id(node)] = node
        for tensor in onnxgraphs.outer_tensors(node):
            stack += [maker for maker in tensor.inputs if not maker.name.startswith("mk/")]
    return tuple(found.values())
