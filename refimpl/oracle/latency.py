"""How long a call takes in the bundle, and how long in TensorFlow alone, on the same inputs in the same process.

The two alternate, so that a machine which gets slower meanwhile is as slow for both; medians are told, since a call can
only be slowed down by what else the machine does. The ratio travels better from day to day than seconds do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

BUDGET = 5.0  # seconds for one case; the calls begun by then are what is told, one of each at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Median seconds of one case. ``runs`` calls of each sort were measured, after one that was not."""

    signature: str
    case: str
    runs: int
    seconds: float
    native_seconds: float  # all islands in TensorFlow

    @property
    def ratio(self) -> float:
        """Time in the bundle over time in TensorFlow alone; below 1 it is faster."""
        return self.seconds / self.native_seconds if self.native_seconds else 1.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


def measure(
    signature: str, case: str, call: Callable[[], object], native: Callable[[], object], repeat: int
) -> Latency:
    """Measure ``repeat`` calls of each, at most (:data:`BUDGET`), after one of each that opens what must be opened."""
    call()
    native()
    taken: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + BUDGET
    while len(taken[0]) < repeat and (not taken[0] or time.perf_counter() < until):
        for times, function in zip(taken, (call, native), strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    seconds, native_seconds = map(statistics.median, taken)
    return Latency(signature=signature, case=case, runs=len(taken[0]), seconds=seconds, native_seconds=native_seconds)
