"""The graph of a signature as the page draws it: ops in columns, where they lie, and the overview with islands folded.

Everything is laid out here, so the page only shows it: the view of an island is the full layout with the rest left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from refimpl.bundle import SignatureRecord
from refimpl.graph_record import GraphOp, SignatureGraph, format_tensor
from refimpl.report.layout import Layout, lay_out
from refimpl.report.overview import Group, Overview, collapse

OP_SIZE = (200.0, 48.0)  # of a box in the view of ops: width, height
_GROUP_SIZE = {"island": (240.0, 64.0), "tensorflow": (260.0, 106.0), "input": (220.0, 56.0), "output": (220.0, 56.0)}
_COLOURS = 8  # that islands take in turn; the page's style sheet has them
_BENDS_UP_TO = 3000  # ops; edges of larger graphs are straight lines, which a canvas draws much faster


def signature_data(record: SignatureRecord, graph: SignatureGraph | None) -> dict[str, Any]:
    """What the page needs to search, to show and to draw one signature.

    Args:
        record: the manifest's.
        graph: its graph; None when the bundle was made before graphs were stored. Then there is nothing to draw, and
            the ops of the manifest can still be searched.
    """
    islands = [island.name for island in record.islands]
    if graph is None:
        return {"key": record.signature.key, "islands": islands, **_columns(_from_manifest(record), islands)}
    ends = _ends(graph)
    overview = collapse(graph)
    return {
        "key": graph.key,
        "islands": islands,
        **_columns([*graph.ops, *(op for op, _ in ends)], islands, first_end=len(graph.ops)),
        "group": _group_of(overview, len(graph.ops), len(ends)),
        "overview": _overview(graph, overview, islands),
        "all": _all(graph, ends),
    }


def colour_of(number: int) -> int:
    """Which of the style sheet's colours an island has, by its number in the signature."""
    return number % _COLOURS


def _ends(graph: SignatureGraph) -> list[tuple[GraphOp, str]]:
    """The signature's inputs and outputs as boxes after the ops, in the order in which the overview has them."""
    found = [
        (GraphOp(spec.name, "input of the signature", "", "", (), (format_tensor(spec.dtype, spec.shape),)), "input")
        for spec in graph.inputs
    ]
    results = graph.results or ((-1, 0),) * len(graph.outputs)
    for spec, (source, _) in zip(graph.outputs, results, strict=True):
        reads = (source,) if source >= 0 else ()
        tensor = (format_tensor(spec.dtype, spec.shape),)
        found.append((GraphOp(spec.name, "output of the signature", "", "", reads, tensor), "output"))
    return found


def _from_manifest(record: SignatureRecord) -> list[GraphOp]:
    """The ops without what they read, and without those that compute nothing."""
    inside = [GraphOp(name, kind, island.name, "", (), ()) for island in record.islands for name, kind in island.ops]
    return inside + [GraphOp(op.name, op.type, "", op.reason, (), ()) for op in record.left]


def _columns(ops: Sequence[GraphOp], islands: Sequence[str], first_end: int | None = None) -> dict[str, Any]:
    """One list per field, texts that occur often written once; the page is a third of the size so."""
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    place = {name: index for index, name in enumerate(islands)}
    columns = {
        "names": [op.name for op in ops],
        "types": [number(op.type) for op in ops],
        "island": [place.get(op.island, -1) for op in ops],
        "reasons": [number(op.reason) if op.reason else -1 for op in ops],
        "inputs": [list(op.inputs) for op in ops],
        "outputs": [list(map(number, op.outputs)) for op in ops],
        "count": len(ops) if first_end is None else first_end,
    }
    return {**columns, "texts": list(texts)}


def _group_of(overview: Overview, ops: int, ends: int) -> list[int]:
    found = [-1] * (ops + ends)
    for number, group in enumerate(overview.groups):
        for op in group.ops:
            found[op] = number
    first = len(overview.groups) - ends  # inputs and outputs come last, in their order
    found[ops:] = range(first, len(overview.groups))
    return found


def _overview(graph: SignatureGraph, overview: Overview, islands: Sequence[str]) -> dict[str, Any]:
    layout = lay_out(
        [_GROUP_SIZE[group.kind] for group in overview.groups], [(f.source, f.target) for f in overview.flows]
    )
    groups = []
    for group, center in zip(overview.groups, layout.centers, strict=True):
        title, lines = _label(graph, group)
        width, height = _GROUP_SIZE[group.kind]
        groups.append(
            {
                "kind": group.kind,
                "island": islands.index(group.name) if group.kind == "island" and group.name in islands else -1,
                "title": title,
                "text": lines,
                "reasons": list(group.reasons),
                "box": _rounded([*center, width, height]),
            }
        )
    flows = [
        [flow.source, flow.target, list(flow.tensors), _bends(route)]
        for flow, route in zip(overview.flows, layout.routes, strict=True)
    ]
    return {"groups": groups, "flows": flows}


def _label(graph: SignatureGraph, group: Group) -> tuple[str, str]:
    """A title, and what is under it."""
    if group.kind in ("input", "output"):
        specs = graph.inputs if group.kind == "input" else graph.outputs
        spec = next(item for item in specs if item.name == group.name)
        return f"{group.kind} {group.name}", format_tensor(spec.dtype, spec.shape)
    count = f"{len(group.ops)} op{'' if len(group.ops) == 1 else 's'}"
    kinds = list(dict.fromkeys(graph.ops[index].type for index in group.ops))
    named = ", ".join(kinds[:2]) + (" ..." if len(kinds) > 2 else "")
    if group.kind == "island":
        return group.name, count
    return f"TensorFlow: {count}", named


def _all(graph: SignatureGraph, ends: Sequence[tuple[GraphOp, str]]) -> dict[str, Any]:
    place = {op.name: len(graph.ops) + number for number, (op, kind) in enumerate(ends) if kind == "input"}
    edges = [(source, reader) for reader, op in enumerate(graph.ops) for source in op.inputs]
    edges += [(place[name], reader) for reader, op in enumerate(graph.ops) for name in op.feeds if name in place]
    edges += [(source, len(graph.ops) + number) for number, (op, _) in enumerate(ends) for source in op.inputs]
    edges = list(dict.fromkeys(edges))
    layout = lay_out([OP_SIZE] * (len(graph.ops) + len(ends)), edges)
    return {
        "x": _rounded(x for x, _ in layout.centers),
        "y": _rounded(y for _, y in layout.centers),
        "size": list(OP_SIZE),
        "edges": [list(edge) for edge in edges],
        "bends": _all_bends(layout) if len(graph.ops) <= _BENDS_UP_TO else [],
    }


def _all_bends(layout: Layout) -> list[list[int]]:
    return [_bends(route) for route in layout.routes]


def _bends(route: Sequence[tuple[float, float]]) -> list[int]:
    """The points between the two ends, as x, y, x, y ... Without those on a straight line."""
    kept = [
        here
        for before, here, after in zip(route, route[1:], route[2:], strict=False)
        if abs((here[0] - before[0]) * (after[1] - here[1]) - (after[0] - here[0]) * (here[1] - before[1])) > 1.0
    ]
    return _rounded(value for point in kept for value in point)


def _rounded(values: Iterable[float]) -> list[int]:
    return [round(value) for value in values]
