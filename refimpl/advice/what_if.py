"""What if these ops could go into engines: the same partition that a conversion makes, with fewer ops barred."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from refimpl.advice.families import LEFT_OUT, family_of
from refimpl.artifacts import Op
from refimpl.bundle import IDLE_OPS
from refimpl.graph_record import SignatureGraph
from refimpl.partition import partition, segment_size
from refimpl.recipe import Recipe
from refimpl.specs import TensorSpec


@dataclass(frozen=True)
class WhatIf:
    """What another partition would be like.

    Attributes:
        islands: how many islands it has.
        gained: ops that compute something, in an island then and in none now, as indices.
        lost: the other way round.
        merged: names of the islands of now that lie in one island then, wholly, for each such island.
    """

    islands: int
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    merged: tuple[tuple[str, ...], ...]

    @property
    def splits(self) -> int:
        """How many islands there are more now because of this."""
        return sum(len(names) - 1 for names in self.merged)


class Partitioner:
    """Cuts the graph of one signature again.

    Args:
        graph: of the signature.
        recipe: the choices that it was made with, by the names of ``refimpl.Recipe``; defaults for those not known.
    """

    def __init__(self, graph: SignatureGraph, recipe: Mapping[str, Any]) -> None:
        default = Recipe()
        self._graph = graph
        self._smallest = int(recipe.get("min_segment_size", default.min_segment_size))
        self._most = int(recipe.get("max_engines", default.max_engines))
        self._ops = {str(index): _op(graph, index) for index in range(len(graph.ops))}
        families = {reason: family_of(reason).name for reason in {op.reason for op in graph.ops}}
        barred_groups = {
            op.group if op.group >= 0 else -1 - index
            for index, op in enumerate(graph.ops)
            if not op.island and families[op.reason] not in LEFT_OUT
        }
        self._members: dict[int, list[int]] = defaultdict(list)
        for index in range(len(graph.ops)):
            self._members[self._group(index)].append(index)
        self._barred = {index for group in barred_groups for index in self._members[group]}

    def _group(self, index: int) -> int:
        group = self._graph.ops[index].group
        return group if group >= 0 else -1 - index

    @cached_property
    def exact(self) -> bool:
        """Whether cutting the graph as it is gives its islands; where other rules were at work, nothing can be said."""
        now: dict[str, list[int]] = defaultdict(list)
        for index, op in enumerate(self._graph.ops):
            if op.island:
                now[op.island].append(index)
        return sorted(now.values()) == sorted(self._islands(self._barred))

    def sizes(self) -> dict[str, int]:
        """Of each island, by its name, the size that ``min_segment_size`` is compared with."""
        members: dict[str, list[str]] = defaultdict(list)
        for index, op in enumerate(self._graph.ops):
            if op.island:
                members[op.island].append(str(index))
        return {name: segment_size(self._ops, ops) for name, ops in members.items()}

    def without(self, ops: Collection[int]) -> WhatIf:
        """The partition if these ops, and those of their groups, were convertible."""
        freed = {member for index in ops for member in self._members[self._group(index)]}
        return self._compared(self._islands(self._barred - freed))

    def splits_alone(self, ops: Collection[int]) -> int:
        """How many islands there would be more than with no op barred at all, if these alone were barred."""
        barred = {member for index in ops for member in self._members[self._group(index)]}
        return max(0, len(self._islands(barred)) - self._least)

    @cached_property
    def _least(self) -> int:
        return len(self._islands(()))

    def with_limits(self, *, min_segment_size: int | None = None, max_engines: int | None = None) -> WhatIf:
        """The partition with other limits."""
        smallest = self._smallest if min_segment_size is None else min_segment_size
        most = self._most if max_engines is None else max_engines
        return self._compared(self._cut(self._barred, smallest, most))

    def _compared(self, islands: list[list[int]]) -> WhatIf:
        graph, merged = self._graph.ops, []
        whole = Counter(op.island for op in graph if op.island)
        for island in islands:
            inside = Counter(graph[index].island for index in island if graph[index].island)
            names = tuple(name for name, count in inside.items() if count == whole[name])
            if len(names) > 1:
                merged.append(names)
        home = {index for island in islands for index in island}
        working = [index for index, op in enumerate(graph) if op.type not in IDLE_OPS]
        gained = tuple(index for index in working if index in home and not graph[index].island)
        lost = tuple(index for index in working if index not in home and graph[index].island)
        return WhatIf(len(islands), gained, lost, tuple(merged))

    def splitters(self, ops: Collection[int], limit: int) -> tuple[int, ...]:
        """Those of the ops that keep islands apart all by themselves; the first ``limit`` groups of ops are tried."""
        groups = list(dict.fromkeys(map(self._group, sorted(ops))))
        asked = set(ops)
        found: list[int] = []
        for group in groups[:limit]:
            members = self._members[group]
            if self.without(members).merged:
                found += [index for index in members if index in asked]
        return tuple(found)

    def _islands(self, barred: Collection[int]) -> list[list[int]]:
        return self._cut(barred, self._smallest, self._most)

    def _cut(self, barred: Collection[int], smallest: int, most: int) -> list[list[int]]:
        islands, _ = partition(self._ops, map(str, barred), min_segment_size=smallest, max_engines=most)
        return [[int(name) for name in members] for members in islands]


def _op(graph: SignatureGraph, index: int) -> Op:
    op = graph.ops[index]
    return Op(
        name=str(index),
        type=op.type,
        inputs=tuple(f"{source}:{slot}" for source, slot in zip(op.inputs, op.slots, strict=True)),
        controls=tuple(map(str, op.controls)),
        outputs=tuple(TensorSpec(f"{index}:{slot}", "", None) for slot in range(len(op.outputs))),
        constants=tuple(map(str, op.constants)),
        group=op.group if op.group >= 0 else -1 - index,
    )
