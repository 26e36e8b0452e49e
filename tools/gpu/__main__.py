"""All questions to the GPU that is here, one after another, each in a process of its own.

    python -m tools.gpu --out FOLDER                       # everything
    python -m tools.gpu --out FOLDER --seconds 540 --only speed,robustness
    python -m tools.gpu --out FOLDER --seconds 540 --only prediction --models ResNet50,encoder
    python -m tools.gpu --out FOLDER --carried FOLDER      # models that tools.gpu.subjects wrote elsewhere
    python -m tools.gpu --out FOLDER --bundles FOLDER      # bundles that refimpl converted elsewhere

Every tool writes after each of its answers, so one that crashes, hangs or runs out of time costs its own rest and
nothing else. What was printed lies beside the answers, in ``NAME.log``; how each ended is in ``summary.json`` and the
exit code. What ``refimpl doctor`` says of the machine is in ``doctor.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tools.gpu import record

# By what is asked most: a module, and the seconds that it may take however many are left for all.
QUESTIONS = {"speed": 240.0, "robustness": 240.0, "prediction": 1500.0, "verified": 600.0, "arithmetic": 240.0}

_DOCTOR = 120.0  # the same for refimpl doctor


def ask(name: str, out: Path, seconds: float, more: Sequence[str] = ()) -> dict[str, Any]:
    """Run one tool to its end or its limit; how it ended."""
    command = [sys.executable, "-m", f"tools.gpu.{name}", "--out", str(out), *more]
    began = time.monotonic()
    with (out / f"{name}.log").open("wb") as log:
        code = _run(command, log, seconds)
    return {
        "question": name,
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "ended": _ended(code, out / f"{name}.log"),
    }


def _run(command: Sequence[str], log: IO[bytes], seconds: float, errors: int = subprocess.STDOUT) -> int | None:
    """The exit code; None after the limit, when the process has been ended with all that it had started."""
    with subprocess.Popen(command, stdout=log, stderr=errors, start_new_session=True) as running:
        try:
            return running.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            return None


def _examine(out: Path) -> None:
    """Let ``refimpl doctor`` say what there is, for whoever reads the answers."""
    with (out / "doctor.json").open("wb") as file:
        _run([sys.executable, "-m", "refimpl", "doctor", "--json"], file, _DOCTOR, subprocess.DEVNULL)


def _more(name: str, given: argparse.Namespace) -> list[str]:
    """What a tool is told besides."""
    more: list[str] = []
    if name == "prediction" and given.carried:
        more += ["--carried", str(given.carried)]
    if name == "prediction" and given.models:
        more += ["--only", given.models]
    if name == "robustness" and given.bundles:
        folders = sorted(item for item in given.bundles.iterdir() if item.is_dir())
        more += [word for folder in folders for word in ("--bundle", str(folder))]
    return more


def _ended(code: int | None, log: Path) -> str:
    """Tools exit with 1 when something does not hold, and so does Python after an exception."""
    if code is None:
        return "out of time"
    if code < 0:
        return f"killed by signal {-code}"
    raised = code == 1 and b"Traceback (most recent call last)" in log.read_bytes()
    return "failed" if raised or code > 1 else "whole"


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, and write how each question ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(QUESTIONS), help="questions, with commas")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all of them together")
    parser.add_argument("--carried", type=Path, help="for prediction: a folder that tools.gpu.subjects wrote")
    parser.add_argument("--models", help="for prediction: models, with commas  [all]")
    parser.add_argument("--bundles", type=Path, help="for robustness: a folder of bundles")
    parser.add_argument("--out", type=Path, default=record.OUT)
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + given.seconds, []
    _examine(given.out)
    for name in given.only.split(","):
        left = min(end - time.monotonic(), QUESTIONS.get(name, given.seconds))
        found.append(ask(name, given.out, max(left, 1.0), _more(name, given)))
        print(found[-1], file=sys.stderr, flush=True)
        (given.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(item["ended"] != "whole" for item in found))


if __name__ == "__main__":
    sys.exit(main())
