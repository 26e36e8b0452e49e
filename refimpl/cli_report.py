"""The command ``report``, and what ``convert --report`` shares with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli_shared import PATH, progress
from refimpl.errors import GoldenError, RecipeError

if TYPE_CHECKING:
    from refimpl.bundle import Manifest
    from refimpl.progress import Tell
    from refimpl.report.html.document import Material


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("golden", type=PATH, required=False)
@click.option("--output", type=PATH, metavar="FILE.html", help="The new file to write.")
@click.option("--all-engines", is_flag=True, help="With GOLDEN: judge TensorFlow itself, then each engine alone.")
@click.option("--no-probes", is_flag=True, help="Do not run the islands' samples on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print what the report shows as JSON.")
@click.pass_context
def report(
    context: click.Context,
    /,
    bundle: Path,
    golden: Path | None,
    output: Path | None,
    all_engines: bool,
    no_probes: bool,
    as_json: bool,
) -> None:
    """Explain BUNDLE in one HTML file that needs no network: its graph, its islands, what stays in TensorFlow and what
    to do about that, precision, sizes and times.

    With GOLDEN, a golden record, BUNDLE is checked as by the command check, and the report shows its accuracy. GOLDEN
    may also be a file that check --json has written. Exit 0: the report was made; 1: and the bundle does not match.
    """
    from refimpl import bundle as bundles
    from refimpl.report.html.document import make_document
    from refimpl.report.html.page import page_of
    from refimpl.report.html.target import check_report_target, write_report

    if output is None and not as_json:
        raise RecipeError("the report has no file to go to", hint="give --output FILE.html, or --json")
    if all_engines and (golden is None or golden.is_file()):
        raise RecipeError("--all-engines is for a golden record", hint="name the folder that refimpl record has made")
    if output is not None:
        check_report_target(output, (bundle, golden))
    with progress() as tell:
        manifest = bundles.read(bundle)
        verdict = None if golden is None else _verdict(bundle, golden, manifest, all_engines=all_engines, tell=tell)
        material = _material(bundle, manifest, verdict, probes=not no_probes, tell=tell)
        document = make_document(material)
        if output is not None:
            tell("writing the report")
            write_report(output, page_of(material, document))
    if as_json:
        click.echo(json.dumps(document, indent=1))
    if verdict is not None and not verdict["passed"]:
        click.echo(f"check FAILED: {'; '.join(verdict['problems'])}", err=True)
        context.exit(1)


def check_report_option(output: Path | None, saved_model: Path) -> None:
    """Refuse a file that ``convert --report`` could not write, or that would change the model, before the conversion.

    Raises:
        RecipeError: with what to do.
    """
    if output is not None:
        from refimpl.report.html.target import check_report_target

        check_report_target(output, (saved_model,))


def write_report_of(bundle: Path, manifest: Manifest, output: Path) -> None:
    """The report of a bundle that was just converted.

    Raises:
        RecipeError: the file has come meanwhile, or the disk is full. The bundle is there all the same.
    """
    from refimpl.report.html.document import make_document
    from refimpl.report.html.page import page_of
    from refimpl.report.html.target import write_report

    with progress() as tell:
        material = _material(bundle, manifest, None, probes=True, tell=tell)
        tell("writing the report")
        write_report(output, page_of(material, make_document(material)))


def _material(
    bundle: Path, manifest: Manifest, verdict: Mapping[str, Any] | None, *, probes: bool, tell: Tell
) -> Material:
    from refimpl.advice import advise_bundle
    from refimpl.report.cuts import measure_cuts
    from refimpl.report.html.document import read_material

    material = read_material(bundle, manifest)
    cuts = None
    if probes:
        tell("running the islands' samples")
        cuts = measure_cuts(bundle, manifest)
    advice = tuple(item.to_json() for item in advise_bundle(manifest, material.graphs))
    return replace(material, verdict=verdict, cuts=cuts, advice=advice)


def _verdict(bundle: Path, golden: Path, manifest: Manifest, *, all_engines: bool, tell: Tell) -> dict[str, Any]:
    """The JSON of a check that is made now, or was kept in a file."""
    from refimpl import oracle

    if golden.is_file():
        return _kept_verdict(golden, manifest)
    verdicts = oracle.judge(bundle, golden, all_engines=all_engines, progress=tell)
    return verdicts.to_json()


def _kept_verdict(file: Path, manifest: Manifest) -> dict[str, Any]:
    from refimpl import oracle
    from refimpl.report.html.verdicts import verdict_data

    oracle.read_baseline(file)  # which refuses what is no verdict
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    try:
        verdict_data(kept)
        judged = kept["bundle"]
        name, precision, bundle_id = judged["name"], judged["precision"], judged["bundle_id"]
    except (LookupError, TypeError, AttributeError) as error:
        raise GoldenError(
            f"the verdict {file} is incomplete: {error}", hint="write it again: refimpl check BUNDLE GOLDEN --json"
        ) from None
    if bundle_id != manifest.bundle_id:
        raise GoldenError(
            f"the verdict {file} is on another bundle: {name} ({precision})",
            hint="check this bundle: refimpl check BUNDLE GOLDEN --json, or give the golden record itself",
        )
    return kept
