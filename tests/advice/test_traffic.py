"""Bytes that cross cuts."""

from __future__ import annotations

import pytest

from refimpl.advice.traffic import between, traffic_of
from tests.advice.graphs import STRINGS, chain, graph_of


@pytest.mark.parametrize(
    ("text", "size", "rows", "at_least"),
    [
        ("float32[2,3]", 24, False, False),
        ("float32[?,3]", 12, True, False),  # one row
        ("float32[?]", 4, True, True),  # a number a row, or rows that were flattened
        ("float16[?,?,4]", 8, True, True),  # at least one by one by four
        ("int64[]", 8, False, False),
        ("bool[5]", 5, False, False),
        ("complex128[2]", 32, False, False),
        ("float32[...]", 0, False, True),
        ("string[3]", 0, False, True),
    ],
)
def test_size_of_a_tensor(text, size, rows, at_least):
    found = traffic_of([text])
    assert (found.size, found.rows, found.at_least, found.tensors) == (size, rows, at_least, 1)


def test_sizes_add_up_and_say_what_is_unknown():
    found = traffic_of(["float32[?,100,100]", "float32[7]", "int32[?,?]"])
    assert found.size == 40_000 + 28 + 4
    assert str(found) == "at least 40 kB per row"
    assert str(traffic_of(["float32[2]"])) == "8 bytes"


def test_a_tensor_counts_once_for_each_island_that_gives_or_takes_it():
    rows = {
        **chain("a", "I0", []),
        "x": (STRINGS, ["a2"]),  # takes a2 from I0
        "y": (STRINGS, ["a2", "x"]),  # takes the very same tensor, and one that crosses nothing
        "b0": ("I1", ["y"]),  # takes y
        "b1": ("I1", ["y", "b0"]),  # takes it again, inside the same island
        "c0": ("I2", ["y"]),  # takes it into another island
        "d0": ("I2", ["a1"]),  # from island to island: not because of x and y
    }
    graph = graph_of(rows, tensors={"a2": "float32[1,5]", "y": "float32[1,7]"})
    found = between(graph, [index for index, op in enumerate(graph.ops) if op.name in ("x", "y")], graph.readers())
    assert (found.tensors, found.size) == (3, 20 + 28 + 28)
