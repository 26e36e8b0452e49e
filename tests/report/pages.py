"""Reports for tests: made once per process from bundles of the zoo, or from made-up material."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl import bundle as bundles
from refimpl import vendoring
from refimpl.advice import advise_bundle
from refimpl.recipe import Recipe
from refimpl.report.cuts import measure_cuts
from refimpl.report.html.document import Material, make_document, read_material
from refimpl.report.html.render import render
from refimpl.report.html.still import still_picture
from tests.bundles import make_bundle
from tools.report.synthetic import synthetic

HOSTILE = "</script><b id=hacked>&'\"{{ 7*7 }}<!--<script>"
_FOLDER = tempfile.TemporaryDirectory(prefix="refimpl-test-reports-")


def material_of(folder: Path, **changes: Any) -> Material:
    """What a report of a bundle is made from, probes run."""
    manifest = bundles.read(folder)
    material = read_material(folder, manifest)
    advice = tuple(item.to_json() for item in advise_bundle(manifest, material.graphs))
    return replace(material, cuts=measure_cuts(folder, manifest), advice=advice, **changes)


def page_text(material: Material, *, library: bool = True) -> str:
    """The page of some material, with or without the vendored library."""
    source = vendoring.library() if library else None
    return render(make_document(material), library=source, picture=still_picture(material.graphs.values()))


def written(name: str, text: str) -> Path:
    """A page as a file."""
    file = Path(_FOLDER.name) / f"{name}.html"
    file.write_text(text, encoding="utf-8")
    return file


def report_of(name: str, recipe: Recipe | None = None, **changes: Any) -> Path:
    """The report of a model of the zoo."""
    return written(name, page_text(material_of(make_bundle(name, recipe or Recipe()), **changes)))


def hostile_material() -> Material:
    """A bundle in which every text that a model, or its author, could choose is an attack."""
    plain = synthetic(12, cut_every=6)
    (graph,) = plain.graphs.values()
    ops = tuple(
        replace(
            op, name=f"{op.name}{HOSTILE}", type=f"{op.type}{HOSTILE}", reason=op.reason and f"{op.reason}{HOSTILE}"
        )
        for op in graph.ops
    )
    specs = [
        tuple(replace(spec, name=f"{spec.name}{HOSTILE}") for spec in side) for side in (graph.inputs, graph.outputs)
    ]
    feeds = tuple(replace(op, feeds=tuple(f"{name}{HOSTILE}" for name in op.feeds)) for op in ops)
    graph = replace(graph, key=HOSTILE, ops=feeds, inputs=specs[0], outputs=specs[1])
    (record,) = plain.manifest.signatures
    islands = tuple(
        replace(
            island, notes=(HOSTILE,), ops=tuple((f"{name}{HOSTILE}", f"{kind}{HOSTILE}") for name, kind in island.ops)
        )
        for island in record.islands
    )
    left = tuple(
        replace(op, name=op.name + HOSTILE, type=op.type + HOSTILE, reason=op.reason + HOSTILE) for op in record.left
    )
    signature = replace(record.signature, key=HOSTILE, inputs=specs[0], outputs=specs[1])
    record = replace(record, signature=signature, islands=islands, left=left)
    manifest = replace(
        plain.manifest,
        source_name=HOSTILE,
        notes=(HOSTILE,),
        judge=HOSTILE,
        signatures=(record,),
        versions={HOSTILE: HOSTILE},
    )
    graphs = {graph.key: graph}
    advice = tuple(item.to_json() for item in advise_bundle(manifest, graphs))
    return replace(plain, name=HOSTILE, manifest=manifest, graphs=graphs, advice=advice, sizes={HOSTILE: 5})
