"""All questions to the GPU that is here, one after another, each in a process of its own.

    python -m tools.gpu --out FOLDER                       # everything
    python -m tools.gpu --out FOLDER --seconds 540 --only speed,robustness
    python -m tools.gpu --out FOLDER --seconds 540 --only prediction --models ResNet50,encoder
    python -m tools.gpu --out FOLDER --carried FOLDER      # models that tools.gpu.subjects wrote elsewhere
    python -m tools.gpu --out FOLDER --bundles FOLDER      # bundles that refimpl converted elsewhere
    python -m tools.gpu --out FOLDER --jobs 5              # what no clock decides side by side, models one by one

Every tool writes after each of its answers, so one that crashes, hangs or runs out of time costs its own rest and
nothing else. What was printed lies beside the answers, in ``NAME.log``; how each ended is in ``summary.json`` and the
exit code. What ``refimpl doctor`` says of the machine is in ``doctor.json``. Side by side, every process has
processors of its own; speed, and what counts memory, are asked before, alone.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tools.gpu import prediction, record, subjects

# By what is asked most: a module, and the seconds that it may take however many are left for all.
QUESTIONS = {"speed": 240.0, "robustness": 240.0, "prediction": 1500.0, "verified": 600.0, "arithmetic": 240.0}

ALONE = ("speed", "robustness")  # time and memory are theirs

_DOCTOR = 120.0  # the same for refimpl doctor


@dataclass(frozen=True)
class Task:
    """One run of one tool.

    Attributes:
        question: the tool.
        out: where it writes.
        more: what it is told besides.
        model: the only one that it is asked about; "" for all.
    """

    question: str
    out: Path
    more: tuple[str, ...] = ()
    model: str = ""

    def ask(self, seconds: float, processors: Sequence[int] = ()) -> dict[str, Any]:
        """Run it to its end or its limit, on these processors or on all; how it ended."""
        self.out.mkdir(parents=True, exist_ok=True)
        log, began = self.out / f"{self.question}.log", time.monotonic()
        bound = ["taskset", "--cpu-list", ",".join(map(str, processors))] if processors else []
        command = [*bound, sys.executable, "-m", f"tools.gpu.{self.question}", "--out", str(self.out), *self.more]
        with log.open("wb") as file:
            code = _run(command, file, max(seconds, 1.0))
        return {
            "question": self.question,
            **({"model": self.model} if self.model else {}),
            "exit_code": code,
            "seconds": round(time.monotonic() - began, 1),
            "ended": _ended(code, log),
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


def tasks(name: str, given: argparse.Namespace) -> list[Task]:
    """One for a question, or, side by side, one for every model whose prediction is asked about."""
    if name == "robustness" and given.bundles:
        folders = sorted(item for item in given.bundles.iterdir() if item.is_dir())
        return [Task(name, given.out, tuple(word for folder in folders for word in ("--bundle", str(folder))))]
    if name != "prediction":
        return [Task(name, given.out)]
    said = (("--carried", given.carried), ("--precision", given.precision), ("--seconds", given.search))
    more = tuple(str(word) for option in said if option[1] for word in option)
    if given.jobs == 1:
        return [Task(name, given.out, (*more, *(("--only", given.models) if given.models else ())))]
    models = given.models.split(",") if given.models else subjects.known(given.carried)
    return [Task(name, given.out / name / model, (*more, "--only", model), model) for model in models]


def _limit(task: Task, left: float) -> float:
    return min(left, QUESTIONS.get(task.question, left))


def _side_by_side(given: argparse.Namespace, todo: Sequence[Task], end: float, found: list[dict[str, Any]]) -> None:
    """Run tasks in any order, as many at a time as there are jobs, each with a share of the processors."""
    have = sorted(os.sched_getaffinity(0))
    jobs = min(given.jobs, len(have))
    free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for number in range(jobs):
        free.put(have[number::jobs])

    for task in todo:
        if task.model:
            (task.out / "gpu-prediction.json").unlink(missing_ok=True)  # of an earlier run

    def run(task: Task) -> dict[str, Any]:
        mine = free.get()
        try:
            return task.ask(_limit(task, end - time.monotonic()), mine if shutil.which("taskset") else ())
        finally:
            free.put(mine)

    with ThreadPoolExecutor(jobs) as pool:
        for ended in pool.map(run, todo):
            _note(given.out, found, ended)
    prediction.join([task.out for task in todo if task.model], given.out)


def _note(out: Path, found: list[dict[str, Any]], ended: dict[str, Any]) -> None:
    found.append(ended)
    print(ended, file=sys.stderr, flush=True)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


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
    parser.add_argument("--precision", help="for prediction: precisions, with commas  [all]")
    parser.add_argument("--search", help="for prediction: seconds for the search of guilty layers in each model")
    parser.add_argument("--bundles", type=Path, help="for robustness: a folder of bundles")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, where no clock decides  [1]")
    parser.add_argument("--out", type=Path, default=record.OUT)
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    found: list[dict[str, Any]] = []
    _examine(given.out)
    later: list[Task] = []
    for name in given.only.split(","):
        for task in tasks(name, given):
            if given.jobs > 1 and name not in ALONE:
                later.append(task)
            else:
                _note(given.out, found, task.ask(_limit(task, end - time.monotonic())))
    if later:
        _side_by_side(given, later, end, found)
    return int(any(item["ended"] != "whole" for item in found))


if __name__ == "__main__":
    sys.exit(main())
