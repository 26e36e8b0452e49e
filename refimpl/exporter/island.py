"""One island's folder: its forms as ONNX, engines, profiles, layers, ops and samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl import bundle, calibration, runtime
from refimpl.bundle import EngineRecord, IslandRecord, Manifest
from refimpl.engines import onnxfiles, onnxruntime, rounding, tensorrt
from refimpl.errors import BuildError, BundleError, RunError, UnsupportedError
from refimpl.exporter.samples import Sample, StoredSample, write_samples

Profile = dict[str, dict[str, list[int]]]  # input -> "min", "opt", "max" -> its shape, or its values
_ENDS = ("min", "opt", "max")
PROBE = "probe"  # the name of the sample that a bundle carries for each island
_HOW_TO_ADD = "refimpl export --saved-model MODEL adds the float32 form"


@dataclass(frozen=True, slots=True)
class Form:
    """An island as ONNX in one precision.

    Attributes:
        precision: what it computes in, as the manifest of a bundle says it.
        file: the ONNX file; its name ends as ``refimpl/engines/onnxruntime.py`` says.
        weights: the file beside it with its weights; None when they lie in it.
    """

    precision: str
    file: Path
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class StoredForm:
    """A form in the export: what TensorRT gets, and what ONNX Runtime on a CPU gets to compute the same."""

    precision: str
    file: str  # relative to the island's folder, as all files here
    cpu_file: str  # another one than ``file`` when half precision had to be spelled out
    optimize: bool  # whether ONNX Runtime may optimize the graph
    quantizes: bool
    plain: bool  # the bundle ships it with graph optimizations off, since it agrees with TensorFlow only then


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine in the export."""

    kind: str
    file: str
    precision: str
    version: str


@dataclass(frozen=True, slots=True)
class StoredIsland:
    """All that was written of one island."""

    record: IslandRecord
    signature: str
    inputs: tuple[str, ...]  # names in the ONNX model
    outputs: tuple[str, ...]
    forms: tuple[StoredForm, ...]
    engines: tuple[StoredEngine, ...]
    profiles: tuple[Profile, ...]
    value_inputs: frozenset[str]  # inputs whose profiles hold values, not shapes
    samples: tuple[StoredSample, ...]
    missing: tuple[str, ...]  # what could not be had, a sentence each


@dataclass(frozen=True, slots=True)
class Extras:
    """What a bundle does not hold of an island."""

    forms: tuple[Form, ...] = ()
    samples: tuple[Sample, ...] = ()


def write_island(
    source: Path, manifest: Manifest, record: IslandRecord, signature: str, extras: Extras, folder: Path
) -> StoredIsland:
    """Write everything of an island but its script.

    Args:
        source: the bundle, its files verified.
        manifest: of the bundle.
        record: the island.
        signature: the key of its signature.
        extras: more forms and samples of it.
        folder: to write to; it exists and is empty.

    Raises:
        BundleError: the bundle stores no ONNX file of it.
    """
    own = _own_form(source, manifest, record)
    forms = tuple(_write_form(form, folder) for form in (own, *extras.forms))
    inputs, outputs = onnxfiles.tensor_names(folder / forms[0].file)
    missing = [] if any(form.precision == "fp32" for form in forms) else [f"the float32 form: {_HOW_TO_ADD}"]
    layers, shape_inputs = _layers(source, record, folder / forms[0].file)
    _write_json(folder / "layers.json", layers)
    profiles, value_inputs = _profiles(record, inputs, shape_inputs)
    _write_json(folder / "profiles.json", profiles)
    _write_json(folder / "ops.json", _ops(record))
    samples = [*_probe(source, record), *extras.samples]
    if not samples:
        missing.append("samples: the bundle is unverified and carries none; refimpl export --golden GOLDEN adds some")
    if ranges := _ranges(source, manifest, signature, own.file):
        _write_json(folder / "ranges.json", ranges)
    engines = tuple(_write_engine(source, item, folder) for item in record.engines if _is_binary(item))
    unbuilt = [item.kind for item in record.engines if not item.file]
    missing += [f"its {kind} engine: it is built where the bundle runs" for kind in unbuilt]
    if not any(item.kind == "tensorrt" for item in record.engines):
        missing.append("a TensorRT engine: the bundle holds none; refimpl convert --engine tensorrt builds it")
    stored = write_samples(samples, (inputs, outputs), folder, finite_only=record.finite_only)
    return StoredIsland(
        record=record,
        signature=signature,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        forms=forms,
        engines=engines,
        profiles=profiles,
        value_inputs=value_inputs,
        samples=stored,
        missing=tuple(missing),
    )


def _own_form(source: Path, manifest: Manifest, record: IslandRecord) -> Form:
    for engine in record.engines:
        if engine.kind == onnxruntime.NAME and engine.file:
            weights = engine.file + bundle.WEIGHTS_SUFFIX
            beside = source / weights if weights in manifest.files else None
            return Form(engine.precision, source / engine.file, beside)
    raise BundleError(f"the bundle stores no ONNX file of island {record.name}", hint="convert the model again")


def form_of(source: Path, manifest: Manifest, record: IslandRecord) -> Form:
    """An island of another bundle as a form to hand in; arguments and errors as for :func:`write_island`."""
    return _own_form(source, manifest, record)


def _write_form(form: Form, folder: Path) -> StoredForm:
    """Named by its precision, and ending as the bundle's file does, since the ending says how to run it."""
    target = folder / f"{form.precision}{''.join(form.file.suffixes[-_endings(form.file) :])}"
    onnxfiles.copy(form.file, target, form.weights)
    cpu = target
    if target.name.endswith(onnxruntime.HALF_SUFFIX) or rounding.TF32 in target.name:
        spelled = folder / f"{form.precision}.cpu.onnx"
        cpu = spelled if onnxfiles.spell_out(target, spelled) else target
    plain, quantizes = onnxruntime.PLAIN in target.name, onnxfiles.quantizes(target)
    return StoredForm(form.precision, target.name, cpu.name, not (plain or quantizes), quantizes, plain)


def _endings(file: Path) -> int:
    """How many of a file's suffixes are refimpl's: ``.plain``, ``.tf32``, ``.half`` and ``.onnx``."""
    return 1 + sum(suffix in (".plain", ".tf32", ".half") for suffix in file.suffixes[:-1])


def _is_binary(engine: EngineRecord) -> bool:
    return bool(engine.file) and engine.kind != onnxruntime.NAME


def _write_engine(source: Path, engine: EngineRecord, folder: Path) -> StoredEngine:
    name = f"{engine.kind}.{engine.precision}.engine"
    shutil.copyfile(source / engine.file, folder / name)
    return StoredEngine(engine.kind, name, engine.precision, engine.version)


def _probe(source: Path, record: IslandRecord) -> list[Sample]:
    if not record.probe:
        return []
    inputs, outputs = runtime.read_probe(source / record.probe)
    return [Sample(PROBE, tuple(inputs), tuple(outputs))]


def _layers(source: Path, record: IslandRecord, model: Path) -> tuple[dict[str, Any], frozenset[str] | None]:
    """What TensorRT says of the island's layers, and which inputs it takes as shapes (None when it is not here)."""
    stored = next((item for item in record.engines if item.kind == tensorrt.NAME and item.file), None)
    why, engine = "the bundle holds no TensorRT engine of this island", None
    if stored is not None:
        try:
            engine, why = tensorrt.engine_layers(source / stored.file), ""
        except RunError as error:
            why = error.message
    found: dict[str, Any] = {"tensorrt": tensorrt.version(), "engine": engine, "why_no_engine_layers": why}
    try:
        network = tensorrt.network_layers(model)
    except (UnsupportedError, BuildError) as error:
        return {**found, "network": None, "why_no_network_layers": error.message}, None
    return {**found, "network": list(network.layers), "why_no_network_layers": ""}, network.shape_inputs


def _profiles(
    record: IslandRecord, names: Sequence[str], shape_inputs: frozenset[str] | None
) -> tuple[tuple[Profile, ...], frozenset[str]]:
    """TensorRT profiles as Polygraphy holds them, by input; and the inputs whose values they hold, not their shapes."""
    found, taken = [], set()
    for engine in record.engines:
        for profile in engine.profiles:
            values = {names[index]: rest for index, *rest in profile["values"]}
            taken |= {name for name in values if shape_inputs is None or name in shape_inputs}
            rows: Profile = {}
            for index, name in enumerate(names):
                parts = values[name] if name in taken else [profile[key][index] for key in _ENDS]
                rows[name] = dict(zip(_ENDS, map(list, parts), strict=True))
            found.append(rows)
    return tuple(found), frozenset(taken)


def _ops(record: IslandRecord) -> dict[str, Any]:
    return {
        "tensorflow": [{"name": name, "type": kind} for name, kind in record.ops],
        "inputs": [spec.to_json() for spec in record.inputs],
        "outputs": [spec.to_json() for spec in record.outputs],
        "onnx_layers": [
            {"name": name, "type": kind, "precision": precision, "why": why}
            for name, kind, precision, why in record.layers
        ],
        "notes": list(record.notes),
    }


def _ranges(source: Path, manifest: Manifest, signature: str, model: Path) -> dict[str, dict[str, float]]:
    """The int8 ranges of the tensors of this island's ONNX, with TensorRT's scale: a step is threshold / 127."""
    if bundle.CALIBRATION not in manifest.files:
        return {}
    known = onnxfiles.all_tensors(model)
    found = {}
    for table in calibration.load(source / bundle.CALIBRATION):
        for key, item in table.ranges.items() if table.signature == signature else ():
            tensor = key.split("/", 1)[1]
            if tensor in known:
                found[tensor] = {"threshold": item.threshold, "scale": item.threshold / 127.0}
    return found


def _write_json(file: Path, data: object) -> None:
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
