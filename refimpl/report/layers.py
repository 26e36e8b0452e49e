"""The first half of a layered layout: which layer each node is in, and in which order it lies there."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence

_SWEEPS = 24  # of barycentres; fewer for large graphs, see order_layers
_PATIENCE = 4  # sweeps without fewer crossings, after which more are not tried
_MOST_BENDS = 60_000  # the longest edges have none once there are so many: they go straight


def find_layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each node: the longest path that leads to it. Edges that close a cycle are left out.

    A cycle is opened at its first node: a node that waits for others in a cycle is taken as if it waited for none.
    """
    after: list[list[int]] = [[] for _ in range(count)]
    waits = [0] * count
    for source, target in edges:
        if source != target:
            after[source].append(target)
            waits[target] += 1
    layer = [0] * count
    done = [False] * count
    ready = [node for node in range(count) if waits[node] == 0]
    next_of_all = 0
    for _ in range(count):
        if not ready:
            while done[next_of_all]:
                next_of_all += 1
            ready.append(next_of_all)
        node = ready.pop()
        done[node] = True
        for other in after[node]:
            if not done[other]:
                layer[other] = max(layer[other], layer[node] + 1)
                waits[other] -= 1
                if waits[other] == 0:
                    ready.append(other)
    return layer


def pull_down(layer: list[int], edges: Sequence[tuple[int, int]]) -> list[int]:
    """The layers, with nodes that nothing leads to (inputs, constants) moved next to what reads them first."""
    entered = {target for source, target in edges if source != target}
    lowest: dict[int, int] = {}
    for source, target in edges:
        if source not in entered and source != target:
            lowest[source] = min(lowest.get(source, layer[target]), layer[target])
    moved = [max(0, lowest[node] - 1) if node in lowest else own for node, own in enumerate(layer)]
    first = min(moved, default=0)
    return [own - first for own in moved]


def bends_for(
    edges: Sequence[tuple[int, int]], layer: Sequence[int]
) -> tuple[dict[tuple[int, int], list[int]], list[int], list[tuple[int, int]]]:
    """A bend in every layer that an edge passes.

    Args:
        edges: distinct, each from a layer to a lower one.
        layer: of each node.

    Returns:
        The bends of each edge (numbered on from the nodes), the layer of each node and bend, and the links between
        neighbouring layers that the edges consist of now. The longest edges have no bends when there are too many.
    """
    layer_of = list(layer)
    chains: dict[tuple[int, int], list[int]] = {}
    links: list[tuple[int, int]] = []
    budget = _MOST_BENDS
    for source, target in sorted(edges, key=lambda edge: layer[edge[1]] - layer[edge[0]]):
        between = range(layer[source] + 1, layer[target])
        budget -= len(between)
        if budget < 0:
            chains[source, target] = []
            continue
        bends = list(range(len(layer_of), len(layer_of) + len(between)))
        layer_of.extend(between)
        chains[source, target] = bends
        stops = [source, *bends, target]
        links.extend(itertools.pairwise(stops))
    return chains, layer_of, links


def order_layers(layer_of: Sequence[int], links: Sequence[tuple[int, int]], nodes: int) -> list[list[int]]:
    """The nodes and bends of each layer, from left to right, so that few links cross.

    Sweeps down and up, each of which sorts a layer by the mean place of its neighbours in the layer before; the best
    order of all is kept.
    """
    above: list[list[int]] = [[] for _ in layer_of]
    below: list[list[int]] = [[] for _ in layer_of]
    for high, low in links:
        above[low].append(high)
        below[high].append(low)
    rows = _first_order(layer_of, above, below, nodes)
    best, fewest, idle = [list(row) for row in rows], count_crossings(rows, below), 0
    place = [0] * len(layer_of)
    for row in rows:
        _number(row, place)
    for number in range(_SWEEPS if len(layer_of) < 20_000 else _SWEEPS // 3):
        if fewest == 0 or idle == _PATIENCE:
            break
        near = above if number % 2 == 0 else below
        for row in rows if number % 2 == 0 else reversed(rows):
            key = {
                node: sum(place[other] for other in near[node]) / len(near[node]) if near[node] else place[node]
                for node in row
            }
            row.sort(key=key.__getitem__)
            _number(row, place)
        crossings = count_crossings(rows, below)
        idle += 1
        if crossings < fewest:
            best, fewest, idle = [list(row) for row in rows], crossings, 0
    return best


def _number(row: list[int], place: list[int]) -> None:
    for number, node in enumerate(row):
        place[node] = number


def _first_order(
    layer_of: Sequence[int], above: list[list[int]], below: list[list[int]], nodes: int
) -> list[list[int]]:
    """Depth first from the top, so that what belongs together lies together."""
    rows: list[list[int]] = [[] for _ in range(max(layer_of, default=-1) + 1)]
    seen = [False] * len(layer_of)
    for start in sorted(range(nodes), key=lambda node: layer_of[node]):
        stack = [start]
        while stack:
            node = stack.pop()
            if seen[node]:
                continue
            seen[node] = True
            rows[layer_of[node]].append(node)
            stack.extend(reversed(above[node]))
            stack.extend(reversed(below[node]))
    return rows


def count_crossings(rows: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """How many pairs of links cross: the inversions of their lower ends, when sorted by their upper ends."""
    crossings = 0
    for upper, lower in itertools.pairwise(rows):
        place = {node: number for number, node in enumerate(lower)}
        ends = [end for node in upper for end in sorted(place[other] for other in below[node])]
        seen: list[int] = []
        for end in ends:
            at = bisect_left(seen, end + 1)
            crossings += len(seen) - at
            seen.insert(at, end)
    return crossings
