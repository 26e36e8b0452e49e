"""Questions that end processes: files that are no engine of this library, and conversions that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tools.gpu import networks
from tools.gpu.record import Check

_OPEN = (
    "import sys; from pathlib import Path; from refimpl.engines import tensorrt\n"
    "from refimpl.errors import RunError\n"
    "try: tensorrt.open(Path(sys.argv[1]))\n"
    "except RunError as error: print(error.message)\n"
    "else: print('OPENED')"
)
_MOMENTS = ("loading the SavedModel", "running samples in TensorFlow", "running the finished bundle")  # in its words
_INTERRUPTED = 2  # the exit code of refimpl


def strange_files(engine: Path, folder: Path) -> Check:
    """Files that are cut off, empty, of something else, or of another version, each opened by a process of its own."""
    data = engine.read_bytes()
    strange = {
        "empty": b"",
        "garbage": bytes(range(256)) * 64,
        "half": data[: len(data) // 2],
        "without its last byte": data[:-1],
        "header alone": data[:64],
        "of another version": data[:24] + bytes([1, 2, 3, 4]) + data[28:],
        "of another library": b"ftrt" + data[4:],
    }
    wrong, said = [], []
    for name, content in strange.items():
        file = folder / "strange.engine"
        file.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", _OPEN, str(file)], capture_output=True, text=True, check=False, timeout=120
        )
        answer = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-200:]]
        said.append(f"{name}: {answer[0]}")
        if done.returncode or answer == ["OPENED"]:
            wrong.append(f"{name}: exit code {done.returncode}, {answer[0]}")
    return Check("files that are no engine are refused without a crash", "; ".join(wrong or said), holds=not wrong)


def killed(folder: Path) -> Iterator[Check]:
    """A conversion that is asked to end leaves nothing; one that is killed leaves nothing that looks like a bundle."""
    model = folder / "encoder"
    networks.encoder(model, blocks=2, width=256)
    for number in (signal.SIGTERM, signal.SIGKILL):
        polite = number == signal.SIGTERM
        what = f"a build that gets {number.name} leaves {'nothing' if polite else 'no bundle'}"
        wrong: list[str] = []
        said: list[str] = []
        for moment in _MOMENTS:
            place = folder / f"{number.name}-{len(said)}"
            place.mkdir()
            code = _struck(model, place / "b", moment, number)
            left = [item.name for item in place.iterdir() if polite or item.name == "b"]
            said.append(f"while {moment}: exit code {code}, {', '.join(left) or 'nothing'} left")
            if left or code != (_INTERRUPTED if polite else -number):
                wrong.append(said[-1])
        yield Check(what, "; ".join(wrong or said), holds=not wrong)


def _struck(model: Path, target: Path, moment: str, number: signal.Signals) -> int:
    """The exit code of a conversion that gets a signal when it has said what it is doing."""
    command = [sys.executable, "-m", "refimpl", "convert", str(model), str(target), "--engine", "tensorrt"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if moment in line:
                time.sleep(0.2)  # into the work
                running.send_signal(number)
                break
        running.stderr.read()
        return running.wait(120)
