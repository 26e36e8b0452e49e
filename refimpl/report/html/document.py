"""Everything that the page shows of a bundle, as one plain object. Gathers, and decides nothing.

The templates print this object, ``refimpl report --json`` writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl import bundle as bundles
from refimpl import calibration, graph_record
from refimpl.bundle import EngineRecord, IslandRecord, Manifest, SignatureRecord
from refimpl.calibration import CalibrationTable
from refimpl.graph_record import SignatureGraph
from refimpl.report.cuts import CutAccuracy
from refimpl.report.html.command import reproduction
from refimpl.report.html.graph import colour_of, signature_data
from refimpl.report.html.ranges import calibration_data
from refimpl.report.html.verdicts import verdict_data
from refimpl.specs import TensorSpec, format_shape

FORMAT = "refimpl report"


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a report is made from.

    Attributes:
        name: of the bundle's directory.
        manifest: the bundle's.
        sizes: bytes of each of its files, by their names in the manifest.
        graphs: of its signatures; empty when it was made before graphs were stored.
        tables: int8 ranges; empty when nothing was calibrated.
        cuts: how the islands' probes came out on this machine; None when they were not run.
        verdict: the JSON of ``refimpl check``; None when nothing was checked.
        advice: what would help, the most valuable first, as plain objects.
    """

    name: str
    manifest: Manifest
    sizes: Mapping[str, int]
    graphs: Mapping[str, SignatureGraph]
    tables: Sequence[CalibrationTable] = ()
    cuts: Sequence[CutAccuracy] | None = None
    verdict: Mapping[str, Any] | None = None
    advice: Sequence[Mapping[str, Any]] = ()


def read_material(path: Path, manifest: Manifest) -> Material:
    """What a bundle holds for a report, its manifest read and its checksums compared already.

    Raises:
        BundleError: the graph is damaged.
        RecipeError: the table of ranges is damaged.
    """
    file = path / bundles.CALIBRATION
    return Material(
        name=path.absolute().name,
        manifest=manifest,
        sizes={name: (path / name).stat().st_size for name in manifest.files},
        graphs=graph_record.read_graphs(path),
        tables=calibration.load(file) if file.is_file() else (),
    )


def make_document(material: Material) -> dict[str, Any]:
    """The object that the templates print."""
    manifest = material.manifest
    drawn = [record for record in manifest.signatures if record.converted or record.signature.key in material.graphs]
    return {
        "format": FORMAT,
        "name": material.name,
        "source": manifest.source_name,
        "headline": _headline(material),
        "advice": list(material.advice),
        "signatures": [_signature(record, material) for record in manifest.signatures],
        "verdict": verdict_data(material.verdict),
        "cuts": None if material.cuts is None else [row.to_json() for row in material.cuts],
        "calibration": calibration_data(material.tables),
        "stages": _stages(manifest),
        "files": _files(material.sizes),
        "bytes": sum(material.sizes.values()),
        "provenance": _provenance(material),
        "has_graph": bool(material.graphs),
        "graph": [signature_data(record, material.graphs.get(record.signature.key)) for record in drawn],
    }


def _headline(material: Material) -> dict[str, Any]:
    manifest = material.manifest
    records = [record for record in manifest.signatures if record.converted]
    converted, total = (sum(getattr(record, name) for record in records) for name in ("ops_converted", "ops_total"))
    return {
        "ops_converted": converted,
        "ops_total": total,
        "share": converted / total if total else 0.0,
        "islands": len(manifest.islands),
        "signatures": len(records),
        "precision": manifest.precision,
        "verified": manifest.verified,
        "bytes": sum(material.sizes.values()),
        "seconds": sum(manifest.timings.values()),
        "passed": None if material.verdict is None else material.verdict["passed"],
        "notes": list(manifest.notes),
    }


def _signature(record: SignatureRecord, material: Material) -> dict[str, Any]:
    return {
        "key": record.signature.key,
        "converted": record.converted,
        "reason": record.reason,
        "inputs": [_tensor(spec) for spec in record.signature.inputs],
        "outputs": [_tensor(spec) for spec in record.signature.outputs],
        "ops_total": record.ops_total,
        "ops_converted": record.ops_converted,
        "share": record.share,
        "direct": record.direct is not None,
        "islands": [_island(number, island, material) for number, island in enumerate(record.islands)],
        "left": _left(record),
        "left_count": len(record.left),
        "tried": [dict(row) for row in record.tried],
    }


def _tensor(spec: TensorSpec) -> dict[str, str]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": format_shape(spec.shape)}


def _island(number: int, island: IslandRecord, material: Material) -> dict[str, Any]:
    kinds = Counter(kind for _, kind in island.ops if kind not in bundles.IDLE_OPS)
    return {
        "name": island.name,
        "colour": colour_of(number),
        "ops": sum(kinds.values()),
        "kinds": kinds.most_common(),
        "inputs": [_tensor(spec) for spec in island.inputs],
        "outputs": [_tensor(spec) for spec in island.outputs],
        "engines": [_engine(engine, material.sizes) for engine in island.engines],
        "precision": island.precision,
        "verified": island.verified,
        "finite_only": island.finite_only,
        "notes": list(island.notes),
        "accuracy": dict(island.accuracy) if island.accuracy else None,
        "timing": dict(island.timing) if island.timing else None,
        "layers": _layers(island),
    }


def _engine(engine: EngineRecord, sizes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "kind": engine.kind,
        "version": engine.version,
        "precision": engine.precision,
        "file": engine.file,
        "bytes": engine.nbytes(sizes) if engine.file else None,
        "seconds": engine.build_seconds,
        "targets": list(engine.targets),
        "profiles": [_profile(item) for item in engine.profiles],
    }


def _profile(item: Mapping[str, Any]) -> list[str]:
    """For every input ``1x3 .. 4x3 .. 8x3``: smallest, typical and largest shape."""
    sides = [item[side] for side in ("min", "opt", "max")]
    return [
        " .. ".join("x".join(map(str, shape)) or "scalar" for shape in shapes) for shapes in zip(*sides, strict=True)
    ]


def _layers(island: IslandRecord) -> dict[str, Any]:
    """Layers by what they compute in, and by reason those that are not in what was asked for."""
    counts = Counter(precision for _, _, precision, _ in island.layers)
    kept: dict[tuple[str, str], list[str]] = {}
    for name, op, precision, reason in island.layers:
        if reason:
            kept.setdefault((precision, reason), []).append(f"{name} ({op})")
    rows = [{"precision": precision, "reason": reason, "layers": names} for (precision, reason), names in kept.items()]
    return {
        "counts": counts.most_common(),
        "kept": sorted(rows, key=lambda row: -len(row["layers"])),
        "all": [list(layer[:3]) for layer in island.layers],
    }


def _left(record: SignatureRecord) -> list[dict[str, Any]]:
    """Ops that stay in TensorFlow, by reason, the most frequent first."""
    grouped: dict[str, list[tuple[str, str]]] = {}
    for op in record.left:
        grouped.setdefault(op.reason, []).append((op.name, op.type))
    rows = [
        {"reason": reason, "kinds": Counter(kind for _, kind in ops).most_common(), "ops": ops, "count": len(ops)}
        for reason, ops in grouped.items()
    ]
    return sorted(rows, key=lambda row: -len(row["ops"]))


def _stages(manifest: Manifest) -> list[dict[str, Any]]:
    """Seconds and memory of each stage, in the order in which they run."""
    order = ("load", "cache", "look", "plan", "build", "measure", "stitch", "write", "check")
    names = sorted(manifest.timings, key=lambda name: (order.index(name) if name in order else len(order), name))
    longest = max(manifest.timings.values(), default=0.0) or 1.0
    largest = max(manifest.peak_megabytes.values(), default=0) or 1
    return [
        {
            "name": name,
            "seconds": manifest.timings[name],
            "seconds_share": manifest.timings[name] / longest,
            "megabytes": manifest.peak_megabytes.get(name),
            "megabytes_share": manifest.peak_megabytes.get(name, 0) / largest,
        }
        for name in names
    ]


def _files(sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    largest = max(sizes.values(), default=0) or 1
    rows = [{"name": name, "bytes": size, "share": size / largest} for name, size in sizes.items()]
    return sorted(rows, key=lambda row: (-row["bytes"], row["name"]))


def _provenance(material: Material) -> dict[str, Any]:
    manifest = material.manifest
    again = reproduction(manifest.source_name, manifest.recipe, material.name)
    return {
        "bundle_id": manifest.bundle_id,
        "created": manifest.created,
        "refimpl": manifest.refimpl,
        "versions": dict(manifest.versions),
        "source_sha256": manifest.source_sha256,
        "tags": list(manifest.tags),
        "judge": manifest.judge,
        "command": again.command,
        "recipe_file": again.recipe,
        "recipe": dict(manifest.recipe),
        "format_version": manifest.format_version,
    }
