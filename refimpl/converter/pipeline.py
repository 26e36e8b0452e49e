"""The conversion, from a SavedModel on disk to a bundle on disk, as a list of stages."""

from __future__ import annotations

import datetime
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refimpl import __version__, bundle, calibration, env, runtime
from refimpl.bundle import EngineRecord, IslandRecord, LeftOp, Manifest, SignatureRecord
from refimpl.converter import check_bundle
from refimpl.converter.install import install
from refimpl.converter.islands import Island
from refimpl.converter.judge import pick_judge
from refimpl.converter.load import read_signature
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
from refimpl.converter.precision.stage import PrecisionStage, check_patterns, tables_in
from refimpl.converter.samples import Given, given_name, user_samples
from refimpl.converter.source import Source, tree_sha256
from refimpl.converter.stitch import Stitched, stitch_signature
from refimpl.engines import onnxruntime
from refimpl.errors import RecipeError, SourceError, UnsupportedError, stage
from refimpl.recipe import Recipe
from refimpl.specs import TensorSpec

Tell = Callable[[str], None]
_WARNINGS = 3  # of calibration that are shown
_LOOSEST_FIRST = ("int8", "bf16", "fp16", "quantized", "tf32", "half", "fp32")


@dataclass
class Clock:
    """Seconds spent in each stage."""

    seconds: dict[str, float]

    @contextmanager
    def time(self, name: str, **where: object) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with stage(name, **where):
                yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


@dataclass(frozen=True)
class Converted:
    """One signature, converted: its record for the manifest and its new function."""

    record: SignatureRecord
    stitched: Stitched | None
    files: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    samples: Seen = field(default_factory=Seen)
    precision: PrecisionStage | None = None


def convert(source_path: Path, target: Path, recipe: Recipe, tell: Tell, samples: Given | None = None) -> Manifest:
    """Convert a SavedModel into a bundle. Each line is a stage.

    Args:
        source_path: the SavedModel.
        target: the bundle to make.
        recipe: the user's choices.
        tell: receives a line whenever a stage begins.
        samples: real inputs handed over in memory; None takes those that the recipe names.

    Raises:
        RefimplError: see the stages; nothing is left on disk.
    """
    clock = Clock({})
    _check_engines(recipe)
    bundle.check_target(target)
    _check_places(source_path, target)
    bundle_id = uuid.uuid4().hex[:16]
    with tempfile.TemporaryDirectory(prefix="refimpl-") as scratch, bundle.atomic_directory(target) as folder:
        tell("loading the SavedModel")
        with clock.time("load", model=source_path):
            source = Source(source_path, recipe.tags)
        with source:
            wanted = source.pick_signatures(recipe.signatures)
            _check_shapes(source, wanted, recipe)
            given = samples if samples is not None else recipe.calibration or None
            job = _Job(source, recipe, given, mutable_state(source), bundle_id, Path(scratch), clock, tell)
            done = [
                _convert_signature(job, key, wanted.index(key))
                if key in wanted
                else _kept(source, key, "not asked for (--signature)")
                for key in source.signature_keys
            ]
            check_patterns(recipe, [item.precision for item in done if item.precision is not None])
            tell("writing the bundle")
            with clock.time("write"):
                notes = _write(source, folder, done, bundle_id)
            manifest = _manifest(source, source_path, job, done, notes)
            manifest = bundle.seal(folder, manifest)
            with clock.time("check"):
                tell("running the finished bundle against TensorFlow")
                seen = {item.record.signature.key: item.samples for item in done}
                extra = check_bundle.prove(folder, source, manifest, seen, has_state=bool(job.mutable))
            tell("putting it in place")
            manifest = bundle.seal(
                folder, replace(manifest, notes=(*manifest.notes, *extra), timings=dict(clock.seconds))
            )
    return manifest


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
    with Source(source_path, recipe.tags) as source:
        mutable = mutable_state(source)
        judge = pick_judge()
        plans = []
        for key in source.pick_signatures(recipe.signatures):
            with stage("plan", signature=key):
                _, graph = signature_source(source, key, mutable)
                plans.append(make_plan(graph, recipe, judge, mutable, tell))
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


def _convert_signature(job: _Job, key: str, index: int) -> Converted:
    source, recipe, clock, tell = job.source, job.recipe, job.clock, job.tell
    judge = pick_judge()
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
    precision = PrecisionStage(graph, native, recipe, reader, tree_sha256(source.path), folder, tell)
    precision.check()
    with clock.time("plan", signature=key):
        plan = make_plan(graph, recipe, judge, job.mutable, tell)
    with clock.time("look", signature=key):
        tell("running samples in TensorFlow")
        seen = look(graph, native, recipe, reader)
    with clock.time("build", signature=key):
        plan, islands = settle(plan, Works(native, seen, recipe, judge, precision, folder, tell))
    named = {f"TRTEngineOp_{index:03d}_{number:03d}": island for number, island in enumerate(islands)}
    with clock.time("stitch", signature=key):
        mode = _precision(island.shipped.precision for island in islands)
        attributes = {"_precision_mode": _MODES.get(mode, "FP32"), "_profile_strategy": recipe.profile}
        stitched = stitch_signature(graph, named, job.bundle_id, attributes) if named else None
    record, files = _record(plan, named)
    notes = (*seen.notes, *_calibration_notes(precision))
    record = replace(record, tried=tuple(item.to_json() for item in precision.tried))
    return Converted(record, stitched, files, notes, seen, precision)


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


def _record(plan: Plan, named: Mapping[str, Island]) -> tuple[SignatureRecord, dict[str, Path]]:
    files: dict[str, Path] = {}
    records = []
    for name, island in named.items():
        built = []
        for item in island.built:
            stored = f"{bundle.FOLDER}/islands/{name}{''.join(Path(item.file.name).suffixes)}"
            files[stored] = item.file
            data = item.file.with_name(item.file.name + bundle.WEIGHTS_SUFFIX)
            if data.exists():
                files[stored + bundle.WEIGHTS_SUFFIX] = data
                onnxruntime.move_weights(item.file, Path(stored).name + bundle.WEIGHTS_SUFFIX)
            kernels = item.file.with_name(item.file.name + bundle.KERNELS_SUFFIX)
            if kernels.exists():
                files[stored + bundle.KERNELS_SUFFIX] = kernels
            profiles = tuple({"min": p.min, "opt": p.opt, "max": p.max, "values": p.values} for p in item.profiles)
            built.append(
                EngineRecord(
                    kind=item.kind,
                    file=stored,
                    version=item.version,
                    precision=item.precision,
                    profiles=profiles,
                    targets=item.targets,
                )
            )
        shipped, finding = island.shipped, island.shipped.finding
        probe = f"{bundle.FOLDER}/islands/{name}.probe.npz" if finding.probe else ""
        if finding.probe:
            file = island.built[0].file.with_suffix(".probe.npz")
            runtime.write_probe(file, finding.probe.inputs, finding.probe.outputs)
            files[probe] = file
        records.append(
            IslandRecord(
                name=name,
                ops=tuple((op, plan.graph.ops[op].type) for op in island.ops),
                inputs=_specs(plan, island.entering),
                outputs=_specs(plan, island.leaving),
                engines=tuple(built),
                probe=probe,
                finite_only=finding.finite_only,
                precision=shipped.precision,
                verified=f"{finding.compared} samples agree with TensorFlow" if finding.compared else "",
                notes=shipped.notes,
                layers=tuple((item.name, item.op, item.precision, item.reason) for item in shipped.layers),
                accuracy=shipped.accuracy.to_json() if shipped.accuracy else None,
            )
        )
    reasons = plan.reasons
    ops = plan.graph.ops
    left = tuple(
        LeftOp(name=name, type=ops[name].type, reason=reason)
        for name, reason in reasons.items()
        if ops[name].type not in bundle.IDLE_OPS
    )
    total = sum(op.type not in bundle.IDLE_OPS for op in ops.values())
    signature = plan.graph.source.signature
    why = "" if records else "no island could be made; every op stays in TensorFlow"
    return SignatureRecord(
        signature=signature, converted=bool(records), reason=why, islands=tuple(records), left=left, ops_total=total
    ), files


def _specs(plan: Plan, tensors: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(plan.graph.specs[tensor] for tensor in tensors)


def _write(source: Source, folder: Path, done: list[Converted], bundle_id: str) -> tuple[str, ...]:
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
    if tables := tables_in([item.precision for item in done if item.precision is not None]):
        calibration.save(tables, folder / bundle.CALIBRATION)
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
        source_sha256=tree_sha256(source.path),
        tags=source.tags,
        precision=_precision(e.precision for item in done for island in item.record.islands for e in island.engines),
        judge=pick_judge().name,
        verified=recipe.verify,
        recipe=recipe.to_json(),
        signatures=tuple(item.record for item in done),
        timings=dict(job.clock.seconds),
        notes=notes
        if recipe.verify
        else (*notes, "UNVERIFIED: islands were not compared with TensorFlow (--no-verify)"),
    )


_MODES = {"int8": "INT8", "bf16": "BF16", "fp16": "FP16", "half": "FP16"}  # TF-TRT's names; all others: FP32


def _precision(found: Iterable[str]) -> str:
    """What the least precise engine computes in: a model that is float16 itself is no FP32 bundle."""
    kinds = set(found)
    return next((loose for loose in _LOOSEST_FIRST if loose in kinds), "fp32")


def _check_engines(recipe: Recipe) -> None:
    from refimpl.engines import tensorrt

    if "tensorrt" in recipe.engines and not tensorrt.version():
        raise UnsupportedError(
            "--engine tensorrt was asked for, but neither tensorrt nor tensorrt_rtx is installed",
            hint="pip install 'refimpl[rtx]', or leave --engine away: the embedded engine works everywhere",
        )
    if "tensorrt" in recipe.engines:
        tensorrt.check_targets(recipe.targets)
