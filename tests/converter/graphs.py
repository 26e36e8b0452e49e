"""Graph questions answered the slow and obvious way, to judge the fast answers of the converter by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Edges = Mapping[str, Iterable[str]]  # vertex -> the vertices right before it


def is_acyclic(edges: Edges) -> bool:
    """Whether vertices can be taken away one by one, each after all before it."""
    waiting = {vertex: set(before) for vertex, before in edges.items()}
    while free := {vertex for vertex, before in waiting.items() if not before}:
        waiting = {vertex: before - free for vertex, before in waiting.items() if vertex not in free}
    return not waiting


def contracted(edges: Edges, islands: Iterable[Iterable[str]]) -> dict[str, set[str]]:
    """The graph with every island made one vertex; its own inner edges are gone."""
    home = {name: f"island {number}" for number, island in enumerate(islands) for name in island}
    result: dict[str, set[str]] = {}
    for vertex, before in edges.items():
        here = home.get(vertex, vertex)
        result.setdefault(here, set()).update(home.get(source, source) for source in before)
    for vertex, before in result.items():
        if vertex.startswith("island "):
            before.discard(vertex)
    return result


def are_convex(edges: Edges, islands: Iterable[Iterable[str]]) -> bool:
    """Whether each island, and all of them together, can be one step each: nothing leaves one and comes back."""
    return is_acyclic(contracted(edges, islands))


def reaches(edges: Edges, before: str, after: str) -> bool:
    """Whether there is a path from one vertex to the other; a vertex reaches itself."""
    seen, stack = set(), [after]
    while stack:
        vertex = stack.pop()
        if vertex not in seen:
            seen.add(vertex)
            stack += edges[vertex]
    return before in seen


def is_connected(edges: Edges, members: Iterable[str]) -> bool:
    """Whether the members hang together over edges between them, whatever their direction."""
    inside = set(members)
    beside: dict[str, set[str]] = {name: set() for name in inside}
    for vertex in inside:
        for source in inside & set(edges[vertex]):
            beside[vertex].add(source)
            beside[source].add(vertex)
    seen: set[str] = set()
    stack = [next(iter(inside))]
    while stack:
        vertex = stack.pop()
        if vertex not in seen:
            seen.add(vertex)
            stack += beside[vertex]
    return seen == inside
