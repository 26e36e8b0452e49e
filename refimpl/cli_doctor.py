"""The command ``doctor``."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console

from refimpl import terminal
from refimpl.tables import Column
from refimpl.terminal import print_line

if TYPE_CHECKING:
    from refimpl.doctor import Health

_PACKAGES = (Column("package"), Column("version", "text"))
_ENGINES = (
    Column("engine"),
    Column("library", "text"),
    Column("builds"),
    Column("executes"),
    Column("why not", "text"),
)
_FEATURES = (Column("feature"), Column("here", "text"))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(*, as_json: bool) -> None:
    """Show versions and GPUs, and what can be built and run on this machine."""
    from refimpl import doctor as examining

    with contextlib.redirect_stdout(sys.stderr):  # Polygraphy logs to stdout, which is for data
        health = examining.examine()
    if as_json:
        click.echo(json.dumps({**asdict(health), "advice": examining.advice(health)}, indent=2))
    else:
        show(health, terminal.stdout_console())


def show(health: Health, console: Console) -> None:
    """Print the report for a person."""
    from refimpl.doctor import advice

    terminal.print_table(console, _PACKAGES, list(health.versions.items()))
    console.print()
    rows = []
    for engine in health.engines:
        builds, executes = ("yes" if it else "no" for it in (engine.builds, engine.executes))
        rows.append((engine.kind, engine.library or "not installed", builds, executes, engine.problem))
    terminal.print_table(console, _ENGINES, rows)
    console.print()
    if health.tensorrt:
        terminal.print_table(console, _FEATURES, health.tensorrt)
        console.print()
    print_line(console, f"processor: {health.processor}")
    print_line(console, f"CUDA driver: {health.cuda_driver or 'none'}")
    for gpu in health.gpus:
        memory = f"{gpu.memory_bytes >> 20} MiB"
        print_line(console, f"GPU: {gpu.name}, compute capability {gpu.compute_capability}, {memory}")
    print_line(console, f"free in {health.temp}: {health.temp_free_bytes / (1 << 30):.1f} GiB")
    print_line(console, f"graph of HTML reports: {health.report_graph or 'a still picture'}")
    for line in advice(health):
        print_line(console, f"note: {line}")
