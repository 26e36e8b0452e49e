"""Two plots of the figures, as SVG: what was promised and what was measured, and how cost grows with size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.bench.report import PLOTS
from tools.bench.samples import short

_MET, _MISSED, _OURS, _PEER = "#2a7f62", "#c2452d", "#1f5fa8", "#9a9a9a"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "refimpl",  # the same figures give the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw(data: Mapping[str, Any], folder: Path) -> list[str]:
    """Write what can be drawn; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [item for item in data["promises"] if item["spread"]]
    with mpl.rc_context(_STYLE):
        figures = (_promises(measured) if measured else None, _growths(data["growth"]))
        for name, figure in zip(PLOTS, figures, strict=True):
            (folder / name).unlink(missing_ok=True)
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None})
    return [name for name, figure in zip(PLOTS, figures, strict=True) if figure is not None]


def share(item: Mapping[str, Any], value: float) -> float:
    """How much of its limit a value uses: up to 1 keeps the promise, whichever way it points."""
    sign, limit = item["target"].split()[:2]
    return value / float(limit) if sign == "≤" else float(limit) / value


def _promises(measured: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar for each promise: its median as a share of the limit, the range of the rounds, the median as a number."""
    figure = Figure(figsize=(10, 0.6 + 0.3 * len(measured)), layout="constrained")
    axes = figure.subplots()
    for place, item in enumerate(reversed(measured)):
        low, middle, high = (max(0.0, share(item, item["spread"][key])) for key in ("low", "median", "high"))
        axes.barh(place, middle, height=0.6, color=_MET if item["met"] else _MISSED)
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.text(1.01, place, short(item["spread"]["median"]), va="center", transform=axes.get_yaxis_transform())
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    labels = [f"{item['what'].replace('`', '')}  ({item['target']})" for item in reversed(measured)]
    axes.set_yticks(range(len(measured)), labels, fontsize=8)
    axes.set_xlabel("share of the limit (dashed)")
    axes.set_xlim(left=0)
    return figure


def _growths(growth: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Time above, memory below; a column for each axis, each with its fitted line."""
    axes_names = list(dict.fromkeys(item["axis"] for item in growth))
    if not axes_names:
        return None
    figure = Figure(figsize=(3.2 * len(axes_names), 5.2), layout="constrained")
    grid = figure.subplots(2, len(axes_names), squeeze=False)
    for item in growth:
        if item["cost"] in ("wall s", "peak MiB"):
            _one_growth(grid[int(item["cost"] == "peak MiB")][axes_names.index(item["axis"])], item)
    grid[0][0].legend(frameon=False, fontsize=8)
    return figure


def _one_growth(axes: Axes, item: Mapping[str, Any]) -> None:
    sizes, line = item["sizes"], item["fit"]
    ends = [0, sizes[-1]]
    axes.plot(ends, [line["start"] + line["slope"] * size for size in ends], color=_OURS, linewidth=1)
    axes.plot(sizes, item["costs"], "o", color=_OURS, label="refimpl convert")
    axes.plot(sizes, item["loaded"], "s", color=_PEER, markersize=4, label="TensorFlow loads it")
    axes.set_xlabel(item["size"])
    axes.set_ylabel(item["cost"])
    if line["exponent"] is not None:
        axes.set_title(f"exponent {line['exponent']:.2f}", fontsize=9)
    axes.set_ylim(bottom=0)
