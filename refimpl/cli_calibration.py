"""The commands ``calibration show`` and ``calibration diff``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from refimpl import calibration as tables
from refimpl.calibration import CalibrationTable, Difference
from refimpl.tables import Column
from refimpl.terminal import print_line, print_table, stdout_console
from refimpl.text import counted

_PATH = click.Path(path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_RANGES = (
    Column("tensor", "text"),  # every letter of it: it is a key
    *(Column(name, "number") for name in ("low", "high", "99.99 %", "threshold", "clipped")),
)
_DIFFERENCES = (Column("tensor", "text"), *(Column(name, "number") for name in ("in A", "in B", "ratio")))


@click.group()
def calibration() -> None:
    """Read and compare the tables of ranges that INT8 calibration makes."""


@calibration.command()
@click.argument("table", type=_PATH)
@_JSON
def show(table: Path, *, as_json: bool) -> None:
    """Show the ranges in TABLE, and what calibration warned about."""
    found = tables.load(table)
    if as_json:
        click.echo(json.dumps({"tables": [item.to_json() for item in found]}, indent=2))
        return
    console = stdout_console()
    for item in found:
        _print_table(console, item)


@calibration.command()
@click.argument("a", type=_PATH)
@click.argument("b", type=_PATH)
@_JSON
@click.pass_context
def diff(context: click.Context, a: Path, b: Path, *, as_json: bool) -> None:
    """Compare the thresholds of tables A and B. Exit 0: they are the same; 1: they differ."""
    first = {item.signature: item for item in tables.load(a)}
    second = {item.signature: item for item in tables.load(b)}
    both = [name for name in first if name in second]
    alone = {"a": [name for name in first if name not in second], "b": [name for name in second if name not in first]}
    rows = {name: tables.diff(first[name], second[name]) for name in both}
    context_of = {name: _other_differences(first[name], second[name]) for name in both}
    same = not any(rows.values()) and not any(alone.values())
    if as_json:
        shared = {name: [row.to_json() for row in rows[name]] for name in both}
        click.echo(json.dumps({"same": same, "signatures": shared, "only_in": alone, "made": context_of}, indent=2))
    else:
        console = stdout_console()
        for side, names in alone.items():
            for name in names:
                print_line(console, f"{name}: only in {side}")
        for name in both:
            _print_differences(console, name, rows[name], context_of[name], len(first[name].ranges))
    context.exit(0 if same else 1)


def _other_differences(a: CalibrationTable, b: CalibrationTable) -> dict[str, list[Any]]:
    """How the tables were made, where that differs; it does not make their ranges differ."""
    names = ("source_sha256", "method", "percentile", "batches", "refimpl", "onnxruntime")
    return {name: [getattr(a, name), getattr(b, name)] for name in names if getattr(a, name) != getattr(b, name)}


def _print_table(console: Console, item: CalibrationTable) -> None:
    method = f"{item.method} {item.percentile:g} %" if item.method == "percentile" else item.method
    size = f"{counted(len(item.ranges), 'tensor')}, {method}, {counted(item.batches, 'batch')}"
    print_line(console, f"{item.signature}: {size}")
    print_line(console, f"model {item.source_sha256[:12]}, made {item.created} by refimpl {item.refimpl}")
    rows = []
    for name in sorted(item.ranges):
        seen = item.ranges[name]
        within = seen.quantiles.get("99.99")
        rows.append(
            (
                name,
                f"{seen.low:.4g}",
                f"{seen.high:.4g}",
                "" if within is None else f"{within:.4g}",
                f"{seen.threshold:.4g}" if seen.threshold else "none",
                f"{100 * seen.clipped:.2g}%" if seen.clipped else "",
            )
        )
    print_table(console, _RANGES, rows)
    for line in item.warnings:
        print_line(console, f"warning: {line}")


def _print_differences(
    console: Console, signature: str, rows: tuple[Difference, ...], made: dict[str, list[Any]], count: int
) -> None:
    verb = "differs" if len(rows) == 1 else "differ"
    verdict = f"{counted(len(rows), 'threshold')} {verb}" if rows else f"the same {counted(count, 'threshold')}"
    print_line(console, f"{signature}: {verdict}")
    for name, (a, b) in made.items():
        a, b = (value[:12] if name == "source_sha256" else value for value in (a, b))  # noqa: PLW2901
        print_line(console, f"  {name}: {a} in A, {b} in B")
    if not rows:
        return
    cells = []
    for row in rows:
        a, b = ("" if value is None else f"{value:.4g}" for value in (row.a, row.b))
        cells.append((row.tensor, a, b, _ratio(row)))
    print_table(console, _DIFFERENCES, cells)


def _ratio(row: Difference) -> str:
    if row.ratio is None:
        return "only in A" if row.b is None else "only in B"
    return f"{row.ratio:.3g}" if math.isfinite(row.ratio) else ""
