"""The command ``bisect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refimpl.cli_shared import progress
from refimpl.terminal import stdout_console


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("golden", type=click.Path(path_type=Path))
@click.option("--engine", "engines", multiple=True, help="An engine to look at; the bundle's choice when not given.")
@click.option("--case", default="", metavar="NAME", help="Search this case only (CASE or SIGNATURE/CASE).")
@click.option("--signature", default="", metavar="NAME", help="Search cases of this signature only.")
@click.option("--rank/--no-rank", "ranking", default=None, help="Rank layers of fp16, bf16, int8.  [default: if any]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def bisect(
    context: click.Context,
    /,
    bundle: Path,
    golden: Path,
    engines: tuple[str, ...],
    *,
    as_json: bool,
    **choices: Any,
) -> None:
    """Find the layer where BUNDLE leaves the TensorFlow answers in GOLDEN. Exit 0: nothing to find; 1: found."""
    from refimpl.oracle import bisect as search
    from refimpl.oracle.bisect import render

    with progress() as tell:
        report = search.bisect(bundle, golden, engines=engines or None, progress=tell, **choices)

    if as_json:
        click.echo(render.to_json_text(report))
    else:
        render.print_report(report, stdout_console())
    context.exit(report.exit_code)
