"""Partition: sort a signature's ops into islands, maximal convex sets of convertible ops. Pure graph work.

A set is convex when no path leaves it and comes back: only then can one engine call stand for it. The method has two
steps:

1. Every op gets a rank, the largest number of times that a path to it enters convertible ops from ones that are not.
   Along a path ranks never fall, and a path that leaves convertible ops and re-enters them rises: so connected
   convertible ops of one rank are convex, and all these sets can be contracted at once without a cycle. This is linear.
2. Neighbouring islands are merged where that makes no cycle, until none can be.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence

from refimpl.artifacts import Op

_UNCOUNTED = frozenset(["Identity", "Snapshot", "StopGradient"])  # as TF-TRT counts


def partition(
    ops: Mapping[str, Op], refused: Iterable[str], *, min_segment_size: int, max_engines: int
) -> tuple[tuple[tuple[str, ...], ...], dict[str, str]]:
    """Islands of ops, largest first cut by ``max_engines``, in topological order.

    Args:
        ops: all ops in topological order.
        refused: names of ops that must stay in TensorFlow.
        min_segment_size: smaller islands are given up; counted as TF-TRT does (:func:`segment_size`).
        max_engines: keep this many, the largest; 0 keeps all.

    Returns:
        The islands, each a tuple of op names in topological order, and a reason for every op that is convertible and
        still in none.
    """
    barred = set(refused)
    edges = _edges(ops)
    rank = _ranks(ops, edges, barred)
    home = _components(ops, edges, rank, barred)
    _merge_neighbours(ops, edges, home)
    islands: dict[int, list[str]] = defaultdict(list)
    for name in ops:
        if name in home:
            islands[home[name]].append(name)
    sizes = {key: segment_size(ops, members) for key, members in islands.items()}
    reasons: dict[str, str] = {}
    for key in [key for key, size in sizes.items() if size < min_segment_size]:
        why = f"its island would have {sizes[key]} ops, fewer than min_segment_size={min_segment_size}"
        reasons.update(dict.fromkeys(islands.pop(key), why))
    kept = sorted(islands, key=lambda key: -sizes[key])
    if max_engines:
        for key in kept[max_engines:]:
            why = f"its island is not among the {max_engines} largest (max_engines)"
            reasons.update(dict.fromkeys(islands.pop(key), why))
    return tuple(tuple(members) for members in islands.values()), reasons


def segment_size(ops: Mapping[str, Op], members: Sequence[str]) -> int:
    """The number of ops as TF-TRT's ``minimum_segment_size`` counts them.

    Constants that only this island reads count; Identity, Snapshot and StopGradient do not.
    """
    inside = set(members)
    constants = {constant for name in members for constant in ops[name].constants}
    shared = {constant for name, op in ops.items() if name not in inside for constant in op.constants}
    counted = sum(ops[name].type not in _UNCOUNTED for name in members)
    return counted + len(constants - shared) if counted else 0


def _edges(ops: Mapping[str, Op]) -> dict[str, tuple[str, ...]]:
    """For every op its predecessors, over data and control."""
    edges = {}
    for name, op in ops.items():
        sources = [tensor.rsplit(":", 1)[0] for tensor in op.inputs] + list(op.controls)
        edges[name] = tuple(dict.fromkeys(source for source in sources if source in ops))
    return edges


def _group_order(ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Groups of ops in topological order (a group is never parted, and is convex by construction)."""
    members: dict[int, list[str]] = defaultdict(list)
    for name, op in ops.items():
        members[op.group].append(name)
    before = {
        group: {ops[source].group for name in names for source in edges[name]} - {group}
        for group, names in members.items()
    }
    after: dict[int, list[int]] = defaultdict(list)
    for group, sources in before.items():
        for source in sources:
            after[source].append(group)
    waiting = {group: len(sources) for group, sources in before.items()}
    ready = deque(group for group, count in waiting.items() if not count)
    order = []
    while ready:
        group = ready.popleft()
        order.append(members[group])
        for follower in after[group]:
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    return order


def _ranks(ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]], barred: set[str]) -> dict[str, int]:
    rank: dict[str, int] = {}
    for names in _group_order(ops, edges):
        inside = set(names)
        convertible = not barred & inside
        level = 0
        for source in {source for name in names for source in edges[name]} - inside:
            level = max(level, rank[source] + (convertible and source in barred))
        rank.update(dict.fromkeys(names, level))
    return rank


def _components(
    ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]], rank: Mapping[str, int], barred: set[str]
) -> dict[str, int]:
    """Convertible op -> number of its island: connected through data edges between ops of one rank."""
    parent = {name: name for name in ops if name not in barred}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first_of_group: dict[int, str] = {}
    for name in parent:
        twin = first_of_group.setdefault(ops[name].group, name)
        parent[find(name)] = find(twin)
        for source in edges[name]:
            if source in parent and rank[source] == rank[name]:
                parent[find(name)] = find(source)
    numbers: dict[str, int] = {}
    return {name: numbers.setdefault(find(name), len(numbers)) for name in parent}


def _merge_neighbours(ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]], home: dict[str, int]) -> None:
    """Merge islands joined by an edge where no other path joins them, until none is left to merge."""
    contracted = _Contracted(ops, edges, home)
    changed = True
    while changed:
        changed = False
        for first, second in contracted.island_edges():
            if contracted.only_direct(first, second):
                contracted.merge(first, second)
                changed = True
    for name, island in home.items():
        home[name] = contracted.root(island)


class _Contracted:
    """The graph with every island contracted to one vertex (an int); all other ops are vertices by name."""

    def __init__(self, ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]], home: Mapping[str, int]) -> None:
        self._moved: dict[int, int] = {}
        self._after: dict[int | str, set[int | str]] = defaultdict(set)
        for name in ops:
            vertex = home.get(name, name)
            self._after[vertex]  # every vertex has an entry
            for source in edges[name]:
                if (before := home.get(source, source)) != vertex:
                    self._after[before].add(vertex)

    def root(self, island: int) -> int:
        while island in self._moved:
            island = self._moved[island]
        return island

    def island_edges(self) -> list[tuple[int, int]]:
        return [
            (a, b)
            for a, after in list(self._after.items())
            if isinstance(a, int)
            for b in list(after)
            if isinstance(b, int)
        ]

    def only_direct(self, first: int, second: int) -> bool:
        """Whether ``second`` follows ``first`` and cannot be reached from it through any other vertex."""
        if first in self._moved or second in self._moved or second not in self._after[first]:
            return False
        seen: set[int | str] = set()
        stack = [vertex for vertex in self._after[first] if vertex != second]
        while stack:
            vertex = stack.pop()
            if vertex == second:
                return False
            if vertex not in seen:
                seen.add(vertex)
                stack.extend(self._after[vertex])
        return True

    def merge(self, first: int, second: int) -> None:
        self._moved[second] = first
        self._after[first] = (self._after[first] | self._after.pop(second)) - {first, second}
        for after in self._after.values():
            if second in after:
                after.discard(second)
                after.add(first)
        self._after[first].discard(first)
