"""The machine that figures come from: what it is, and how much else it did meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refimpl import env
from tools.bench.samples import Round, Sample

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # columns of /proc/stat's first line: idle, waiting for a disk
_GUEST = 8  # from here on, time that is counted in other columns already


def facts() -> dict[str, Any]:
    """Processor, cores, memory, system, versions, and a digest of refimpl's own code."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": env.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(pages * size / (1 << 30), 1),
        "system": f"{platform.system()} {platform.release()}",
        "code": env.code_digest()[:12],
        "versions": dict(env.versions()),
    }


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)


def _all_busy() -> float:
    """CPU seconds that the machine was not idle, stolen time included; our own when the system does not tell."""
    try:
        words = _STAT.read_text(encoding="ascii").partition("\n")[0].split()[1:]
    except OSError:
        return _own_busy()
    ticks = [int(word) for number, word in enumerate(words[:_GUEST]) if number not in _IDLE]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _own_busy() -> float:
    """CPU seconds of this process, and of its children that have ended."""
    return sum(os.times()[:4])


class Meter:
    """How many cores everything else kept busy since the meter was made; children must have ended when it is read."""

    def __init__(self) -> None:
        self._began, self._all, self._own = time.monotonic(), _all_busy(), _own_busy()

    def read(self) -> tuple[float, float]:
        """Cores, and the seconds since."""
        seconds = time.monotonic() - self._began
        others = (_all_busy() - self._all) - (_own_busy() - self._own)
        return round(max(0.0, others) / max(seconds, 1e-3), 3), round(seconds, 2)


def take_turns(calls: Mapping[str, Callable[[], Sample]]) -> Round:
    """Measure every peer once, one after the other."""
    meter = Meter()
    samples = {name: dict(call()) for name, call in calls.items()}
    return Round(samples, *meter.read())
