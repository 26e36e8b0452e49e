"""All questions to the GPU that is here, one after another, each in a process of its own.

    python -m tools.gpu --out FOLDER                       # everything
    python -m tools.gpu --out FOLDER --seconds 540 --carried FOLDER --only speed,prediction

Every tool writes after each of its answers, so one that crashes, hangs or runs out of time costs its own rest and
nothing else. What was printed lies beside the answers, in ``NAME.log``; how each ended is in ``summary.json`` and the
exit code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu import record

# By what is asked most: a name, its module, and the arguments that it takes here.
QUESTIONS = ("speed", "prediction", "verified", "robustness", "arithmetic")


def ask(name: str, out: Path, seconds: float, more: Sequence[str] = ()) -> dict[str, Any]:
    """Run one tool to its end or its limit; how it ended."""
    command = [sys.executable, "-m", f"tools.gpu.{name}", "--out", str(out), *more]
    began = time.monotonic()
    with (out / f"{name}.log").open("wb") as log:
        try:
            code: int | None = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    return {
        "question": name,
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "ended": _ended(code, out / f"{name}.log"),
    }


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
    parser.add_argument("--out", type=Path, default=record.OUT)
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + given.seconds, []
    for name in given.only.split(","):
        more = ["--carried", str(given.carried)] if name == "prediction" and given.carried else []
        left = end - time.monotonic()
        found.append(ask(name, given.out, max(left, 1.0), more))
        print(found[-1], file=sys.stderr, flush=True)
        (given.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(item["ended"] != "whole" for item in found))


if __name__ == "__main__":
    sys.exit(main())
