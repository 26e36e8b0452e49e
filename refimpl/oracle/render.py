"""Verdicts for a terminal, and as JSON. Decides nothing; fits the terminal, whatever names are in it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from refimpl.oracle import wording
from refimpl.oracle.drift import Drift
from refimpl.oracle.verdict import CaseResult, Outcome, Verdict
from refimpl.oracle.verdict_set import VerdictSet
from refimpl.tables import Column
from refimpl.terminal import print_line, print_table

_SHORT = {Outcome.MATCH_NOTHING_ACCELERATED: "match, in TF"}
_CASES = (
    Column("case", "name"),
    Column("outcome"),
    Column("worst output", "name"),
    Column("max error", "number"),
    Column("of tol.", "number"),
    Column("islands", "text"),
)
_DRIFT = (
    Column("quantity"),
    Column("of", "name"),
    Column("was", "number"),
    Column("is", "number"),
    Column("allowed", "number"),
    Column("", "word"),
)


def to_json_text(verdicts: VerdictSet) -> str:
    """Strict JSON with a stable order of keys; a file of it is what ``--baseline`` reads."""
    return json.dumps(verdicts.to_json(), indent=1, allow_nan=False)


def print_verdicts(verdicts: VerdictSet, console: Console) -> None:
    """For each verdict a table of its cases and what went wrong; then the facts; the conclusion in the last line."""
    print_line(console, wording.heading(verdicts))
    print_line(console, "")
    for verdict in verdicts.verdicts:
        _print_verdict(verdict, console)
        print_line(console, "")
    for line in wording.bundle_lines(verdicts):
        print_line(console, line)
    if verdicts.drift is not None:
        print_line(console, "")
        _print_drift(verdicts.drift, console)
    print_line(console, "")
    print_line(console, wording.conclusion(verdicts), "bold green" if verdicts.passed else "bold red")


def _print_verdict(verdict: Verdict, console: Console) -> None:
    style = "" if verdict.cases else "dim" if verdict.excused else "red"
    print_line(console, f"{wording.engine_heading(verdict)}: {wording.summary(verdict)}", style)
    groups: dict[str, list[CaseResult]] = {}
    for case in verdict.cases:
        groups.setdefault(case.signature, []).append(case)
    for signature, cases in groups.items():
        if len(groups) > 1:
            print_line(console, "")
            print_line(console, f"signature {signature}", "bold")
        print_table(console, _CASES, list(map(_row, cases)))
    for case in verdict.cases:
        _print_remarks(case, verdict, console)
    for note in verdict.notes:
        print_line(console, f"note: {note}", "yellow")
    for item in verdict.latencies:
        print_line(console, f"latency: {wording.latency_text(item)}")
    if verdict.task is not None:
        print_line(console, wording.task_text(verdict.task), "red" if verdict.task.problem else "")


def _row(case: CaseResult) -> Sequence[str]:
    worst = wording.worst_tensor(case)
    numbers = wording.number(worst.max_abs if worst else None), wording.share_text(worst)
    outcome = _SHORT.get(case.outcome, case.outcome.value)
    return case.case, outcome, worst.name if worst else "-", *numbers, wording.engines_text(case)


def _print_remarks(case: CaseResult, verdict: Verdict, console: Console) -> None:
    name = wording.case_name(case, verdict)
    if not verdict.tolerates(case):
        print_line(console, f"{name}: {case.reason}", "red")
        for line in wording.worst_lines(case):
            print_line(console, f"  {line}")
    elif case.reason and case.outcome is not Outcome.MATCH_NOTHING_ACCELERATED:
        print_line(console, f"{name}: {case.reason}", "yellow")
    for note in case.notes:
        print_line(console, f"{name}: {note}", "dim")


def _print_drift(drift: Drift, console: Console) -> None:
    print_line(console, wording.drift_heading(drift))
    if rows := [wording.row_cells(row) for row in wording.told_rows(drift)]:
        print_table(console, _DRIFT, rows)
    for note in drift.notes:
        print_line(console, f"note: {note}", "yellow")
