"""A picture in Graphviz's language: islands as clusters, what is said of a box as its tooltip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from refimpl.report.drawing import Box, Drawing
from refimpl.text import printable, shortened

_FILLS = ("#cfe3f7", "#d5efd0", "#fbe3c0", "#ecd7f2", "#cdeeee", "#f9d6d6", "#e8e6b8", "#dcdcf7")  # of islands, in turn
_WIDTH = 48  # characters of a line
_SHAPES = {
    "island": 'shape=box, style="rounded,filled", penwidth=2',
    "tensorflow": 'shape=box, style="dashed"',
    "input": 'shape=ellipse, style="solid"',
    "output": 'shape=ellipse, style="solid"',
}


def to_dot(drawing: Drawing) -> str:
    """The picture as a file for ``dot``; equal drawings give equal files."""
    return "\n".join(_lines(drawing)) + "\n"


def _lines(drawing: Drawing) -> Iterator[str]:
    yield "digraph {"
    yield f'  graph [label={quoted([drawing.title])}, labelloc="t", fontname="sans-serif", rankdir="TB"];'
    yield '  node [fontname="sans-serif", fontsize=11];'
    yield '  edge [fontname="sans-serif", fontsize=10];'
    inside: dict[str, list[int]] = {name: [] for name in drawing.islands}
    outside: list[int] = []
    for number, box in enumerate(drawing.boxes):
        (inside[box.island] if box.island else outside).append(number)
    for place, (name, numbers) in enumerate(inside.items()):
        yield f"  subgraph cluster_{place} {{"
        yield f'    label={quoted([printable(name)])}; style="rounded"; tooltip={quoted([printable(name)])};'
        yield from (f"  {_node(drawing, number)}" for number in numbers)
        yield "  }"
    yield from (_node(drawing, number) for number in outside)
    for arrow in drawing.arrows:
        label = f"label={quoted([arrow.label])}, " if arrow.label else ""
        yield f"  n{arrow.source} -> n{arrow.target} [{label}tooltip={quoted(arrow.tooltip.splitlines())}];"
    yield "}"


def _node(drawing: Drawing, number: int) -> str:
    box: Box = drawing.boxes[number]
    colour = drawing.colour_of(box, len(_FILLS))
    fill = f', fillcolor="{_FILLS[colour]}"' if colour >= 0 else ""
    label = quoted(shortened(line, _WIDTH) for line in (*box.lines, *box.why))
    return f"  n{number} [label={label}, tooltip={quoted(box.tooltip.splitlines())}, {_SHAPES[box.kind]}{fill}];"


def quoted(lines: Iterable[str]) -> str:
    r"""Lines of text as one quoted string of the language, in which nothing means anything but itself.

    Graphviz reads escapes such as ``\N`` and entities such as ``&lt;`` in labels.
    """
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for line in lines)
    return '"' + "\\n".join(escaped) + '"'
