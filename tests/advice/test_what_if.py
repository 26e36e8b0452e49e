"""What would merge if some ops were convertible, on graphs whose answers are plain."""

from __future__ import annotations

import pytest

from refimpl.advice.what_if import Partitioner
from tests.advice.graphs import FLOAT64, SMALL, STRINGS, chain, graph_of
from tests.bundles import make_bundle


def index_of(graph, *names: str) -> list[int]:
    return [index for index, op in enumerate(graph.ops) if op.name in names]


def test_one_op_between_two_islands_splits_them():
    graph = graph_of({**chain("a", "I0", []), "x": (STRINGS, ["a2"]), **chain("b", "I1", ["x"])})
    partitioner = Partitioner(graph, {})
    found = partitioner.without(index_of(graph, "x"))
    assert partitioner.exact
    assert (found.islands, found.gained, found.merged, found.splits) == (1, (3,), (("I0", "I1"),), 1)


def test_of_two_paths_one_alone_is_not_enough():
    """Convertible x would still leave the path through y, which leaves the island and comes back: b0 may join the
    first island, but then the rest of its own is too small for one.
    """
    rows = {**chain("a", "I0", []), "x": (STRINGS, ["a2"]), "y": (FLOAT64, ["a2"]), **chain("b", "I1", ["x"])}
    rows["b1"] = ("I1", ["b0", "y"])
    graph = graph_of(rows)
    partitioner = Partitioner(graph, {})
    assert partitioner.exact
    one = partitioner.without(index_of(graph, "x"))
    assert (one.merged, [graph.ops[index].name for index in one.lost]) == ((), ["b1", "b2"])
    assert partitioner.without(index_of(graph, "y")).merged == ()
    assert partitioner.without(index_of(graph, "x", "y")).merged == (("I0", "I1"),)


def test_a_control_path_keeps_islands_apart_too():
    rows = {**chain("a", "I0", []), "x": (STRINGS, ["a2"]), "y": (FLOAT64, []), **chain("b", "I1", ["x"])}
    graph = graph_of(rows, controls={"y": ["a2"], "b0": ["y"]})
    partitioner = Partitioner(graph, {})
    assert partitioner.exact
    assert partitioner.without(index_of(graph, "x")).merged == ()
    free = graph_of(rows)
    assert Partitioner(free, {}).without(index_of(free, "x")).merged == (("I0", "I1"),)


def test_what_was_too_small_alone_joins_too():
    rows = {**chain("a", "I0", []), "x": (STRINGS, ["a2"]), "small": (SMALL, ["x"]), "y": (STRINGS, ["small"])}
    graph = graph_of({**rows, **chain("b", "I1", ["y"])})
    partitioner = Partitioner(graph, {})
    assert partitioner.exact
    both = partitioner.without(index_of(graph, "x", "y"))
    assert (both.merged, [graph.ops[index].name for index in both.gained]) == ((("I0", "I1"),), ["x", "small", "y"])
    one = partitioner.without(index_of(graph, "x"))
    assert (one.merged, [graph.ops[index].name for index in one.gained]) == ((), ["x", "small"])


def test_a_group_is_freed_as_a_whole():
    rows = {**chain("a", "I0", []), "x": (STRINGS, ["a2"]), "y": (STRINGS, ["x"]), **chain("b", "I1", ["y"])}
    graph = graph_of(rows, groups=[("x", "y")])
    assert Partitioner(graph, {}).without(index_of(graph, "x")).merged == (("I0", "I1"),)
    parted = graph_of(rows)
    assert Partitioner(parted, {}).without(index_of(parted, "x")).merged == ()


def test_splitters_are_those_that_do_it_alone():
    rows = {**chain("a", "I0", []), "x": (STRINGS, ["a2"]), "aside": (STRINGS, ["a0"]), **chain("b", "I1", ["x"])}
    graph = graph_of(rows)
    ops = index_of(graph, "x", "aside")
    assert Partitioner(graph, {}).splitters(ops, 10) == tuple(index_of(graph, "x"))
    assert Partitioner(graph, {}).splitters(ops, 0) == ()


def test_limits_free_what_they_keep_out():
    graph = graph_of({**chain("a", "I0", []), "x": (STRINGS, ["a2"]), "small": (SMALL, ["x"])})
    found = Partitioner(graph, {}).with_limits(min_segment_size=1)
    assert (found.islands, [graph.ops[index].name for index in found.gained]) == (2, ["small"])


def test_nothing_is_claimed_of_a_graph_that_was_cut_by_other_rules():
    rows = {**chain("a", "I0", []), **chain("b", "I1", ["a2"])}  # nothing keeps these apart
    assert not Partitioner(graph_of(rows), {}).exact
    assert Partitioner(graph_of({**chain("a", "I0", []), **chain("b", "I0", ["a2"])}), {}).exact


def test_choices_of_the_conversion_count():
    graph = graph_of({**chain("a", "I0", [], 4), "x": (STRINGS, ["a3"]), "b0": (SMALL.replace("=3", "=4"), ["x"])})
    assert Partitioner(graph, {"min_segment_size": 4}).exact
    assert not Partitioner(graph, {"min_segment_size": 1}).exact


@pytest.mark.parametrize("name", ["decode_and_label", "detector", "odd_ops", "tensor_array", "counter"])
def test_real_graphs_are_cut_as_the_conversion_cut_them(name):
    from refimpl import bundle
    from refimpl.graph_record import read_graphs

    folder = make_bundle(name)
    for graph in read_graphs(folder).values():
        assert Partitioner(graph, bundle.read(folder).recipe).exact
