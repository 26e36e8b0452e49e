"""The layered layout: every node has a place of its own, arrows go down, few cross, and large graphs are no trouble."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from refimpl.report.layers import bends_for, count_crossings, find_layers, order_layers, pull_down
from refimpl.report.layout import GAP_X, GAP_Y, lay_out, spread
from tests.report.drawn import overlaps

Edges = list[tuple[int, int]]


def made_up(count: int, seed: int, reach: int = 12) -> Edges:
    rng = random.Random(seed)
    return sorted(
        {(rng.randrange(max(0, node - reach), node), node) for node in range(1, count) for _ in range(1 + node % 2)}
    )


def crossings(layers: list[int], edges: Edges, *, ordered: bool) -> int:
    """Between neighbouring layers, after ordering or in the order of numbers."""
    _, layer_of, links = bends_for(edges, layers)
    rows: list[list[int]] = [[] for _ in range(max(layer_of) + 1)]
    for node, layer in enumerate(layer_of):
        rows[layer].append(node)
    below: list[list[int]] = [[] for _ in layer_of]
    for high, low in links:
        below[high].append(low)
    return count_crossings(order_layers(layer_of, links, len(layers)) if ordered else rows, below)


@pytest.mark.parametrize("seed", range(6))
def test_nodes_do_not_overlap_and_arrows_go_down(seed: int) -> None:
    rng = random.Random(seed)
    edges = made_up(120, seed)
    sizes = [(rng.choice([40.0, 150.0, 310.0]), rng.choice([20.0, 60.0])) for _ in range(120)]
    laid = lay_out(sizes, edges)
    assert overlaps(laid, sizes) == []
    for (source, target), route in zip(edges, laid.routes, strict=True):
        assert route[0] == (laid.centers[source][0], laid.centers[source][1] + sizes[source][1] / 2)
        assert route[-1] == (laid.centers[target][0], laid.centers[target][1] - sizes[target][1] / 2)
        assert all(above[1] <= below[1] for above, below in itertools.pairwise(route))
    for (x, y), (width, height) in zip(laid.centers, sizes, strict=True):
        assert width / 2 - 0.01 <= x <= laid.width - width / 2 + 0.01
        assert height / 2 <= y <= laid.height - height / 2


def test_arrows_that_pass_a_layer_cross_no_node() -> None:
    sizes = [(100.0, 40.0)] * 6
    laid = lay_out(sizes, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)])
    long_way = laid.routes[-1]
    for node in range(1, 5):
        x, y = laid.centers[node]
        ((left, right),) = {(a[0], b[0]) for a, b in itertools.pairwise(long_way) if a[1] <= y - 20 and y + 20 <= b[1]}
        assert left == right, "straight beside every node that it passes"
        assert abs(left - x) > 50


def test_a_chain_is_a_straight_line() -> None:
    laid = lay_out([(80.0, 30.0)] * 5, [(0, 1), (1, 2), (2, 3), (3, 4)])
    assert len({x for x, _ in laid.centers}) == 1
    assert [y for _, y in laid.centers] == [15.0 + number * (30.0 + GAP_Y) for number in range(5)]


def test_branches_lie_around_what_they_come_from() -> None:
    (x0, _), (x1, _), (x2, _), (x3, _) = lay_out([(80.0, 30.0)] * 4, [(0, 1), (0, 2), (1, 3), (2, 3)]).centers
    assert x2 - x1 == 80.0 + GAP_X
    assert x0 == x3 == (x1 + x2) / 2


def test_layers_are_the_longest_paths() -> None:
    assert find_layers(5, [(0, 1), (1, 2), (0, 2), (2, 4), (3, 4)]) == [0, 1, 2, 0, 3]
    assert pull_down([0, 1, 2, 0, 3], [(0, 1), (1, 2), (0, 2), (2, 4), (3, 4)]) == [0, 1, 2, 2, 3]


def test_crossings_are_counted_by_hand() -> None:
    assert count_crossings([[0, 1], [2, 3]], [[3], [2], [], []]) == 1
    assert count_crossings([[0, 1], [2, 3]], [[2, 3], [2, 3], [], []]) == 1
    assert count_crossings([[0, 1, 2], [3, 4, 5]], [[5], [4], [3], [], [], []]) == 3
    assert count_crossings([[0, 1], [2, 3]], [[2], [3], [], []]) == 0


def test_a_tangle_that_can_be_undone_is_undone() -> None:
    """Two ladders whose nodes are numbered as badly as can be."""
    rungs = 8
    edges = [(2 * number + side, 2 * (number + 1) + (1 - side)) for number in range(rungs) for side in (0, 1)]
    layers = find_layers(2 * rungs + 2, edges)
    assert crossings(layers, edges, ordered=False) == rungs
    assert crossings(layers, edges, ordered=True) == 0


@pytest.mark.parametrize("seed", range(3))
def test_ordering_removes_most_crossings(seed: int) -> None:
    edges = made_up(200, seed)
    layers = pull_down(find_layers(200, edges), edges)
    assert crossings(layers, edges, ordered=True) < crossings(layers, edges, ordered=False) / 3


def test_spread_is_the_nearest_that_keeps_the_gaps() -> None:
    assert spread([0.0, 10.0, 20.0], [1.0] * 3, [5.0, 5.0]) == [0.0, 10.0, 20.0]
    assert spread([0.0, 0.0], [1.0, 1.0], [10.0]) == [-5.0, 5.0]
    assert spread([0.0, 0.0], [3.0, 1.0], [8.0]) == [-2.0, 6.0], "the heavier one gives way less"
    assert spread([9.0, 0.0, 0.0], [1.0] * 3, [1.0, 1.0]) == pytest.approx([2.0, 3.0, 4.0])
    assert spread([], [], []) == []


@pytest.mark.parametrize(
    ("count", "edges"),
    [(0, []), (1, []), (1, [(0, 0)]), (2, [(0, 1), (1, 0)]), (3, [(0, 1), (1, 2), (2, 0), (0, 1)]), (4, [])],
)
def test_odd_graphs_have_layouts(count: int, edges: Edges) -> None:
    sizes = [(30.0, 20.0)] * count
    laid = lay_out(sizes, edges)
    assert len(laid.centers) == count
    assert len(laid.routes) == len(edges)
    assert overlaps(laid, sizes) == []


def test_the_same_graph_has_the_same_layout() -> None:
    sizes = [(50.0, 20.0)] * 300
    assert lay_out(sizes, made_up(300, 7)) == lay_out(sizes, made_up(300, 7))


def test_what_is_not_connected_is_laid_out_apart() -> None:
    sizes = [(100.0, 20.0)] * 60
    laid = lay_out(sizes, [(node, node + 1) for node in range(0, 60, 2)])
    assert overlaps(laid, sizes) == []
    assert laid.width < 3 * laid.height, "rows, and not one line"


@pytest.mark.parametrize("reach", [3, 200, pytest.param(12_000, marks=pytest.mark.slow)])
def test_twelve_thousand_nodes_take_seconds(reach: int) -> None:
    """Two to nine seconds on a core of its own; the limit is for a machine that is busy."""
    began = time.perf_counter()
    laid = lay_out([(120.0, 30.0)] * 12_000, made_up(12_000, 1, reach))
    assert time.perf_counter() - began < 60
    assert len(laid.centers) == 12_000
