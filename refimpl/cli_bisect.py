"""The command ``bisect``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from refimpl.cli_record import progress_to_stderr


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("golden", type=click.Path(path_type=Path))
@click.option("--engine", "engines", multiple=True, help="An engine to look at; the bundle's choice when not given.")
@click.option("--case", default="", metavar="NAME", help="Search this case only (CASE or SIGNATURE/CASE).")
@click.option("--rank/--no-rank", "ranking", default=None, help="Rank layers of fp16, bf16, int8.  [default: if any]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def bisect(
    context: click.Context,
    bundle: Path,
    golden: Path,
    engines: tuple[str, ...],
    case: str,
    ranking: bool | None,
    as_json: bool,
) -> None:
    """Find the layer where BUNDLE leaves the TensorFlow answers in GOLDEN. Exit 0: nothing to find; 1: found."""
    from rich.console import Console

    from refimpl.oracle import bisect as search

    with contextlib.redirect_stdout(sys.stderr):
        report = search.bisect(
            bundle, golden, engines=engines or None, case=case, ranking=ranking, progress=progress_to_stderr()
        )
    from refimpl.oracle.bisect import render

    if as_json:
        click.echo(render.to_json_text(report))
    else:
        render.print_report(report, Console())
    context.exit(report.exit_code)
