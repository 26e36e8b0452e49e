"""Golden records on disk: TensorFlow's answers with provenance. ``docs/golden-format.md`` is the specification.

    GOLDEN/golden.json          the index: version, provenance, signatures, cases, dropped cases, SHA-256 of everything
    GOLDEN/cases/NNN-*.npz      inputs and outputs of one case, without pickle

Reading verifies everything before a single array is handed out. Only :func:`refimpl.oracle.record` writes one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import npz
from refimpl.errors import GoldenError
from refimpl.oracle.arrays import Array, decode, digest, dtype_name, encode
from refimpl.oracle.cases import CaseKind
from refimpl.specs import Signature, TensorSpec

FORMAT = "refimpl-golden"
FORMAT_VERSION = 2  # 1 had no labels; it is still read
INDEX = "golden.json"
_CASE_FILE = re.compile(r"cases/[A-Za-z0-9_][A-Za-z0-9._-]*\.npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a golden record comes from. Names, never paths of the machine."""

    recorded_on: str  # ISO 8601, UTC
    source_name: str
    source_sha256: str  # of the SavedModel's tree
    tags: tuple[str, ...]
    runner: str
    onednn: str
    seed: int
    versions: Mapping[str, str]
    machine: str
    # Format 2; records of format 1 do not say.
    threads: int | None = None
    tf32: str = ""
    processor: str = ""
    instruction_sets: tuple[str, ...] = ()
    libc: str = ""  # whose exp and log TensorFlow calls


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """Inputs, and what TensorFlow made of them; the arrays are read-only."""

    signature: str
    name: str
    kind: CaseKind
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    unstable: Mapping[str, str]  # outputs that cannot be judged by value -> "values", "shape", "subnormals", "rounding"
    note: str = ""
    seed: int | None = None
    labels: Mapping[str, Array] = field(default_factory=dict)  # what the user knows to be right; never fed


@dataclass(frozen=True, slots=True)
class DroppedCase:
    """A generated case that TensorFlow itself rejects, or that could not tell right from wrong."""

    signature: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden record, verified."""

    path: Path
    provenance: Provenance
    signatures: Mapping[str, Signature]
    cases: tuple[GoldenCase, ...]
    dropped: tuple[DroppedCase, ...]


def read_golden(path: str | os.PathLike[str]) -> Golden:
    """Read and verify a golden record.

    Raises:
        GoldenError: missing, damaged, of a newer format, or without anything to compare.
    """
    root = Path(path)
    if not (root / INDEX).is_file():
        what = "does not exist" if not root.exists() else f"is not a golden record: it has no {INDEX}"
        raise GoldenError(f"{root} {what}", hint="make one with: refimpl record SAVED_MODEL GOLDEN")
    index = _read_index(root)
    try:
        golden = _golden_from(root, index)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(root, f"{INDEX}: {type(error).__name__}: {error}") from error
    if not golden.cases:
        raise GoldenError(f"{root} holds no cases, so it can prove nothing", hint="record it again")
    listed = {entry["file"] for entry in index["cases"]}
    strays = {file.relative_to(root).as_posix() for file in root.glob("cases/*.npz")} - listed
    if strays:
        raise _damaged(root, f"the index does not list {', '.join(sorted(strays))}")
    return golden


def write_index(
    room: Path,
    provenance: Provenance,
    signatures: Mapping[str, Signature],
    entries: list[dict[str, Any]],
    dropped: list[DroppedCase],
) -> None:
    """Write the index, last of all."""
    body = {
        "provenance": asdict(provenance),
        "signatures": [signature.to_json() for signature in signatures.values()],
        "cases": entries,
        "dropped": [asdict(case) for case in dropped],
    }
    index = {"format": FORMAT, "format_version": FORMAT_VERSION, "sha256": _body_sha256(body), **body}
    _write(room / INDEX, json.dumps(index, indent=1, ensure_ascii=False).encode() + b"\n")


def write_case(room: Path, number: int, case: GoldenCase) -> dict[str, Any]:
    """Write the arrays of one case; returns its entry for the index."""
    members: dict[str, Array] = {}
    for group, arrays in (("input", case.inputs), ("output", case.outputs), ("label", case.labels)):
        for name, array in arrays.items():
            members |= encode(group, name, array)
    stream = io.BytesIO()
    np.savez_compressed(stream, **members)  # type: ignore[arg-type]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{case.signature}-{case.name}")[:80]
    file = f"cases/{number:03d}-{slug}.npz"
    (room / "cases").mkdir(exist_ok=True)
    _write(room / file, stream.getvalue())
    return {
        "signature": case.signature,
        "name": case.name,
        "kind": case.kind.value,
        "note": case.note,
        "seed": case.seed,
        "file": file,
        "sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
        "inputs": [_array_entry(name, array) for name, array in case.inputs.items()],
        "outputs": [_array_entry(name, array) for name, array in case.outputs.items()],
        "labels": [_array_entry(name, array) for name, array in case.labels.items()],
        "unstable": dict(case.unstable),
    }


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` that becomes ``out`` when the block succeeds, and vanishes when it does not.

    Raises:
        GoldenError: ``out`` exists, its parent does not, or the disk is full.
    """
    if out.exists() or out.is_symlink():
        raise GoldenError(f"{out} already exists", hint="give another name: golden records are never overwritten")
    if not out.parent.is_dir():
        raise GoldenError(f"{out.parent} is not a directory", hint="create it first")
    room = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
    try:
        room.mkdir()
        yield room
        for directory in (room / "cases", room):
            _sync(directory)
        room.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise GoldenError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)  # it is gone already unless something failed


def _read_index(root: Path) -> dict[str, Any]:
    try:
        index = json.loads((root / INDEX).read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(root, f"{INDEX} cannot be read: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise GoldenError(f"{root} is not a golden record: {INDEX} is something else")
    version = index.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise _damaged(root, f"format version {version!r}")
    if version > FORMAT_VERSION:
        raise GoldenError(
            f"{root} has format {version}, this refimpl reads up to {FORMAT_VERSION}", hint="use a newer refimpl"
        )
    body = {key: value for key, value in index.items() if key not in ("format", "format_version", "sha256")}
    if index.get("sha256") != _body_sha256(body):
        raise _damaged(root, f"{INDEX} was changed after it was written")
    return index


def _golden_from(root: Path, index: dict[str, Any]) -> Golden:
    provenance: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in index["provenance"].items()
    }
    signatures = {item["key"]: Signature.from_json(item) for item in index["signatures"]}
    cases = tuple(_read_case(root, entry, index["format_version"]) for entry in index["cases"])
    for case in cases:
        signature = signatures[case.signature]
        if not case.outputs or {spec.name for spec in signature.outputs} != set(case.outputs):
            raise ValueError(f"the outputs of {case.signature}/{case.name} are not those of its signature")
    dropped = tuple(DroppedCase(**item) for item in index["dropped"])
    return Golden(root, Provenance(**provenance), signatures, cases, dropped)


def _read_case(root: Path, entry: dict[str, Any], version: int) -> GoldenCase:
    file = entry["file"]
    if not _CASE_FILE.fullmatch(file):
        raise ValueError(f"{file!r} is not the name of a case file")
    try:
        data = (root / file).read_bytes()
    except OSError as error:
        raise _damaged(root, f"{file} is missing or cannot be read") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _damaged(root, f"{file} does not have the recorded SHA-256")
    try:
        members = npz.read(io.BytesIO(data))
        inputs = _decode_all(members, "input", entry["inputs"])
        outputs = _decode_all(members, "output", entry["outputs"])
        labels = _decode_all(members, "label", entry["labels"] if version > 1 else [])
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(root, f"{file}: {error}") from error
    return GoldenCase(
        signature=entry["signature"],
        name=entry["name"],
        kind=CaseKind(entry["kind"]),
        inputs=inputs,
        outputs=outputs,
        unstable=dict(entry["unstable"]),
        note=entry["note"],
        seed=entry["seed"],
        labels=labels,
    )


def _decode_all(members: Mapping[str, Array], group: str, entries: list[dict[str, Any]]) -> dict[str, Array]:
    arrays = {}
    for entry in entries:
        array = decode(members, group, TensorSpec.from_json(entry))
        if digest(array) != entry["sha256"]:
            raise ValueError(f"{group} {entry['name']!r} does not have the recorded SHA-256")
        arrays[entry["name"]] = array
    return arrays


def _array_entry(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "dtype": dtype_name(array), "shape": list(array.shape), "sha256": digest(array)}


def _body_sha256(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _damaged(root: Path, what: str) -> GoldenError:
    return GoldenError(f"{root} is damaged: {what}", hint="get it again from where it was recorded, or record it again")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
