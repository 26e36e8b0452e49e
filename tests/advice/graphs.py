"""Graphs of a few ops, made by hand, as a conversion would record them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refimpl.graph_record import GraphOp, SignatureGraph

STRINGS = "strings have no place in TensorRT"
FLOAT64 = "float64 is not computed by TensorRT (it would be rounded to float32)"
SMALL = "its island would have 1 op, fewer than min_segment_size=3"


def graph_of(
    rows: Mapping[str, tuple[str, Sequence[str]]],
    *,
    controls: Mapping[str, Sequence[str]] | None = None,
    groups: Sequence[Sequence[str]] = (),
    types: Mapping[str, str] | None = None,
    tensors: Mapping[str, str] | None = None,
) -> SignatureGraph:
    """A signature.

    Args:
        rows: op -> the island it is in, or why it is in none, and the ops it reads. Islands have no blanks.
        controls: op -> ops that must run before it.
        groups: ops that are never parted.
        types: op -> type, ``Relu`` otherwise.
        tensors: op -> its one output, ``float32[?,10]`` otherwise.
    """
    place = {name: index for index, name in enumerate(rows)}
    group = {name: place[members[0]] for members in groups for name in members}
    ops = tuple(
        GraphOp(
            name=name,
            type=(types or {}).get(name, "Relu"),
            island="" if " " in where else where,
            reason=where if " " in where else "",
            inputs=tuple(place[source] for source in reads),
            outputs=((tensors or {}).get(name, "float32[?,10]"),),
            slots=(0,) * len(reads),
            controls=tuple(place[source] for source in (controls or {}).get(name, ())),
            group=group.get(name, place[name]),
        )
        for name, (where, reads) in rows.items()
    )
    return SignatureGraph("serving_default", ops)


def chain(prefix: str, island: str, reads: Sequence[str], count: int = 3) -> dict[str, tuple[str, Sequence[str]]]:
    """Ops of one island in a row; the first reads what is said."""
    names = [f"{prefix}{index}" for index in range(count)]
    return {name: (island, [names[index - 1]] if index else reads) for index, name in enumerate(names)}
