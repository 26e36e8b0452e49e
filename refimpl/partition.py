"""Partition: sort a signature's ops into islands, maximal convex sets of convertible ops. Pure graph work.

A set is convex when no path leaves it and comes back: only then can one engine call stand for it. The method has two
steps:

1. Every op gets a rank, the largest number of times that a path to it enters convertible ops from ones that are not, or
   from ones of another kind. Along a path ranks never fall, and a path that leaves convertible ops of a kind and
   re-enters them rises: so connected convertible ops of one rank and kind are convex, and all these sets can be
   contracted at once without a cycle. This is linear.
2. Neighbouring islands are merged where that makes no cycle, until none can be.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from refimpl.artifacts import Op
from refimpl.text import counted

_UNCOUNTED = frozenset(["Identity", "Snapshot", "StopGradient"])  # as TF-TRT counts


def partition(
    ops: Mapping[str, Op],
    refused: Iterable[str],
    *,
    min_segment_size: int,
    max_engines: int,
    kinds: Mapping[str, int] | None = None,
) -> tuple[tuple[tuple[str, ...], ...], dict[str, str]]:
    """Islands of ops, largest first cut by ``max_engines``, in topological order.

    Args:
        ops: all ops in topological order.
        refused: names of ops that must stay in TensorFlow.
        min_segment_size: smaller islands are given up; counted as TF-TRT does (:func:`segment_size`).
        max_engines: keep this many, the largest; 0 keeps all.
        kinds: ops of different kinds share no island; those of a group are of one kind.

    Returns:
        The islands, each a tuple of op names in topological order, and a reason for every op that is convertible and
        still in none.
    """
    barred = set(refused)
    edges = _edges(ops)
    kind = _kinds(ops, kinds or {})
    rank = _ranks(ops, edges, barred, kind)
    home = _components(ops, edges, rank, barred, kind)
    _merge_neighbours(ops, edges, home, kind)
    islands: dict[int, list[str]] = defaultdict(list)
    for name in ops:
        if name in home:
            islands[home[name]].append(name)
    readers = _readers(ops.values())
    sizes = {key: _segment_size(ops, members, readers) for key, members in islands.items()}
    reasons: dict[str, str] = {}
    for key in [key for key, size in sizes.items() if size < min_segment_size]:
        what = _what_counts(ops, islands[key], sizes[key])
        why = f"its island would have {what}, fewer than min_segment_size={min_segment_size}"
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
    return _segment_size(ops, members, _readers(ops.values()))


def _readers(ops: Iterable[Op]) -> Counter[str]:
    """Constant -> how many ops read it."""
    return Counter(constant for op in ops for constant in op.constants)


def _segment_size(ops: Mapping[str, Op], members: Sequence[str], readers: Mapping[str, int]) -> int:
    counted = sum(ops[name].type not in _UNCOUNTED for name in members)
    own = _readers(ops[name] for name in members)
    return counted + sum(readers[constant] == count for constant, count in own.items()) if counted else 0


def _what_counts(ops: Mapping[str, Op], members: Sequence[str], size: int) -> str:
    """The size of a segment in words: constants are told apart, since everybody else counts ops alone."""
    working = sum(ops[name].type not in _UNCOUNTED for name in members)
    constants = size - working
    parts = [counted(working, "op"), counted(constants, "constant")]
    return " and ".join(parts[: 2 if constants > 0 else 1])


def convex_groups(ops: Mapping[str, Op]) -> dict[str, int]:
    """The group of every op, after all that lies between the ops of a group was made part of it.

    A list that is read and then written with what was made of it encloses ops that know nothing of lists.
    """
    edges = _edges(ops)
    group = {name: op.group for name, op in ops.items()}
    for number in [number for number, count in Counter(group.values()).items() if count > 1]:
        after: dict[int, set[int]] = defaultdict(set)
        before: dict[int, set[int]] = defaultdict(set)
        for name, sources in edges.items():
            for source in sources:
                after[group[source]].add(group[name])
                before[group[name]].add(group[source])
        enclosed = _reach(after, number) & _reach(before, number)
        group = {name: number if old in enclosed else old for name, old in group.items()}
    return group


def _reach(edges: Mapping[int, set[int]], start: int) -> set[int]:
    seen: set[int] = set()
    stack = [other for other in edges.get(start, ()) if other != start]
    while stack:
        vertex = stack.pop()
        if vertex not in seen:
            seen.add(vertex)
            stack.extend(edges.get(vertex, ()))
    return seen


def _edges(ops: Mapping[str, Op]) -> dict[str, tuple[str, ...]]:
    """For every op its predecessors, over data and control."""
    edges = {}
    for name, op in ops.items():
        sources = [tensor.rsplit(":", 1)[0] for tensor in op.inputs] + list(op.controls)
        edges[name] = tuple(dict.fromkeys(source for source in sources if source in ops))
    return edges


def _group_order(ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Groups of ops in topological order (a group is never parted, and is convex: :func:`convex_groups`)."""
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


def _kinds(ops: Mapping[str, Op], kinds: Mapping[str, int]) -> dict[str, int | None]:
    of_group: dict[int, int | None] = {}
    return {name: of_group.setdefault(op.group, kinds.get(name)) for name, op in ops.items()}


def _ranks(
    ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]], barred: set[str], kind: Mapping[str, int | None]
) -> dict[str, int]:
    rank: dict[str, int] = {}
    for names in _group_order(ops, edges):
        inside = set(names)
        convertible = not barred & inside
        level = 0
        for source in {source for name in names for source in edges[name]} - inside:
            enters = convertible and (source in barred or kind[source] != kind[names[0]])
            level = max(level, rank[source] + enters)
        rank.update(dict.fromkeys(names, level))
    return rank


def _components(
    ops: Mapping[str, Op],
    edges: Mapping[str, tuple[str, ...]],
    rank: Mapping[str, int],
    barred: set[str],
    kind: Mapping[str, int | None],
) -> dict[str, int]:
    """Convertible op -> number of its island: connected through data edges between ops of one rank and kind."""
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
            if source in parent and rank[source] == rank[name] and kind[source] == kind[name]:
                parent[find(name)] = find(source)
    numbers: dict[str, int] = {}
    return {name: numbers.setdefault(find(name), len(numbers)) for name in parent}


def _merge_neighbours(
    ops: Mapping[str, Op],
    edges: Mapping[str, tuple[str, ...]],
    home: dict[str, int],
    kind: Mapping[str, int | None],
) -> None:
    """Merge islands of a kind, joined by an edge where no other path joins them, until none is left to merge."""
    contracted = _Contracted(ops, edges, home)
    kinds = {island: kind[name] for name, island in home.items()}
    changed = True
    while changed:
        changed = False
        for edge in contracted.island_edges():
            first, second = map(contracted.root, edge)
            if kinds[first] == kinds[second] and contracted.only_direct(first, second):
                contracted.merge(first, second)
                changed = True
    for name, island in home.items():
        home[name] = contracted.root(island)


class _Contracted:
    """The graph with every island contracted to one vertex; all other ops are vertices too. Islands come first."""

    def __init__(self, ops: Mapping[str, Op], edges: Mapping[str, tuple[str, ...]], home: Mapping[str, int]) -> None:
        self._islands = 1 + max(home.values(), default=-1)
        self._moved: dict[int, int] = {}
        others = (name for name in ops if name not in home)
        vertex = {**home, **{name: self._islands + index for index, name in enumerate(others)}}
        self._after: dict[int, set[int]] = {number: set() for number in vertex.values()}
        self._before: dict[int, set[int]] = {number: set() for number in vertex.values()}
        for name, sources in edges.items():
            for source in sources:
                if vertex[source] != vertex[name]:
                    self._after[vertex[source]].add(vertex[name])
                    self._before[vertex[name]].add(vertex[source])

    def root(self, island: int) -> int:
        while island in self._moved:
            island = self._moved[island]
        return island

    def island_edges(self) -> list[tuple[int, int]]:
        islands = [vertex for vertex in self._after if vertex < self._islands]
        return [(a, b) for a in islands for b in self._after[a] if b < self._islands]

    def only_direct(self, first: int, second: int) -> bool:
        """Whether ``second`` follows ``first`` and cannot be reached from it through any other vertex.

        Walks from both ends in step, so that the end with less to see decides: an island near the start of a large
        model is followed by nearly everything.
        """
        if second not in self._after[first]:
            return False
        behind, ahead = {first}, {second}
        for vertex, other in zip(_walk(self._after, first, second), _walk(self._before, second, first), strict=False):
            behind.add(vertex)
            ahead.add(other)
            if vertex in ahead or other in behind:
                return False
        return True

    def merge(self, first: int, second: int) -> None:
        """Make two islands one; the one with fewer edges moves."""
        sizes = {island: len(self._after[island]) + len(self._before[island]) for island in (first, second)}
        kept, gone = (first, second) if sizes[first] >= sizes[second] else (second, first)
        self._moved[gone] = kept
        for there, back in ((self._after, self._before), (self._before, self._after)):
            for vertex in there.pop(gone):
                back[vertex].discard(gone)
                if vertex != kept:
                    there[kept].add(vertex)
                    back[vertex].add(kept)


def _walk(edges: Mapping[int, set[int]], start: int, end: int) -> Iterator[int]:
    """Every vertex that can be reached from ``start`` other than by the edge to ``end`` itself, once."""
    seen: set[int] = set()
    stack = [iter(edges[start])]
    while stack:
        vertex = next(stack[-1], None)
        if vertex is None:
            stack.pop()
        elif vertex not in seen and not (vertex == end and len(stack) == 1):
            seen.add(vertex)
            yield vertex
            stack.append(iter(edges[vertex]))
