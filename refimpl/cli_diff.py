"""What ``explain --diff`` does: two conversions, bundles or models that are planned first, compared."""

from __future__ import annotations

import json
from pathlib import Path

import click

from refimpl import bundle, terminal
from refimpl.cli_shared import progress
from refimpl.diff import Side, difference, side_of_bundle, side_of_plan
from refimpl.graph_record import read_graphs
from refimpl.progress import Tell
from refimpl.recipe import Recipe


def show_difference(before: Path, after: Path, recipe: Recipe, *, as_json: bool) -> None:
    """Compare two conversions and print what changed.

    Args:
        before: a bundle, or a SavedModel that is planned first.
        after: likewise.
        recipe: what SavedModels are planned by.
        as_json: print JSON.
    """
    from refimpl.report.diff import print_difference

    with progress() as tell:
        sides = [_side(path, recipe, tell) for path in (before, after)]
    found = difference(*sides)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_difference(terminal.stdout_console(), found)


def _side(path: Path, recipe: Recipe, tell: Tell) -> Side:
    import refimpl

    if (path / bundle.POINTER).is_file():
        manifest = bundle.read(path)
        sizes = {name: (path / name).stat().st_size for name in manifest.files}
        return side_of_bundle(str(path), manifest, read_graphs(path), sizes)
    plan = refimpl.explain(path, recipe, tell=tell)
    graphs = [item.graph for item in plan.signatures if item.graph is not None]
    return side_of_plan(str(path), plan.judge, recipe.to_json(), graphs)
