"""A layered layout of a directed graph: sizes of nodes and edges in, coordinates out. Standard library only.

The steps are Sugiyama's (Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical system structures",
1981): layers by longest path; a bend for every layer that an edge passes; the order within layers by sweeps of
barycentres. For the coordinates every layer is moved as near to its neighbours as the order allows, which is an
isotonic regression and solved exactly by pooling (Ayer and others, "An empirical distribution function for sampling
with incomplete information", 1955). Equal input gives equal output.

Edges that close a cycle are drawn upwards, so any graph can be laid out. Parts that are not connected are laid out
apart and packed in rows.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from refimpl.report.layers import bends_for, find_layers, order_layers, pull_down

Point = tuple[float, float]

GAP_X, GAP_Y = 22.0, 46.0  # between neighbours in a layer, and between layers
_BEND_GAP = 12.0  # between an edge that passes a layer and its neighbours there
_ROUNDS = 13  # sweeps of the coordinates, down and up in turn; the last goes down, which makes chains straight
_YIELDING = 0.01  # weight of a bend, where a node's is 1: edges make room for nodes, so chains of nodes stay straight
_ASPECT = 1.6  # width : height that packed parts aim at


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies; y grows downwards, and edges go down.

    Attributes:
        centers: the middle of each node.
        routes: for each edge the points it passes, from the bottom of its source to the top of its target.
        width, height: of the whole, which begins at (0, 0).
    """

    centers: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


def lay_out(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], gap_y: float = GAP_Y) -> Layout:
    """Lay out a graph.

    Args:
        sizes: (width, height) of each node.
        edges: (source, target) as indices of nodes; equal edges and loops may occur.
        gap_y: between layers.
    """
    parts = _components(len(sizes), edges)
    laid = [_lay_out_part([sizes[node] for node in part], local, gap_y) for part, local in parts]
    places, width, height = _pack([(layout.width, layout.height) for layout in laid])
    centers: list[Point] = [(0.0, 0.0)] * len(sizes)
    routes: dict[tuple[int, int], tuple[Point, ...]] = {}
    for (part, local), layout, (dx, dy) in zip(parts, laid, places, strict=True):
        for node, (x, y) in zip(part, layout.centers, strict=True):
            centers[node] = (x + dx, y + dy)
        for (source, target), route in zip(local, layout.routes, strict=True):
            routes[part[source], part[target]] = tuple((x + dx, y + dy) for x, y in route)
    return Layout(tuple(centers), tuple(routes[edge] for edge in edges), width, height)


def _components(count: int, edges: Sequence[tuple[int, int]]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """The connected parts: their nodes, and their distinct edges between places in that list of nodes."""
    root = list(range(count))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    distinct = list(dict.fromkeys(edges))
    for source, target in distinct:
        low, high = sorted((find(source), find(target)))
        root[high] = low
    nodes: dict[int, list[int]] = defaultdict(list)
    place = [0] * count
    for node in range(count):
        part = nodes[find(node)]
        place[node] = len(part)
        part.append(node)
    inside: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for source, target in distinct:
        inside[find(source)].append((place[source], place[target]))
    return [(part, inside[first]) for first, part in nodes.items()]


def _lay_out_part(sizes: Sequence[tuple[float, float]], edges: list[tuple[int, int]], gap_y: float) -> Layout:
    """A connected graph, whose edges are distinct."""
    layer = pull_down(find_layers(len(sizes), edges), edges)
    down = [(s, t) if layer[s] < layer[t] else (t, s) for s, t in edges if layer[s] != layer[t]]
    down = list(dict.fromkeys(down))
    chains, layer_of, links = bends_for(down, layer)
    rows = order_layers(layer_of, links, len(sizes))
    widths = [width for width, _ in sizes] + [0.0] * (len(layer_of) - len(sizes))
    xs = _place(rows, widths, links, len(sizes))
    tops, bottoms = _heights(rows, sizes, gap_y)
    middle = [(top + bottom) / 2 for top, bottom in zip(tops, bottoms, strict=True)]
    centers = tuple((xs[node], middle[layer_of[node]]) for node in range(len(sizes)))

    def route(source: int, target: int) -> tuple[Point, ...]:
        start = (centers[source][0], centers[source][1] + sizes[source][1] / 2)
        end = (centers[target][0], centers[target][1] - sizes[target][1] / 2)
        if (source, target) in chains:  # straight down to where its layer ends, so that no higher neighbour is crossed
            leaves, enters = (start[0], bottoms[layer_of[source]]), (end[0], tops[layer_of[target]])
            between = _through(chains[source, target], xs, layer_of, tops, bottoms)
            return tuple(dict.fromkeys([start, leaves, *between, enters, end]))
        if (target, source) in chains:  # it closes a cycle, and is drawn upwards
            return (start, *reversed(_through(chains[target, source], xs, layer_of, tops, bottoms)), end)
        side = centers[source][0] + sizes[source][0] / 2 + GAP_X / 2  # a loop
        return (start, (side, start[1]), (side, end[1]), end)

    height = bottoms[-1]
    width = max(xs[node] + widths[node] / 2 for row in rows for node in row)
    return Layout(centers, tuple(route(*edge) for edge in edges), width, height)


def _through(
    chain: Sequence[int], xs: list[float], layer_of: Sequence[int], tops: list[float], bottoms: list[float]
) -> list[Point]:
    """The points at which an edge enters and leaves each layer that it passes, without those in a straight line."""
    points = [(xs[bend], y) for bend in chain for y in (tops[layer_of[bend]], bottoms[layer_of[bend]])]
    return [
        point
        for number, point in enumerate(points)
        if not (0 < number < len(points) - 1 and points[number - 1][0] == point[0] == points[number + 1][0])
    ]


def _heights(
    rows: list[list[int]], sizes: Sequence[tuple[float, float]], gap_y: float
) -> tuple[list[float], list[float]]:
    """Top and bottom of each layer, which is as high as its highest node."""
    tops, bottoms, y = [], [], 0.0
    for row in rows:
        tops.append(y)
        bottoms.append(y + max((sizes[node][1] for node in row if node < len(sizes)), default=0.0))
        y = bottoms[-1] + gap_y
    return tops, bottoms


def _place(rows: list[list[int]], widths: list[float], links: list[tuple[int, int]], nodes: int) -> list[float]:
    """The x of each node and bend: sweeps that draw every layer to the one above, then to the one below."""
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for high, low in links:
        above[low].append(high)
        below[high].append(low)
    xs = [0.0] * len(widths)
    apart = [
        [
            (widths[left] + widths[right]) / 2 + (GAP_X if max(left, right) < nodes else _BEND_GAP)
            for left, right in itertools.pairwise(row)
        ]
        for row in rows
    ]
    for row, gaps in zip(rows, apart, strict=True):
        total = sum(gaps)
        for node, x in zip(row, itertools.accumulate(gaps, initial=-total / 2), strict=True):
            xs[node] = x
    weight = [1.0 if node < nodes else _YIELDING for node in range(len(widths))]
    for number in range(_ROUNDS):
        downwards = number % 2 == 0
        for index in range(len(rows)) if downwards else range(len(rows) - 1, -1, -1):
            row = rows[index]
            near = above if downwards else below
            wanted = [_wish(xs, node, near[node], weight) for node in row]
            for node, x in zip(row, spread(wanted, [weight[node] for node in row], apart[index]), strict=True):
                xs[node] = x
    left = min(xs[node] - widths[node] / 2 for row in rows for node in row)
    return [round(x - left, 2) for x in xs]


def _wish(xs: list[float], node: int, near: list[int], weight: list[float]) -> float:
    """Where a node would like to be: at the weighted median of its neighbours, or where it is.

    A mean would draw a chain of nodes a bit aside at every edge that joins it, and a long chain far.
    """
    if len(near) < 2:
        return xs[near[0]] if near else xs[node]
    ordered = sorted(near, key=xs.__getitem__)
    half, seen = sum(weight[other] for other in near) / 2, 0.0
    for number, other in enumerate(ordered):
        seen += weight[other]
        if math.isclose(seen, half):
            return (xs[other] + xs[ordered[number + 1]]) / 2
        if seen > half:
            return xs[other]
    return xs[ordered[-1]]


def spread(wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """The positions nearest to the wanted ones (least weighted squares) that keep the order and the gaps.

    Without the gaps (subtracted first, added last) that is an isotonic regression: neighbours in the wrong order are
    pooled at their mean until none are left.

    Args:
        wanted: position wished for each, in their order.
        weights: what a deviation of each costs, above 0.
        gaps: the least distance between each and the next, one fewer than ``wanted``.
    """
    offsets = list(itertools.accumulate(gaps, initial=0.0))[: len(wanted)]
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, heavy, members = want - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, more, count = pools.pop()
            mean = (other * more + mean * heavy) / (more + heavy)
            heavy += more
            members += count
        pools.append((mean, heavy, members))
    means = [mean for mean, _, members in pools for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _pack(sizes: Sequence[tuple[float, float]]) -> tuple[list[Point], float, float]:
    """The corner of each part, in rows, the tallest parts first; and the width and height of them all."""
    if not sizes:
        return [], 0.0, 0.0
    area = sum((width + GAP_X) * (height + GAP_Y) for width, height in sizes)
    limit = max(math.sqrt(area * _ASPECT), *(width for width, _ in sizes))
    corners: list[Point] = [(0.0, 0.0)] * len(sizes)
    x = y = tallest = 0.0
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number][1]):
        width, height = sizes[number]
        if x and x + width > limit:
            x, y, tallest = 0.0, y + tallest + GAP_Y, 0.0
        corners[number] = (x, y)
        x, tallest = x + width + GAP_X, max(tallest, height)
    return (
        corners,
        max(x + width for (x, _), (width, _) in zip(corners, sizes, strict=True)),
        max(y + height for (_, y), (_, height) in zip(corners, sizes, strict=True)),
    )
