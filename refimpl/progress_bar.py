"""Shows progress on stderr: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from refimpl import env
from refimpl.progress import Step, Tell
from refimpl.text import printable

_PLAIN_SECONDS = 10.0  # between two lines that say nothing but a count


@dataclass
class _Run:
    """One run through a stage."""

    since: float  # seconds
    first: int  # what was done then
    total: int
    last: int


class Stages:
    """When each stage began, and so how long the rest of it will take."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}

    def left(self, step: Step, now: float) -> float | None:
        """Seconds until the stage ends, at the speed it had so far; None when that cannot be known (yet).

        A stage whose total changes, or that has less done than before, begins again.
        """
        run = self._runs.get(step.stage)
        if run is None or run.total != step.total or run.last > step.done:
            run = self._runs[step.stage] = _Run(now, step.done, step.total, step.done)
        run.last = step.done
        if not run.total or step.done <= run.first:
            return None
        return (now - run.since) / (step.done - run.first) * max(run.total - step.done, 0)

    def begun(self, step: Step) -> float:
        """When the stage of a step began that :meth:`left` was asked about."""
        return self._runs[step.stage].since


@contextlib.contextmanager
def reporter(*, quiet: bool) -> Iterator[Tell]:
    """What shows progress on stderr: a bar with the time left on a terminal, lines elsewhere, nothing when quiet."""
    console = Console(stderr=True, highlight=False, markup=False, no_color=env.prefers_plain_text() or None)
    if quiet:
        yield lambda _: None
    elif not sys.stderr.isatty() or console.is_dumb_terminal:  # FORCE_COLOR is about colours, not about cursors
        yield Lines()
    else:
        with Bar(console) as bar:
            yield bar


class Lines:
    """Progress for files, pipes and logs: a line each, counts now and then, with the time left."""

    def __init__(self) -> None:
        self._stages, self._last = Stages(), time.monotonic()

    def __call__(self, line: str) -> None:
        """Print it, unless it is a count and another was printed a moment ago."""
        now, text = time.monotonic(), printable(line)
        if isinstance(line, Step):
            left = self._stages.left(line, now)
            if line.minor and now - self._last < _PLAIN_SECONDS:
                return
            text += f", about {duration(left)} left" if left is not None and left >= 1 else ""
        self._last = now
        print(text, file=sys.stderr, flush=True)  # noqa: T201  the stream of the moment, which may be captured


class _Ends(ProgressColumn):
    """Time left, or what has passed where the length of a stage is not known."""

    def render(self, task: Task) -> Text:
        left = task.fields["ends"]
        now = time.monotonic()
        if left is not None:
            return Text(f"{duration(max(left - now, 0.0))} left")
        return Text(f"{duration(now - task.fields['began'])} so far")


class Bar:
    """Progress on a terminal: one line that is drawn again and again, and gone in the end."""

    def __init__(self, console: Console) -> None:
        self._stages = Stages()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[share]}", table_column=Column(no_wrap=True)),
            _Ends(table_column=Column(no_wrap=True, min_width=9)),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("starting", total=None, share="", ends=None, began=time.monotonic())

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, line: str) -> None:
        """Show it instead of the last one."""
        now, text = time.monotonic(), printable(line)
        if not isinstance(line, Step):
            self._bar.update(self._task, description=text, total=None, completed=0, share="", ends=None, began=now)
            return
        left = self._stages.left(line, now)
        self._bar.update(
            self._task,
            description=text,
            total=line.total or None,
            completed=line.done,
            share=f"{100 * line.done // line.total} %" if line.total else "",
            ends=None if left is None else now + left,
            began=self._stages.begun(line),
        )


def duration(seconds: float) -> str:
    """``"12 s"``, ``"3 min 05 s"`` or ``"2 h 10 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
