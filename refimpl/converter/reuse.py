"""Reuse: converted signatures from the cache, keyed by all that they depend on, and proven again before they are used.

The key holds the model's digest, every choice that matters, the contents of samples and tables, the code and the
libraries at work, the processor and the GPUs. A hit skips lowering, judging, verifying, lowering the precision, and
building. It does not skip proof: TensorFlow computes every island's probe again, the embedded engine must agree with
that, and the finished bundle passes the same last gate as any other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from refimpl import bundle, engine_cache, engines, env, runtime
from refimpl.artifacts import Array
from refimpl.bundle import EngineRecord, IslandRecord, SignatureRecord
from refimpl.cache import Cache, Key, file_digest
from refimpl.calibration import CalibrationTable
from refimpl.converter.judge import pick_judge
from refimpl.converter.native import NativeGraph
from refimpl.converter.samples import Unwatched, WatchedSamples
from refimpl.converter.source import Source
from refimpl.engines import onnxruntime, tensorrt
from refimpl.errors import RefimplError, RunError, first_line
from refimpl.numerics import disagreement
from refimpl.recipe import Recipe
from refimpl.runtime.building import covers, profile_of
from refimpl.tolerance import tolerance_for

KIND = "signature"
_RECORD = "record.json"
log = logging.getLogger("refimpl.cache")


@dataclass(frozen=True)
class Finished:
    """A converted signature, before it is stitched into a graph.

    Attributes:
        record: its record for the manifest.
        files: place in the bundle to file.
        notes: sentences for the report.
        table: the ranges that int8 was made with.
        used_patterns: those of ``keep_fp32`` that named a layer.
        origin: the sentence that says that it came from the cache; "" when it was made now.
    """

    record: SignatureRecord
    files: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    table: CalibrationTable | None = None
    used_patterns: frozenset[str] = frozenset()
    origin: str = ""


@dataclass(frozen=True)
class Reuse:
    """The cache as one conversion uses it; made by :func:`reuse_of`.

    Attributes:
        cache: where finished signatures lie.
        common: what all signatures of this conversion depend on.
        samples: the user's samples; None when there are none.
    """

    cache: Cache
    common: Mapping[str, Any]
    samples: WatchedSamples | None

    def key(self, signature: str, index: int) -> Key:
        """The key of one signature; ``index`` is its number, which names its islands."""
        return Key(KIND, {**self.common, "signature": signature, "index": index})

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """While another process makes the very same conversion, wait for it."""
        with self.cache.alone(Key(KIND, self.common)) as waited:
            yield waited

    def find(self, key: Key, native: NativeGraph, folder: Path) -> Finished | None:
        """What the cache has, proven again; None when it has nothing that stands.

        Args:
            key: see :meth:`key`.
            native: the signature's TensorFlow ops.
            folder: an empty directory; the files found lie there.
        """
        entry = self.cache.get(key, folder)
        if entry is None:
            return None
        try:
            found = _read(folder, key, entry.created)
            problem = _problem(found, native)
        except (ValueError, LookupError, TypeError, OSError, RefimplError) as error:
            found, problem = None, first_line(error)
        if found is not None and not problem:
            return found
        self.cache.discard(key, problem)
        shutil.rmtree(folder)
        folder.mkdir()
        return None

    def keep(self, key: Key, finished: Finished, bundle_folder: Path) -> None:
        """Store a signature of a bundle that has passed the last gate; its files lie in the bundle by now."""
        if finished.origin or (self.samples is not None and self.samples.changed):
            return  # of samples that change from one reading to the next, nobody knows which ones it was made with
        data = {
            "record": finished.record.to_json(),
            "notes": list(finished.notes),
            "table": None if finished.table is None else finished.table.to_json(),
            "used_patterns": sorted(finished.used_patterns),
        }
        label = {"signature": finished.record.signature.key, "precision": _precisions(finished)}
        try:
            with tempfile.TemporaryDirectory(prefix="refimpl-") as folder:
                file = Path(folder) / _RECORD
                file.write_text(json.dumps(data), encoding="utf-8")
                files = {Path(place).name: bundle_folder / place for place in finished.files}
                self.cache.put(key, {_RECORD: file, **files}, label=label)
        except OSError as error:
            log.warning("the signature is not kept in the cache: %s", error.strerror or error)


def reuse_of(
    cache: Cache | None, source: Source, recipe: Recipe, samples: Unwatched | None, tell: Callable[[str], None]
) -> Reuse | None:
    """The cache as a conversion may use it; None when there is none, or no key that could be trusted.

    Args:
        cache: the user's.
        source: the open model.
        recipe: the user's choices.
        samples: the user's samples, all of which are read and digested.
        tell: is told why the cache is passed over.
    """
    if cache is None:
        return None
    why_not = ""
    try:
        watched = None if samples is None else WatchedSamples(samples)
        table = file_digest(Path(recipe.calibration_table)) if recipe.calibration_table else ""
    except RefimplError:
        why_not = "the samples cannot be read"  # the conversion goes on to say what is wrong with them
    except (ValueError, TypeError, OSError) as error:
        why_not = f"the samples, or the table of ranges, cannot be digested: {first_line(error)}"
    if recipe.precision == "auto" and ":" in recipe.metric:
        why_not = f"what {recipe.metric} measures depends on code that no key can hold"
    if why_not:
        tell(f"no signature is taken from the cache: {why_not}")
        return None
    return Reuse(cache, common_parts(source, recipe, watched, table), watched)


def common_parts(source: Source, recipe: Recipe, samples: WatchedSamples | None, table: str) -> dict[str, Any]:
    """Everything that a converted signature depends on, but the signature itself."""
    return {
        "model": source.sha256,
        "tags": sorted(source.tags),
        "recipe": recipe.key_parts(),
        "samples": None if samples is None else samples.digest,
        "table": table,
        "refimpl": env.code_digest(),
        "environment": env.fingerprint(),
        "libraries": [tf.__version__, onnxruntime.version(), tensorrt.version(), pick_judge().name],
        **(_machine() if tensorrt.NAME in recipe.engines else {}),
    }


def _machine() -> dict[str, Any]:
    """Of the machine, and whether engines could be proven on it: those that could not are no good where they can."""
    return {**engine_cache.machine(), "executes": not tensorrt.why_not_here()}


def _read(folder: Path, key: Key, created: str) -> Finished:
    data = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    record = SignatureRecord.from_json(data["record"])
    table = None if data["table"] is None else CalibrationTable.from_json(data["table"])
    places = [place for island in record.islands for place in _places(island)]
    files = {place: folder / Path(place).name for place in places}
    for place in places:
        for suffix in (bundle.WEIGHTS_SUFFIX, bundle.KERNELS_SUFFIX):
            if (folder / (Path(place).name + suffix)).is_file():
                files[place + suffix] = folder / (Path(place).name + suffix)
    if missing := [place for place, file in files.items() if not file.is_file()]:
        raise ValueError(f"{missing[0]} is missing")
    origin = (
        f"signature {record.signature.key}: its islands and engines are from the cache (key {key.digest[:12]}, made "
        f"{created}) and were proven again"
    )
    return Finished(record, files, tuple(data["notes"]), table, frozenset(data["used_patterns"]), origin)


def _places(island: IslandRecord) -> list[str]:
    return [place for place in (island.probe, *(engine.file for engine in island.engines)) if place]


def _problem(found: Finished, native: NativeGraph) -> str:
    """Why a signature from the cache does not stand; "" when every island gives TensorFlow's answers to its probe."""
    for island in found.record.islands:
        if island.probe and (why := _disproven(island, found.files, native)):
            return f"{island.name}: {why}"
    return ""


def _disproven(island: IslandRecord, files: Mapping[str, Path], native: NativeGraph) -> str:
    inputs, kept = runtime.read_probe(files[island.probe])
    feeds = {spec.name: value for spec, value in zip(island.inputs, inputs, strict=True)}
    truth = native.run(feeds, [spec.name for spec in island.outputs])
    answers = [(island.precision, kept)]
    for engine in island.engines:
        if engine.file and _can_be_asked(engine, inputs):
            try:
                answers.append((engine.precision, engines.kind(engine.kind).open(files[engine.file]).run(inputs)))
            except RunError as error:
                return f"{engine.kind}: {error.message}"
    for precision, got in answers:
        for spec, want, value in zip(island.outputs, truth, got, strict=True):
            if why := disagreement(want, value, tolerance_for(precision, spec.dtype)):
                return f"{spec.name}: {why}"
    return ""


def _can_be_asked(engine: EngineRecord, inputs: Sequence[Array]) -> bool:
    """Whether an engine executes on this machine, and takes the probe's shapes."""
    if engine.kind != tensorrt.NAME:
        return True
    if tensorrt.why_not_here() or tensorrt.refusal(engine.version, tensorrt.version(), engine.targets):
        return False
    return not engine.profiles or any(covers(profile_of(item), inputs) for item in engine.profiles)


def _precisions(finished: Finished) -> str:
    return ", ".join(sorted({island.precision for island in finished.record.islands}))
