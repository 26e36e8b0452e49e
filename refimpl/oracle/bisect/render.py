"""A search's report for people and for machines: text of 80 columns, JSON. Decides nothing."""

from __future__ import annotations

import json
import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refimpl.oracle.bisect.finding import Finding, Origin, Place, Ranking, Report

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
    console.print(Text(f"bundle {report.bundle} against golden {report.golden}, {report.precision}"), highlight=False)
    if report.finding:
        _print_finding(report.finding, console)
    if report.ranking:
        _print_ranking(report.ranking, console)
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"), highlight=False)
    console.print(_conclusion(report), highlight=False)


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
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(name, Text(value))
    console.print()
    console.print(grid, highlight=False)
    console.print()
    for remark in finding.remarks:
        console.print(Text(f"* {remark}"), highlight=False)
    console.print()


def _print_ranking(ranking: Ranking, console: Console) -> None:
    where = f"{ranking.signature}/{ranking.case}"
    console.print(Text(f"layers by the error that each brings by itself, on {where}"), highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("TensorFlow op", overflow="fold")
    table.add_column("in", no_wrap=True)
    table.add_column("its error", justify="right", no_wrap=True)
    table.add_column("at the outputs", justify="right", no_wrap=True)
    for layer in ranking.layers[:_SHOWN]:
        table.add_row(Text(layer.op[0]), layer.precision, _number(layer.local), _number(layer.output))
    console.print(table, highlight=False)
    if len(ranking.layers) > _SHOWN:
        console.print(Text(f"... and {len(ranking.layers) - _SHOWN} more (--json)", style="dim"))
    console.print()
    error = f"together they use {_number(ranking.before)} of the tolerance"
    if not ranking.keep:
        more = (
            ": nothing needs to be kept in float32" if ranking.before <= 0.5 else ", and keeping a few would not help"
        )
        console.print(Text(error + more), highlight=False)
        return
    kept = f"{error}; with {len(ranking.keep)} in float32, {_number(ranking.after)} of it (simulated):"
    console.print(Text(kept), highlight=False)
    console.print(Text(ranking.command, style="bold"), soft_wrap=True, highlight=False)


def _conclusion(report: Report) -> Text:
    finding = report.finding
    if finding is None:
        if not report.cases:
            return Text("NOTHING SEARCHED: no case runs through an island", style="bold yellow")
        count = len(report.cases)
        matched = "1 case matches" if count == 1 else f"{count} cases match"
        return Text(f"NOTHING TO FIND: {matched} TensorFlow", style="bold green")
    blamed = f"{finding.op[0]} ({finding.op[1]})" if finding.op[0] else _WHERE[finding.place]
    return Text(f"FOUND: {blamed}{_ORIGIN[finding.origin]}", style="bold red")


def _number(value: float | None) -> str:
    return "-" if value is None else "infinite" if math.isinf(value) or math.isnan(value) else f"{value:.2g}"
