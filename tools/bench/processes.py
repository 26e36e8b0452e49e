"""Whole processes: what they took of time and memory, from the system's own account of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from refimpl.errors import RefimplError
from tools.bench.samples import Sample

ROOT = Path(__file__).resolve().parent.parent.parent
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
_SHOWN = 2000  # characters of what a process said, when it failed


class BenchError(RefimplError):
    """A benchmark that cannot be measured."""


def python(*words: str | Path) -> list[str]:
    """The command of this interpreter."""
    return [sys.executable, *map(str, words)]


def spelled(command: Sequence[str]) -> str:
    """The command as one types it: paths of this machine are cut down to their last part."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join([Path(word).name if word.startswith("/") else word for word in words])


def run(command: Sequence[str]) -> Sample:
    """Run a process to its end.

    Returns:
        ``wall s``; ``cpu s``, of user and system; ``peak MiB``, resident, pages of files included. The peak is the
        largest of the process and of each process that it waited for, never their sum, and at least what this process
        has in memory: Linux counts a new process from before it runs its own program. So keep this process small.

    Raises:
        BenchError: it did not succeed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env=environment())
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            _failed(command, child.returncode, said.read().decode(errors="replace"))
    return {"wall s": wall, "cpu s": usage.ru_utime + usage.ru_stime, "peak MiB": usage.ru_maxrss / 1024}


def lines(command: Sequence[str]) -> Iterator[str]:
    """What a process prints to stdout, line by line as it comes.

    Raises:
        BenchError: it did not succeed; with the end of what it said to stderr.
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT, env=environment())
        assert child.stdout is not None
        try:
            with child.stdout as stream:
                yield from stream
        except GeneratorExit:  # nobody wants the rest
            child.kill()
            child.wait()
            raise
        if child.wait():
            said.seek(0)
            _failed(command, child.returncode, said.read().decode(errors="replace"))


def environment() -> dict[str, str]:
    """Of every process: this one's, this checkout first, libraries quiet, no cache of refimpl's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("REFIMPL_")}  # noqa: TID251
    inherited["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])])
    return {**inherited, **_QUIET}


def _failed(command: Sequence[str], code: int, said: str) -> None:
    raise BenchError(
        f"{spelled(command)} ended with {code}: {said.strip()[-_SHOWN:]}", hint="run that command by itself"
    )
