"""The bundle's format on disk: the manifest, checksums, versions, atomic writes. ``docs/bundle-format.md`` describes
it.

A bundle is a SavedModel directory with a folder ``refimpl/`` beside ``variables/`` and ``assets/``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refimpl.errors import BundleError, RecipeError
from refimpl.places import recognised
from refimpl.specs import DirectCall, Signature, TensorSpec

FORMAT_VERSION = 2
FOLDER = "refimpl"
MANIFEST = f"{FOLDER}/manifest.json"
ASSET = "refimpl_bundle.json"  # in assets/: TensorFlow hands its path to every engine node
POINTER = f"assets/{ASSET}"
CALIBRATION = f"{FOLDER}/calibration.json"  # the ranges that int8 was made with
WEIGHTS_SUFFIX = ".data"  # after the name of an ONNX file, when its weights are too large to lie in it
KERNELS_SUFFIX = ".kernels"  # after the name of an engine: what TensorRT for RTX compiled for it where it was converted
# Ops that compute nothing; they count neither as converted nor as left.
IDLE_OPS = frozenset(["Identity", "IdentityN", "NoOp", "Snapshot", "StopGradient"])


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One stored engine of one island."""

    kind: str
    file: str  # relative to the bundle
    version: str  # library and version that built it
    precision: str  # what it computes in; decides how close it must come to TensorFlow
    profiles: tuple[Mapping[str, Any], ...] = ()
    targets: tuple[str, ...] = ()  # compute capabilities that it was built for; empty: the library's own choice
    build_seconds: float | None = None  # None: nothing was built (embedded, from the cache), or an older bundle

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes of its file and of those beside it, by the sizes of the bundle's files; 0 when it is not stored."""
        return sum(sizes.get(self.file + suffix, 0) for suffix in ("", WEIGHTS_SUFFIX, KERNELS_SUFFIX) if self.file)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "profiles": list(self.profiles), "targets": list(self.targets)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EngineRecord:
        lists = {"profiles": tuple(data["profiles"]), "targets": tuple(data.get("targets", ()))}  # not in older bundles
        return EngineRecord(**{**data, **lists})


@dataclass(frozen=True, kw_only=True)
class IslandRecord:
    """One island: the TensorFlow ops it stands for, its cut tensors, its engines and how it was verified."""

    name: str
    ops: tuple[tuple[str, str], ...]  # (TensorFlow node, op type)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engines: tuple[EngineRecord, ...]
    probe: str  # file with inputs and expected outputs; "" when unverified
    finite_only: bool  # NaN or infinity in, or out: TensorFlow runs instead
    precision: str
    verified: str  # how; "" when it was not
    notes: tuple[str, ...] = ()
    layers: tuple[tuple[str, str, str, str], ...] = ()  # (ONNX node, op type, precision, why not what was asked for)
    accuracy: Mapping[str, float] | None = None  # against TensorFlow, of an island made less precise
    timing: Mapping[str, float] | None = None  # seconds of its crossing, and of TensorFlow, on its probe

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ops": [list(item) for item in self.ops],
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "engines": [engine.to_json() for engine in self.engines],
            "probe": self.probe,
            "finite_only": self.finite_only,
            "precision": self.precision,
            "verified": self.verified,
            "notes": list(self.notes),
            "layers": [list(item) for item in self.layers],
            "accuracy": self.accuracy,
            "timing": self.timing,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> IslandRecord:
        return IslandRecord(
            name=data["name"],
            ops=tuple((item[0], item[1]) for item in data["ops"]),
            inputs=tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            outputs=tuple(TensorSpec.from_json(item) for item in data["outputs"]),
            engines=tuple(map(EngineRecord.from_json, data["engines"])),
            probe=data["probe"],
            finite_only=data["finite_only"],
            precision=data["precision"],
            verified=data["verified"],
            notes=tuple(data["notes"]),
            layers=tuple((name, op, precision, reason) for name, op, precision, reason in data["layers"]),
            accuracy=data["accuracy"],
            timing=data.get("timing"),  # not in older bundles
        )


@dataclass(frozen=True, kw_only=True)
class LeftOp:
    """A TensorFlow op that stays in TensorFlow, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SignatureRecord:
    """One signature of the model: converted or not, its islands and what stays in TensorFlow."""

    signature: Signature
    converted: bool
    reason: str  # why it was not converted; "" when it was
    islands: tuple[IslandRecord, ...] = ()
    left: tuple[LeftOp, ...] = ()
    ops_total: int = 0
    tried: tuple[Mapping[str, Any], ...] = ()  # what --precision auto measured
    direct: DirectCall | None = None  # when its one island is all of it

    @property
    def ops_converted(self) -> int:
        return sum(kind not in IDLE_OPS for island in self.islands for _, kind in island.ops)

    @property
    def share(self) -> float:
        """Converted TensorFlow ops over all that are computed (0 when there are none)."""
        return self.ops_converted / self.ops_total if self.ops_total else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "signature": self.signature.to_json(),
            "converted": self.converted,
            "reason": self.reason,
            "islands": [island.to_json() for island in self.islands],
            "left": [[op.name, op.type, op.reason] for op in self.left],
            "ops_total": self.ops_total,
            "tried": list(self.tried),
            "direct": self.direct.to_json() if self.direct else None,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SignatureRecord:
        return SignatureRecord(
            signature=Signature.from_json(data["signature"]),
            converted=data["converted"],
            reason=data["reason"],
            islands=tuple(IslandRecord.from_json(item) for item in data["islands"]),
            left=tuple(LeftOp(name=name, type=kind, reason=reason) for name, kind, reason in data["left"]),
            ops_total=data["ops_total"],
            tried=tuple(data["tried"]),
            direct=DirectCall.from_json(data["direct"]) if data.get("direct") else None,
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is known of a bundle; stored as ``refimpl/manifest.json``."""

    bundle_id: str  # random; the engine nodes carry it too, so that a graph never meets another bundle's engines
    created: str  # ISO 8601, UTC
    refimpl: str  # version that wrote it
    versions: Mapping[str, str]
    source_name: str
    source_sha256: str
    tags: tuple[str, ...]
    precision: str
    judge: str  # who said what an engine can take
    verified: bool
    recipe: Mapping[str, Any]
    signatures: tuple[SignatureRecord, ...]
    timings: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds
    peak_megabytes: Mapping[str, int] = field(default_factory=dict)  # stage -> most memory used by its end, in MiB
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)  # path in the bundle -> SHA-256
    format_version: int = FORMAT_VERSION

    @property
    def islands(self) -> tuple[IslandRecord, ...]:
        return tuple(island for record in self.signatures for island in record.islands)

    def to_json(self) -> dict[str, Any]:
        data = dict(vars(self))
        data["tags"] = list(self.tags)
        data["signatures"] = [record.to_json() for record in self.signatures]
        data["notes"] = list(self.notes)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Manifest:
        fields = dict(data)
        fields["tags"] = tuple(data["tags"])
        fields["signatures"] = tuple(SignatureRecord.from_json(item) for item in data["signatures"])
        fields["notes"] = tuple(data["notes"])
        return Manifest(**fields)


def read(path: Path, *, check_files: bool = True) -> Manifest:
    """Read a bundle's manifest.

    Args:
        path: the bundle's directory.
        check_files: also compare every file with its SHA-256.

    Raises:
        BundleError: not a bundle, damaged, of a newer format, or a file is missing, changed or unknown.
    """
    if not path.exists():
        raise BundleError(f"no such bundle: {path}", hint="make one with refimpl convert SAVED_MODEL BUNDLE")
    if not (path / POINTER).is_file():
        kind, advice = recognised(path)
        raise BundleError(f"{path} is not a refimpl bundle ({kind})", hint=advice)
    manifest = _read_manifest(path)
    if check_files:
        with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            list(pool.map(lambda name: check_file(path, manifest, name), manifest.files))
        _refuse_unknown_files(path, manifest)
    return manifest


def _refuse_unknown_files(path: Path, manifest: Manifest) -> None:
    """TensorFlow and engines read files by name, so one that was slipped in is as bad as one that was changed."""
    known = {*manifest.files, MANIFEST, POINTER}
    for name in _file_names(path):
        if name not in known and not name.startswith("assets.extra/"):  # TensorFlow Serving's, added after the export
            raise BundleError(
                f"{path / name} is not a file of the bundle", hint="remove it, or copy or convert the bundle again"
            )


def _file_names(folder: Path) -> list[str]:
    return sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file())


def _read_manifest(path: Path) -> Manifest:
    try:
        pointer = json.loads((path / POINTER).read_text(encoding="utf-8"))
        version, digest, bundle_id = pointer["format_version"], pointer["manifest_sha256"], pointer["bundle_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path / POINTER} is damaged: {error}", hint="convert the model again") from None
    if version != FORMAT_VERSION:
        newer = "a newer" if isinstance(version, int) and version > FORMAT_VERSION else "an unknown"
        raise BundleError(
            f"{path} has bundle format {version}, {newer} one; this refimpl reads format {FORMAT_VERSION}",
            hint="upgrade refimpl, or convert the model again with this version",
        )
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path / MANIFEST} cannot be read: {error.strerror}", hint="convert the model again"
        ) from None
    if hashlib.sha256(text).hexdigest() != digest:
        raise BundleError(
            f"{path / MANIFEST} does not have the checksum that it was written with", hint="convert the model again"
        )
    try:
        manifest = Manifest.from_json(json.loads(text))
    except (ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged: {error}", hint="convert the model again") from None
    if manifest.bundle_id != bundle_id:
        raise BundleError(
            f"{path / POINTER} names bundle {bundle_id}, the manifest {manifest.bundle_id}",
            hint="convert the model again",
        )
    return manifest


def check_file(path: Path, manifest: Manifest, name: str) -> Path:
    """The full path of a file of the bundle, its checksum compared.

    Raises:
        BundleError: the file is missing, changed, or not in the manifest.
    """
    if name not in manifest.files:
        raise BundleError(f"{name} is not a file of the bundle {path}", hint="copy or convert the bundle again")
    file = path / name
    try:
        digest = file_sha256(file)
    except OSError as error:
        raise BundleError(
            f"{file} cannot be read: {error.strerror}", hint="the bundle is incomplete; copy or convert it again"
        ) from None
    if digest != manifest.files[name]:
        raise BundleError(
            f"{file} was changed after the bundle was written (checksum mismatch)",
            hint="the bundle is damaged or was tampered with; copy or convert it again",
        )
    return file


def file_sha256(file: Path) -> str:
    """SHA-256 (hexadecimal) of a file, however large."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def seal(folder: Path, manifest: Manifest, known: Mapping[str, str] | None = None) -> Manifest:
    """Write the manifest, with the checksum of every file in ``folder``, and the pointer that TensorFlow finds it
    by.

    Args:
        folder: the bundle.
        manifest: what is known of it.
        known: checksums by name of files that were read before, and need not be read again.
    """
    for name in (POINTER, MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
    data = manifest.to_json()
    names, known = _file_names(folder), known or {}
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        digests = pool.map(lambda name: known.get(name) or file_sha256(folder / name), names)
        data["files"] = dict(zip(names, digests, strict=True))
    text = json.dumps(data, indent=1, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(text)
    pointer = {
        "format_version": manifest.format_version,
        "bundle_id": manifest.bundle_id,
        "manifest_sha256": hashlib.sha256(text).hexdigest(),
    }
    (folder / POINTER).write_text(json.dumps(pointer, indent=1, sort_keys=True), encoding="utf-8")
    return Manifest.from_json(data)


def check_target(target: Path) -> None:
    """Refuse an output directory that exists, or whose parent cannot be written to, before any work is done.

    Raises:
        RecipeError: with what to do.
    """
    if os.path.lexists(target):
        raise RecipeError(
            f"{target} exists already", hint="choose another name, or remove it first; nothing is ever overwritten"
        )
    parent = target.absolute().parent
    if not parent.is_dir():
        raise RecipeError(f"{parent} is not a directory", hint="create the folder that the bundle is to lie in first")
    if not os.access(parent, os.W_OK):
        raise RecipeError(f"{parent} cannot be written to", hint="choose a folder that you may write to")


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A temporary sibling of ``target`` that becomes ``target`` on success and vanishes on any failure or interrupt.

    Raises:
        RecipeError: ``target`` exists or cannot be made.
        BundleError: the disk is full or cannot be written to.
    """
    check_target(target)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield folder
        _sync(folder)
        check_target(target)
        folder.chmod(0o755)
        folder.rename(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(target: Path, error: OSError) -> BundleError:
    return BundleError(
        f"cannot write {target}: {error.strerror or error}", hint="free some disk space or choose another folder"
    )


def _sync(folder: Path) -> None:
    for item in [*folder.rglob("*"), folder]:
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
