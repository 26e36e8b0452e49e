"""What a verdict says of the bundle besides its answers: how much was converted, its size, and where it was judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refimpl import env, gpus
from refimpl.bundle import FOLDER, WEIGHTS_SUFFIX, Manifest, SignatureRecord
from refimpl.oracle.golden import Golden


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureFacts:
    """How much of one signature runs in engines."""

    key: str
    converted: bool
    reason: str  # why it was not
    islands: int
    ops_converted: int
    ops_total: int
    share: float  # of the ops that compute something

    @staticmethod
    def of(record: SignatureRecord) -> SignatureFacts:
        return SignatureFacts(
            key=record.signature.key,
            converted=record.converted,
            reason=record.reason,
            islands=len(record.islands),
            ops_converted=record.ops_converted,
            ops_total=record.ops_total,
            share=record.share,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """The bundle as it lies on disk."""

    name: str
    bundle_id: str
    source_name: str
    source_sha256: str
    precision: str
    verified: bool
    refimpl: str  # version that converted
    versions: Mapping[str, str]  # of the libraries that converted
    engine_versions: Mapping[str, str]  # kind -> what built its engines
    bytes: Mapping[str, int]  # "total", "weights" (TensorFlow's), and "engines/KIND"
    signatures: tuple[SignatureFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was judged, by what, and where."""

    bundle: BundleFacts
    golden: Mapping[str, Any]
    machine: Mapping[str, Any]  # system, machine, processor, gpus
    versions: Mapping[str, str]  # of the libraries that judged

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": asdict(self.bundle),
            "golden": dict(self.golden),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
        }


def facts_of(path: Path, manifest: Manifest, golden: Golden) -> Facts:
    """The facts of a bundle and a golden record, on this machine. Names are told, and no paths."""
    return Facts(
        bundle=BundleFacts(
            name=path.name,
            bundle_id=manifest.bundle_id,
            source_name=manifest.source_name,
            source_sha256=manifest.source_sha256,
            precision=manifest.precision,
            verified=manifest.verified,
            refimpl=manifest.refimpl,
            versions=dict(manifest.versions),
            engine_versions={engine.kind: engine.version for item in manifest.islands for engine in item.engines},
            bytes=_bytes(path, manifest),
            signatures=tuple(SignatureFacts.of(record) for record in manifest.signatures),
        ),
        golden={
            "name": golden.path.name,
            "source_sha256": golden.provenance.source_sha256,
            "recorded_on": golden.provenance.recorded_on,
            "sha256": golden.sha256,
            "versions": dict(golden.provenance.versions),
            "cases": len(golden.cases),
        },
        machine=machine(),
        versions=dict(env.versions()),
    )


def machine() -> dict[str, Any]:
    """System, architecture, processor and GPUs of this machine."""
    known = env.fingerprint()
    listed = [gpu.name for gpu in gpus.list_gpus()[1]]
    return {**{name: known[name] for name in ("system", "machine", "processor")}, "gpus": listed}


def _bytes(path: Path, manifest: Manifest) -> dict[str, int]:
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}
    found: Counter[str] = Counter(total=sum(sizes.values()), weights=0)
    found["weights"] = sum(size for name, size in sizes.items() if name.startswith("variables/"))
    for engine in (engine for island in manifest.islands for engine in island.engines if engine.file):
        assert engine.file.startswith(f"{FOLDER}/"), engine.file
        found[f"engines/{engine.kind}"] += sizes.get(engine.file, 0) + sizes.get(engine.file + WEIGHTS_SUFFIX, 0)
    return dict(found)
