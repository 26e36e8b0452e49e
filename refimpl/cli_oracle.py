"""The commands ``record`` and ``check``."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refimpl.errors import GoldenError, RecipeError
from refimpl.specs import Shape


def parse_shapes(options: tuple[str, ...]) -> dict[str, Shape]:
    """``("x=1x224x224x3", "y=?x8")`` as shapes by input name; ``?`` keeps a dimension open.

    Raises:
        RecipeError: an option has another form.
    """
    shapes: dict[str, Shape] = {}
    for option in options:
        name, _, text = option.rpartition("=")
        if not name or not re.fullmatch(r"(\d+|\?)(x(\d+|\?))*", text):
            raise RecipeError(f"--shape {option!r} is not NAME=1x224x224x3", hint="? keeps a dimension open")
        shapes[name] = tuple(None if size == "?" else int(size) for size in text.split("x"))
    return shapes


def progress_to_stderr() -> Callable[[str], None]:
    """A reporter of progress: one line per step, on stderr, since stdout is for data; silent after --quiet."""
    quiet = logging.getLogger("refimpl").level >= logging.ERROR
    return lambda line: None if quiet else click.echo(line, err=True)


@click.command()
@click.argument("saved_model", type=click.Path(path_type=Path))
@click.argument("golden", type=click.Path(path_type=Path))
@click.option("--signature", "signatures", multiple=True, help="A signature to record; all when not given.")
@click.option("--tags", help="Tags of the meta graph, with commas.  [default: serve]")
@click.option("--cases", help="Your inputs: FILE.npz, a folder of them, or package.module:function.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1x224x224x3", help="Sizes of unknown dimensions.")
@click.option("--seed", type=int, default=0, show_default=True, help="Varies the generated values.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def record(
    saved_model: Path,
    golden: Path,
    signatures: tuple[str, ...],
    tags: str | None,
    cases: str | None,
    shapes: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Record TensorFlow's answers of SAVED_MODEL in the new directory GOLDEN."""
    from refimpl import oracle

    with contextlib.redirect_stdout(sys.stderr):  # libraries chat; stdout is for data
        made = oracle.record(
            saved_model,
            golden,
            signatures=signatures or None,
            tags=tags.split(",") if tags is not None else None,
            cases=cases,
            shapes=parse_shapes(shapes),
            seed=seed,
            progress=progress_to_stderr(),
        )
    summary: dict[str, Any] = {
        "golden": str(golden),
        "source_sha256": made.provenance.source_sha256,
        "signatures": list(made.signatures),
        "cases": [
            {
                "signature": case.signature,
                "name": case.name,
                "kind": case.kind.value,
                "note": case.note,
                "unstable": dict(case.unstable),
            }
            for case in made.cases
        ],
        "dropped": [{"signature": d.signature, "name": d.name, "reason": d.reason} for d in made.dropped],
    }
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    click.echo(f"{golden}: {len(made.cases)} cases of {', '.join(made.signatures)}")
    for case in made.cases:
        notes = [case.note, *(f"{name}: {what} not repeatable" for name, what in case.unstable.items())]
        click.echo(f"  {case.signature}/{case.name}" + "".join(f"  ({note})" for note in notes if note))
    for lost in made.dropped:
        click.echo(f"  dropped {lost.signature}/{lost.name}: {lost.reason}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("golden", type=click.Path(path_type=Path))
@click.option("--engine", "engines", multiple=True, help="An engine that may run; the bundle's choice when not given.")
@click.option("--allow-fallback", is_flag=True, help="Accept islands that ran in TensorFlow unexpectedly.")
@click.option("--allow-unaccelerated", is_flag=True, help="Accept that no engine ran at all.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write Markdown.")
@click.pass_context
def check(
    context: click.Context,
    bundle: Path,
    golden: Path,
    engines: tuple[str, ...],
    allow_fallback: bool,
    allow_unaccelerated: bool,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
) -> None:
    """Judge BUNDLE by the TensorFlow answers in GOLDEN. Exit 0: they match; 1: they do not."""
    from rich.console import Console

    from refimpl import oracle
    from refimpl.oracle import render

    with contextlib.redirect_stdout(sys.stderr):
        verdict = oracle.check(
            bundle,
            golden,
            engines=engines or None,
            allow_fallback=allow_fallback,
            allow_unaccelerated=allow_unaccelerated,
            progress=progress_to_stderr(),
        )
    if as_json:
        click.echo(render.to_json_text(verdict))
    else:
        render.print_verdict(verdict, Console())
    for path, text in ((junit, render.to_junit), (markdown, render.to_markdown)):
        if path is not None:
            _write_report(path, text(verdict))
    context.exit(verdict.exit_code)


def _write_report(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GoldenError(f"cannot write {path}: {error.strerror}") from error
