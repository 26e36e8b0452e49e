"""A search's report for people and for machines: text of 80 columns, JSON. Decides nothing."""

from __future__ import annotations

import json
import math

from rich.console import Console
from rich.text import Text

from refimpl.oracle.bisect.finding import Finding, Origin, Place, Ranking, Report
from refimpl.tables import Column, wrapped
from refimpl.terminal import print_line, print_table
from refimpl.text import counted, printable

_MARGIN = 15  # where values stand
_LAYERS = (
    Column("TensorFlow op", "text"),
    Column("in"),
    Column("its error", "number"),
    Column("at the outputs", "number"),
)
_SHOWN = 10  # layers of a ranking
_WHERE = {
    Place.ENVIRONMENT: "TensorFlow on this machine",
    Place.ISLAND: "inside an island",
    Place.ENGINE: "the engine of an island",
    Place.RUNTIME: "between an engine and the graph",
    Place.TENSORFLOW: "an op that stays in TensorFlow",
}
_ORIGIN = {Origin.BORN: ", born there", Origin.AMPLIFIED: ", only amplified there", Origin.UNKNOWN: ""}


def to_json_text(report: Report) -> str:
    """Strict JSON with a stable order of keys."""
    return json.dumps(report.to_json(), indent=1, allow_nan=False)


def print_report(report: Report, console: Console) -> None:
    """Where the bundle leaves TensorFlow, what costs most in a reduced precision, and the verdict in the last line."""
    print_line(console, f"bundle {report.bundle} against golden {report.golden}, {report.precision}")
    if report.finding:
        _print_finding(report.finding, console)
    if report.ranking:
        _print_ranking(report.ranking, console)
    for note in report.notes:
        print_line(console, f"note: {note}", "yellow")
    print_line(console, *_conclusion(report))


def _print_finding(finding: Finding, console: Console) -> None:
    rows = [
        ("case", f"{finding.signature}/{finding.case}"),
        ("where", _WHERE[finding.place] + _ORIGIN[finding.origin]),
        ("island", f"{finding.island} ({finding.engine})" if finding.island else ""),
        ("first cut", finding.cut),
        ("TensorFlow op", f"{finding.op[0]} ({finding.op[1]})" if finding.op[0] else ""),
        ("tensor", finding.tensor),
    ]
    rows += [("ONNX node", f"{name} ({op})" if op else name) for name, op in finding.nodes[-3:]]
    others = [f"{name} ({kind})" for name, kind in finding.ops if name != finding.op[0]]
    rows += [("done with it", ", ".join(others))] if others else []
    if (difference := finding.difference) is not None:
        place = f"{list(difference.worst_index)}" if difference.worst_index is not None else ""
        rows.append(("worst", f"{place} want {difference.want}, got {difference.got}" if place else difference.reason))
    print_line(console, "")
    for name, value in rows:
        if value:
            _print_fact(name, value, console)
    print_line(console, "")
    for remark in finding.remarks:
        print_line(console, f"* {remark}")
    print_line(console, "")


def _print_fact(name: str, value: str, console: Console) -> None:
    """A name and what stands beside it, whole: an op's name is there to be copied."""
    first, *rest = wrapped(printable(value), max(console.width - _MARGIN, 20))
    for label, line in [(name, first), *(("", line) for line in rest)]:
        console.print(Text(f"{label:<{_MARGIN}}{line}"), soft_wrap=True)


def _print_ranking(ranking: Ranking, console: Console) -> None:
    where = f"{ranking.signature}/{ranking.case}"
    print_line(console, f"layers by the error that each brings by itself, on {where}")
    rows = [(item.op[0], item.precision, _number(item.local), _number(item.output)) for item in ranking.layers[:_SHOWN]]
    print_table(console, _LAYERS, rows)
    if len(ranking.layers) > _SHOWN:
        print_line(console, f"... and {len(ranking.layers) - _SHOWN} more (--json)", "dim")
    print_line(console, "")
    error = f"together they use {_number(ranking.before)} of the tolerance"
    if not ranking.keep:
        more = (
            ": nothing needs to be kept in float32" if ranking.before <= 0.5 else ", and keeping a few would not help"
        )
        print_line(console, error + more)
        return
    kept = f"{error}; with {len(ranking.keep)} in float32, {_number(ranking.after)} of it (simulated):"
    print_line(console, kept)
    console.print(Text(ranking.command, style="bold"), soft_wrap=True)


def _conclusion(report: Report) -> tuple[str, str]:
    """The last line, and its style."""
    finding = report.finding
    if finding is None:
        if not report.cases:
            return "NOTHING SEARCHED: no case runs through an island", "bold yellow"
        found = counted(len(report.cases), "case")
        return f"NOTHING TO FIND: {found} {'matches' if len(report.cases) == 1 else 'match'} TensorFlow", "bold green"
    blamed = f"{finding.op[0]} ({finding.op[1]})" if finding.op[0] else _WHERE[finding.place]
    return f"FOUND: {blamed}{_ORIGIN[finding.origin]}", "bold red"


def _number(value: float | None) -> str:
    return "-" if value is None else "infinite" if math.isinf(value) or math.isnan(value) else f"{value:.2g}"
