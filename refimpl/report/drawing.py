"""What a picture of a partition shows: boxes and arrows, before anybody has laid them out or chosen a format."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refimpl.graph_record import SignatureGraph, format_tensor
from refimpl.report.overview import Group, Kind, collapse
from refimpl.text import counted, printable, shortened

_TYPES_SHOWN = 3  # kinds of ops named in a box
_LABEL_WIDTH = 40  # characters at an arrow
_REASONS_SHOWN = 5  # in a tooltip
_WHY_WIDTH, _WHY_LINES = 38, 3  # characters and lines of the reason in a box


@dataclass(frozen=True, slots=True)
class Box:
    """One box.

    Attributes:
        kind: decides its shape and border.
        lines: what is written in it, the title first.
        tooltip: what is said of it beside the picture.
        island: name of the island it is, or is in; "" for none.
        why: why TensorFlow runs it, in short lines; empty where there is no room for that.
    """

    kind: Kind
    lines: tuple[str, ...]
    tooltip: str
    island: str = ""
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrow:
    """Tensors that go from one box to another, by their indices; ``label`` is written at the arrow."""

    source: int
    target: int
    label: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture's contents.

    Attributes:
        title: one line about the whole.
        boxes: in a stable order.
        arrows: between them.
        islands: names of the islands in the order in which colours are given to them.
    """

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    islands: tuple[str, ...]

    def colour_of(self, box: Box, colours: int) -> int:
        """Number of the colour of a box in an island; -1 for any other."""
        return self.islands.index(box.island) % colours if box.island else -1


def draw_overview(graph: SignatureGraph) -> Drawing:
    """Islands as one box each, and neighbouring ops of TensorFlow folded."""
    overview = collapse(graph)
    arrows = [Arrow(flow.source, flow.target, _label(flow.tensors), _lines(flow.tensors)) for flow in overview.flows]
    return Drawing(_title(graph), tuple(_box(graph, group) for group in overview.groups), tuple(arrows), graph.islands)


def draw_ops(graph: SignatureGraph) -> Drawing:
    """Every op as a box."""
    boxes = [
        Box(
            "island" if op.island else "tensorflow",
            (printable(op.type), printable(op.name)),
            _lines([op.island or "in TensorFlow", op.reason, *op.outputs]),
            op.island,
        )
        for op in graph.ops
    ]
    first_input, first_output = len(boxes), len(boxes) + len(graph.inputs)
    boxes += [_end(graph, Group("input", spec.name)) for spec in graph.inputs]
    boxes += [_end(graph, Group("output", spec.name)) for spec in graph.outputs]
    place = {spec.name: first_input + number for number, spec in enumerate(graph.inputs)}
    tensors: dict[tuple[int, int], dict[str, None]] = {}
    for reader, op in enumerate(graph.ops):
        for source, slot in zip(op.inputs, op.slots or (0,) * len(op.inputs), strict=True):
            tensors.setdefault((source, reader), {})[graph.ops[source].outputs[slot]] = None
        for name in op.feeds:
            tensors.setdefault((place[name], reader), {})
    for number, (source, slot) in enumerate(graph.results):
        if source >= 0:
            tensors.setdefault((source, first_output + number), {})[graph.ops[source].outputs[slot]] = None
    arrows = tuple(Arrow(source, target, "", _lines(found)) for (source, target), found in tensors.items())
    return Drawing(_title(graph), tuple(boxes), arrows, graph.islands)


def _title(graph: SignatureGraph) -> str:
    inside = sum(bool(op.island) for op in graph.ops)
    what = f"{counted(len(graph.islands), 'island')}, {inside} of {counted(len(graph.ops), 'op')} in islands"
    return f"{printable(graph.key)}: {what}"


def _box(graph: SignatureGraph, group: Group) -> Box:
    if group.kind in ("input", "output"):
        return _end(graph, group)
    ops = [graph.ops[index] for index in group.ops]
    count = counted(len(ops), "op")
    kinds = _most(op.type for op in ops)
    if group.kind == "island":
        return Box("island", (printable(group.name), count, kinds), _lines([group.name, count, kinds]), group.name)
    reasons = [*group.reasons[:_REASONS_SHOWN], "..."][: len(group.reasons)]
    why = textwrap.wrap(printable(group.reasons[0]), _WHY_WIDTH, max_lines=_WHY_LINES) if group.reasons else []
    tooltip = _lines([f"TensorFlow runs {count}:", *reasons])
    return Box("tensorflow", (f"TensorFlow: {count}", kinds), tooltip, why=tuple(why))


def _end(graph: SignatureGraph, group: Group) -> Box:
    """An input or output of the signature."""
    specs = graph.inputs if group.kind == "input" else graph.outputs
    spec = next(spec for spec in specs if spec.name == group.name)
    text = format_tensor(spec.dtype, spec.shape)
    return Box(group.kind, (f"{group.kind} {printable(spec.name)}", text), _lines([f"{group.kind} {spec.name}", text]))


def _most(types: Iterable[str]) -> str:
    """The most frequent types: ``3 MatMul, 2 Relu, ...``."""
    counts = Counter(map(printable, types)).most_common()
    shown = [f"{count} {kind}" if count > 1 else kind for kind, count in counts[:_TYPES_SHOWN]]
    return ", ".join([*shown, "..."] if len(counts) > _TYPES_SHOWN else shown)


def _label(tensors: Sequence[str]) -> str:
    return shortened(printable(tensors[0]), _LABEL_WIDTH) if len(tensors) == 1 else counted(len(tensors), "tensor")


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(printable(part) for part in parts if part)
