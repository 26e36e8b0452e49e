"""The command ``export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from refimpl.cli_convert import progress, stdout_console

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("directory", type=_PATH)
@click.option("--golden", type=_PATH, help="A golden record: what passes the cuts in its cases becomes samples.")
@click.option("--saved-model", type=_PATH, help="The original model: its islands are lowered again in float32.")
@click.option("--island", "islands", multiple=True, metavar="NAME", help="An island to export; all when not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the export's manifest as JSON.")
def export(
    bundle: Path,
    directory: Path,
    golden: Path | None,
    saved_model: Path | None,
    islands: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the islands of BUNDLE into the new DIRECTORY: ONNX, engines, samples, and scripts for polygraphy run."""
    from refimpl import api

    with progress() as tell:
        made = api.export(bundle, directory, golden=golden, saved_model=saved_model, islands=islands, tell=tell)
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    console = stdout_console()
    for line in [*(line for item in made["islands"] for line in _told(item)), *made["notes"]]:
        console.print(line)
    console.print("reproduce.sh, in the new folder, compares them with TensorFlow by polygraphy run")


def _told(island: dict[str, Any]) -> list[str]:
    files = [form["file"] for form in island["forms"]] + [engine["file"] for engine in island["engines"]]
    samples = len(island["samples"])
    head = f"{island['name']}: {', '.join(files)}; {samples} sample{'' if samples == 1 else 's'}"
    return [head, *(f"  missing: {sentence}" for sentence in island["missing"])]
