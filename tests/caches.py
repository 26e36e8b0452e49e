"""Caches for tests: entries of one small file each."""

from __future__ import annotations

from pathlib import Path

from refimpl.cache import Cache, Key, open_cache

KEY = Key("thing", {"a": 1, "b": [1.5, "x"]})


def made(tmp_path: Path, **options) -> Cache:
    return open_cache(tmp_path / "cache", **options)


def put(cache: Cache, key: Key = KEY, content: bytes = b"content", **options) -> bool:
    file = cache.folder / "work" / f"source-{key.digest}"
    file.write_bytes(content)
    try:
        return cache.put(key, {"thing": file}, {"said": "x"}, **options)
    finally:
        file.unlink()


def got(cache: Cache, key: Key = KEY) -> bytes | None:
    """The content of the entry's file, read into a new directory; nothing may be left there by a miss."""
    target = cache.folder.parent / f"target-{len(list(cache.folder.parent.iterdir()))}"
    target.mkdir()
    if cache.get(key, target) is None:
        assert list(target.iterdir()) == []
        return None
    return (target / "thing").read_bytes()


def place_of(cache: Cache, key: Key = KEY) -> Path:
    return cache.folder / "entries" / key.digest


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time stamp and content of every file."""
    files = (item for item in folder.rglob("*") if item.is_file())
    return {str(item.relative_to(folder)): (item.stat().st_mtime_ns, item.read_bytes()) for item in files}


def key_of(number: int) -> Key:
    return Key("thing", {"number": number})
