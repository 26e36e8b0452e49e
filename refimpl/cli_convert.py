"""The commands ``convert``, ``explain``, ``inspect`` and ``run``."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from refimpl import env
from refimpl.cache import DEFAULT_LIMIT, Cache, open_cache, parse_size
from refimpl.errors import RecipeError
from refimpl.recipe import CALIBRATORS, ENGINES, PRECISIONS, PROFILES, Recipe, load_recipe, parse_shape, recipe_with

_PATH = click.Path(path_type=Path)


def stdout_console() -> Console:
    """For data: plain when asked for or when stdout is no terminal, never markup."""
    return Console(highlight=False, markup=False, no_color=env.prefers_plain_text() or None)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A reporter of stages on stderr: a spinner on a terminal, a line each elsewhere. Library chatter goes there
    too. After Ctrl-C, or a request to terminate, it raises KeyboardInterrupt.
    """
    with contextlib.redirect_stdout(sys.stderr), _remembered_interrupts() as raise_if_any, _reporter() as show:

        def tell(line: str) -> None:
            raise_if_any()
            show(line)

        yield tell


@contextlib.contextmanager
def _reporter() -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True, highlight=False, markup=False, no_color=env.prefers_plain_text() or None)
    if logging.getLogger("refimpl").level >= logging.ERROR:  # --quiet
        yield lambda _: None
    elif not console.is_terminal:
        yield lambda line: console.print(line, soft_wrap=True)
    else:
        with console.status("starting") as status:
            yield status.update


@contextlib.contextmanager
def _remembered_interrupts() -> Iterator[Callable[[], None]]:
    """A check that raises after an interrupt: TensorFlow's C++ side may swallow the exception that a signal raises."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def raise_if_any() -> None:
        if came:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()  # Python takes signals nowhere else
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if ours}
    replaced = [number for number, old in before.items() if old in (signal.default_int_handler, signal.SIG_DFL)]
    for number in replaced:
        signal.signal(number, note)
    try:
        yield raise_if_any
    finally:
        for number in replaced:
            signal.signal(number, before[number])


def _planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that decide the plan; ``convert`` and ``explain`` share them."""
    options = [
        click.option(
            "--signature", "signatures", multiple=True, help="Signature to convert; '*' for all.  [serving_default]"
        ),
        click.option("--tags", help="Tags of the meta graph, with commas.  [default: serve]"),
        click.option("--min-segment-size", type=int, help="Smaller islands stay in TensorFlow.  [default: 3]"),
        click.option("--max-engines", type=int, help="Keep only the N largest islands.  [default: no limit]"),
        click.option(
            "--keep-in-tf",
            multiple=True,
            metavar="OP|NODE",
            help="Op type or node name (patterns allowed) to leave alone.",
        ),
        click.option(
            "--recipe", "recipe_file", type=_PATH, help="A TOML file of these choices; options given here win."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


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
        click.option("--calibration-table", metavar="FILE", help="Int8 ranges of an earlier calibration, used again."),
        click.option("--save-calibration", type=_PATH, help="Write the int8 ranges to this new file, too."),
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


def _recipe(recipe_file: Path | None, **given: Any) -> Recipe:
    base = load_recipe(recipe_file) if recipe_file else Recipe()
    if given.get("tags"):
        given["tags"] = tuple(given["tags"].split(","))
    given["shapes"] = tuple(parse_shape(text) for text in given.get("shapes") or ())
    if given.get("targets"):
        given["targets"] = tuple(dict.fromkeys(name for text in given["targets"] for name in text.split(",")))
    if given.get("engines"):
        given["engines"] = tuple(dict.fromkeys(("onnxruntime", *given["engines"])))
    return recipe_with(base, {key: value for key, value in given.items() if value not in (None, ())}, "command line")


@click.command()
@click.argument("saved_model", type=_PATH)
@click.argument("bundle", type=_PATH)
@_planning_options
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
    metavar="FILE.npz|DIR|MOD:FN",
    help="Real samples to verify, to profile and to calibrate int8 with: one batch per file, or per dict yielded.",
)
@click.option("--tf32", is_flag=True, default=None, help="Let TensorRT round FP32 products to TF32: looser answers.")
@click.option(
    "--no-verify", is_flag=True, help="Do not compare islands with TensorFlow. The bundle is marked UNVERIFIED."
)
@click.option("--cache", type=_PATH, metavar="DIR", help="Look for finished work here, and keep it.  [none]")
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

    recipe = _recipe(
        recipe_file,
        verify=False if no_verify else None,
        use_calibration=False if no_calibration else None,
        max_drop=_share(max_drop),
        **options,
    )
    _check_new(save_calibration)
    _check_folder(save_calibration)
    store = _cache(cache, cache_limit, read_only=cache_read_only)
    for line in _idle(recipe, {**options, "max_drop": max_drop}):
        click.echo(f"warning: {line}", err=True)
    if no_verify:
        click.echo("warning: --no-verify: nothing proves that the engines give TensorFlow's answers", err=True)
    with progress() as tell:
        manifest = refimpl.convert(saved_model, bundle, recipe, tell=tell, cache=store)
    if save_calibration is not None:
        _save_calibration(bundle, save_calibration)
    _show_manifest(manifest, bundle, as_json=as_json)


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


def _check_new(file: Path | None) -> None:
    if file is not None and file.exists():
        raise RecipeError(f"{file} exists already", hint="choose another name; nothing is ever overwritten")


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


@click.command()
@click.argument("saved_model", type=_PATH)
@_planning_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def explain(saved_model: Path, as_json: bool, recipe_file: Path | None, **options: Any) -> None:
    """Show which ops of SAVED_MODEL would go into engines, and why the others would not. Builds nothing."""
    import refimpl
    from refimpl.report.summary import print_plan

    with progress() as tell:
        plan = refimpl.explain(saved_model, _recipe(recipe_file, **options), tell=tell)
    if as_json:
        click.echo(
            json.dumps({"judge": plan.judge, "signatures": [item.to_json() for item in plan.signatures]}, indent=2)
        )
    else:
        print_plan(stdout_console(), plan.signatures, plan.judge)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what is in BUNDLE, every file's checksum compared first."""
    from refimpl import bundle as bundles

    _show_manifest(bundles.read(bundle), bundle, as_json=as_json)


def _show_manifest(manifest: Any, folder: Path, *, as_json: bool) -> None:
    from refimpl.report.summary import print_manifest

    if as_json:
        click.echo(json.dumps(manifest.to_json(), indent=2))
        return
    sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    print_manifest(stdout_console(), manifest, sizes)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option(
    "--inputs", metavar="FILE.npz|random", required=True, help="Arrays by input name, or 'random' to make some up."
)
@click.option("--output", type=_PATH, help="Write the outputs to this new .npz file.")
@click.option("--signature", default="", help="Signature to run.  [serving_default]")
@click.option("--engine", "engines", multiple=True, help="Engines that may run, in order of preference.  [all]")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1x224x224x3", help="Shapes for --inputs random.")
@click.option("--intra-op-threads", type=click.IntRange(min=1), metavar="N", help="CPU threads per op.  [one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary of the outputs as JSON.")
def run(
    bundle: Path,
    inputs: str,
    output: Path | None,
    signature: str,
    engines: tuple[str, ...],
    shapes: tuple[str, ...],
    intra_op_threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE once and say what each island ran on."""
    import refimpl
    from refimpl.converter.samples import read_npz
    from refimpl.report.outputs import describe_run, print_run, write_outputs

    fixed = dict(map(parse_shape, shapes))
    if fixed and inputs != "random":
        raise RecipeError("--shape is for --inputs random", hint="the arrays of a file have shapes of their own")
    _check_new(output)
    with contextlib.redirect_stdout(sys.stderr):
        env.limit_tensorflow_threads(intra_op_threads)
        env.require_tensorflow()
        loaded = refimpl.load(bundle, engines=engines or None, intra_op_threads=intra_op_threads or 0)
        spec = loaded.signature(signature)
        values = _random(spec, fixed) if inputs == "random" else read_npz(Path(inputs))
        result = loaded.run(values, spec.key)
    if output is not None:
        write_outputs(output, result)
    if as_json:
        click.echo(json.dumps(describe_run(result), indent=2))
    else:
        print_run(stdout_console(), result)


def _random(spec: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    import numpy as np

    known = [item.name for item in spec.inputs]
    for name, shape in shapes.items():
        if name not in known:
            raise RecipeError(
                f"--shape names {name!r}, which is no input", hint=f"inputs: {', '.join(known) or 'none'}"
            )
        if min(shape, default=0) < 0:
            raise RecipeError(f"--shape {name}: a dimension of {list(shape)} is negative")
    rng = np.random.default_rng(0)
    values = {}
    for item in spec.inputs:
        shape = shapes.get(item.name, tuple(1 if size is None else size for size in item.shape or ()))
        dtype = item.numpy_dtype()
        if item.dtype == "string":
            raise RecipeError(f"input {item.name!r} takes strings", hint="give real ones: --inputs FILE.npz")
        values[item.name] = rng.random(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    return values
