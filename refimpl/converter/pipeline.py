"""The conversion, from a SavedModel on disk to a bundle on disk, as a list of stages."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import resource
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refimpl import __version__, bundle, calibration, env, graph_record, memory
from refimpl.bundle import IslandRecord, Manifest, SignatureRecord
from refimpl.cache import Cache, Key
from refimpl.converter import check_bundle, crossing
from refimpl.converter.direct import direct_call
from refimpl.converter.install import install
from refimpl.converter.judge import pick_judge
from refimpl.converter.load import read_signature
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.plan import (
    Plan,
    SampleReader,
    Seen,
    Works,
    look,
    make_plan,
    mutable_state,
    settle,
    signature_source,
)
from refimpl.converter.precision.stage import PrecisionStage, check_patterns
from refimpl.converter.records import MODES, describe_files, graph_of, island_name, loosest, record_of
from refimpl.converter.reuse import Finished, Reuse, reuse_of
from refimpl.converter.samples import Given, Unwatched, given_name, how_many, user_samples
from refimpl.converter.source import Source
from refimpl.converter.stitch import Cut, Stitched, stitch_signature
from refimpl.errors import RecipeError, SourceError, UnsupportedError, stage
from refimpl.progress import Tell
from refimpl.recipe import Recipe

_log = logging.getLogger(__name__)
_WARNINGS = 3  # of calibration that are shown


@dataclass
class Clock:
    """Seconds spent in each stage, and the most memory that the process had used when it ended, in MB."""

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str, **where: object) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with stage(name, **where):
                yield
        finally:
            memory.give_back()
            took = time.perf_counter() - start
            self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 3)
            self.peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # Linux counts in KiB
            _log.info("%s took %.1f s; at most %d MiB used so far", name, took, self.peaks[name])


@dataclass(frozen=True)
class Converted:
    """One signature, converted: its record for the manifest and its new function."""

    record: SignatureRecord
    stitched: Stitched | None
    files: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    samples: Seen = field(default_factory=Seen)
    finished: Finished | None = None
    key: Key | None = None  # of the cache


def convert(
    source_path: Path,
    target: Path,
    recipe: Recipe,
    tell: Tell,
    samples: Unwatched | None = None,
    cache: Cache | None = None,
) -> Manifest:
    """Convert a SavedModel into a bundle. Each line is a stage.

    Args:
        source_path: the SavedModel.
        target: the bundle to make.
        recipe: the user's choices.
        tell: receives a line whenever a stage begins.
        samples: real inputs handed over in memory; None takes those that the recipe names.
        cache: where finished work is looked for and kept; None does everything anew.

    Raises:
        RefimplError: see the stages; nothing is left on disk.
    """
    clock = Clock()
    _check_engines(recipe)
    bundle.check_target(target)
    _check_places(source_path, target)
    bundle_id = uuid.uuid4().hex[:16]
    with tempfile.TemporaryDirectory(prefix="refimpl-") as scratch, bundle.atomic_directory(target) as folder:
        tell("loading the SavedModel")
        with clock.time("load", model=source_path):
            source = Source(source_path, recipe.tags)
        with source, contextlib.ExitStack() as stack:
            wanted = source.pick_signatures(recipe.signatures)
            _check_shapes(source, wanted, recipe)
            given = samples if samples is not None else recipe.calibration or None
            cache = None if cache is None else cache.labelled(model=source_path.absolute().name)
            with clock.time("cache"):
                reuse = reuse_of(cache, source, recipe, given, tell)
            if reuse is not None:
                stack.enter_context(reuse.alone())
            watched = given if reuse is None else reuse.samples
            mutable = mutable_state(source)
            job = _Job(source, recipe, watched, mutable, bundle_id, Path(scratch), clock, tell, cache, reuse)
            done = [
                _convert_signature(job, key, wanted.index(key))
                if key in wanted
                else _kept(source, key, "not asked for (--signature)")
                for key in source.signature_keys
            ]
            finished = [item.finished for item in done if item.finished is not None]
            check_patterns(recipe, itertools.chain.from_iterable(item.used_patterns for item in finished))
            tell("writing the bundle")
            with clock.time("write"):
                notes = _write(source, source_path.absolute().name, folder, done, bundle_id)
            manifest = _manifest(source, source_path, job, done, notes)
            manifest = bundle.seal(folder, manifest, _not_rewritten(source.digests))
            with clock.time("check"):
                tell("running the finished bundle against TensorFlow")
                seen = {item.record.signature.key: item.samples for item in done}
                extra = check_bundle.prove(folder, source, manifest, seen, has_state=bool(job.mutable))
            tell("putting it in place")
            manifest = replace(manifest, notes=(*manifest.notes, *extra), timings=dict(clock.seconds))
            manifest = bundle.seal(
                folder,
                replace(manifest, peak_megabytes=dict(clock.peaks)),
                {name: digest for name, digest in manifest.files.items() if name != "saved_model.pb"},
            )
            if reuse is not None:
                for item in done:
                    if item.key is not None and item.finished is not None:
                        reuse.keep(item.key, item.finished, folder)
    return manifest


def _not_rewritten(digests: Mapping[str, str]) -> dict[str, str]:
    """Checksums that hold on: of what is copied and only read; the graph is written anew."""
    return {name: digest for name, digest in digests.items() if name.startswith(("variables/", "assets"))}


def _check_places(source_path: Path, target: Path) -> None:
    """What the SavedModel's directory holds is copied, so the bundle cannot be made inside it."""
    if target.resolve().is_relative_to(source_path.resolve()):
        raise RecipeError(f"{target} lies inside the SavedModel", hint="choose a place outside of it")


def _check_shapes(source: Source, wanted: Sequence[str], recipe: Recipe) -> None:
    inputs = [name for key in wanted for name in source.meta_graph.signature_def[key].inputs]
    for name, _ in recipe.shapes:
        if name not in inputs:
            known = ", ".join(dict.fromkeys(inputs)) or "none"
            raise RecipeError(
                f"--shape names {name!r}, which is no input of {', '.join(wanted)}", hint=f"inputs: {known}"
            )


def explain(source_path: Path, recipe: Recipe, tell: Tell) -> tuple[str, list[Plan]]:
    """Who judges, and the plan of every signature asked for, stopped before anything is built."""
    tell("loading the SavedModel")
    with tempfile.TemporaryDirectory(prefix="refimpl-") as scratch, Source(source_path, recipe.tags) as source:
        mutable = mutable_state(source)
        judge = pick_judge()
        plans = []
        for key in source.pick_signatures(recipe.signatures):
            with stage("plan", signature=key):
                _, graph = signature_source(source, key, mutable)
                plans.append(make_plan(graph, recipe, judge, mutable, Path(scratch), tell))
        return judge.name, plans


@dataclass(frozen=True)
class _Job:
    """What the conversion of every signature shares."""

    source: Source
    recipe: Recipe
    given: Given | None  # the user's samples
    mutable: frozenset[str]  # tensors of variables that some signature assigns
    bundle_id: str
    scratch: Path
    clock: Clock
    tell: Tell
    cache: Cache | None
    reuse: Reuse | None


def _convert_signature(job: _Job, key: str, index: int) -> Converted:
    source, recipe, clock, tell = job.source, job.recipe, job.clock, job.tell
    try:
        with clock.time("load", signature=key):
            signature, graph = signature_source(source, key, job.mutable)
    except SourceError as error:
        if key in recipe.signatures:
            raise
        return _kept(source, key, error.message)
    given = job.given
    reader: SampleReader | None = None if given is None else lambda: user_samples(given, graph.source.signature)
    folder = job.scratch / str(index)
    folder.mkdir()
    native = NativeGraph(source, signature)
    precision = PrecisionStage(graph, native, recipe, reader, source.sha256, folder, tell, how_many(given))
    precision.check()
    stored, finished = None, None
    if job.reuse is not None:
        stored = job.reuse.key(key, index)
        with clock.time("cache", signature=key):
            finished = job.reuse.find(stored, native, Path(tempfile.mkdtemp(dir=folder)))
    with clock.time("look", signature=key):
        tell("running samples in TensorFlow")
        seen = look(graph, native, recipe, reader)
    if finished is None:
        works = Works(native, seen, recipe, pick_judge(), precision, folder, tell, job.cache)
        finished = _finish(job, index, graph, works)
    record = finished.record
    with clock.time("stitch", signature=key):
        attributes = {
            "_precision_mode": MODES[loosest(island.precision for island in record.islands)],
            "_profile_strategy": recipe.profile,
        }
        cuts = {island.name: _cut(island) for island in record.islands}
        stitched = stitch_signature(graph, cuts, job.bundle_id, attributes) if cuts else None
    origin = (finished.origin,) if finished.origin else ()
    return Converted(record, stitched, finished.files, (*seen.notes, *finished.notes, *origin), seen, finished, stored)


def _finish(job: _Job, index: int, graph: OpGraph, works: Works) -> Finished:
    """Plan one signature, and make its islands."""
    precision, key = works.precision, graph.source.signature.key
    with job.clock.time("plan", signature=key):
        plan = make_plan(graph, job.recipe, works.judge, job.mutable, works.folder, job.tell)
    with job.clock.time("build", signature=key):
        plan, islands = settle(plan, works)
    named = {island_name(index, number): island for number, island in enumerate(islands)}
    record, files = record_of(plan, named)
    with job.clock.time("measure", signature=key):
        record = crossing.timed(record, files, works.native)
    direct = direct_call(graph, islands[0]) if len(islands) == 1 else None
    record = replace(record, tried=tuple(item.to_json() for item in precision.tried), direct=direct)
    notes, used = _calibration_notes(precision), frozenset(precision.used_patterns)
    return Finished(record, files, notes, precision.table(), used, graph=graph_of(plan, index))


def _cut(island: IslandRecord) -> Cut:
    names = (tuple(spec.name for spec in specs) for specs in (island.inputs, island.outputs))
    return Cut(tuple(op for op, _ in island.ops), *names)


def _calibration_notes(precision: PrecisionStage) -> tuple[str, ...]:
    """What calibration warned about; a table may warn about every tensor, so the rest is only counted."""
    table = precision.table()
    warnings = table.warnings if table is not None else ()
    shown = tuple(f"calibration: {line}" for line in warnings[:_WARNINGS])
    if len(warnings) <= _WARNINGS:
        return shown
    rest = f"{len(warnings) - _WARNINGS} more warnings; see refimpl calibration show BUNDLE/{bundle.CALIBRATION}"
    return (*shown, f"calibration: {rest}")


def _kept(source: Source, key: str, reason: str) -> Converted:
    """A signature that stays as it is."""
    try:
        signature = read_signature(source, key)
    except SourceError as error:
        from refimpl.specs import Signature

        signature, reason = Signature(key, (), ()), error.message
    return Converted(SignatureRecord(signature=signature, converted=False, reason=reason), None, {})


def _write(source: Source, source_name: str, folder: Path, done: list[Converted], bundle_id: str) -> tuple[str, ...]:
    for item in source.path.iterdir():
        if item.name in ("saved_model.pb", "saved_model.pbtxt", "fingerprint.pb", bundle.FOLDER):
            continue
        if item.is_dir():
            shutil.copytree(item, folder / item.name)
        else:
            shutil.copyfile(item, folder / item.name)
    (folder / bundle.FOLDER / "islands").mkdir(parents=True)
    (folder / "assets").mkdir(exist_ok=True)
    proto: Any = type(source.proto)()
    proto.CopyFrom(source.proto)
    meta_graph = next(meta for meta in proto.meta_graphs if set(meta.meta_info_def.tags) == set(source.tags))
    for converted in done:
        if converted.stitched is not None:
            install(meta_graph, converted.stitched, bundle_id)
        for stored, file in converted.files.items():
            shutil.move(file, folder / stored)
        describe_files(folder, converted.record, {"source": source_name, "source_sha256": source.sha256})
    finished = [item.finished for item in done if item.finished is not None]
    if tables := [item.table for item in finished if item.table is not None]:
        calibration.save(tables, folder / bundle.CALIBRATION)
    if graphs := [item.graph for item in finished if item.graph is not None]:
        graph_record.write_graphs(folder, graphs)
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
    return tuple(dict.fromkeys(note for item in done for note in item.notes))


def _manifest(source: Source, source_path: Path, job: _Job, done: list[Converted], notes: tuple[str, ...]) -> Manifest:
    recipe = job.recipe if job.given is None else replace(job.recipe, calibration=given_name(job.given))
    return Manifest(
        bundle_id=job.bundle_id,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        refimpl=__version__,
        versions=env.versions(),
        source_name=source_path.absolute().name,
        source_sha256=source.sha256,
        tags=source.tags,
        precision=loosest(e.precision for item in done for island in item.record.islands for e in island.engines),
        judge=pick_judge().name,
        verified=recipe.verify,
        recipe=recipe.to_json(),
        signatures=tuple(item.record for item in done),
        timings=dict(job.clock.seconds),
        notes=notes
        if recipe.verify
        else (*notes, "UNVERIFIED: islands were not compared with TensorFlow (--no-verify)"),
    )


def _check_engines(recipe: Recipe) -> None:
    from refimpl.engines import tensorrt

    if "tensorrt" in recipe.engines and not tensorrt.version():
        raise UnsupportedError(
            "--engine tensorrt was asked for, but neither tensorrt nor tensorrt_rtx is installed",
            hint="pip install 'refimpl[rtx]', or leave --engine away: the embedded engine works everywhere",
        )
    if "tensorrt" in recipe.engines:
        tensorrt.check_targets(recipe.targets)
