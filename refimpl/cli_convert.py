"""The command ``convert``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from refimpl import env
from refimpl.cache import DEFAULT_LIMIT, Cache, open_cache, parse_size
from refimpl.cli_report import check_report_option, write_report_of
from refimpl.cli_shared import FILE_NAME, PATH, check_new, planning_options, progress, recipe_of, show_manifest
from refimpl.errors import RecipeError
from refimpl.recipe import CALIBRATORS, ENGINES, PRECISIONS, PROFILES, Recipe


def _precision_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of ``convert`` that decide what engines compute in."""
    options = [
        click.option(
            "--precision", type=click.Choice(PRECISIONS), help="What the engines compute in.  [default: fp32]"
        ),
        click.option(
            "--keep-fp32",
            multiple=True,
            metavar="OP|NODE",
            help="Op type or node name (patterns allowed) that computes in float32 whatever the precision.",
        ),
        click.option(
            "--calibrator", type=click.Choice(CALIBRATORS), help="How int8 ranges are made.  [default: entropy]"
        ),
        click.option("--percentile", type=float, help="Share of values, in %, for that calibrator.  [default: 99.99]"),
        click.option(
            "--calibration-table",
            type=FILE_NAME,
            metavar="FILE",
            help="Int8 ranges of an earlier calibration, used again.",
        ),
        click.option("--save-calibration", type=PATH, help="Write the int8 ranges to this new file, too."),
        click.option("--no-calibration", is_flag=True, help="Int8 ranges from the model's own fake-quantization ops."),
        click.option("--max-drop", metavar="0.5%", help="With --precision auto: what the metric may lose.  [0.5%]"),
        click.option(
            "--metric",
            metavar="agreement|top1|MOD:FN",
            help="With --precision auto: what is measured, on the samples of --calibration.  [default: agreement]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _share(text: str | None) -> float | None:
    """``0.5%`` or ``0.005``."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        raise RecipeError(f"--max-drop {text!r} is no share", hint="give 0.5% or 0.005") from None


@click.command()
@click.argument("saved_model", type=PATH)
@click.argument("bundle", type=PATH)
@planning_options
@_precision_options
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(ENGINES),
    help="Engine to store besides the embedded onnxruntime.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="sm86,sm89",
    help="Compute capability to build TensorRT engines for, also of GPUs that are not here.  [TensorRT chooses]",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1x224x224x3",
    help="Concrete shape of an input; repeat it to span a range.",
)
@click.option("--profile", type=click.Choice(PROFILES), help="How shapes become TensorRT profiles.  [default: range]")
@click.option(
    "--calibration",
    type=FILE_NAME,
    metavar="FILE.npz|DIR|MOD:FN",
    help="Real samples to verify, to profile and to calibrate int8 with: one batch per file, or per dict yielded.",
)
@click.option("--tf32", is_flag=True, default=None, help="Let TensorRT round FP32 products to TF32: looser answers.")
@click.option(
    "--no-verify", is_flag=True, help="Do not compare islands with TensorFlow. The bundle is marked UNVERIFIED."
)
@click.option("--report", type=PATH, metavar="FILE.html", help="Also write a report that explains the bundle.")
@click.option("--cache", type=PATH, metavar="DIR", help="Look for finished work here, and keep it.  [none]")
@click.option("--cache-limit", metavar="10GB", help="What the cache may hold; the least recently used makes room.")
@click.option("--cache-read-only", is_flag=True, help="Use what is in the cache, and write nothing to it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def convert(
    saved_model: Path,
    bundle: Path,
    no_verify: bool,
    no_calibration: bool,
    max_drop: str | None,
    save_calibration: Path | None,
    report: Path | None,
    cache: Path | None,
    cache_limit: str | None,
    cache_read_only: bool,
    as_json: bool,
    recipe_file: Path | None,
    **options: Any,
) -> None:
    """Convert SAVED_MODEL into the new directory BUNDLE, itself a SavedModel: supported parts in engines, the rest in
    TensorFlow.
    """
    import refimpl

    recipe = recipe_of(
        recipe_file,
        verify=False if no_verify else None,
        use_calibration=False if no_calibration else None,
        max_drop=_share(max_drop),
        **options,
    )
    check_new(save_calibration)
    _check_folder(save_calibration)
    check_report_option(report, saved_model)
    store = _cache(cache, cache_limit, read_only=cache_read_only)
    for line in _idle(recipe, {**options, "max_drop": max_drop}):
        click.echo(f"warning: {line}", err=True)
    if no_verify:
        click.echo("warning: --no-verify: nothing proves that the engines give TensorFlow's answers", err=True)
    with progress() as tell:
        manifest = refimpl.convert(saved_model, bundle, recipe, tell=tell, cache=store)
    if save_calibration is not None:
        _save_calibration(bundle, save_calibration)
    if report is not None:
        write_report_of(bundle, manifest, report)
    show_manifest(manifest, bundle, as_json=as_json)


def _cache(folder: Path | None, limit: str | None, *, read_only: bool) -> Cache | None:
    """The cache that the options name, or the environment; None for none."""
    place = folder or env.cache_directory()
    if not place:
        if limit or read_only:
            raise RecipeError(
                "--cache-limit and --cache-read-only are for a cache, and there is none",
                hint="name one with --cache DIR or REFIMPL_CACHE_DIR",
            )
        return None
    limit_bytes = parse_size(limit) if limit else DEFAULT_LIMIT
    return open_cache(place, limit_bytes=limit_bytes, read_only=read_only or env.cache_is_read_only())


def _idle(recipe: Recipe, given: Mapping[str, Any]) -> list[str]:
    """Options that were given and do nothing with the others."""
    chooses, ranges = recipe.precision == "auto", recipe.precision in ("int8", "auto")
    rows = (
        ("metric", chooses, "--metric is for --precision auto"),
        ("max_drop", chooses, "--max-drop is for --precision auto"),
        ("calibrator", ranges, "--calibrator is for --precision int8 and auto"),
        ("percentile", ranges and recipe.calibrator == "percentile", "--percentile is for --calibrator percentile"),
        ("calibration_table", ranges, "--calibration-table is for --precision int8 and auto"),
        ("targets", "tensorrt" in recipe.engines, "--target is for --engine tensorrt"),
        ("keep_fp32", recipe.precision != "fp32", "--keep-fp32 is for a --precision other than fp32"),
    )
    return [f"{text}: it does nothing here" for name, heeded, text in rows if given.get(name) and not heeded]


def _check_folder(file: Path | None) -> None:
    """Before the long work, of what is written after it."""
    if file is not None and not file.absolute().parent.is_dir():
        raise RecipeError(f"{file} lies in no folder that exists", hint="make the folder first")


def _save_calibration(folder: Path, target: Path) -> None:
    from refimpl import calibration
    from refimpl.bundle import CALIBRATION

    if not (folder / CALIBRATION).is_file():
        click.echo("warning: nothing was calibrated, so there are no ranges to save", err=True)
        return
    calibration.save(calibration.load(folder / CALIBRATION), target)
