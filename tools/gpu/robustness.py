"""Do TensorRT engines stand what happens to them? One answer per question, on the GPU that is here.

    python -m tools.gpu.robustness                     # docs/benchmarks/gpu-robustness.md and .json
    python -m tools.gpu.robustness --bundle DIR ...    # also: do bundles that were converted elsewhere run here?

Without a GPU the questions that need none are answered, and the others are written down as not tried. The exit code is
1 when something does not hold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import env
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from refimpl.errors import BuildError, RefimplError, RunError, first_line
from tools.gpu import crash, lent, record
from tools.gpu.models import WIDTH, boxes_of, inputs_of, network, suppression
from tools.gpu.record import Check

CALLS, SHAPES, THREADS = 1000, 10, 8
BOXES = Profile(((1, 8, 4), (1, 1, 8)), ((1, 20, 4), (1, 1, 20)), ((1, 64, 4), (1, 1, 64)))
_SLACK = 2 << 20  # bytes by which free memory of the GPU may differ: the driver gives it out in pieces of this size
_RESIDENT_SLACK = 32 << 20  # of the process; Python and the driver keep some of what they freed
Array = Any


def built(folder: Path, name: str = "engine", model: bytes | None = None, profile: Profile | None = None) -> Path:
    """An engine for batches of 1 to 64, or of another model."""
    onnx_file, target = folder / f"{name}.onnx", folder / f"{name}.engine"
    onnx_file.write_bytes(model or network())
    shapes = profile or Profile(((1, WIDTH),), ((8, WIDTH),), ((64, WIDTH),))
    tensorrt.build(onnx_file, target, (shapes,), BuildOptions(tf32=False, workspace_bytes=0))
    return target


def leaks(engine: Any, free_memory: Callable[[], int], resident: Callable[[], int]) -> Check:
    """A thousand calls over ten shapes."""
    what = f"{CALLS} calls over {SHAPES} shapes leak nothing"
    batches = [inputs_of(1 + 3 * index, index) for index in range(SHAPES)]
    for value in batches * 3:  # memory of every shape, and its graph
        engine.run([value])
    free, size = free_memory(), resident()
    wrong = 0
    first = [engine.run([value])[0] for value in batches]
    for call in range(CALLS):
        (got,) = engine.run([batches[call % SHAPES]])
        wrong += not np.array_equal(got, first[call % SHAPES])
    gone, grown = free - free_memory(), resident() - size
    found = f"GPU {gone} bytes less free, process {grown >> 10} KiB larger, {wrong} answers changed; {engine.counts()}"
    return Check(what, found, holds=abs(gone) <= _SLACK and grown <= _RESIDENT_SLACK and wrong == 0)


def threads(engine: Any) -> Check:
    """Eight threads at once, each answer compared bit for bit with that of one thread alone."""
    batches = [inputs_of(1 + index, index) for index in range(THREADS)]
    want = [engine.run([value])[0] for value in batches]
    wrong: list[str] = []

    def work(number: int) -> None:
        for call in range(100):
            index = (number + call) % THREADS
            try:
                (got,) = engine.run([batches[index]])
            except RunError as error:
                wrong.append(error.message)
                continue
            if not np.array_equal(got, want[index]):
                wrong.append(f"batch {index + 1}: {np.abs(got - want[index]).max():.2g}")

    running = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    found = f"{THREADS * 100} calls, {len(wrong)} differ {wrong[:2] or ''}; {engine.counts()}"
    return Check(f"{THREADS} threads agree, bit for bit", found, holds=not wrong)


def data_dependent(folder: Path) -> Check:
    """An output whose size only the run knows, compared with the embedded engine's."""
    what = "outputs whose size depends on the data come out right"
    try:
        file = built(folder, "boxes", suppression(), BOXES)
    except BuildError as error:  # TensorRT for RTX 1.6 and 1.7 have no kernels for such layers
        return Check(what, f"{tensorrt.version()} builds none: {error.message}", holds=None)
    try:
        engine = tensorrt.open(file)
        embedded = onnxruntime.open(folder / "boxes.onnx")
        sizes = []
        for seed in range(5):
            values = boxes_of(20 + seed, seed)
            (got,), (want,) = engine.run(values), embedded.run(values)
            sizes.append(len(want))
            if sorted(map(tuple, got.tolist())) != sorted(map(tuple, want.tolist())):
                return Check(what, f"seed {seed}: {got.tolist()}, not {want.tolist()}", holds=False)
    except RefimplError as error:
        return Check(what, error.message, holds=False)
    return Check(what, f"sizes {sizes}; {engine.counts()}", holds=len(set(sizes)) > 1)


def memory_runs_out(file: Path) -> Check:
    """With the GPU full a call fails with an error, and works again when there is room."""
    from refimpl.engines.tensorrt import cuda

    device, blocks = cuda.device(), []
    device.use()
    engine = tensorrt.open(file)
    try:
        size = 1 << 30
        while size >= 1 << 9:  # small blocks come out of larger ones that the driver has already
            try:
                blocks.append(device.allocate(size))
            except RunError:
                size >>= 1
        try:
            engine.run([inputs_of(64, 0)])
            during = "a call still found memory"
        except RunError as error:
            during = error.message
    finally:
        for block in blocks:
            device.free(block)
    try:
        engine.run([inputs_of(64, 0)])
    except RunError as error:
        return Check("memory that runs out is survived", f"{during}; afterwards: {error.message}", holds=False)
    return Check("memory that runs out is survived", f"{during}; afterwards it ran", holds=True)


def second_start(file: Path, folder: Path) -> Check:
    """The first run of an engine in a new process, before and after its kernels were kept."""
    cache = folder / "cache"
    code = (
        "import sys, time; from pathlib import Path; from refimpl.engines import tensorrt\n"
        "from tools.gpu.models import inputs_of\n"
        "tensorrt.why_not_here(); start = time.perf_counter(); engine = tensorrt.open(Path(sys.argv[1]))\n"
        "engine.run([inputs_of(8, 0)]); print(time.perf_counter() - start, *engine.kernels_from)"
    )
    said = []
    for _ in range(2):
        environment = {**env.variables(""), "REFIMPL_CACHE_DIR": str(cache)}
        done = subprocess.run(
            [sys.executable, "-c", code, str(file)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return Check("the second start needs no compilation", done.stderr.strip()[-300:], holds=False)
        said.append(done.stdout.split())
    kept = sum(item.stat().st_size for item in cache.rglob("*") if item.is_file())
    found = f"{float(said[0][0]):.3f} s, then {float(said[1][0]):.3f} s with {kept} bytes kept, read from {said[1][1:]}"
    return Check("the second start needs no compilation", found, holds="directory" in said[1])


def carried(folder: Path) -> Check:
    """A bundle that was converted elsewhere: TensorRT runs every island, near the embedded engine."""
    import refimpl
    from refimpl.cli_run import random_inputs

    what = f"engines of {folder.name}, built elsewhere, run here"
    try:
        loaded = refimpl.load(folder)
        values = random_inputs(loaded.signature(), {})
        began = time.perf_counter()
        result = loaded.run(values)
        seconds = time.perf_counter() - began
        want = refimpl.load(folder, engines=("onnxruntime",)).run(values).outputs
    except Exception as error:  # noqa: BLE001  (whatever happens is the answer)
        return Check(what, f"{type(error).__name__}: {first_line(error)}", holds=False)
    ran = [run.engine for run in result.islands]
    far = {name: float(np.abs(value - want[name]).max()) for name, value in result.outputs.items()}
    versions = {e.version for island in loaded.manifest.islands for e in island.engines if e.kind == "tensorrt"}
    found = f"{ran}, first call {seconds:.2f} s, built by {', '.join(versions)}, largest differences {far}"
    return Check(what, found, holds=bool(ran) and set(ran) == {"tensorrt"})


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free() -> int:
    from refimpl.engines.tensorrt import cuda

    device = cuda.device()
    device.use()
    return device.memory()[0]


def questions(folder: Path, bundles: Sequence[Path]) -> Iterator[Check]:
    """All of them, one by one; those that need a GPU are not tried without one."""
    if not tensorrt.version():
        yield Check("engines can be built", "neither tensorrt nor tensorrt_rtx is installed", holds=None)
        return
    file = built(folder)
    reason = tensorrt.why_not_here()
    if reason:
        yield Check("engines execute, and refuse what is no engine", reason, holds=None)
    else:
        engine = tensorrt.open(file)
        yield leaks(engine, _free, _resident)
        yield threads(tensorrt.open(file))
        yield from lent.questions(engine)
        engine.close()
        yield data_dependent(folder)
        yield second_start(file, folder)
        yield from map(carried, bundles)
        yield from map(lent.inferred, bundles)
        yield crash.strange_files(file, folder)
    yield from crash.killed(folder)
    if not reason:
        yield memory_runs_out(file)  # the last: a GPU that is full harms others


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, and write after every answer: what there is, should the rest not come to an end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="converted elsewhere; repeatable")
    parser.add_argument("--out", type=Path, default=record.OUT)
    given = parser.parse_args(argv)
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        for check in questions(Path(folder), given.bundle):
            checks.append(check)
            verdict = {True: "holds", False: "FAILS", None: "not tried"}[check.holds]
            print(verdict, "-", check.what, "-", check.found, flush=True)
            _write(given.out, checks)
    return int(any(check.holds is False for check in checks))


def _write(out: Path, checks: Sequence[Check]) -> None:
    data = {**record.machine(), "checks": [asdict(check) for check in checks]}
    about = "Written by `python -m tools.gpu.robustness`; do not edit."
    table = record.checks_table(data["checks"])
    lines = ["# Robustness on the GPU", "", about, "", record.machine_line(data), "", *table]
    record.write(out, "gpu-robustness", data, "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
