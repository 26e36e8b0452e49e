"""The command ``picture``: how a model is partitioned, as a file for Graphviz or as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refimpl.cli_shared import PATH, progress
from refimpl.errors import RecipeError

if TYPE_CHECKING:
    from refimpl.graph_record import SignatureGraph

_FORMATS = (".dot", ".svg")
_DEFAULT = "serving_default"


@click.command()
@click.argument("model", type=PATH, metavar="BUNDLE|SAVED_MODEL")
@click.option("--output", type=PATH, required=True, metavar="FILE.svg|FILE.dot", help="The new file to write.")
@click.option("--signature", help="Signature to draw.  [default: serving_default, or the only one]")
@click.option("--ops", is_flag=True, help="Draw every op, not islands as one box each.")
def picture(model: Path, output: Path, signature: str | None, ops: bool) -> None:
    """Draw which parts of BUNDLE run in engines. Of a SAVED_MODEL, draw the plan of a conversion with no options."""
    from refimpl.report import dot, svg
    from refimpl.report.drawing import draw_ops, draw_overview
    from refimpl.report.html.target import check_report_target, write_report

    if output.suffix not in _FORMATS:
        raise RecipeError(
            f"a picture in {output.suffix or 'a format without a name'} cannot be made",
            hint="call it FILE.svg, or FILE.dot for Graphviz, which makes many formats of it",
        )
    check_report_target(output, (model,))
    graph = _chosen(_graphs(model, signature), model, signature)
    drawing = draw_ops(graph) if ops else draw_overview(graph)
    write_report(output, dot.to_dot(drawing) if output.suffix == ".dot" else svg.to_svg(drawing))
    click.echo(f"{drawing.title}: {output}", err=True)


def _graphs(model: Path, signature: str | None) -> Mapping[str, SignatureGraph]:
    """The graphs that a bundle holds, or those of a plan."""
    import refimpl
    from refimpl import bundle
    from refimpl.graph_record import read_graphs
    from refimpl.recipe import Recipe

    if (model / bundle.POINTER).is_file() or not (model / "saved_model.pb").is_file():
        bundle.read(model)  # also says what is wrong with what is neither
        if found := read_graphs(model):
            return found
        raise RecipeError(f"{model} holds no graph to draw", hint="it is an older bundle, or nothing was converted")
    recipe = Recipe(signatures=(signature,)) if signature else Recipe()
    with progress() as tell:
        plan = refimpl.explain(model, recipe, tell=tell)
    return {item.signature.key: item.graph for item in plan.signatures if item.graph is not None}


def _chosen(graphs: Mapping[str, SignatureGraph], model: Path, signature: str | None) -> SignatureGraph:
    wanted = signature or (_DEFAULT if _DEFAULT in graphs or len(graphs) != 1 else next(iter(graphs)))
    if wanted not in graphs:
        raise RecipeError(
            f"no signature {wanted!r} in {model} was converted",
            hint=f"choose one with --signature: {', '.join(graphs)}",
        )
    return graphs[wanted]
