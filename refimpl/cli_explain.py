"""The commands ``explain`` and ``inspect``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl import env, terminal
from refimpl.cli_shared import PATH, planning_options, progress, recipe_of, show_manifest
from refimpl.errors import RecipeError

if TYPE_CHECKING:
    from refimpl.bundle import Manifest


@click.command()
@click.argument("saved_model", type=PATH, required=False)
@planning_options
@click.option(
    "--diff",
    nargs=2,
    type=PATH,
    metavar="A B",
    help="Compare two conversions: bundles, or models, which are planned first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def explain(
    saved_model: Path | None, diff: tuple[Path, Path] | None, as_json: bool, recipe_file: Path | None, **options: Any
) -> None:
    """Show which ops of SAVED_MODEL would go into engines, why the others would not, and what to do about it. Builds
    nothing.
    """
    import refimpl
    from refimpl.advice import advise_all
    from refimpl.report.advice import print_advice
    from refimpl.report.summary import print_plan

    recipe = recipe_of(recipe_file, **options)
    if diff:
        if saved_model is not None:
            raise RecipeError(f"explain --diff compares two conversions, and {saved_model} is a third")
        from refimpl.cli_diff import show_difference

        show_difference(*diff, recipe, as_json=as_json)
        return
    if saved_model is None:
        raise RecipeError("explain needs a SavedModel", hint="refimpl explain SAVED_MODEL, or --diff A B")
    with progress() as tell:
        plan = refimpl.explain(saved_model, recipe, tell=tell)
    found = advise_all((item.graph for item in plan.signatures if item.graph is not None), recipe.to_json())
    if as_json:
        signatures = [item.to_json() for item in plan.signatures]
        advice = [item.to_json() for item in found]
        click.echo(json.dumps({"judge": plan.judge, "signatures": signatures, "advice": advice}, indent=2))
    else:
        print_plan(terminal.stdout_console(), plan.signatures, plan.judge)
        print_advice(terminal.stdout_console(), found)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("--tftrt-summary", is_flag=True, help="Print what TF-TRT's summary() printed, 160 columns wide.")
@click.option(
    "--tftrt-report", type=click.Choice(["text", "csv"]), help="Print TF-TRT's report of what was not converted."
)
@click.option("--detailed", is_flag=True, help="In TF-TRT's reports: the ops of each engine, the reasons.")
def inspect(bundle: Path, as_json: bool, tftrt_summary: bool, tftrt_report: str | None, detailed: bool) -> None:
    """Show what is in BUNDLE, every file's checksum compared first."""
    from refimpl import bundle as bundles

    if detailed and not (tftrt_summary or tftrt_report):
        raise RecipeError("--detailed is for --tftrt-summary and --tftrt-report", hint="--json says everything")
    if as_json and (tftrt_summary or tftrt_report):
        raise RecipeError("TF-TRT's reports are no JSON", hint="leave --json away, or ask for it alone")
    manifest = bundles.read(bundle)
    if tftrt_summary or tftrt_report:
        _print_as_tftrt(bundle, manifest, summary=tftrt_summary, form=tftrt_report, detailed=detailed)
    else:
        show_manifest(manifest, bundle, as_json=as_json)


def _print_as_tftrt(folder: Path, manifest: Manifest, *, summary: bool, form: str | None, detailed: bool) -> None:
    env.require_tensorflow()
    with contextlib.redirect_stdout(sys.stderr):
        from refimpl.trt_convert import inspecting

    if summary:
        inspecting.print_summary(folder, manifest, detailed=detailed, print_fn=lambda text="": click.echo(text))
    if form:
        click.echo(inspecting.non_conversion(manifest, form=form, detailed=detailed), nl=form != "csv")
