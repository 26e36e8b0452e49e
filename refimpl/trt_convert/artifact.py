"""The bundle behind a converter: given TF-TRT's attributes and TensorRT engines, and put where it is saved."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import saved_model_pb2

from refimpl import bundle, cache, engine_cache, runtime, tftrt_env
from refimpl.bundle import EngineRecord, IslandRecord, Manifest
from refimpl.engines import BuildOptions, OpenEngine, Profile, onnxruntime, tensorrt
from refimpl.errors import BuildError, RecipeError, RunError
from refimpl.numerics import disagreement
from refimpl.profiles import profiles_for
from refimpl.runtime.building import ABORTED, covers
from refimpl.tolerance import tolerance_for
from refimpl.trt_convert import saving
from refimpl.trt_convert.params import log
from refimpl.trt_convert.view import set_attributes

Cuts = Mapping[str, tuple[list[Any], list[Any]]]  # by island: values that enter and values that leave
ASSET = "assets/trt-serialized-engine."  # TF-TRT's place for engines, followed by the island's name
_KIND = tensorrt.NAME
_SAVED_MODEL = frozenset(  # what TensorFlow, Keras and we write at the top of one
    f"""saved_model.pb saved_model.pbtxt saved_model.cpb variables assets assets.extra debug fingerprint.pb
    keras_metadata.pb {bundle.FOLDER}""".split()
)


def stamp(folder: Path, **values: str | int | bool | None) -> Manifest:
    """Put private attributes on the engine nodes of a bundle, and seal it again."""
    file = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString(file.read_bytes())
    for meta_graph in proto.meta_graphs:
        set_attributes(meta_graph.graph_def, **values)
    file.write_bytes(proto.SerializeToString())
    return bundle.seal(folder, bundle.read(folder, check_files=False))


def calibration(folder: Path) -> str:
    """The table of ranges that a bundle was calibrated with, as JSON; an empty one when no layer could be int8."""
    file = folder / bundle.CALIBRATION
    return file.read_text(encoding="utf-8") if file.is_file() else "{}"


def expect_engines(folder: Path) -> Manifest:
    """Record a TensorRT engine for every island that is yet to be built, so that a runtime may build it."""
    return _with_islands(folder, lambda island: _with_engine(island, EngineRecord(**_waiting(island), profiles=())))


def _waiting(island: IslandRecord) -> dict[str, Any]:
    return {"kind": _KIND, "file": "", "version": "", "precision": island.precision}


def _with_engine(island: IslandRecord, engine: EngineRecord) -> IslandRecord:
    return replace(island, engines=(*(item for item in island.engines if item.kind != _KIND), engine))


def _with_islands(folder: Path, change: Callable[[IslandRecord], IslandRecord]) -> Manifest:
    manifest = bundle.read(folder, check_files=False)
    signatures = tuple(replace(record, islands=tuple(map(change, record.islands))) for record in manifest.signatures)
    return bundle.seal(folder, replace(manifest, signatures=signatures))


def outline(cuts: Cuts) -> Cuts:
    """What profiles need of values at the cuts: shapes, and integers, which may be shapes; in next to no memory."""
    return {
        name: ([_outlined(value) for value in entering], [_outlined(value) for value in leaving])
        for name, (entering, leaving) in cuts.items()
    }


def _outlined(value: Any) -> Any:
    array = np.asarray(value)
    return array if array.dtype.kind in "iu" else np.broadcast_to(np.zeros((), array.dtype), array.shape)


@dataclass(frozen=True)
class Builder:
    """Builds the TensorRT engines of a bundle from the values seen at its cuts.

    Attributes:
        folder: the bundle.
        seen: one item per sample of the user's.
        probes: values at the cuts for inputs that engines take, the most telling first, to prove engines with.
        options: of the builds.
    """

    folder: Path
    seen: Sequence[Cuts]
    probes: Sequence[Cuts]
    options: BuildOptions

    def build(self) -> tuple[Manifest, dict[str, str]]:
        """Build what can be built.

        Returns:
            The bundle's new manifest, and why an island has no engine, by its name. Where TensorRT is not installed,
            profiles are recorded, and that is no failure.
        """
        failures: dict[str, str] = {}

        def change(island: IslandRecord) -> IslandRecord:
            try:
                return self._with_engine(island)
            except BuildError as error:
                failures[island.name] = error.message
                return _with_engine(island, EngineRecord(**_waiting(island), profiles=()))

        manifest = _with_islands(self.folder, change)
        rounded = any(engine.precision == "tf32" for island in manifest.islands for engine in island.engines)
        if rounded and manifest.precision == "fp32":
            manifest = bundle.seal(self.folder, replace(manifest, precision="tf32"))
        return manifest, failures

    def _with_engine(self, island: IslandRecord) -> IslandRecord:
        manifest = bundle.read(self.folder, check_files=False)
        recipe = manifest.recipe
        if not all(island.name in item for item in (*self.seen, *self.probes)):
            raise BuildError("this model does not show what enters its islands")
        names = [spec.name for spec in island.inputs]
        values = [dict(zip(names, item[island.name][0], strict=True)) for item in self.seen]
        profiles = profiles_for(recipe["profile"], island.inputs, values)
        if recipe["profile"] == "implicit-batch":
            profiles = _smallest_first(profiles)
        record = EngineRecord(
            kind=_KIND, file="", version="", precision=island.precision, profiles=tuple(map(_plain, profiles))
        )
        if tftrt_env.abort_builds():
            raise BuildError(ABORTED)
        if not tensorrt.version():
            return _with_engine(island, record)
        stored = next(engine.file for engine in island.engines if engine.kind == "onnxruntime")
        file = f"{bundle.FOLDER}/islands/{island.name}{tensorrt.SUFFIX}"
        label = {"model": manifest.source_name, "island": island.name, "precision": island.precision}
        store = cache.from_environment_if_usable()
        options = self.options
        if recipe["tf32"] and island.precision == "fp32":  # it was found not to stand it
            options = replace(options, tf32=False)
        engine_cache.build(store, _KIND, self.folder / stored, self.folder / file, profiles, options, label)
        precision = "tf32" if options.tf32 and island.precision == "fp32" else island.precision
        if island.probe:
            self._renew_probe(island, profiles, onnxruntime.open(self.folder / stored))
        return _with_engine(
            island, replace(record, file=file, version=tensorrt.version(), precision=precision, targets=options.targets)
        )

    def _renew_probe(self, island: IslandRecord, profiles: Sequence[Profile], proven: OpenEngine) -> None:
        """Store a new probe when the engine would not take the old one's shapes.

        The embedded engine, which was verified, must agree with it: values far from the calibrated ones say nothing of
        an int8 engine.
        """
        inputs, _ = runtime.read_probe(self.folder / island.probe)
        if not profiles or any(covers(profile, inputs) for profile in profiles):
            return
        for probe in self.probes:
            entering, leaving = probe[island.name]
            if _agrees(island, proven, entering, leaving):
                runtime.write_probe(self.folder / island.probe, entering, leaving)
                return
        log.warning("%s: no values of these shapes can prove its engine, so the embedded one will run", island.name)


def _agrees(island: IslandRecord, engine: OpenEngine, entering: Sequence[Any], leaving: Sequence[Any]) -> bool:
    try:
        found = engine.run(entering)
    except RunError:
        return False
    pairs = zip(island.outputs, leaving, found, strict=True)
    return not any(disagreement(want, got, tolerance_for(island.precision, s.dtype)) for s, want, got in pairs)


def _plain(profile: Profile) -> dict[str, Any]:
    return {"min": profile.min, "opt": profile.opt, "max": profile.max, "values": profile.values}


def _smallest_first(profiles: Sequence[Profile]) -> tuple[Profile, ...]:
    """The first profile that contains a shape is used: let it be the one for the smallest batch."""
    return tuple(sorted(profiles, key=lambda profile: [shape[:1] for shape in profile.max]))


def publish(folder: Path, target: Path, *, keep_engines: bool, build_at_runtime: bool, traced: Any = None) -> Manifest:
    """Copy a bundle to where the user wants it; what was there is replaced, if it was a SavedModel or empty.

    Args:
        folder: the converter's own bundle.
        target: where to.
        keep_engines: store TensorRT engines; without, their profiles stay, and another GPU builds for them.
        build_at_runtime: whether engines may be built there for shapes that none takes.
        traced: the converted function, to store where its ops come from; None for not doing so.

    Raises:
        RecipeError: ``target`` holds something else, or cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(target) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        if traced is not None:
            saving.write_debug_info(new, traced)
        manifest = stamp(new, allow_build_at_runtime=build_at_runtime)
        recipe = {**manifest.recipe, "build_at_runtime": build_at_runtime}
        bundle.seal(new, replace(manifest, recipe=recipe))
        return _with_islands(new, lambda island: _relocated(new, island, keep_engines))


def _relocated(folder: Path, island: IslandRecord, keep_engines: bool) -> IslandRecord:
    """Move an engine to TF-TRT's place; without it, the file there is empty, as TF-TRT's is."""
    engine = next((item for item in island.engines if item.kind == _KIND), None)
    if engine is None or not engine.file:
        return island
    place = f"{ASSET}{island.name}"
    (folder / "assets").mkdir(exist_ok=True)
    if keep_engines:
        (folder / engine.file).rename(folder / place)
        return _with_engine(island, replace(engine, file=place))
    (folder / engine.file).unlink()
    (folder / place).write_bytes(b"")
    return _with_engine(island, replace(engine, file="", version=""))


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new directory that takes the place of ``target`` at the end, whole or not at all.

    What somebody put beside an old SavedModel (labels, notes) is not ours to delete: it becomes part of the new one.
    """
    if not os.path.lexists(target):
        with bundle.atomic_directory(target) as new:
            yield new
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / "saved_model.pb").is_file()):
        raise RecipeError(
            f"{target} exists and is no SavedModel", hint="choose another directory; only a SavedModel is replaced"
        )
    target = target.resolve()  # what a link names is replaced, not the link
    mark = uuid.uuid4().hex[:8]
    aside, fresh = (target.with_name(f".{target.name}.{what}.{mark}") for what in ("old", "new"))
    with bundle.atomic_directory(fresh) as new:
        for item in target.iterdir():
            if item.is_dir() and item.name not in _SAVED_MODEL:
                shutil.copytree(item, new / item.name)
            elif item.name not in _SAVED_MODEL:
                shutil.copy2(item, new / item.name)
        yield new
    target.rename(aside)
    fresh.rename(target)
    shutil.rmtree(aside)
