"""A bundle appears whole or not at all: failures, interrupts, full disks, targets that cannot be made."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl import bundle
from refimpl.errors import BundleError, RecipeError
from tests.bundles import (
    POINTER,
    main,
)
from tests.models import saved_model

NAME = "odd_ops"
OURS = ("refimpl/", POINTER)  # what TensorFlow itself does not read


def hidden(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_directory_appears_whole(tmp_path):
    with bundle.atomic_directory(tmp_path / "b") as folder:
        assert folder.parent == tmp_path
        (folder / "file").write_text("whole")
        assert not (tmp_path / "b").exists()
    assert (tmp_path / "b" / "file").read_text() == "whole"
    assert hidden(tmp_path) == ["b"]
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755


def fail_half_way(target: Path, error: BaseException) -> None:
    with bundle.atomic_directory(target) as folder:
        (folder / "half").mkdir()
        (folder / "half" / "file").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), BundleError("no")])
def test_nothing_is_left_after_a_failure(error, tmp_path):
    with pytest.raises(type(error)):
        fail_half_way(tmp_path / "b", error)
    assert hidden(tmp_path) == []


def test_a_full_disk_is_said(tmp_path):
    with pytest.raises(BundleError, match="No space left on device") as caught:
        fail_half_way(tmp_path / "b", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(tmp_path / "b") in caught.value.message
    assert "disk space" in caught.value.hint
    assert hidden(tmp_path) == []


def test_no_room_even_for_the_folder(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle.tempfile, "mkdtemp", full)
    with pytest.raises(BundleError, match="No space left"), bundle.atomic_directory(tmp_path / "b"):
        pass


def make_while_somebody_else_does(target: Path) -> None:
    with bundle.atomic_directory(target):
        target.mkdir()
        (target / "theirs").write_text("theirs")


def test_somebody_else_was_faster(tmp_path):
    with pytest.raises(RecipeError, match="exists already"):
        make_while_somebody_else_does(tmp_path / "b")
    assert (tmp_path / "b" / "theirs").read_text() == "theirs"
    assert hidden(tmp_path) == ["b"]


def ours(folder: Path) -> list[str]:
    """Temporary files of refimpl, not those of the libraries."""
    return [name for name in hidden(folder) if name.startswith("refimpl")]


def make_target(kind: str, folder: Path) -> Path:
    target = folder / "b"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    elif kind == "dangling link":
        target.symlink_to(folder / "nowhere")
    elif kind == "parent missing":
        return folder / "no" / "b"
    elif kind == "parent is a file":
        (folder / "f").write_text("mine")
        return folder / "f" / "b"
    else:
        return folder / ("b" * 300)
    return target


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("file", "exists already"),
        ("folder", "exists already"),
        ("dangling link", "exists already"),
        ("parent missing", "is not a directory"),
        ("parent is a file", "is not a directory"),
        ("name too long", "File name too long"),
    ],
)
def test_targets_that_cannot_be_made(kind, says, tmp_path, capsys):
    target = make_target(kind, tmp_path)
    before = hidden(tmp_path)
    assert main("convert", saved_model(NAME), target) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert "hint: " in err
    assert "loading" not in err, "before any work is done"
    assert hidden(tmp_path) == before


def test_a_parent_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RecipeError, match="cannot be written to") as caught:
        bundle.check_target(tmp_path / "b")
    assert str(tmp_path) in caught.value.message


_LIMITED = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); runpy.run_module('refimpl')"
)


def start_convert(target: Path, scratch: Path, source: Path, *, limit_bytes: int = 0) -> subprocess.Popen[str]:
    """``refimpl convert`` in a process of its own that may not write files larger than the limit."""
    scratch.mkdir()
    program = ["-c", _LIMITED.format(limit_bytes)] if limit_bytes else ["-m", "refimpl"]
    return subprocess.Popen(
        [sys.executable, *program, "convert", str(source), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=_heed_interrupts,  # noqa: PLW1509  (no threads here)
    )


def _heed_interrupts() -> None:
    """A shell's background job ignores Ctrl-C, and its children inherit that; these tests may run in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("sign", "number"),
    [
        ("loading the SavedModel", signal.SIGINT),
        ("island 1 of", signal.SIGTERM),
        ("running the finished bundle", signal.SIGINT),
    ],
)
def test_an_interrupt_half_way_leaves_nothing(sign, number, tmp_path):
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    place.mkdir()
    process = start_convert(place / "b", scratch, saved_model("detector"))
    lines = []
    for line in process.stderr:
        lines.append(line)
        if sign in line:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, [*lines, err]
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; nothing is left half-written"
    assert hidden(place) == []
    assert ours(scratch) == []


@pytest.mark.parametrize("limit_bytes", [2048, 20 * 1024], ids=["engines", "graph"])
def test_a_disk_that_is_really_full(limit_bytes, tmp_path):
    """A limit on the size of files stands for it: the system refuses to write on."""
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    place.mkdir()
    process = start_convert(place / "b", scratch, saved_model(NAME), limit_bytes=limit_bytes)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert out == ""
    assert f"error: cannot write {place / 'b'}: File too large" in err
    assert "hint: free some disk space" in err
    assert hidden(place) == []
    assert ours(scratch) == []
