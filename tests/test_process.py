"""What a process does that is refimpl's own, and what is never done to a process of somebody else."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from refimpl import env, hook
from tests.bundles import main

PROBE = "probe_of_collections"


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that notes, while it is imported, whether garbage is collected."""

    def write(more: str = "") -> None:
        text = f"import gc, sys\nsys.seen_collecting = gc.isenabled()\n{more}\n"
        (tmp_path / f"{PROBE}.py").write_text(text, encoding="utf-8")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "seen_collecting", None, raising=False)
    monkeypatch.delitem(sys.modules, PROBE, raising=False)
    yield write
    sys.modules.pop(PROBE, None)


def test_no_garbage_is_collected_while_tensorflow_is_imported(probe):
    probe()
    assert gc.isenabled()
    env._import_silently(PROBE)
    assert sys.seen_collecting is False
    assert gc.isenabled()


def test_it_is_collected_again_after_an_import_that_failed(probe):
    probe("raise ImportError('no')")
    with pytest.raises(ImportError, match="no"):
        env._import_silently(PROBE)
    assert gc.isenabled()


def test_who_has_turned_collection_off_finds_it_off(probe):
    probe()
    gc.disable()
    try:
        env._import_silently(PROBE)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_process_of_somebody_else_keeps_its_objects(probe, tmp_path, capsys):
    """Frozen objects are never collected: a program that embeds refimpl decides that for itself."""
    probe()
    before = gc.get_freeze_count()
    env._import_silently(PROBE)
    env.skip_collections()
    assert main("inspect", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert gc.get_freeze_count() == before


@pytest.mark.parametrize(("function", "frozen"), [("process", True), ("main", False)])
def test_a_process_of_its_own_ends_without_collecting(function, frozen, tmp_path):
    code = (
        "import atexit, gc, sys; from refimpl.cli import main, process\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 10_000))\n"
        f"sys.exit({function}())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "nowhere")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (2, ["frozen", str(frozen)]), done.stderr


def test_the_module_is_such_a_process(tmp_path):
    """Handlers still run, what was written is out, and the exit code is that of the command."""
    command = [sys.executable, "-m", "refimpl", "inspect", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    fine = subprocess.run([sys.executable, "-m", "refimpl", "--version"], capture_output=True, text=True, check=False)
    assert (fine.returncode, fine.stdout.split(",")[0]) == (0, "refimpl")


def test_a_thread_of_tensorflows_keeps_its_state(monkeypatch):
    """Of a thread that it did not start, Python drops the state after each call, unless it is asked not to."""
    states: set[int] = set()
    threads: set[int] = set()

    def engine(*inputs):
        local.calls = getattr(local, "calls", 0) + 1
        if local.calls == 1:
            states.add(len(states))
        threads.add(threading.get_ident())
        return [np.array(True), np.asarray(inputs[-1])]

    local = threading.local()
    monkeypatch.setattr(hook._registered[0], "run", engine)

    @tf.function
    def call(value):
        return tf.raw_ops.PyFunc(input=[value], token=hook._TOKEN, Tout=[tf.bool, tf.float32])[1]

    for number in range(50):
        assert call(tf.constant(float(number))).numpy() == number
    assert len(states) == len(threads) < 50
