"""The graph of a partition on disk: every op of a signature, what it reads, the island it is in or why it is in none.

``refimpl/graph.json`` in a bundle; ``docs/bundle-format.md`` describes it. Advice, reports and pictures are made from
it, without TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.errors import BundleError
from refimpl.specs import Shape, Signature, TensorSpec

GRAPH = "refimpl/graph.json"  # in the bundle
VERSION = 1
_TEXTS = ("scope", "leaf", "type", "island", "reason")  # columns of single texts
_RARE = ("slots", "controls", "feeds", "group")  # columns of which only what is not usual is written


@dataclass(frozen=True, slots=True)
class GraphOp:
    """One TensorFlow op of a signature's inlined graph; loops and branches are one op each, constants are none.

    Attributes:
        name: TensorFlow's name of the node.
        type: its op.
        island: name of the island that it is in; "" when TensorFlow runs it.
        reason: why TensorFlow runs it; "" in an island.
        inputs: the ops whose tensors it reads, as indices into the graph, in order; no control edges.
        outputs: its tensors, each as :func:`format_tensor` writes it: ``float32[?,112,112,64]``.
        slots: for each of ``inputs``, which of that op's tensors it reads.
        feeds: names of the signature's inputs that it reads.
        controls: the ops that must run before it, as indices.
        constants: numbers of the constants that it reads; two ops with a number in common share the constant.
        group: ops of one group are never parted; -1 for a group of its own.
    """

    name: str
    type: str
    island: str
    reason: str
    inputs: tuple[int, ...]
    outputs: tuple[str, ...]
    slots: tuple[int, ...] = ()
    feeds: tuple[str, ...] = ()
    controls: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()
    group: int = -1


@dataclass(frozen=True, slots=True)
class SignatureGraph:
    """The ops of one signature in topological order.

    Attributes:
        key: the signature's key.
        ops: an op comes after all that it reads.
        inputs: the signature's inputs.
        outputs: the signature's outputs.
        results: for each output, the index of the op that makes it and which of its tensors; (-1, 0) where an input,
            or a constant, is the output.
    """

    key: str
    ops: tuple[GraphOp, ...]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    results: tuple[tuple[int, int], ...] = ()

    @property
    def islands(self) -> tuple[str, ...]:
        """Names of the islands, in the order in which their first ops come."""
        return tuple(dict.fromkeys(op.island for op in self.ops if op.island))

    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For every op, the ops that read its tensors, each once."""
        found: list[dict[int, None]] = [{} for _ in self.ops]
        for index, op in enumerate(self.ops):
            for source in op.inputs:
                found[source][index] = None
        return tuple(map(tuple, found))


def format_tensor(dtype: str, shape: Shape) -> str:
    """``float32[?,112,112,64]``, or ``float32[...]`` where even the rank is unknown."""
    if shape is None:
        return f"{dtype}[...]"
    return f"{dtype}[{','.join('?' if size is None else str(size) for size in shape)}]"


def parse_tensor(text: str) -> tuple[str, Shape]:
    """The other way round: dtype and shape.

    Raises:
        ValueError: it is no such text.
    """
    dtype, bracket, rest = text.partition("[")
    if not dtype or not bracket or not rest.endswith("]"):
        raise ValueError(f"{text!r} is no tensor")
    sizes = rest[:-1]
    if sizes == "...":
        return dtype, None
    return dtype, tuple(None if size == "?" else int(size) for size in sizes.split(",") if size)


def write_graphs(folder: Path, graphs: Iterable[SignatureGraph]) -> None:
    """Write ``refimpl/graph.json`` into the folder of a bundle that is being made."""
    file = folder / GRAPH
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(to_json(graphs), separators=(",", ":")), encoding="utf-8")


def read_graphs(bundle: Path) -> dict[str, SignatureGraph]:
    """The graphs of a bundle by signature; empty when it was made before graphs were stored.

    Args:
        bundle: its folder; whoever wants the file's checksum compared calls ``refimpl.bundle.read`` first.

    Raises:
        BundleError: the file cannot be read, or is damaged.
    """
    file = bundle / GRAPH
    try:
        if not file.exists():
            return {}
        return from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BundleError(f"{file} is damaged: {error}", hint="copy or convert the bundle again") from None


def to_json(graphs: Iterable[SignatureGraph]) -> dict[str, Any]:
    """Plain data, one column per field; texts are written once, and numbered."""
    numbers: dict[str, int] = {}
    columns = {graph.key: _columns(graph, numbers) for graph in graphs}
    return {"version": VERSION, "texts": list(numbers), "graphs": columns}


def _columns(graph: SignatureGraph, numbers: dict[str, int]) -> dict[str, Any]:
    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    names = [op.name.rpartition("/") for op in graph.ops]
    return {
        "signature": Signature(graph.key, graph.inputs, graph.outputs).to_json(),
        "results": [list(result) for result in graph.results],
        "scope": [number(scope + slash) for scope, slash, _ in names],  # ops of a layer share the first part
        "leaf": [number(leaf) for _, _, leaf in names],
        "type": [number(op.type) for op in graph.ops],
        "island": [number(op.island) for op in graph.ops],
        "reason": [number(op.reason) for op in graph.ops],
        "inputs": [list(op.inputs) for op in graph.ops],
        "constants": [list(op.constants) for op in graph.ops],
        "outputs": [list(map(number, op.outputs)) for op in graph.ops],
        "slots": {index: list(op.slots) for index, op in enumerate(graph.ops) if any(op.slots)},
        "controls": {index: list(op.controls) for index, op in enumerate(graph.ops) if op.controls},
        "feeds": {index: list(map(number, op.feeds)) for index, op in enumerate(graph.ops) if op.feeds},
        "group": {index: op.group for index, op in enumerate(graph.ops) if op.group != index},
    }


def from_json(data: Mapping[str, Any]) -> dict[str, SignatureGraph]:
    """Graphs from plain data.

    Raises:
        ValueError: its version is another, or what it says is impossible.
        LookupError: something is missing.
        TypeError: something is of another type.
    """
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']} of the graph; this refimpl reads version {VERSION}")
    return {key: _graph(key, columns, data["texts"]) for key, columns in data["graphs"].items()}


def _graph(key: str, columns: Mapping[str, Any], texts: Sequence[str]) -> SignatureGraph:
    count = len(columns["inputs"])
    if any(len(columns[name]) != count for name in (*_TEXTS, "constants", "outputs")):
        raise ValueError(f"the columns of {key} are of different lengths")
    rare = {name: {int(index): value for index, value in columns[name].items()} for name in _RARE}
    if any(not 0 <= index < count for found in rare.values() for index in found):
        raise ValueError(f"{key} says something of an op that it has not")

    def text(number: int) -> str:
        if number < 0:
            raise ValueError(f"{key} names text {number}")
        return texts[number]

    ops = tuple(
        GraphOp(
            name=text(columns["scope"][index]) + text(columns["leaf"][index]),
            type=text(columns["type"][index]),
            island=text(columns["island"][index]),
            reason=text(columns["reason"][index]),
            inputs=tuple(inputs),
            outputs=tuple(map(text, columns["outputs"][index])),
            slots=tuple(rare["slots"].get(index) or (0,) * len(inputs)),  # nearly always the first tensor
            feeds=tuple(map(text, rare["feeds"].get(index, ()))),
            controls=tuple(rare["controls"].get(index, ())),
            constants=tuple(columns["constants"][index]),
            group=rare["group"].get(index, index),
        )
        for index, inputs in enumerate(columns["inputs"])
    )
    signature = Signature.from_json(columns["signature"])
    results = tuple((op, slot) for op, slot in columns["results"])
    _check(key, ops, results)
    return SignatureGraph(key, ops, signature.inputs, signature.outputs, results)


def _check(key: str, ops: Sequence[GraphOp], results: Sequence[tuple[int, int]]) -> None:
    """Every edge comes from an op before, and from a tensor that it makes; so does every result."""
    for source, slot in results:
        if (source, slot) != (-1, 0) and not (0 <= source < len(ops) and 0 <= slot < len(ops[source].outputs)):
            raise ValueError(f"{key}: tensor {slot} of op {source} is a result")
    for index, op in enumerate(ops):
        if len(op.slots) != len(op.inputs):
            raise ValueError(f"{key}: {op.name} reads {len(op.inputs)} tensors, and has {len(op.slots)} slots")
        for source, slot in zip(op.inputs, op.slots, strict=True):
            if not (0 <= source < index and 0 <= slot < len(ops[source].outputs)):
                raise ValueError(f"{key}: {op.name} reads tensor {slot} of op {source}")
        for source in op.controls:
            if not 0 <= source < index:
                raise ValueError(f"{key}: {op.name} waits for op {source}")
