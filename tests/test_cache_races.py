"""The cache on disk, used by several threads and processes at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from refimpl.cache import Key, open_cache, store
from tests.caches import KEY, got, made
from tests.contract.sources import ROOT


def test_one_at_a_time(tmp_path):
    cache, order = made(tmp_path), []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with cache.alone(KEY) as waited:
            inside.set()
            leave.wait(10)
            order.append(("first", waited))

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    threading.Timer(0.2, leave.set).start()
    with cache.alone(KEY) as waited:
        order.append(("second", waited))
    thread.join()
    assert order == [("first", False), ("second", True)]


def test_nobody_waits_for_ever(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store, "WAIT_SECONDS", 0.1)
    cache = made(tmp_path)
    with cache.alone(KEY), cache.alone(KEY) as waited:
        assert waited
    assert "not waited for any more" in caplog.text


RACER = """
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, {root!r})
from refimpl.cache import Key, open_cache
me, place, start = sys.argv[1], sys.argv[2], float(sys.argv[3])
time.sleep(max(0.0, start - time.time()))
cache, torn = open_cache(place, limit_bytes=40 * 4096), 0
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    for turn in range(150):
        number = turn % 60
        content = bytes([number]) * 4096
        (folder / "source").write_bytes(content)
        assert cache.put(Key("thing", {{"number": number}}), {{"thing": folder / "source"}}, replace=turn % 7 == 0)
        target = folder / f"target-{{turn}}"
        target.mkdir()
        wanted = (turn * 13) % 60
        if cache.get(Key("thing", {{"number": wanted}}), target) is not None:
            assert (target / "thing").read_bytes() == bytes([wanted]) * 4096, "torn"
print("fine")
"""


def test_processes_that_race(tmp_path):
    """They make the same entries, in one cache that none of them has made, and drive out each other's."""
    place, start = tmp_path / "cache", time.time() + 1.0
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER.format(root=str(ROOT)), str(me), str(place), str(start)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(3)
    ]
    said = [racer.communicate(timeout=120) for racer in racers]
    assert [(out, err) for out, err in said] == [("fine\n", "")] * 3, "an error, or a warning of damage"
    cache = open_cache(place)
    found = cache.entries()
    assert sum(entry.size for entry in found) <= 42 * 4096, "each racer may be one entry ahead of the others"
    keys = [Key("thing", {"number": number}) for number in range(60)]
    assert sum(got(cache, key) is not None for key in keys) == len(found), "all are whole"
    assert list((place / "work").iterdir()) == []


STARTER = """
import sys, time
sys.path.insert(0, {root!r})
from refimpl.cache import open_cache
time.sleep(max(0.0, float(sys.argv[1]) - time.time()))
for number in range(100):
    open_cache({place!r} + str(number))
"""


def test_processes_that_open_new_caches_at_the_same_moment(tmp_path):
    code, start = STARTER.format(root=str(ROOT), place=str(tmp_path / "cache")), str(time.time() + 1.0)
    both = [
        subprocess.Popen([sys.executable, "-c", code, start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [item.communicate(timeout=60)[1] for item in both] == ["", "", ""]
