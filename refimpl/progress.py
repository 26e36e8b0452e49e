"""Progress of long work: lines that say what happens, and how far a stage with a known length has come.

Who works *tells* lines; who shows them decides how. Any function of one line will do: a :class:`Step` is a line, too,
and whoever draws bars and works out the time left finds the counter in it. Nothing here knows a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from refimpl.text import counted

Tell = Callable[[str], None]

SECONDS = 1.0  # between two lines of a Counter: nobody reads faster


class Step(str):
    """A line of progress that knows how far its stage has come.

    Attributes:
        stage: name of what is counted; its steps belong together.
        done: how much of it is done.
        total: how much there is; 0 when nobody knows.
        minor: it says nothing but the count: whoever keeps lines may leave it out.
    """

    __slots__ = ("done", "minor", "stage", "total")

    stage: str
    done: int
    total: int
    minor: bool

    def __new__(cls, line: str, *, stage: str, done: int, total: int, minor: bool = False) -> Step:
        step = super().__new__(cls, line)
        step.stage, step.done, step.total, step.minor = stage, done, total, minor
        return step


def silent(line: str) -> None:
    """Tells nobody."""
    del line


def prefixed(prefix: str, tell: Tell) -> Tell:
    """The same, with a text before every line; counters are kept."""

    def with_prefix(line: str) -> None:
        text = f"{prefix}{line}"
        if isinstance(line, Step):
            text = Step(text, stage=f"{prefix}{line.stage}", done=line.done, total=line.total, minor=line.minor)
        tell(text)

    return with_prefix


class Counter:
    """Counts what a stage has done, and tells it now and then.

    Args:
        tell: takes the lines.
        stage: what happens, as a person would say it ("asking the parser").
        total: how much there is; 0 when nobody knows.
        unit: what is counted ("op").
    """

    def __init__(self, tell: Tell, stage: str, total: int, unit: str) -> None:
        self._tell, self._stage, self._total, self._unit = tell, stage, total, unit
        self._done, self._last = 0, time.monotonic()
        tell(Step(stage, stage=stage, done=0, total=total))

    def advance(self, by: int = 1) -> None:
        """Count what was done since the last call."""
        self._done += by
        if time.monotonic() - self._last < SECONDS:
            return
        self._last = time.monotonic()
        known = f"{self._done} of {counted(self._total, self._unit)}"
        line = f"{self._stage}: {known if self._total else counted(self._done, self._unit)}"
        self._tell(Step(line, stage=self._stage, done=self._done, total=self._total, minor=True))
