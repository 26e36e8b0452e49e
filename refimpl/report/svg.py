"""A picture as SVG: laid out here, without Graphviz; light or dark as the reader's screen is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from refimpl.report.drawing import Arrow, Box, Drawing
from refimpl.report.layout import GAP_Y, Point, lay_out
from refimpl.text import columns, shortened

_COLOURS = 8  # of islands, in turn
_CHAR, _LINE = 7.2, 17.0  # width of a character and height of a line, for a sans-serif font of 12 px
_MOST = 42  # characters of a line
_PAD_X, _PAD_Y, _MARGIN, _HEAD = 12.0, 8.0, 24.0, 64.0  # _HEAD: room for the title and the legend
_GAP_BY_LABELS = 20.0  # above and below the labels of arrows
_LEGEND = (("island", "island: an engine"), ("tensorflow", "runs in TensorFlow"), ("input", "input, output"))

STYLE = """
.refimpl-picture {
  --ground: #ffffff; --ink: #1b1f24; --faint: #6b7480; --line: #5b6670; --hue: 210;
  background: var(--ground); font: 12px/1.2 system-ui, sans-serif;
}
.refimpl-picture text { fill: var(--ink); text-anchor: middle; }
.refimpl-picture .title { font-size: 15px; font-weight: 600; text-anchor: start; }
.refimpl-picture .legend text, .refimpl-picture .flow { fill: var(--faint); font-size: 11px; }
.refimpl-picture .flow { paint-order: stroke; stroke: var(--ground); stroke-width: 5px; }
.refimpl-picture .legend text { text-anchor: start; }
.refimpl-picture .why { fill: var(--faint); font-size: 11px; }
.refimpl-picture .ground { fill: var(--ground); }
.refimpl-picture .box { fill: var(--ground); stroke: var(--line); }
.refimpl-picture .first { font-weight: 600; }
.refimpl-picture .island .box { fill: hsl(var(--hue) 65% 88%); stroke: hsl(var(--hue) 60% 38%); stroke-width: 2; }
.refimpl-picture .tensorflow .box { stroke-dasharray: 5 3; }
.refimpl-picture .arrow { fill: none; stroke: var(--line); }
.refimpl-picture .tip { fill: var(--line); }
.refimpl-picture .c1 { --hue: 125; } .refimpl-picture .c2 { --hue: 35; } .refimpl-picture .c3 { --hue: 285; }
.refimpl-picture .c4 { --hue: 180; } .refimpl-picture .c5 { --hue: 355; } .refimpl-picture .c6 { --hue: 60; }
.refimpl-picture .c7 { --hue: 245; }
@media (prefers-color-scheme: dark) {
  .refimpl-picture { --ground: #14181d; --ink: #e8ebee; --faint: #9aa4ae; --line: #8d98a3; }
  .refimpl-picture .island .box { fill: hsl(var(--hue) 40% 22%); stroke: hsl(var(--hue) 50% 60%); }
}
""".strip()


def to_svg(drawing: Drawing, style: str = STYLE) -> str:
    """The picture as one ``<svg>`` element, which is a file of its own and can be put into a page.

    Every text in it is escaped; it has no scripts and no links.

    Args:
        drawing: what to show.
        style: its style sheet; "" where the page around it has :data:`STYLE` already.
    """
    return "\n".join(_elements(drawing, style)) + "\n"


def _elements(drawing: Drawing, style: str) -> Iterator[str]:
    sizes = [_size(box) for box in drawing.boxes]
    labelled = [arrow for arrow in drawing.arrows if arrow.label]
    stops = {arrow: len(sizes) + number for number, arrow in enumerate(labelled)}  # a label lies on its arrow's way
    sizes += [(columns(arrow.label) * _CHAR * 0.95, _LINE) for arrow in labelled]
    legs = [leg for arrow in drawing.arrows for leg in _legs(arrow, stops)]
    layout = lay_out(sizes, legs, _GAP_BY_LABELS if labelled else GAP_Y)
    routes = dict(zip(legs, layout.routes, strict=True))
    title = shortened(drawing.title, 100)
    width = max(layout.width, columns(title) * 9.0, 420.0) + 2 * _MARGIN
    height = layout.height + 2 * _MARGIN + _HEAD
    left, top = (width - layout.width) / 2, _MARGIN + _HEAD
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="refimpl-picture" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label={quoteattr(drawing.title)}>'
    )
    if style:
        yield f"<style>{style}</style>"
    yield '<rect class="ground" width="100%" height="100%"/>'
    yield f'<text class="title" x="{_MARGIN:.1f}" y="{_MARGIN + 8:.1f}">{escape(title)}</text>'
    yield from _legend()
    yield f'<g transform="translate({left:.1f} {top:.1f})">'
    for arrow in drawing.arrows:
        yield from _arrow(arrow, [routes[leg] for leg in _legs(arrow, stops)])
    for arrow, stop in stops.items():
        x, y = layout.centers[stop]
        yield f'<text class="flow" x="{x:.1f}" y="{y + 4:.1f}">{escape(arrow.label)}</text>'
    for box, center, size in zip(drawing.boxes, layout.centers, sizes, strict=False):
        yield _box(box, center, size, drawing.colour_of(box, _COLOURS))
    yield "</g>"
    yield "</svg>"


def _legs(arrow: Arrow, stops: dict[Arrow, int]) -> list[tuple[int, int]]:
    if arrow not in stops:
        return [(arrow.source, arrow.target)]
    return [(arrow.source, stops[arrow]), (stops[arrow], arrow.target)]


def _size(box: Box) -> tuple[float, float]:
    longest = max(
        min(columns(line), _MOST) for line in (f"{box.lines[0]}  ", *box.lines, *box.why)
    )  # the title is bold
    round_ends = 16.0 if box.kind in ("input", "output") else 0.0
    return max(longest * _CHAR, 40.0) + 2 * _PAD_X + round_ends, (len(box.lines) + len(box.why)) * _LINE + 2 * _PAD_Y


def _legend() -> Iterator[str]:
    x = _MARGIN
    yield '<g class="legend">'
    for kind, text in _LEGEND:
        yield f'<g class="{kind} c0">{_outline(kind, x + 14, _MARGIN + 30, 28, 16)}</g>'
        yield f'<text x="{x + 34:.1f}" y="{_MARGIN + 34:.1f}">{text}</text>'
        x += 48 + len(text) * 6.2
    yield "</g>"


def _outline(kind: str, x: float, y: float, width: float, height: float) -> str:
    radius = {"island": 6.0, "tensorflow": 0.0}.get(kind, height / 2)
    place = f'x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="box" {place} rx="{radius:.1f}"/>'


def _box(box: Box, center: Point, size: tuple[float, float], colour: int) -> str:
    x, y = center
    first = y - (len(box.lines) + len(box.why) - 1) * _LINE / 2 + 4
    classes = [*(["first"] + [""] * (len(box.lines) - 1)), *["why"] * len(box.why)]
    texts = [
        f'<text{f" class={quoteattr(name)}" if name else ""} x="{x:.1f}" y="{first + number * _LINE:.1f}">'
        f"{escape(shortened(line, _MOST))}</text>"
        for number, (name, line) in enumerate(zip(classes, (*box.lines, *box.why), strict=True))
    ]
    outer = box.kind + (f" c{colour}" if colour > 0 else "")
    return (
        f'<g class="{outer}"><title>{escape(box.tooltip)}</title>{_outline(box.kind, x, y, *size)}{"".join(texts)}</g>'
    )


def _arrow(arrow: Arrow, routes: Sequence[Sequence[Point]]) -> Iterator[str]:
    """One line through all of its legs, and a tip that points down or, where a cycle is closed, up."""
    points = [point for route in routes for point in route]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 == x1:
            path += f"V{y1:.1f}"
        else:
            middle = (y0 + y1) / 2
            path += f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    x, y = points[-1]
    back = -6 if points[-1][1] >= points[-2][1] else 6
    title = f"<title>{escape(arrow.tooltip)}</title>" if arrow.tooltip else ""
    yield f'<path class="arrow" d="{path}">{title}</path>'
    yield f'<path class="tip" d="M{x:.1f} {y:.1f}l-4 {back}h8z"/>'
