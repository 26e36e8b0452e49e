"""How what a conversion costs grows with ops, weights and islands."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from tools.bench import scale
from tools.bench.samples import Fit, Row, fit

COSTS = ("wall s", "cpu s", "peak MiB")
_SIZES = 3  # two always lie on a line


@dataclass(frozen=True, slots=True)
class Growth:
    """One cost along one axis.

    Attributes:
        axis: ``ops``, ``weights`` or ``islands``.
        size: the quantity that grows.
        cost: the quantity that is paid.
        sizes: of the subjects, smallest first.
        costs: medians, in the same order.
        loaded: what TensorFlow alone takes to load the same models.
        fit: the line and the power.
        rounds: how many each size has, at least.
        busy: whether any of them was disturbed.
    """

    axis: str
    size: str
    cost: str
    sizes: tuple[float, ...]
    costs: tuple[float, ...]
    loaded: tuple[float, ...]
    fit: Fit
    rounds: int
    busy: bool


def growths(rows: Mapping[str, Row]) -> list[Growth]:
    """Every cost along every axis of which three sizes were measured; rows are of the part ``scale``."""
    return [
        _growth(axis, size, cost, found)
        for axis, size in scale.AXES.items()
        if len(found := _of_axis(rows, axis, size)) >= _SIZES
        for cost in COSTS
    ]


def _of_axis(rows: Mapping[str, Row], axis: str, size: str) -> list[Row]:
    found = [row for name, row in rows.items() if name.startswith(f"{axis}:") and row.has(size, scale.OURS)]
    return sorted(found, key=lambda row: row.values(scale.OURS, size)[0])


def _growth(axis: str, size: str, cost: str, rows: list[Row]) -> Growth:
    sizes = tuple(row.values(scale.OURS, size)[0] for row in rows)
    costs = tuple(statistics.median(row.values(scale.OURS, cost)) for row in rows)
    loaded = tuple(statistics.median(row.values(scale.LOADED, cost)) for row in rows)
    rounds, busy = min(len(row.rounds) for row in rows), any(row.busy for row in rows)
    return Growth(axis, size, cost, sizes, costs, loaded, fit(sizes, costs), rounds, busy)
