"""The cache on disk: finished work by the digest of everything that it depends on. ``docs/caching.md`` is the guide.

A cache is a directory that any number of processes may share::

    refimpl_cache.json       what makes the directory a cache
    entries/KEY/entry.json   what the entry is, and the SHA-256 of each of its files; its mtime is its last use
    entries/KEY/...          the files
    locks/, work/            for processes that write at the same moment

An entry appears and vanishes as a whole, by one rename. What is read is copied first and compared with its SHA-256
then, so that no bytes are used that were not compared. A cache never makes anything fail: whatever is wrong with an
entry, or with the disk, the work is done anew. Nothing here knows what is cached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from refimpl import env
from refimpl.cache.entries import ENTRY, Entry, Key, copy, copy_compared, read_entry, write_entry
from refimpl.errors import RecipeError, RefimplError

FORMAT_VERSION = 1
MARK = "refimpl_cache.json"
DEFAULT_LIMIT = 10 * 10**9
WAIT_SECONDS = 1800.0  # for another process that makes the same thing; after that it is made twice
_FOLDERS = ("entries", "locks", "work")
_STALE_SECONDS = 24 * 3600.0  # what lies longer in work/ was left by a process that was killed
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

log = logging.getLogger("refimpl.cache")


@dataclass(frozen=True)
class Cache:
    """A cache to read and, unless it is read-only, to write.

    Attributes:
        folder: its directory; made by :func:`open_cache`.
        limit_bytes: how much it may hold; the least recently used entries make room.
        read_only: nothing in it is written, touched or removed.
        label: added to the label of every entry stored.
    """

    folder: Path
    limit_bytes: int = DEFAULT_LIMIT
    read_only: bool = False
    label: Mapping[str, str] = field(default_factory=dict)

    def labelled(self, **label: str) -> Cache:
        """The same cache; what is stored through it carries this label, too."""
        return dataclasses.replace(self, label={**self.label, **label})

    def get(self, key: Key, target: Path) -> Entry | None:
        """Copy an entry's files into ``target``, an empty directory, each compared with its SHA-256.

        Returns:
            The entry; None when there is none, or when it is damaged: then it is removed, with a warning, and nothing
            is left in ``target``.
        """
        place, folder = self._place(key.digest), 0
        try:
            folder = place.stat().st_ino
            entry = read_entry(place)
            copy_compared(place, entry, target)
        except FileNotFoundError:
            if _is(place, folder):  # else there is none, or another process has just removed it
                self._drop_damaged(place, "a file is missing")
            return None
        except OSError as error:  # of the disk, perhaps of the one that is copied to: the entry may be fine
            log.warning("the cache entry %s cannot be used: %s", place, error.strerror or error)
            return None
        except (ValueError, LookupError, TypeError) as error:
            if _is(place, folder):  # else another process has replaced it meanwhile: half of it was of the one before
                self._drop_damaged(place, str(error))
            return None
        if not self.read_only:
            with contextlib.suppress(OSError):
                os.utime(place / ENTRY)
        return entry

    def put(
        self,
        key: Key,
        files: Mapping[str, Path],
        data: Any = None,
        *,
        label: Mapping[str, str] | None = None,
        replace: bool = False,
    ) -> bool:
        """Store copies of some files as one entry.

        Args:
            key: what they depend on.
            files: name in the entry (no folders) to file.
            data: plain data to store with them.
            label: for people.
            replace: let it take the place of an entry of this key; without, the older one stays.

        Returns:
            Whether the entry is there now. A full disk, an entry larger than the limit, and read-only mode make it
            False, never an error.
        """
        if self.read_only:
            return False
        place, made = self._place(key.digest), None
        try:
            size = sum(file.stat().st_size for file in files.values())
            if size > self.limit_bytes:
                log.warning("%s of %d bytes is larger than the cache may be: not stored", key.kind, size)
                return False
            made = Path(tempfile.mkdtemp(dir=self.folder / "work"))
            digests = {name: copy(file, made / name) for name, file in files.items()}
            write_entry(made / ENTRY, key, {**self.label, **(label or {})}, data, digests)
            if replace:
                self._remove(place)
            _rename_into_place(made, place)
            self._make_room(keep=key.digest)
        except OSError as error:
            log.warning("the cache %s cannot be written: %s", self.folder, error.strerror or error)
            return False
        finally:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
        return True

    def entries(self) -> tuple[Entry, ...]:
        """All that are whole enough to be listed, the least recently used first."""
        found = []
        for place in (self.folder / "entries").iterdir():
            try:
                found.append(read_entry(place))
            except (OSError, ValueError, LookupError, TypeError):
                continue  # damaged, or another process removes it
        return tuple(sorted(found, key=lambda entry: (entry.last_use, entry.key)))

    def discard(self, key: Key, why: str) -> None:
        """Remove an entry that turned out to be wrong, and say so."""
        self._drop_damaged(self._place(key.digest), why)

    def clear(self) -> tuple[int, int]:
        """Remove every entry; how many, and how many bytes.

        Raises:
            RecipeError: it is read-only.
        """
        if self.read_only:
            raise RecipeError("a read-only cache is not cleared", hint="leave the read-only mode away")
        sizes = {entry.key: entry.size for entry in self.entries()}
        gone = [place.name for place in (self.folder / "entries").iterdir() if self._remove(place)]
        return len(gone), sum(sizes.get(name, 0) for name in gone)

    @contextlib.contextmanager
    def alone(self, key: Key) -> Iterator[bool]:
        """While another process makes the same thing, wait for it, so that it is made once.

        Held by one at a time for each key, also by threads; a process that dies lets go. It saves work and guards
        nothing: after ``WAIT_SECONDS``, or where files cannot be locked, one goes on all the same.

        Yields:
            Whether somebody else was waited for.
        """
        with contextlib.ExitStack() as stack:
            stream = None
            if not self.read_only:
                with contextlib.suppress(OSError):
                    stream = stack.enter_context((self.folder / "locks" / key.digest[:2]).open("a"))
            yield _lock(stream) if stream is not None else False

    def _place(self, digest: str) -> Path:
        return self.folder / "entries" / digest

    def _drop_damaged(self, place: Path, why: str) -> None:
        what = "is passed over" if self.read_only else "is removed"
        log.warning("the cache entry %s is damaged (%s) and %s", place, why, what)
        if not self.read_only:
            self._remove(place)

    def _remove(self, place: Path) -> bool:
        """Take an entry away by one rename, then delete it; False when another process did."""
        claimed = None
        try:
            claimed = Path(tempfile.mkdtemp(dir=self.folder / "work"))
            place.rename(claimed / "gone")
        except OSError:
            return False
        finally:
            if claimed is not None:
                shutil.rmtree(claimed, ignore_errors=True)
        return True

    def _make_room(self, keep: str) -> None:
        """Remove the least recently used entries until the rest is within the limit; ``keep`` stays."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self.limit_bytes:
                break
            if entry.key != keep:
                self._remove(self._place(entry.key))  # or another process did: it is gone
                total -= entry.size
        for left in (self.folder / "work").iterdir():
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)


def open_cache(folder: str | os.PathLike[str], *, limit_bytes: int = DEFAULT_LIMIT, read_only: bool = False) -> Cache:
    """The cache in a directory, made when it is not there.

    Raises:
        RecipeError: the directory holds something else, cannot be written, or is of another format; or a read-only
            cache is not there.
    """
    place = Path(folder).absolute()
    if limit_bytes < 1:
        raise RecipeError(f"the limit of the cache is {limit_bytes} bytes", hint="give at least 1, such as 10GB")
    if not (place / MARK).is_file():
        _make(place, read_only=read_only)
    try:
        version = json.loads((place / MARK).read_text(encoding="utf-8"))["format_version"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RecipeError(f"{place / MARK} is damaged: {error}", hint="remove the directory, or name another") from None
    if version != FORMAT_VERSION:
        raise RecipeError(
            f"{place} is a cache of format {version}; this refimpl has format {FORMAT_VERSION}",
            hint="name another directory for this version",
        )
    if not read_only and not os.access(place / "entries", os.W_OK):
        raise RecipeError(f"the cache {place} cannot be written to", hint="add --cache-read-only to use what is in it")
    return Cache(place, limit_bytes, read_only)


def _make(place: Path, *, read_only: bool) -> None:
    if place.exists() and not (place.is_dir() and _may_become_one(place)):
        raise RecipeError(
            f"{place} is no cache of refimpl", hint="name a new or empty directory, or one that is a cache"
        )
    if read_only:
        raise RecipeError(f"no cache at {place}", hint="a cache is made by the first conversion that may write to it")
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)  # engines are code: nobody else may slip one in
        for name in _FOLDERS:
            (place / name).mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place / "work")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({"format": "refimpl cache", "format_version": FORMAT_VERSION}, stream)
        Path(name).replace(place / MARK)
    except OSError as error:
        raise RecipeError(
            f"the cache {place} cannot be made: {error.strerror or error}", hint="name a directory that can be written"
        ) from None


def _may_become_one(place: Path) -> bool:
    """Whether a directory is empty, or another process is making a cache of it right now."""
    return all(item.name in (*_FOLDERS, MARK) for item in place.iterdir())


def parse_size(text: str) -> int:
    """Bytes in ``10GB``, ``512MiB`` or ``1000000``.

    Raises:
        RecipeError: the text has another form.
    """
    number = text.strip().rstrip("BbKkMmGgTtIi")
    unit = text.strip()[len(number) :].upper() or "B"
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise RecipeError(f"size {text!r} is not of the form 10GB", hint="give 10GB, 500MB, 2GiB or bytes") from None


def _is(place: Path, inode: int) -> bool:
    try:
        return place.stat().st_ino == inode
    except OSError:
        return False


def _rename_into_place(made: Path, place: Path) -> None:
    """Unless another process was faster: what it made depends on the same things."""
    for last in (False, False, True):
        try:
            made.rename(place)
        except OSError:
            if (place / ENTRY).is_file():
                return
            if last:
                raise  # it was not there, and could not be made: not only removed again in between
        else:
            return


def _lock(stream: IO[str]) -> bool:
    """Wait for a file's lock; whether that took any waiting."""
    try:
        import fcntl
    except ImportError:  # no POSIX system
        return False
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - start > WAIT_SECONDS:
                log.warning("another process holds the cache's lock for too long; it is not waited for any more")
                return True
            time.sleep(0.05)
        except OSError:
            return False
        else:
            return time.monotonic() - start > 0.04


def from_environment() -> Cache | None:
    """The cache that ``REFIMPL_CACHE_DIR`` names; None when it names none.

    Raises:
        RecipeError: it cannot be used.
    """
    place = env.cache_directory()
    return open_cache(place, read_only=env.cache_is_read_only()) if place else None


def from_environment_if_usable() -> Cache | None:
    """The same for programs that are to run whatever the cache is like: a warning takes the place of the error."""
    try:
        return from_environment()
    except RefimplError as error:
        log.warning("there is no cache: %s", error.message)
        return None
