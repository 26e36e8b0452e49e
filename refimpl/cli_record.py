"""The command ``record``, and what the commands of the oracle share."""

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

from refimpl.errors import RecipeError
from refimpl.specs import Shape

_UNSTABLE = {
    "values": "values not repeatable",
    "shape": "shape not repeatable",
    "subnormals": "hangs on what a machine makes of subnormals",
    "rounding": "hangs on the last bit of the inputs",
}


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
@click.option("--label", "labels", multiple=True, metavar="NAME", help="An array of --cases to keep and not to feed.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1x224x224x3", help="Sizes of unknown dimensions.")
@click.option("--seed", type=int, default=0, show_default=True, help="Varies the generated values.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def record(
    saved_model: Path,
    golden: Path,
    signatures: tuple[str, ...],
    tags: str | None,
    cases: str | None,
    labels: tuple[str, ...],
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
            labels=labels,
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
                "labels": list(case.labels),
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
        notes = [case.note, *(f"{name}: {_UNSTABLE[what]}" for name, what in case.unstable.items())]
        click.echo(f"  {case.signature}/{case.name}" + "".join(f"  ({note})" for note in notes if note))
    for lost in made.dropped:
        click.echo(f"  dropped {lost.signature}/{lost.name}: {lost.reason}")
