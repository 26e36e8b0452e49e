"""Judge: which ops an engine can take. TensorRT's own ONNX parser decides; without it, a table made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

from refimpl.convert import onnxgraphs
from refimpl.convert.atoms import Atoms
from refimpl.convert.lower import OpGraph, subgraph_nodes
from refimpl.engines import tensorrt


class Judge(Protocol):
    """Decides about one ONNX graph at a time."""

    name: str

    def refused_nodes(self, model: Any) -> tuple[dict[str, str], bool]:
        """Node names with reasons, and whether the whole graph is taken."""


class ParserJudge:
    """TensorRT's ONNX parser."""

    def __init__(self) -> None:
        self.name = f"{tensorrt.version()} parser"

    def refused_nodes(self, model: Any) -> tuple[dict[str, str], bool]:
        refusals, whole = tensorrt.parser_refusals(model.SerializeToString())
        return {refusal.node: f"TensorRT refuses {refusal.reason}" for refusal in refusals}, whole


class TableJudge:
    """A table of ONNX ops, made from TensorRT's parser by ``tools/make_support_table.py``; a prediction."""

    def __init__(self) -> None:
        text = resources.files("refimpl.convert").joinpath("support_table.json").read_text(encoding="utf-8")
        self._table = json.loads(text)
        self.name = f"table of ops ({self._table['made_from']}); install refimpl[rtx] for the parser itself"

    def refused_nodes(self, model: Any) -> tuple[dict[str, str], bool]:
        refused = {
            node.name: f"TensorRT has no {node.op_type} (by table)"
            for node in _all_nodes(model.graph)
            if node.op_type not in self._table["ops"]
        }
        return refused, not refused


def _all_nodes(graph: Any) -> list[Any]:
    return [node for node in graph.node]


def pick_judge() -> Judge:
    """The parser where ``tensorrt`` or ``tensorrt_rtx`` is installed, else the table."""
    return ParserJudge() if tensorrt.version() else TableJudge()


def refused_ops(graph: OpGraph, atoms: Atoms, judge: Judge, ops: Sequence[str]) -> dict[str, str]:
    """Ask about one island.

    Returns:
        Ops that must leave it, with reasons; empty when all of it is taken. The parser names one cause per region, so what
        is left must be asked again.
    """
    named, whole = _ask(graph, atoms, judge, ops)
    if whole or named:
        return named
    # Refused without a name: ask op by op, and give up the island if none of them is refused alone.
    groups = list(dict.fromkeys(graph.ops[name].group for name in ops))
    for group in groups:
        members = [name for name in ops if graph.ops[name].group == group]
        found, taken = _ask(graph, atoms, judge, members)
        if not taken:
            named.update(found or dict.fromkeys(members, "TensorRT refuses it without saying why"))
    return named or dict.fromkeys(ops, "TensorRT refuses this combination of ops without saying why")


def _ask(graph: OpGraph, atoms: Atoms, judge: Judge, ops: Sequence[str]) -> tuple[dict[str, str], bool]:
    _, entering, leaving = subgraph_nodes(graph, ops, marked=False)
    model = onnxgraphs.cut_out(
        atoms.graph,
        [node for name in ops for node in atoms.nodes[name]],
        {graph.onnx_name(tensor): graph.specs[tensor] for tensor in entering},
        {graph.onnx_name(tensor): graph.specs[tensor] for tensor in leaving},
    )
    refused, whole = judge.refused_nodes(model)
    owners: dict[str, list[str]] = {}
    for name in ops:
        for node in atoms.nodes[name]:
            owners.setdefault(node.name, []).append(name)
    return _by_op(refused, owners), whole


def _by_op(refused: Mapping[str, str], owners: Mapping[str, list[str]]) -> dict[str, str]:
    return {op: reason for node, reason in refused.items() for op in owners.get(node, [])}
