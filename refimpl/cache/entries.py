"""Entries of the cache: what they depend on, and how they are written, read and compared with their checksums."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRY = "entry.json"


@dataclass(frozen=True)
class Key:
    """What a piece of work depends on.

    Attributes:
        kind: what it is; work of two kinds is never mistaken for one another.
        parts: everything that decides the result, as plain data; names of files are no substitute for their contents.
    """

    kind: str
    parts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all of it: the entry's name."""
        return _digest({"kind": self.kind, "parts": self.parts})


@dataclass(frozen=True)
class Entry:
    """One piece of finished work.

    Attributes:
        key: digest of what it depends on.
        kind: the key's.
        label: for people: model, island, precision.
        created: ISO 8601, UTC.
        data: what was stored beside the files, as plain data.
        files: name to SHA-256 (hexadecimal).
        size: bytes of all files.
        last_use: seconds since the epoch.
    """

    key: str
    kind: str
    label: Mapping[str, str]
    created: str
    data: Any
    files: Mapping[str, str]
    size: int
    last_use: float

    def to_json(self) -> dict[str, Any]:
        used = datetime.datetime.fromtimestamp(self.last_use, datetime.timezone.utc).isoformat(timespec="seconds")
        shown = {"key": self.key, "kind": self.kind, "label": dict(self.label), "created": self.created}
        return {**shown, "files": sorted(self.files), "size": self.size, "last_use": used}


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_entry(file: Path, key: Key, label: Mapping[str, str], data: Any, digests: Mapping[str, str]) -> None:
    """Write an entry's own record, with a checksum of itself."""
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    what = {"kind": key.kind, "parts": key.parts, "label": label, "created": created, "data": data, "files": digests}
    file.write_text(json.dumps({"sha256": _digest(what), "what": what}, sort_keys=True, indent=1), encoding="utf-8")


def read_entry(place: Path) -> Entry:
    """An entry's own record, compared with its checksum and with the name that it lies under.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError, LookupError, TypeError: it is damaged.
    """
    stored = json.loads((place / ENTRY).read_text(encoding="utf-8"))
    what = stored["what"]
    if stored["sha256"] != _digest(what):
        raise ValueError("its record does not have its checksum")
    if Key(what["kind"], what["parts"]).digest != place.name:
        raise ValueError("it lies under another key's name")
    label, data, files = what["label"], what["data"], what["files"]
    if any(Path(name).name != name for name in files):
        raise ValueError("a file of it would lie outside of it")
    size = sum((place / name).stat().st_size for name in files)
    used = (place / ENTRY).stat().st_mtime
    return Entry(place.name, what["kind"], label, what["created"], data, files, size, used)


def copy_compared(place: Path, entry: Entry, target: Path) -> None:
    """Copy an entry's files into an empty directory; nothing is left there when one of them is not what it was.

    Raises:
        OSError: a file is missing, or cannot be read or written.
        ValueError: a file was changed.
    """
    try:
        for name, digest in entry.files.items():
            if copy(place / name, target / name) != digest:
                raise ValueError(f"{name} does not have its checksum")
    except BaseException:
        for name in entry.files:
            (target / name).unlink(missing_ok=True)
        raise


def copy(source: Path, target: Path) -> str:
    """Copy a file; the SHA-256 of the very bytes that were written."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(1 << 20):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 (hexadecimal) of a file, however large."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
