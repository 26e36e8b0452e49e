"""The Python API: what the command line does, as functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl import cache as caching
from refimpl import env
from refimpl.bundle import IDLE_OPS, LeftOp
from refimpl.cache import Cache
from refimpl.recipe import Recipe
from refimpl.report.summary import PlanSummary

if TYPE_CHECKING:
    from refimpl.bundle import Manifest
    from refimpl.converter.plan import Plan

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Explanation:
    """The plan of a conversion: who judged, and what was planned for each signature."""

    judge: str
    signatures: tuple[PlanSummary, ...]


def _silent(line: str) -> None:
    del line


def convert(
    saved_model: StrPath,
    bundle: StrPath,
    recipe: Recipe | None = None,
    *,
    tell: Callable[[str], None] | None = None,
    samples: Callable[[], Iterable[Mapping[str, Any]]] | Sequence[Mapping[str, Any]] | None = None,
    cache: StrPath | Cache | None = None,
) -> Manifest:
    """Convert a SavedModel into a bundle: its supported parts in engines, the rest in TensorFlow.

    Args:
        saved_model: directory of the SavedModel.
        bundle: directory to make; it must not exist.
        recipe: every choice; the default converts ``serving_default`` in FP32 for the embedded engine.
        tell: receives a line whenever a stage begins.
        samples: real inputs to verify, to profile and to calibrate with: a function that yields dicts of arrays by
            input name (a batch each), or a sequence of such dicts. It is read more than once, one batch at a time.
            None takes what ``recipe.calibration`` names.
        cache: a directory in which finished work is looked for and kept, or what ``refimpl.cache.open_cache`` gives
            for one, with a limit of its own or read-only. None takes the one that ``REFIMPL_CACHE_DIR`` names, if it
            names one.

    Returns:
        The bundle's manifest: islands, what stayed in TensorFlow and why, versions, timings.

    Raises:
        SourceError: the SavedModel cannot be read, or has no such tags or signature.
        RecipeError: the target exists, a choice is impossible, or the cache cannot be used.
        BundleError: the bundle cannot be written.
        UnsupportedError: TensorFlow, or an engine that was asked for, is not installed.
    """
    from refimpl import exporter

    if place := exporter.check_place():
        exporter.check_room(place, Path(bundle))
    manifest = convert_only(saved_model, bundle, recipe, tell=tell, samples=samples, cache=cache)
    if place:
        exporter.export_to_place(Path(bundle), place)
    return manifest


def convert_only(
    saved_model: StrPath,
    bundle: StrPath,
    recipe: Recipe | None = None,
    *,
    tell: Callable[[str], None] | None = None,
    samples: Callable[[], Iterable[Mapping[str, Any]]] | Sequence[Mapping[str, Any]] | None = None,
    cache: StrPath | Cache | None = None,
) -> Manifest:
    """:func:`convert` for those whose bundle is a step on the way: no variable asks for anything beside it."""
    env.require_tensorflow()
    from refimpl.converter import pipeline

    found = caching.from_environment() if cache is None else cache
    store = found if found is None or isinstance(found, Cache) else caching.open_cache(found)
    return pipeline.convert(Path(saved_model), Path(bundle), recipe or Recipe(), tell or _silent, samples, store)


def export(
    bundle: StrPath,
    target: StrPath,
    *,
    golden: StrPath | None = None,
    saved_model: StrPath | None = None,
    islands: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the islands of a bundle as files for other tools, with scripts for ``polygraphy run``.

    Args:
        bundle: the bundle's directory.
        target: directory to make; it must not exist.
        golden: a golden record of the model; what passes the cuts in its cases becomes samples.
        saved_model: the model that the bundle was made from; its islands are lowered again in float32.
        islands: names of the islands to export; empty means all.
        tell: receives a line whenever a step begins.

    Returns:
        The export's manifest, as ``docs/exporting.md`` describes it.

    Raises:
        BundleError: not a bundle, damaged, or the disk is full.
        RecipeError: the target exists, an island is unknown, or the bundle has none.
        SourceError: ``saved_model`` is not the model that the bundle was made from.
        GoldenError: ``golden`` is damaged, or of another model.
        UnsupportedError: TensorFlow is needed for these choices, and is not installed.
    """
    from refimpl import exporter
    from refimpl.bundle import check_target
    from refimpl.export_extras import gathered

    check_target(Path(target))
    with gathered(Path(bundle), golden, saved_model, islands, tell or _silent) as (extras, notes):
        return exporter.export_bundle(
            Path(bundle), Path(target), islands=islands, extras=extras, notes=notes, tell=tell or _silent
        )


def explain(
    saved_model: StrPath, recipe: Recipe | None = None, *, tell: Callable[[str], None] | None = None
) -> Explanation:
    """Plan a conversion without building anything.

    Args:
        saved_model: directory of the SavedModel.
        recipe: as for :func:`convert`.
        tell: as for :func:`convert`.

    Returns:
        For every signature asked for, its islands, and a reason for every op that stays in TensorFlow.

    Raises:
        SourceError: the SavedModel cannot be read, or has no such tags or signature.
        UnsupportedError: TensorFlow is not installed.
    """
    env.require_tensorflow()
    from refimpl.converter import pipeline

    judge, plans = pipeline.explain(Path(saved_model), recipe or Recipe(), tell or _silent)
    return Explanation(judge, tuple(map(_summary, plans)))


def _summary(plan: Plan) -> PlanSummary:
    ops = plan.graph.ops
    return PlanSummary(
        signature=plan.graph.source.signature,
        islands=tuple(tuple((name, ops[name].type) for name in island) for island in plan.islands),
        left=tuple(
            LeftOp(name=name, type=ops[name].type, reason=reason)
            for name, reason in plan.reasons.items()
            if ops[name].type not in IDLE_OPS
        ),
        ops_total=sum(op.type not in IDLE_OPS for op in ops.values()),
    )
