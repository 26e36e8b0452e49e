"""The cache on the command line: the options of ``convert``, ``cache show`` and ``cache clear``."""

from __future__ import annotations

import json
import os

import pytest

from refimpl.cache import open_cache
from tests.bundles import assert_refused, main
from tests.models import saved_model

NAME = "odd_ops"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("REFIMPL_CACHE_DIR", raising=False)
    monkeypatch.delenv("REFIMPL_CACHE_READ_ONLY", raising=False)
    monkeypatch.chdir(tmp_path)


def convert(capfd, target: str, *options: object) -> list[str]:
    """The notes of the bundle."""
    assert main("convert", saved_model(NAME), target, *options, "--json") == 0
    return json.loads(capfd.readouterr().out)["notes"]


def shown(capfd, *where: object) -> list[dict[str, object]]:
    assert main("cache", "show", *where, "--json") == 0
    return json.loads(capfd.readouterr().out)["entries"]


def test_convert_twice_show_and_clear(capfd, tmp_path):
    assert not any("from the cache" in note for note in convert(capfd, "a", "--cache", "c"))
    (before,) = shown(capfd, "c")
    entry = open_cache("c").entries()[0]
    os.utime(tmp_path / "c" / "entries" / entry.key / "entry.json", (1, 1))
    assert any("from the cache" in note for note in convert(capfd, "b", "--cache", "c"))
    (after,) = shown(capfd, "c")
    assert before["label"] == {"model": saved_model(NAME).name, "signature": "serving_default", "precision": "fp32"}
    assert after["last_use"] > "2000"
    assert (after["key"], after["kind"], after["size"]) == (entry.key, "signature", entry.size)

    assert main("cache", "show", "c") == 0
    out = capfd.readouterr().out
    assert entry.key[:8] in out
    assert "1 entry," in out
    assert main("inspect", "b") == 0
    assert entry.key[:12] in capfd.readouterr().out
    assert main("cache", "clear", "c") == 0
    assert "removed 1 entry," in capfd.readouterr().out
    assert shown(capfd, "c") == []


def test_the_environment_names_the_directory(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(tmp_path / "c"))
    convert(capfd, "a")
    assert len(shown(capfd)) == 1
    monkeypatch.setenv("REFIMPL_CACHE_READ_ONLY", "1")
    convert(capfd, "b", "--min-segment-size", 1)
    assert len(shown(capfd)) == 1, "nothing was written"
    assert main("cache", "clear") == 0
    assert "removed 1 entry," in capfd.readouterr().out
    assert shown(capfd) == []


def test_a_limit_and_read_only(capfd):
    convert(capfd, "a", "--cache", "c", "--cache-limit", "1kB")
    assert shown(capfd, "c") == [], "it is larger"
    convert(capfd, "b", "--cache", "c", "--cache-limit", "1GB")
    assert len(shown(capfd, "c")) == 1
    convert(capfd, "d", "--cache", "c", "--cache-read-only", "--min-segment-size", 1)
    assert len(shown(capfd, "c")) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cache-limit", "1GB"], "are for a cache, and there is none"),
        (["--cache-read-only"], "are for a cache, and there is none"),
        (["--cache", "c", "--cache-limit", "much"], "size 'much' is not of the form 10GB"),
        (["--cache", "c", "--cache-limit", "0"], "the limit of the cache is 0 bytes"),
        (["--cache", "c", "--cache-read-only"], "no cache at"),
        (["--cache", "photos"], "is no cache of refimpl"),
    ],
)
def test_what_cannot_be(capfd, tmp_path, options, says):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    assert_refused(capfd, "convert", saved_model(NAME), "b", *options, says=says)


def test_no_cache_is_shown_or_cleared_that_is_not_there(capfd, tmp_path):
    for command in ("show", "clear"):
        assert_refused(capfd, "cache", command, says="no cache is named", hint="REFIMPL_CACHE_DIR")
        assert_refused(capfd, "cache", command, "none", says="no cache at")
        assert_refused(capfd, "cache", command, tmp_path.parent, says="is no cache of refimpl")
