"""The overview: islands and neighbours folded, nothing lost, no circles."""

from __future__ import annotations

import graphlib
import random

import pytest

from refimpl.errors import BundleError
from refimpl.graph_record import SignatureGraph
from refimpl.report.overview import Group, Overview, collapse
from tests.report.drawn import Row, graph


def inner(overview: Overview) -> list[Group]:
    return [group for group in overview.groups if group.kind in ("island", "tensorflow")]


def test_an_island_is_one_group_and_neighbours_of_one_reason_are_one() -> None:
    made = collapse(
        graph(
            ("-text", "Split", ()), ("-text", "Join", (0,)), ("A", "MatMul", (1,)), ("A", "Relu", (2,)),
            ("-no lowering", "Nms", (3,)), ("-text", "AsString", (4,)),
        )
    )  # fmt: skip
    assert [(group.kind, group.name, group.ops, group.reasons) for group in made.groups] == [
        ("tensorflow", "", (0, 1), ("text",)),
        ("island", "A", (2, 3), ()),
        ("tensorflow", "", (4,), ("no lowering",)),
        ("tensorflow", "", (5,), ("text",)),
        ("input", "x", (), ()),
        ("output", "y", (), ()),
    ]
    assert [(flow.source, flow.target, flow.tensors) for flow in made.flows] == [
        (4, 0, ("float32[?,3]",)),
        (0, 1, ("float32[?,1]",)),
        (1, 2, ("float32[?,3]",)),
        (2, 3, ("float32[?,4]",)),
        (3, 5, ("float32[?,5]",)),
    ]


def test_ops_of_one_reason_before_and_after_an_island_stay_apart() -> None:
    """0 and 2 are neighbours with one reason; as one group they would wait for the island that waits for them."""
    made = collapse(graph(("-text", "Split", ()), ("A", "MatMul", (0,)), ("-text", "Join", (0, 1))))
    assert [group.ops for group in inner(made)] == [(0,), (1,), (2,)]


def test_ops_that_are_no_neighbours_are_two_groups() -> None:
    made = collapse(graph(("-text", "A", ()), ("-text", "B", ()), ("-other", "C", (0, 1))))
    assert [group.ops for group in inner(made)] == [(0,), (1,), (2,)]


def test_a_tensor_that_is_read_twice_counts_once() -> None:
    made = collapse(graph(("A", "Split", ()), ("-r", "Add", (0, 0)), ("-r", "Mul", (0, 1))))
    (flow,) = [flow for flow in made.flows if (flow.source, flow.target) == (0, 1)]
    assert flow.tensors == ("float32[?,0]",)


def random_graph(seed: int, count: int = 150) -> SignatureGraph:
    """Islands of consecutive ops with ops of TensorFlow between them, so that islands do not wait for each other."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for number in range(count):
        where = f"I{number // 12}" if number % 12 < 7 else f"-reason {rng.randrange(3)}"
        rows.append((where, "Op", [rng.randrange(max(0, number - 9), number) for _ in range(2)] if number else ()))
    return graph(*rows)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_and_groups_do_not_wait_for_each_other(seed: int) -> None:
    drawn = random_graph(seed)
    made = collapse(drawn)
    assert sorted(op for group in made.groups for op in group.ops) == list(range(len(drawn.ops)))
    before: dict[int, set[int]] = {number: set() for number in range(len(made.groups))}
    for flow in made.flows:
        before[flow.target].add(flow.source)
    assert len(list(graphlib.TopologicalSorter(before).static_order())) == len(made.groups)
    of_op = {op: number for number, group in enumerate(made.groups) for op in group.ops}
    wanted = {(of_op[source], of_op[index]) for index, op in enumerate(drawn.ops) for source in op.inputs}
    found = {(flow.source, flow.target) for flow in made.flows if made.groups[flow.source].kind != "input"}
    assert {pair for pair in wanted if pair[0] != pair[1]} | {
        (of_op[len(drawn.ops) - 1], len(made.groups) - 1)
    } == found


def test_very_many_reasons_are_folded_into_one_group() -> None:
    chain = [("-" + str(number), "Op", (number - 1,) if number else ()) for number in range(200)]
    (group,) = inner(collapse(graph(*chain)))
    assert len(group.reasons) == 200


def test_islands_that_wait_for_each_other_are_damage() -> None:
    with pytest.raises(BundleError, match="its islands wait for each other"):
        collapse(graph(("A", "X", ()), ("B", "X", (0,)), ("A", "X", (1,))))
