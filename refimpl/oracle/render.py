"""Verdicts for a terminal, and as JSON. Decides nothing; fits 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from refimpl.oracle import wording
from refimpl.oracle.drift import FAILS, Change, Drift
from refimpl.oracle.verdict import CaseResult, Outcome, Verdict
from refimpl.oracle.verdict_set import VerdictSet

_STYLE = {Outcome.MATCH: "green", Outcome.MATCH_NOTHING_ACCELERATED: "yellow", Outcome.FALLBACK_USED: "yellow"}
_SHORT = {Outcome.MATCH_NOTHING_ACCELERATED: "match, in TF"}
Part = Table | Text


def to_json_text(verdicts: VerdictSet) -> str:
    """Strict JSON with a stable order of keys; a file of it is what ``--baseline`` reads."""
    return json.dumps(verdicts.to_json(), indent=1, allow_nan=False)


def print_verdicts(verdicts: VerdictSet, console: Console) -> None:
    """For each verdict a table of its cases and what went wrong; then the facts; the conclusion in the last line."""
    parts: list[Part] = [Text(wording.heading(verdicts)), Text()]
    for verdict in verdicts.verdicts:
        parts += [*_verdict(verdict), Text()]
    parts += [Text(line) for line in wording.bundle_lines(verdicts)]
    if verdicts.drift is not None:
        parts += [Text(), *_drift(verdicts.drift)]
    style = "bold green" if verdicts.passed else "bold red"
    parts += [Text(), Text(wording.conclusion(verdicts), style=style)]
    console.print(Group(*parts), soft_wrap=False, highlight=False)


def _verdict(verdict: Verdict) -> Iterator[Part]:
    if not verdict.cases:
        style = "dim" if verdict.excused else "red"
        yield Text(f"{wording.engine_heading(verdict)}: {wording.summary(verdict)}", style=style)
        return
    yield Text(f"{wording.engine_heading(verdict)}: {wording.summary(verdict)}")
    yield _case_table(verdict)
    for case in verdict.cases:
        yield from _remarks(case, verdict)
    yield from (Text(f"note: {note}", style="yellow") for note in verdict.notes)
    yield from (Text(f"latency: {wording.latency_text(item)}") for item in verdict.latencies)
    if verdict.task is not None:
        yield Text(wording.task_text(verdict.task), style="red" if verdict.task.problem else "")


def _case_table(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("case", "outcome", "worst output"):
        table.add_column(title, overflow="fold")
    table.add_column("max |Δ|", justify="right", no_wrap=True)
    table.add_column("of tol.", justify="right", no_wrap=True)
    table.add_column("islands", overflow="fold")
    for case in verdict.cases:
        worst = wording.worst_tensor(case)
        outcome = Text(_SHORT.get(case.outcome, case.outcome.value), style=_STYLE.get(case.outcome, "bold red"))
        numbers = wording.number(worst.max_abs if worst else None), wording.share_text(worst)
        name, output = Text(wording.case_name(case, verdict)), Text(worst.name if worst else "-")
        table.add_row(name, outcome, output, *numbers, Text(wording.engines_text(case)))
    return table


def _remarks(case: CaseResult, verdict: Verdict) -> Iterator[Text]:
    name = wording.case_name(case, verdict)
    if not verdict.tolerates(case):
        yield Text(f"{name}: {case.reason}", style="red")
        yield from (Text(f"  {line}") for line in wording.worst_lines(case))
    elif case.reason and case.outcome is not Outcome.MATCH_NOTHING_ACCELERATED:
        yield Text(f"{name}: {case.reason}", style="yellow")
    yield from (Text(f"{name}: {note}", style="dim") for note in case.notes)


def _drift(drift: Drift) -> Iterator[Part]:
    yield Text(wording.drift_heading(drift))
    rows = wording.told_rows(drift)
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("quantity", "of", "was", "is", "allowed", ""):
            table.add_column(title, overflow="fold")
        for row in rows:
            style = "red" if row.change in FAILS else "green" if row.change is Change.BETTER else ""
            table.add_row(*(Text(cell, style=style) for cell in wording.row_cells(row)))
        yield table
    yield from (Text(f"note: {note}", style="yellow") for note in drift.notes)
