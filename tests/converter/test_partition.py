"""Islands of random graphs, judged by brute force: convex, maximal, whole groups, counted as TF-TRT counts."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from refimpl.artifacts import Op
from refimpl.partition import convex_groups, partition, segment_size
from refimpl.specs import TensorSpec
from tests.converter.graphs import are_convex, contracted, is_acyclic, is_connected, reaches

Edges = dict[str, list[str]]


def op(
    name: str,
    inputs: Iterable[str] = (),
    *,
    controls: Iterable[str] = (),
    kind: str = "Relu",
    constants: Iterable[str] = (),
    group: int | None = None,
) -> Op:
    return Op(
        name=name,
        type=kind,
        inputs=tuple(f"{source}:0" for source in inputs),
        controls=tuple(controls),
        outputs=(TensorSpec(f"{name}:0", "float32", (None,)),),
        constants=tuple(constants),
        group=-1 if group is None else group,
    )


def graph(*ops: Op) -> dict[str, Op]:
    """The ops by name; each that names no group becomes its own."""
    return {item.name: replace(item, group=100 + i) if item.group < 0 else item for i, item in enumerate(ops)}


def islands_of(ops: Mapping[str, Op], refused: Iterable[str], **options: int) -> tuple[tuple[str, ...], ...]:
    return partition(ops, refused, **{"min_segment_size": 1, "max_engines": 0, **options})[0]


def edges_of(ops: Mapping[str, Op]) -> Edges:
    return {name: [tensor.split(":")[0] for tensor in item.inputs] + list(item.controls) for name, item in ops.items()}


def random_graph(rng: random.Random, *, convex: bool = True) -> tuple[dict[str, Op], set[str]]:
    """Up to 14 ops with data and control edges, some groups (convex ones, or any), and the ops that are refused."""
    names = [f"op{index}" for index in range(rng.randint(2, 14))]
    dense, control = rng.choice([0.12, 0.25, 0.5]), rng.choice([0.0, 0.15])
    data: Edges = {name: [other for other in names[:i] if rng.random() < dense] for i, name in enumerate(names)}
    order: Edges = {name: [other for other in names[:i] if rng.random() < control] for i, name in enumerate(names)}
    edges = {name: data[name] + order[name] for name in names}
    groups: list[list[str]] = []
    for _ in range(rng.randint(0, 3)):
        taken = {name for members in groups for name in members}
        members = [name for name in rng.sample(names, rng.randint(2, min(4, len(names)))) if name not in taken]
        if len(members) > 1 and is_connected(edges, members) and (not convex or are_convex(edges, [*groups, members])):
            groups.append(members)
    number = {name: index for index, name in enumerate(names)}
    for index, members in enumerate(groups):
        number.update(dict.fromkeys(members, len(names) + index))
    ops = graph(*(op(name, data[name], controls=order[name], group=number[name]) for name in names))
    barred = {name for name in names if rng.random() < rng.choice([0.15, 0.4])}
    barred |= {name for members in groups if barred & set(members) for name in members}
    return ops, barred


def mergeable(edges: Edges, islands: list[tuple[str, ...]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Neighbours over an edge that could be one island: the cut is not maximal when there are any."""
    found = []
    for first in islands:
        for second in islands:
            touching = first != second and any(set(edges[name]) & set(first) for name in second)
            rest = [island for island in islands if island not in (first, second)]
            if touching and are_convex(edges, [*rest, first + second]):
                found.append((first, second))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(seed):
    several = with_groups = 0
    for number in range(500):
        ops, barred = random_graph(random.Random(1000 * seed + number))
        edges = edges_of(ops)
        islands, reasons = partition(ops, barred, min_segment_size=1, max_engines=0)
        placed = [name for island in islands for name in island]
        assert sorted(placed) == sorted(set(ops) - barred)
        assert reasons == {}
        assert are_convex(edges, islands)
        assert mergeable(edges, list(islands)) == []
        position = {name: index for index, name in enumerate(ops)}
        for island in islands:
            assert list(island) == sorted(island, key=position.__getitem__)
            assert is_connected({name: edges[name] + twins(ops, name) for name in ops}, island)
            assert all(set(twins(ops, name)) <= set(island) for name in island)
        several += len(islands) > 1
        with_groups += len({item.group for item in ops.values()}) < len(ops)
    assert several > 100, "too few of these graphs say anything"
    assert with_groups > 60, "too few of these graphs say anything"


def test_kinds_stay_apart():
    """TF-TRT's implicit batch mode: ops of different batches share no island, and no cycle comes of it."""
    parted = 0
    for number in range(500):
        rng = random.Random(number)
        ops, barred = random_graph(rng)
        of_group: dict[int, int] = {}
        kinds = {name: of_group.setdefault(item.group, rng.choice([4, 8])) for name, item in ops.items()}
        islands, _ = partition(ops, barred, min_segment_size=1, max_engines=0, kinds=kinds)
        assert sorted(name for island in islands for name in island) == sorted(set(ops) - barred)
        assert are_convex(edges_of(ops), islands)
        assert all(len({kinds[name] for name in island}) == 1 for island in islands)
        alike = partition(ops, barred, min_segment_size=1, max_engines=0, kinds=dict.fromkeys(ops, 3))[0]
        assert alike == islands_of(ops, barred)
        parted += len(islands) > len(alike)
    assert parted > 100, "too few of these graphs say anything"


def twins(ops: Mapping[str, Op], name: str) -> list[str]:
    return [other for other, item in ops.items() if item.group == ops[name].group and other != name]


def test_the_brute_force_judge_is_no_yes_man():
    edges = {"a": [], "b": ["a"], "c": ["b", "a"]}
    assert is_acyclic(edges)
    assert not are_convex(edges, [("a", "c")])
    assert are_convex(edges, [("a", "b"), ("c",)])
    assert mergeable(edges, [("a", "b"), ("c",)]) == [(("a", "b"), ("c",))]
    assert not is_connected({"a": [], "b": []}, ["a", "b"])


def test_a_refused_op_on_one_branch_parts_what_is_before_from_what_is_behind():
    ops = graph(op("a"), op("bad", ["a"]), op("good", ["a"]), op("join", ["bad", "good"]))
    assert set(islands_of(ops, ["bad"])) in ({("a", "good"), ("join",)}, {("a",), ("good", "join")})


def test_a_refused_op_beside_the_path_parts_nothing():
    ops = graph(op("a"), op("bad"), op("b", ["a"]), op("join", ["b", "bad"]))
    assert islands_of(ops, ["bad"]) == (("a", "b", "join"),)


def test_a_control_edge_is_an_edge():
    """``print`` must run after ``a`` and before ``b``: one island of both would run it too early or too late."""
    ops = graph(op("a"), op("print", controls=["a"]), op("b", ["a"], controls=["print"]))
    assert islands_of(ops, ["print"]) == (("a",), ("b",))
    without = graph(op("a"), op("print", controls=["a"]), op("b", ["a"]))
    assert islands_of(without, ["print"]) == (("a", "b"),)


def test_a_group_is_never_parted():
    """``x`` and ``y`` are joined by a list: an op that parts one of them from the rest parts both."""
    ops = graph(op("a"), op("bad", ["a"]), op("x", ["a"], group=7), op("y", ["x", "bad"], group=7))
    assert islands_of(ops, ["bad"]) == (("a",), ("x", "y"))


def test_what_lies_between_the_ops_of_a_group_joins_it():
    """A list is read, what was read is worked on and written back: those ops alone are not convex."""
    ops = graph(
        op("reserve", group=7), op("read", ["reserve"], group=7), op("between", ["read"]), op("end", ["between"]),
        op("write", ["between", "reserve"], group=7), op("after", ["write"]),
    )  # fmt: skip
    groups = convex_groups(ops)
    assert {name for name, number in groups.items() if number == 7} == {"reserve", "read", "between", "write"}
    assert len(set(groups.values())) == 3


def test_two_groups_that_need_each_other_become_one():
    ops = graph(
        op("a1", group=1), op("b1", ["a1"], group=2), op("a2", ["a1"], group=1), op("b2", ["b1"], group=2),
        op("c", ["b2"]), op("a3", ["a2", "b2"], group=1), op("alone", ["c", "a3"]),
    )  # fmt: skip
    groups = convex_groups(ops)
    assert len({groups[name] for name in ("a1", "a2", "a3", "b1", "b2")}) == 1
    assert len(set(groups.values())) == 3


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_random_graphs_become_convex_and_no_larger_than_need_be(seed):
    grown = 0
    for number in range(300):
        rng = random.Random(7000 * seed + number)
        ops = random_graph(rng, convex=False)[0]
        members = parted(convex_groups(ops))
        edges = edges_of(ops)
        assert are_convex(edges, members)
        before = parted({name: item.group for name, item in ops.items()})
        assert all(any(set(old) <= set(new) for new in members) for old in before)
        quotient = contracted(edges, before)
        for new in members:  # only groups that lie on a common cycle were joined
            joined = [f"island {index}" for index, old in enumerate(before) if set(old) <= set(new)]
            assert all(reaches(quotient, one, other) for one in joined for other in joined)
        grown += len(members) < len(before)
    assert grown > 20, "too few of these graphs say anything"


def parted(groups: Mapping[str, int]) -> list[list[str]]:
    return [[name for name, other in groups.items() if other == number] for number in dict.fromkeys(groups.values())]


def test_segments_are_counted_as_tftrt_counts_them():
    """Identity, Snapshot and StopGradient count nothing, a constant counts where it is inside, shared ones nowhere."""
    ops = graph(
        op("i", kind="Identity"),
        op("s", ["i"], kind="Snapshot"),
        op("g", ["s"], kind="StopGradient"),
        op("matmul", ["g"], kind="MatMul", constants=["kernel"]),
        op("bad", ["matmul"], kind="Svd", constants=["shared"]),
        op("add", ["bad"], kind="AddV2", constants=["shared", "bias"]),
    )
    assert segment_size(ops, ["i", "s", "g"]) == 0
    assert segment_size(ops, ["i", "s", "g", "matmul"]) == 2
    assert segment_size(ops, ["add"]) == 2  # itself and its bias


def test_an_island_of_idle_ops_is_given_up_whatever_constants_it_reads():
    ops = graph(op("i", kind="Identity", constants=["c"]))
    islands, reasons = partition(ops, (), min_segment_size=1, max_engines=0)
    assert islands == ()
    assert reasons == {"i": "its island would have 0 ops, fewer than min_segment_size=1"}


def three_islands() -> dict[str, Op]:
    """Islands of two, four and three ops, with refused ones between."""
    chain = [op("in", kind="Bad")]
    for number, size in enumerate([2, 4, 3]):
        for index in range(size):
            chain.append(op(f"o{number}{index}", [chain[-1].name]))
        chain.append(op(f"bad{number}", [chain[-1].name], kind="Bad"))
    return graph(*chain)


def test_min_segment_size_gives_up_small_islands_and_says_why():
    ops = three_islands()
    refused = [name for name, item in ops.items() if item.type == "Bad"]
    islands, reasons = partition(ops, refused, min_segment_size=3, max_engines=0)
    assert [len(island) for island in islands] == [4, 3]
    assert reasons == dict.fromkeys(
        ["o00", "o01"], "its island would have 2 ops, fewer than min_segment_size=3"
    )  # fmt: skip


def test_constants_that_count_are_told_apart_from_ops():
    ops = graph(op("sum", kind="Sum", constants=["axis"]), op("i", ["sum"], kind="Identity"))
    _, reasons = partition(ops, (), min_segment_size=3, max_engines=0)
    assert set(reasons.values()) == {"its island would have 1 op and 1 constant, fewer than min_segment_size=3"}


@pytest.mark.parametrize(("count", "sizes"), [(1, [4]), (2, [4, 3]), (3, [2, 4, 3]), (0, [2, 4, 3]), (9, [2, 4, 3])])
def test_max_engines_keeps_the_largest(count, sizes):
    ops = three_islands()
    refused = [name for name, item in ops.items() if item.type == "Bad"]
    islands, reasons = partition(ops, refused, min_segment_size=1, max_engines=count)
    assert [len(island) for island in islands] == sizes
    assert set(reasons) == set(ops) - set(refused) - {name for island in islands for name in island}
    assert set(reasons.values()) <= {f"its island is not among the {count} largest (max_engines)"}


def test_no_ops():
    assert partition({}, (), min_segment_size=3, max_engines=0) == ((), {})


def calls(function: Any) -> int:
    """How many calls, of Python and of C functions, a function makes: work measured without a clock."""
    made = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return made


def residual(blocks: int) -> tuple[dict[str, Op], set[str]]:
    """A chain of blocks of six ops; a side branch of each holds a refused op, every fifth is fed from the start."""
    ops, refused = [op("start")], set()
    for i in range(blocks):
        last = ops[-1].name
        ops += [op(f"a{i}", [last]), op(f"b{i}", [f"a{i}"]), op(f"bad{i}", [f"a{i}"]), op(f"c{i}", [f"bad{i}"])]
        ops += [op(f"join{i}", [f"b{i}", f"c{i}"]), op(f"d{i}", [f"join{i}", *(["start"] if i % 5 == 0 else [])])]
        refused.add(f"bad{i}")
    return graph(*ops), refused


def towers(count: int) -> tuple[dict[str, Op], set[str]]:
    """A long chain with outputs all along it, each joined with a side that begins with a refused op: many merges."""
    ops, refused = [op("start")], set()
    for i in range(count):
        ops += [op(f"a{i}", [ops[-1].name if i == 0 else f"a{i - 1}"]), op(f"bad{i}"), op(f"side{i}", [f"bad{i}"])]
        ops += [op(f"out{i}", [f"a{i}", f"side{i}"]), op(f"sink{i}", [f"a{i}"])]
        refused |= {f"bad{i}", *([f"sink{i}"] if i % 2 else [])}
    return graph(*ops), refused


@pytest.mark.parametrize("family", [residual, towers])
def test_work_grows_with_the_graph_not_with_its_square(family):
    small, large = family(200), family(2000)
    assert len(large[0]) > 10_000
    assert are_convex(edges_of(small[0]), islands_of(*small))
    few, many = calls(lambda: islands_of(*small)), calls(lambda: islands_of(*large))
    times = len(large[0]) / len(small[0])
    assert many < 1.3 * times * few, f"{few} calls for {len(small[0])} ops, {many} for ten times as many"
