"""A signature's graph with its islands folded: few enough boxes to look at. Decides nothing, needs no TensorFlow."""

from __future__ import annotations

import graphlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from refimpl.errors import BundleError
from refimpl.graph_record import GraphOp, SignatureGraph, format_tensor

Kind = Literal["input", "output", "island", "tensorflow"]

_MANY = 60  # boxes; above, ops are folded whatever their reasons are


@dataclass(frozen=True, slots=True)
class Group:
    """One box of the overview.

    Attributes:
        kind: an island, ops that TensorFlow runs, or an input or output of the signature.
        name: the island's name, the input's or output's; "" for ops of TensorFlow.
        ops: the ops in it, as indices into the graph.
        reasons: why TensorFlow runs them, the most frequent first; empty for the others.
    """

    kind: Kind
    name: str
    ops: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flow:
    """What goes from one group to another: the distinct tensors, as ``float32[?,7]``, in the order of their readers."""

    source: int
    target: int
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """Groups and flows; flows never close a cycle, since what TensorFlow runs before an island is another group."""

    groups: tuple[Group, ...]
    flows: tuple[Flow, ...]


def collapse(graph: SignatureGraph) -> Overview:
    """Fold every island into one group, and neighbouring ops that TensorFlow runs for one reason into one.

    Where that leaves more than some sixty groups, neighbouring ops are folded whatever their reasons are.

    Raises:
        BundleError: islands wait for each other, so the record of the graph is damaged.
    """
    of_op = _grouped(graph, lambda op: op.reason)
    if len(set(of_op)) > _MANY:
        of_op = _grouped(graph, lambda _: "")
    groups = _groups(graph, of_op)
    inputs = {spec.name: len(groups) + number for number, spec in enumerate(graph.inputs)}
    groups += [Group("input", spec.name) for spec in graph.inputs]
    first_output = len(groups)
    groups += [Group("output", spec.name) for spec in graph.outputs]
    tensors: dict[tuple[int, int], dict[tuple[int, int], str]] = defaultdict(dict)
    specs = {spec.name: format_tensor(spec.dtype, spec.shape) for spec in graph.inputs}
    for reader, op in enumerate(graph.ops):
        for source, slot in zip(op.inputs, op.slots or (0,) * len(op.inputs), strict=True):
            if of_op[source] != of_op[reader]:
                tensors[of_op[source], of_op[reader]][source, slot] = graph.ops[source].outputs[slot]
        for name in op.feeds:
            if name in inputs:
                tensors[inputs[name], of_op[reader]][-1, 0] = specs[name]
    for number, (source, slot) in enumerate(graph.results):
        if source >= 0:
            tensors[of_op[source], first_output + number][source, slot] = graph.ops[source].outputs[slot]
    flows = tuple(Flow(source, target, tuple(found.values())) for (source, target), found in tensors.items())
    return Overview(tuple(groups), flows)


def _grouped(graph: SignatureGraph, kind_of: Callable[[GraphOp], str]) -> list[int]:
    """The number of each op's group.

    Ops are folded when they are neighbours, of one kind, and equally deep. An op is one deeper than what it reads from
    another kind or island; so groups are entered from less deep ones only, and cannot wait for each other in a circle.
    """
    first = {op.island: index for index, op in reversed(list(enumerate(graph.ops))) if op.island}
    unit = [first.get(op.island, index) for index, op in enumerate(graph.ops)]  # an island goes by its first op
    kinds = [kind_of(op) for op in graph.ops]
    before: dict[int, dict[int, None]] = {index: {} for index in unit}
    for reader, op in enumerate(graph.ops):
        before[unit[reader]].update((unit[source], None) for source in op.inputs if unit[source] != unit[reader])
    depth: dict[int, int] = {}
    root: dict[int, int] = {}
    for index in _in_order(graph.key, before):
        op = graph.ops[index]
        same = {
            source: not op.island and not graph.ops[source].island and kinds[source] == kinds[index]
            for source in before[index]
        }
        depth[index] = max((depth[source] + (not equal) for source, equal in same.items()), default=0)
        root[index] = index
        for source, equal in same.items():
            if equal and depth[source] == depth[index]:
                _join(root, source, index)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_find(root, own), len(numbers)) for own in unit]


def _in_order(key: str, before: Mapping[int, Iterable[int]]) -> list[int]:
    try:
        return list(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError:
        raise BundleError(
            f"the graph of signature {key} is damaged: its islands wait for each other", hint="convert the model again"
        ) from None


def _find(root: dict[int, int], node: int) -> int:
    while root[node] != node:
        root[node] = root[root[node]]
        node = root[node]
    return node


def _join(root: dict[int, int], one: int, other: int) -> None:
    low, high = sorted((_find(root, one), _find(root, other)))
    root[high] = low


def _groups(graph: SignatureGraph, of_op: Sequence[int]) -> list[Group]:
    members: list[list[int]] = [[] for _ in range(len(set(of_op)))]
    for index, group in enumerate(of_op):
        members[group].append(index)
    found = []
    for ops in members:
        first = graph.ops[ops[0]]
        if first.island:
            found.append(Group("island", first.island, tuple(ops)))
        else:
            found.append(Group("tensorflow", "", tuple(ops), _by_frequency([graph.ops[index].reason for index in ops])))
    return found


def _by_frequency(reasons: Sequence[str]) -> tuple[str, ...]:
    counts: dict[str, int] = defaultdict(int)
    for reason in filter(None, reasons):
        counts[reason] += 1
    return tuple(sorted(counts, key=lambda reason: (-counts[reason], reason)))
