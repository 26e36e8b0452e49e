"""Graphs made by hand, and the geometry that tests of pictures look at."""

from __future__ import annotations

from collections.abc import Sequence

from refimpl.graph_record import GraphOp, SignatureGraph
from refimpl.report.layout import Layout
from refimpl.specs import TensorSpec

Row = tuple[str, str, Sequence[int]]  # island, or a reason that begins with "-"; type; what it reads

HOSTILE = '</text><script>alert(1)</script> "quoted" \\N &lt; \n--> ]]> {|} \x00\x1b[31m ☃ ' + "x" * 300


def graph(*rows: Row, key: str = "serving_default") -> SignatureGraph:
    """One op per row, whose input ``x`` feeds what reads nothing, and whose last op is the output ``y``."""
    ops = [
        GraphOp(
            name=f"scope/{kind}_{number}",
            type=kind,
            island="" if where.startswith("-") else where,
            reason=where[1:] if where.startswith("-") else "",
            inputs=tuple(reads),
            outputs=(f"float32[?,{number}]",),
            slots=(0,) * len(reads),
            feeds=() if reads else ("x",),
        )
        for number, (where, kind, reads) in enumerate(rows)
    ]
    specs = TensorSpec("x", "float32", (None, 3)), TensorSpec("y", "float32", None)
    return SignatureGraph(key, tuple(ops), specs[:1], specs[1:], ((len(ops) - 1, 0),))


def overlaps(layout: Layout, sizes: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """Pairs of nodes that lie on each other."""
    boxes = [
        (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        for (x, y), (width, height) in zip(layout.centers, sizes, strict=True)
    ]
    return [
        (one, other)
        for one, (left, top, right, bottom) in enumerate(boxes)
        for other in range(one)
        if left < boxes[other][2] and boxes[other][0] < right and top < boxes[other][3] and boxes[other][1] < bottom
    ]
