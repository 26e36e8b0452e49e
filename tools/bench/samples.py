"""What benchmarks measure, and the arithmetic on it: rounds of peers that took turns, their ratios, fitted slopes.

Nothing here measures, and nothing here is rounded: a record keeps raw samples, and every figure is computed from them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BUSY = 0.7  # cores that others keep busy, above which a round is no measurement of an idle machine
Sample = Mapping[str, float]  # by quantity, whose name ends in its unit: {"wall s": 17.4}


@dataclass(frozen=True, slots=True)
class Round:
    """Peers that took turns once.

    Attributes:
        samples: what each peer took, by its name.
        beside: cores that everything else on the machine kept busy meanwhile, on average.
        seconds: how long the round took.
    """

    samples: Mapping[str, Sample]
    beside: float
    seconds: float

    @property
    def busy(self) -> bool:
        """Whether the machine had other work."""
        return self.beside > BUSY


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All rounds of one subject.

    Attributes:
        subject: what was measured.
        rounds: the raw samples.
        commands: what was run, by peer.
        facts: numbers that belong to the subject: ops, islands, bytes.
        machine: processor, cores, versions; rows with the same can be compared.
        loads: the system's load average over a minute when the row was begun, and when it ended.
        date: of the last round.
    """

    subject: str
    rounds: tuple[Round, ...]
    commands: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    loads: tuple[float, float] = (0.0, 0.0)
    date: str = ""

    @property
    def busy(self) -> int:
        """How many rounds were disturbed."""
        return sum(item.busy for item in self.rounds)

    def has(self, quantity: str, *names: str) -> bool:
        """Whether every round has this quantity of all these peers."""
        return bool(self.rounds) and all(
            quantity in item.samples.get(name, {}) for item in self.rounds for name in names
        )

    def values(self, name: str, quantity: str) -> list[float]:
        """One number a round."""
        return [item.samples[name][quantity] for item in self.rounds]

    def ratios(self, name: str, peer: str, quantity: str) -> list[float]:
        """``name`` over ``peer``, round by round: what slows a round down slows both."""
        pairs = zip(self.values(name, quantity), self.values(peer, quantity), strict=True)
        return [value / other for value, other in pairs]

    def differences(self, name: str, peer: str, quantity: str) -> list[float]:
        """``name`` minus ``peer``, round by round."""
        pairs = zip(self.values(name, quantity), self.values(peer, quantity), strict=True)
        return [value - other for value, other in pairs]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        data["rounds"] = [{**asdict(item), "busy": item.busy} for item in self.rounds]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Row:
        """The inverse of :meth:`to_json`."""
        rounds = tuple(Round(item["samples"], item["beside"], item["seconds"]) for item in data["rounds"])
        return Row(**{**data, "rounds": rounds, "loads": tuple(data["loads"])})


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


def spread(values: Sequence[float]) -> Spread:
    """The three numbers that a table shows.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no samples")
    return Spread(min(values), statistics.median(values), max(values))


def short(value: float) -> str:
    """Three digits that matter, or all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a cost grows with a size.

    Attributes:
        slope: cost by unit of size, of the line fitted by least squares.
        start: the line's cost at size 0.
        exponent: of the power of the size that what comes on top of the smallest subject's cost follows; 1 is linear.
            None when less than two subjects cost more than the smallest.
        off: the largest distance of a point from the line, as a share of the largest cost.
    """

    slope: float
    start: float
    exponent: float | None
    off: float


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """Fit a line, and a power to what is left of the costs without the smallest subject's.

    The smallest subject is there for what every subject costs alike, so it takes no part in the power.

    Raises:
        ValueError: fewer than three different sizes: two always lie on a line.
    """
    if len(set(sizes)) < 3 or len(sizes) != len(costs):
        raise ValueError(f"{len(set(sizes))} sizes and {len(costs)} costs say nothing of growth")
    slope, start = _line(sizes, costs)
    off = max(abs(start + slope * size - cost) for size, cost in zip(sizes, costs, strict=True)) / max(costs)
    (base_size, base), *rest = sorted(zip(sizes, costs, strict=True))
    more = [(size - base_size, cost - base) for size, cost in rest if size > base_size and cost > base]
    if len(more) < 2:
        return Fit(slope, start, None, off)
    exponent, _ = _line([math.log(size) for size, _ in more], [math.log(cost) for _, cost in more])
    return Fit(slope, start, exponent, off)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept by least squares."""
    line = statistics.linear_regression(x, y)
    return line.slope, line.intercept
