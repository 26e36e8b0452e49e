"""The command ``check``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl import env
from refimpl.cli_record import progress_to_stderr
from refimpl.errors import GoldenError, RecipeError

if TYPE_CHECKING:
    from refimpl.oracle import VerdictSet

_PATH = click.Path(path_type=Path)
_REPEAT = 5


def _strictness(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that decide what passes."""
    options = [
        click.option("--engine", "engines", multiple=True, help="An engine that may run.  [the bundle's choice]"),
        click.option("--all-engines", is_flag=True, help="Judge TensorFlow itself, then each engine alone."),
        click.option("--allow-fallback", is_flag=True, help="Accept islands that ran in TensorFlow unexpectedly."),
        click.option(
            "--allow-unaccelerated", is_flag=True, help="Accept that no engine ran, or a signature was not converted."
        ),
        click.option("--calibrated-only", is_flag=True, help="Leave out inputs that int8 was not calibrated for."),
        click.option(
            "--time-limit",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="Begin no case after that, per engine.",
        ),
        click.option(
            "--metric",
            default="top1",
            show_default=True,
            metavar="top1|top5|mae|MOD:FN",
            help="What is measured on labelled cases.",
        ),
        click.option("--max-drop", metavar="0.5%", help="What the metric may lose.  [it is only reported]"),
        click.option("--baseline", type=_PATH, metavar="VERDICT.json", help="Fail where it got worse since then."),
        click.option(
            "--allow-drift",
            "allowed",
            multiple=True,
            metavar="KEY=VALUE",
            help="How much worse: accuracy=2, share=1%, islands=1, size=5%, latency=25%, metric=0.5%.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("golden", type=_PATH)
@_strictness
@click.option(
    "--repeat", type=click.IntRange(0), default=_REPEAT, show_default=True, help="Calls to measure latency with."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON; --baseline reads it.")
@click.option("--junit", type=_PATH, metavar="FILE", help="Also write JUnit XML.")
@click.option("--markdown", type=_PATH, metavar="FILE", help="Also write Markdown.")
@click.pass_context
def check(
    context: click.Context,
    /,
    bundle: Path,
    golden: Path,
    *,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    **choices: Any,
) -> None:
    """Judge BUNDLE by the TensorFlow answers in GOLDEN. Exit 0: they match; 1: they do not."""
    from refimpl.oracle import render, render_junit, render_markdown

    with contextlib.redirect_stdout(sys.stderr):
        verdicts = _judged(bundle, golden, **choices)
    if as_json:
        click.echo(render.to_json_text(verdicts))
    else:
        from rich.console import Console

        plain = env.prefers_plain_text() or None
        render.print_verdicts(verdicts, Console(highlight=False, markup=False, no_color=plain))
    for path, text in ((junit, render_junit.to_junit), (markdown, render_markdown.to_markdown)):
        if path is not None:
            _write_report(path, text(verdicts))
    context.exit(verdicts.exit_code)


def _judged(
    bundle: Path,
    golden: Path,
    *,
    baseline: Path | None,
    allowed: tuple[str, ...],
    all_engines: bool,
    engines: tuple[str, ...],
    max_drop: str | None,
    **strictness: Any,
) -> VerdictSet:
    """All that can be wrong with the command line is found before the first case runs."""
    from refimpl import oracle

    allowances = oracle.allowances(allowed)
    if allowed and baseline is None:
        raise RecipeError("--allow-drift allows nothing without --baseline", hint="give --baseline VERDICT.json")
    before = oracle.read_baseline(baseline) if baseline is not None else None
    options = oracle.CheckOptions(engines=engines or None, max_drop=_share(max_drop), **strictness)
    verdicts = oracle.judge(bundle, golden, options, all_engines=all_engines, progress=progress_to_stderr())
    if before is None or baseline is None:
        return verdicts
    now = oracle.Snapshot.of(verdicts.to_json())
    oracle.require_same_model(before, now, baseline)
    return replace(verdicts, drift=oracle.compare_with(baseline.name, before, now, allowances))


def _share(text: str | None) -> float | None:
    """``0.5%`` or ``0.005``, or any number for a metric that is no share."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
        if not share >= 0:  # NaN neither
            raise ValueError
        return share
    except ValueError:
        raise RecipeError(f"--max-drop {text!r} is no share", hint="give 0.5% or 0.005") from None


def _write_report(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GoldenError(f"cannot write {path}: {error.strerror}", hint="choose another place") from error
