"""The cache on disk: what comes back, what does not, who makes room, and two processes at once."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from refimpl.cache import (
    Key,
    entries,
    from_environment,
    from_environment_if_usable,
    open_cache,
    parse_size,
    store,
)
from refimpl.cache.entries import ENTRY
from refimpl.errors import RecipeError
from tests.caches import KEY, everything, got, key_of, made, place_of, put
from tests.contract.sources import ROOT

# Hits and misses.


def test_what_was_put_comes_back(tmp_path):
    cache = made(tmp_path).labelled(model="resnet")
    assert got(cache) is None
    assert put(cache, label={"precision": "fp16"})
    assert got(cache) == b"content"
    (entry,) = cache.entries()
    assert (entry.kind, entry.data, entry.size) == ("thing", {"said": "x"}, 7)
    assert entry.label == {"model": "resnet", "precision": "fp16"}


@pytest.mark.parametrize(
    "other", [Key("thang", KEY.parts), Key("thing", {**KEY.parts, "a": 2}), Key("thing", {"a": 1})]
)
def test_another_key_is_a_miss(tmp_path, other):
    cache = made(tmp_path)
    put(cache)
    assert got(cache, other) is None


def test_keys_do_not_depend_on_the_order_of_their_parts_and_tell_numbers_from_text():
    assert Key("k", {"a": 1, "b": 2}).digest == Key("k", {"b": 2, "a": 1}).digest
    assert Key("k", {"a": (1, 2)}).digest == Key("k", {"a": [1, 2]}).digest
    assert len({Key("k", {"a": value}).digest for value in (1, "1", 1.0, True, None, [1], {"a": 1})}) == 7


def test_the_first_entry_stays_unless_it_is_to_be_replaced(tmp_path):
    cache = made(tmp_path)
    put(cache, content=b"first")
    assert put(cache, content=b"second")
    assert got(cache) == b"first"
    assert put(cache, content=b"third", replace=True)
    assert got(cache) == b"third"
    assert list((cache.folder / "work").iterdir()) == []


# Damage.


def change_file(place: Path) -> None:
    (place / "thing").write_bytes(b"Content")


def cut_file(place: Path) -> None:
    (place / "thing").write_bytes(b"")


def lose_file(place: Path) -> None:
    (place / "thing").unlink()


def lose_record(place: Path) -> None:
    (place / ENTRY).unlink()


def garble_record(place: Path) -> None:
    (place / ENTRY).write_text("{", encoding="utf-8")


def empty_record(place: Path) -> None:
    (place / ENTRY).write_text("[]", encoding="utf-8")


def change_record(place: Path) -> None:
    text = (place / ENTRY).read_text(encoding="utf-8")
    (place / ENTRY).write_text(text.replace('"said": "x"', '"said": "y"'), encoding="utf-8")


def change_both(place: Path) -> None:
    """Another file with the right checksum of its own, in a record that does not know."""
    change_file(place)
    text = (place / ENTRY).read_text(encoding="utf-8")
    old = json.loads(text)["what"]["files"]["thing"]
    (place / ENTRY).write_text(text.replace(old, entries.file_digest(place / "thing")), encoding="utf-8")


def reach_outside(place: Path) -> None:
    data = json.loads((place / ENTRY).read_text(encoding="utf-8"))
    outside = place.parents[2] / "outside"
    outside.write_bytes(b"x")
    data["what"]["files"] = {"../../../outside": entries.file_digest(outside)}
    data["sha256"] = entries._digest(data["what"])
    (place / ENTRY).write_text(json.dumps(data), encoding="utf-8")


DAMAGES = [
    *(change_file, cut_file, lose_file, lose_record),
    *(garble_record, empty_record, change_record, change_both, reach_outside),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_a_miss_is_removed_and_told(tmp_path, caplog, damage):
    cache = made(tmp_path)
    put(cache)
    damage(place_of(cache))
    assert got(cache) is None
    assert not place_of(cache).exists()
    assert "is damaged" in caplog.text
    assert put(cache)
    assert got(cache) == b"content"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_read_only_cache_passes_over_what_is_damaged(tmp_path, caplog, damage):
    put(made(tmp_path))
    cache = made(tmp_path, read_only=True)
    damage(place_of(cache))
    before = everything(cache.folder)
    assert got(cache) is None
    assert everything(cache.folder) == before
    assert "is passed over" in caplog.text


def test_an_entry_under_another_name_is_damaged(tmp_path):
    """Or whoever renames a directory could hand out one model's engines as another's."""
    cache, other = made(tmp_path), key_of(1)
    put(cache)
    place_of(cache).rename(place_of(cache, other))
    assert got(cache, other) is None
    assert not place_of(cache, other).exists()


def test_an_entry_that_is_replaced_while_it_is_read_is_a_miss_and_stays(tmp_path, monkeypatch, caplog):
    cache = made(tmp_path)
    put(cache)
    copy = entries.copy

    def slow(source: Path, target: Path) -> str:
        monkeypatch.undo()
        put(cache, content=b"another", replace=True)
        return copy(source, target)

    monkeypatch.setattr(entries, "copy", slow)
    assert got(cache) is None
    assert caplog.text == ""
    assert got(cache) == b"another"


# Making room.


def test_the_least_recently_used_makes_room(tmp_path):
    cache = made(tmp_path, limit_bytes=300)
    for number in range(3):
        put(cache, key_of(number), bytes(100))
        os.utime(place_of(cache, key_of(number)) / ENTRY, (number, number))
    assert got(cache, key_of(0)) is not None  # which uses it
    put(cache, key_of(3), bytes(100))
    assert [got(cache, key_of(number)) is not None for number in range(4)] == [True, False, True, True]


def test_as_many_go_as_must(tmp_path):
    cache = made(tmp_path, limit_bytes=300)
    for number in range(3):
        put(cache, key_of(number), bytes(100))
    put(cache, key_of(3), bytes(250))
    assert [entry.key for entry in cache.entries()] == [key_of(3).digest]


def test_what_is_larger_than_the_limit_is_not_stored_and_drives_nothing_out(tmp_path, caplog):
    cache = made(tmp_path, limit_bytes=100)
    put(cache, content=bytes(90))
    assert not put(cache, key_of(1), bytes(101))
    assert "larger than the cache may be" in caplog.text
    assert got(cache) == bytes(90)


def test_what_killed_processes_left_is_swept_away(tmp_path):
    cache = made(tmp_path)
    left, fresh = cache.folder / "work" / "left", cache.folder / "work" / "fresh"
    for item in (left, fresh):
        item.mkdir()
    os.utime(left, (1, 1))
    put(cache)
    assert (left.exists(), fresh.exists()) == (False, True)


def test_clear(tmp_path):
    cache = made(tmp_path)
    put(cache)
    put(cache, key_of(1))
    garble_record(place_of(cache))
    assert cache.clear() == (2, 7)
    assert list((cache.folder / "entries").iterdir()) == []
    assert list((cache.folder / "work").iterdir()) == []
    with pytest.raises(RecipeError, match="read-only"):
        made(tmp_path, read_only=True).clear()


# Read-only, and full disks.


def test_read_only_reads_and_touches_nothing(tmp_path):
    put(made(tmp_path))
    os.utime(place_of(made(tmp_path)) / ENTRY, (5, 5))
    cache = made(tmp_path, read_only=True)
    before = everything(cache.folder)
    assert got(cache) == b"content"
    assert cache.put(key_of(1), {"thing": ROOT / "LICENSE"}) is False
    with cache.alone(KEY) as waited:
        assert not waited
    assert everything(cache.folder) == before


def test_a_directory_without_write_permission_can_be_read(tmp_path):
    put(made(tmp_path))
    cache = made(tmp_path, read_only=True)
    for folder in (cache.folder, cache.folder / "entries", cache.folder / "work", cache.folder / "locks"):
        folder.chmod(0o500)
    try:
        assert got(cache) == b"content"
        if os.geteuid():  # root may write anywhere
            with pytest.raises(RecipeError, match="cannot be written to"):
                made(tmp_path)
    finally:
        for folder in (cache.folder, cache.folder / "entries", cache.folder / "work", cache.folder / "locks"):
            folder.chmod(0o700)


@pytest.mark.parametrize("step", ["copy", "write_entry", "_rename_into_place"])
def test_a_full_disk_stores_nothing_and_fails_nothing(tmp_path, monkeypatch, caplog, step):
    cache = made(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, step, full)
    assert not put(cache)
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    assert got(cache) is None
    assert list((cache.folder / "work").iterdir()) == []


def test_a_disk_that_is_full_where_it_is_copied_to_is_no_damage(tmp_path, monkeypatch):
    cache = made(tmp_path)
    put(cache)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(entries, "copy", full)
    assert got(cache) is None
    monkeypatch.undo()
    assert got(cache) == b"content"


# Opening.


def test_what_is_no_cache_is_not_made_one(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    for place in (tmp_path / "photos", tmp_path / "photos" / "1.jpg"):
        with pytest.raises(RecipeError, match="is no cache of refimpl"):
            open_cache(place)
    with pytest.raises(RecipeError, match="no cache at"):
        open_cache(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("text", "says"), [("{", "is damaged"), ('{"format_version": 99}', "of format 99")])
def test_a_cache_of_another_format(tmp_path, text, says):
    cache = made(tmp_path)
    (cache.folder / store.MARK).write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=says):
        made(tmp_path)


def test_sizes():
    texts = {"10GB": 10**10, "1.5kB": 1500, "2GiB": 2 << 30, "7": 7, "7 B": 7, "3mb": 3 * 10**6}
    assert {text: parse_size(text) for text in texts} == texts
    for wrong in ("", "GB", "ten", "1XB", "1e999GB", "nan", "-"):
        with pytest.raises(RecipeError, match="is not of the form 10GB"):
            parse_size(wrong)
    with pytest.raises(RecipeError, match="the limit of the cache is 0 bytes"):
        open_cache("anywhere", limit_bytes=0)


def test_the_environment(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("REFIMPL_CACHE_DIR", raising=False)
    assert from_environment() is None
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(tmp_path / "cache"))
    found = from_environment()
    assert found is not None
    assert (found.folder, found.read_only) == (tmp_path / "cache", False)
    monkeypatch.setenv("REFIMPL_CACHE_READ_ONLY", "1")
    assert from_environment().read_only
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(ROOT / "LICENSE"))
    with pytest.raises(RecipeError):
        from_environment()
    assert from_environment_if_usable() is None
    assert "there is no cache" in caplog.text
