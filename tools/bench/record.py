"""The files of raw samples, one a part; and what a new run may do to an old record."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.bench import machine
from tools.bench.parts import Part, Subject
from tools.bench.processes import BenchError
from tools.bench.samples import BUSY, Round, Row
from tools.bench.workshop import Workshop

FOLDER = "performance"  # below the folder of the report
Tell = Callable[[str], None]


def read(folder: Path, part: str) -> dict[str, Row]:
    """Rows by subject; none, when nothing was measured.

    Raises:
        BenchError: the file is damaged.
    """
    file = folder / FOLDER / f"{part}.json"
    if not file.exists():
        return {}
    try:
        rows = [Row.from_json(item) for item in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{file} is no record of samples: {error!r}", hint="remove it, and measure again") from error
    return {row.subject: row for row in rows}


def write(folder: Path, part: Part, rows: Mapping[str, Row]) -> None:
    """Write all rows, in the order of the part's subjects; a reader sees the old file or the new one."""
    file = folder / FOLDER / f"{part.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    order = {subject.name: number for number, subject in enumerate((*part.full, *part.quick))}
    known = sorted((row for name, row in rows.items() if name in order), key=lambda row: order[row.subject])
    data = {"command": f"python -m tools.bench {part.name}", "rows": [row.to_json() for row in known]}
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def counted(old: Row | None, facts: Mapping[str, Any], commands: Mapping[str, str]) -> tuple[Round, ...]:
    """Rounds of an old row that a new run need not measure again: of this machine and this code, and undisturbed."""
    if old is None or old.machine != facts or old.commands != commands:
        return ()
    return tuple(item for item in old.rounds if not item.busy)


def may_replace(old: Row | None, found: Round, accept_busy: bool) -> None:
    """An undisturbed record is not lost to a disturbed round without a word.

    Raises:
        BenchError: that is what would happen.
    """
    if found.busy and not accept_busy and old is not None and old.rounds and not old.busy:
        raise BenchError(
            f"{old.subject}: others kept {found.beside:.1f} cores busy meanwhile (more than {BUSY}), and the figures "
            "of a quiet machine are there: they stay",
            hint="measure when the machine is idle; --accept-busy takes the new figures, marked as busy",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    """Measures subjects, and keeps each round as soon as it is there.

    Attributes:
        folder: of the report.
        repeats: rounds of each subject.
        until: on ``time.monotonic``'s clock; no round begins after it.
        tell: receives a line a round.
        again: whether to measure what is there already.
        accept_busy: whether a disturbed round may replace undisturbed ones.
    """

    folder: Path
    repeats: int
    until: float
    tell: Tell
    again: bool = False
    accept_busy: bool = False

    def measure(self, part: Part, subject: Subject, shop: Workshop) -> bool:
        """Measure the rounds that are missing; whether none is missing now.

        Raises:
            BenchError: something cannot be measured; or see :func:`may_replace`.
        """
        old = read(self.folder, part.name).get(subject.name)
        facts, commands, began = machine.facts(), part.commands(subject), machine.load_average()
        done = () if self.again else counted(old, facts, commands)
        if len(done) >= self.repeats:
            self.tell(f"{part.name}: {subject.name}: {len(done)} rounds are there")
            return True
        if time.monotonic() > self.until:
            return False
        rounds = part.rounds(subject, shop, self.repeats - len(done))
        row = Row(subject=subject.name, rounds=done, commands=commands, machine=facts)
        for found in rounds:
            may_replace(old, found, self.accept_busy)
            ends = (began, machine.load_average())
            row = replace(row, rounds=(*row.rounds, found), loads=ends, date=_today())
            row = replace(row, facts=part.facts(subject, shop))
            write(self.folder, part, {**read(self.folder, part.name), subject.name: row})
            self.tell(_told(part, row, found))
            if time.monotonic() > self.until:
                break
        return len(row.rounds) >= self.repeats


def _told(part: Part, row: Row, found: Round) -> str:
    first = {name: next(iter(sample.items())) for name, sample in found.samples.items()}
    said = ", ".join(f"{name} {value:.4g} {quantity}" for name, (quantity, value) in first.items())
    busy = f", BUSY: {found.beside:.1f} cores beside" if found.busy else ""
    return f"{part.name}: {row.subject}, round {len(row.rounds)}: {said}{busy}"


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
