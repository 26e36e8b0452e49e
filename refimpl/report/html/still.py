"""The overview as a still picture: for readers without scripts, and for reports made without the graph's library."""

from __future__ import annotations

from collections.abc import Iterable

from refimpl.graph_record import SignatureGraph
from refimpl.report.drawing import draw_overview
from refimpl.report.svg import to_svg


def still_picture(graphs: Iterable[SignatureGraph]) -> str:
    """SVG elements, one for each signature, whose texts are escaped; the page's style sheet colours them."""
    return "".join(to_svg(draw_overview(graph), style="") for graph in graphs if graph.ops)
