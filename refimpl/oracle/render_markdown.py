"""Verdicts as Markdown, for a pull request. Decides nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refimpl.oracle import wording
from refimpl.oracle.drift import FAILS, Drift
from refimpl.oracle.verdict import Verdict
from refimpl.oracle.verdict_set import VerdictSet


def to_markdown(verdicts: VerdictSet) -> str:
    """The conclusion as the title, then every verdict as a table, the facts, and what changed since a baseline."""
    lines = [f"## {_md(wording.conclusion(verdicts))}", "", _md(wording.heading(verdicts)), ""]
    for verdict in verdicts.verdicts:
        lines += [*_verdict(verdict), ""]
    lines += [f"- {_md(line)}" for line in wording.bundle_lines(verdicts)]
    if verdicts.drift is not None:
        lines += ["", *_drift(verdicts.drift)]
    return "\n".join(lines).rstrip() + "\n"


def _verdict(verdict: Verdict) -> list[str]:
    lines = [f"### {_md(wording.engine_heading(verdict))}", "", _md(wording.summary(verdict)), ""]
    if not verdict.cases:
        return lines[:-1]
    titles = ("case", "outcome", "worst output", "max abs", "max rel", "of tolerance", "over", "islands")
    rows = []
    for case in verdict.cases:
        worst = wording.worst_tensor(case)
        errors = (worst.max_abs, worst.max_rel) if worst else (None, None)
        rows.append(
            [
                *(wording.case_name(case, verdict), case.outcome.value, worst.name if worst else "-"),
                *(wording.number(error) for error in errors),
                *(wording.share_text(worst), str(worst.over if worst else "-"), wording.engines_text(case)),
            ]
        )
    remarks = [
        f"- **{_md(wording.case_name(case, verdict))}**: {_md(text)}"
        for case in verdict.cases
        for text in (case.reason, *(wording.worst_lines(case) if case.reason else ()), *case.notes)
        if text
    ]
    remarks += [f"- {_md(note)}" for note in verdict.notes]
    remarks += [f"- latency: {_md(wording.latency_text(item))}" for item in verdict.latencies]
    remarks += [f"- {_md(wording.task_text(verdict.task))}"] if verdict.task is not None else []
    return [*lines, *_table(titles, rows), *([""] if remarks else []), *remarks]


def _drift(drift: Drift) -> list[str]:
    lines = [f"### {_md(wording.drift_heading(drift))}", ""]
    rows = []
    for row in wording.told_rows(drift):
        cells = wording.row_cells(row)
        rows.append([*cells[:-1], f"**{cells[-1]}**" if row.change in FAILS else cells[-1]])
    lines += [*_table(("quantity", "of", "was", "is", "allowed", "verdict"), rows), ""] if rows else []
    return [*lines, *(f"- {_md(note)}" for note in drift.notes)]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(_md(cell) for cell in cells) + " |" for cells in lines]


def _md(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
