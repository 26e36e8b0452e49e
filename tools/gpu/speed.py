"""How fast engines run on the GPU that is here, and where the time goes.

    python -m tools.gpu.speed                         # docs/benchmarks/gpu-speed.md and .json
    python -m tools.gpu.speed --only ResNet50         # some models

Each model is converted there in float16, unverified: `tools.gpu.prediction` is what compares answers. Nine ways to
run its first island are timed, medians of many calls, on the clock of the host unless it says otherwise:

* *kernels*: TensorRT's enqueue alone, by CUDA events, inputs and outputs on the GPU
* *kernels, graph*: the same, replayed as a CUDA graph
* *bare, locked*: enqueue, with copies from and to page-locked memory, waited for: the least without a graph
* *bare*: enqueue, with copies from and to NumPy arrays, waited for: what a program that has arrays pays
* *engine*: `TrtEngine.run` as the runtime calls it, from NumPy arrays to NumPy arrays
* *stitched*: the whole model through `tf.saved_model.load`, as TensorFlow calls it
* *infer*: the whole model through `refimpl.load(...).infer`, without TensorFlow
* *infer, on the GPU*: the same, from PyTorch's tensors to such tensors
* *PyTorch*: a peer, torchvision's ResNet-50 (v1.5: a little more work), compiled, in float16, timed as *kernels* are
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import refimpl
from refimpl import bundle
from refimpl.engines import tensorrt
from refimpl.errors import first_line
from tools.figures import measure, photos
from tools.gpu import lent, networks, peers, record
from tools.gpu.bare import Bare
from tools.gpu.record import Check

_CALLS, _ENQUEUES, _REPEATS = 60, 20, 7
_LAYERS = 12  # of the account that are shown
_TARGETS = {("ResNet50", 1): ("kernels, graph", 0.42), ("ResNet50", 64): ("kernels, graph", 64 / 20_000 * 1e3)}
WAYS = (
    "kernels",
    "kernels, graph",
    "bare, locked",
    "bare",
    "engine",
    "stitched",
    "infer",
    "infer, on the GPU",
    "PyTorch",
)
Array = Any


@dataclass(frozen=True)
class Subject:
    """A model whose only input has a batch in front."""

    make: Callable[[Path], Any]
    name: str  # of the input
    shape: tuple[int, ...]  # of one row


SUBJECTS = {
    "ResNet50": Subject(lambda target: photos.network("ResNet50", target), "image", (224, 224, 3)),
    "encoder": Subject(networks.encoder, "x", (networks.POSITIONS, networks.WIDTH)),
}
BATCHES = (1, 64)


@dataclass(frozen=True)
class Row:
    """One model at one batch size: milliseconds by way, and the layers that take most."""

    model: str
    batch: int
    ms: Mapping[str, float]
    first_call_s: float  # of an engine that was just opened: memory, kernels compiled at run time
    counts: Mapping[str, int]  # how the engine ran its calls
    layers: Sequence[tuple[str, float]]
    says: str  # what could not be timed, and why


def median_ms(call: Callable[[], object], calls: int = _CALLS) -> float:
    """Median time of a call, in milliseconds, after three that are not counted."""
    for _ in range(3):
        call()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def timed(name: str, subject: Subject, folder: Path, batch: int) -> Row:
    """Time one converted model at one batch size."""
    manifest = bundle.read(folder, check_files=False)
    value = np.random.default_rng(batch).standard_normal((batch, *subject.shape)).astype(np.float32)
    function = _stitched(folder, subject, value)
    if len(manifest.islands) != 1:
        says = f"{len(manifest.islands)} islands: only the whole was timed"
        return Row(name, batch, {"stitched": median_ms(function)}, 0.0, {}, (), says)
    (file,) = [folder / item.file for item in manifest.islands[0].engines if item.kind == "tensorrt"]
    began = time.perf_counter()
    engine = tensorrt.open(file)
    engine.run([value])
    first = time.perf_counter() - began
    ms = {"engine": median_ms(lambda: engine.run([value])), "stitched": median_ms(function)}
    ms |= _inferred(folder, {subject.name: value})
    counts = engine.counts()
    engine.close()
    try:
        bare = Bare(file, value)
    except refimpl.errors.RunError as error:
        return Row(name, batch, ms, first, counts, (), f"bare: {error.message}")
    ms |= {"bare, locked": median_ms(bare.call), "bare": median_ms(bare.call_arrays)}
    says = ""
    for way, graph in (("kernels", False), ("kernels, graph", True)):
        try:
            ms[way] = bare.kernels_ms(_ENQUEUES, _REPEATS, graph=graph)
        except refimpl.errors.RunError as error:
            says = f"{way}: {error.message}"
    bare.close()
    return Row(name, batch, {way: ms[way] for way in WAYS if way in ms}, first, counts, (), says)


def _inferred(folder: Path, values: Mapping[str, Array]) -> dict[str, float]:
    """The whole model without TensorFlow, on the host and, where PyTorch is, on the GPU."""
    loaded = refimpl.load(folder)
    ms = {"infer": median_ms(lambda: loaded.infer(values))}
    if (torch := lent.pytorch()) is not None:
        tensors = {name: torch.from_numpy(value).cuda() for name, value in values.items()}
        ms["infer, on the GPU"] = median_ms(lambda: loaded.infer(tensors))
    return ms


def account(folder: Path, subject: Subject, row: Row) -> Row:
    """A row with the layers that take most."""
    if not row.counts:
        return row
    manifest = bundle.read(folder, check_files=False)
    (file,) = [folder / item.file for item in manifest.islands[0].engines if item.kind == "tensorrt"]
    value = np.random.default_rng(row.batch).standard_normal((row.batch, *subject.shape)).astype(np.float32)
    engine = tensorrt.open(file)
    layers = sorted(engine.layer_milliseconds([value]), key=lambda item: -item[1])[:_LAYERS]
    engine.close()
    return replace(row, layers=layers)


def _stitched(folder: Path, subject: Subject, value: Array) -> Callable[[], object]:
    """The model as TensorFlow calls it, every output read.

    Raises:
        RuntimeError: TensorRT does not run it.
    """
    import tensorflow as tf

    result = refimpl.load(folder).run({subject.name: value})
    if {run.engine for run in result.islands} != {"tensorrt"}:
        raise RuntimeError(f"TensorRT does not run it: {result.islands}")
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    tensor = tf.constant(value)
    return lambda: [output.numpy() for output in signature(**{subject.name: tensor}).values()]


def checks(rows: Sequence[Row]) -> list[Check]:
    """What the numbers ought to be."""
    found = []
    for row in rows:
        if "bare" in row.ms:
            found += _calls(row)
        if (target := _TARGETS.get((row.model, row.batch))) is not None:
            way, limit = target
            ms = row.ms.get(way)
            what = f"{row.model}, batch {row.batch}, {way}: at most {limit:.2f} ms"
            said = "not timed" if ms is None else f"{ms:.3f} ms, {row.batch / ms * 1e3:.0f} a second"
            found.append(Check(what, said, holds=None if ms is None else ms <= limit))
    return found


_WAYS_OF_CALLING = {"stitched": "the stitched call", "infer": "infer, without TensorFlow,"}
_BARE = {"bare": "from and to arrays", "bare, locked": "from and to page-locked memory that holds them already"}


def _calls(row: Row) -> list[Check]:
    """Whole calls against the least that TensorRT and copies take, for programs that have arrays and for others."""
    found = []
    for way, words in _WAYS_OF_CALLING.items():
        for bare, which in _BARE.items():
            if bare in row.ms:
                ratio = row.ms[way] / row.ms[bare]
                what = f"{row.model}, batch {row.batch}: {words} within 10 % of bare enqueue plus copies {which}"
                found.append(Check(what, f"{ratio:.2f} times", holds=ratio <= 1.1))
    return found


def markdown(data: Mapping[str, Any]) -> str:
    """The record for people."""
    about = (__doc__ or "").split("\n\n", 2)[2].strip()
    lines = ["# Speed on the GPU", "", "Written by `python -m tools.gpu.speed`; do not edit.", "", about, ""]
    lines += [
        record.machine_line(data),
        "",
        f"| model | batch | {' | '.join(WAYS)} | first call |",
        "|---" * (len(WAYS) + 3) + "|",
    ]
    for row in data["rows"]:
        numbers = [f"{row['ms'][way]:.3f} ms" if way in row["ms"] else "-" for way in WAYS]
        lines.append(f"| {row['model']} | {row['batch']} | {' | '.join(numbers)} | {row['first_call_s']:.2f} s |")
    lines += ["", *record.checks_table(data["checks"])]
    for row in data["rows"]:
        lines += [
            "",
            f"## {row['model']}, batch {row['batch']}",
            "",
            f"{row['says']} Calls of the engine: {row['counts']}",
        ]
        if row["layers"]:
            lines += ["", "| layer, as TensorRT profiles it | ms |", "|---|---|"]
            lines += [f"| `{name.replace('|', '/')[:120]}` | {ms:.4f} |" for name, ms in row["layers"]]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, time and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(SUBJECTS), help="models, with commas")
    parser.add_argument("--out", type=Path, default=record.OUT)
    given = parser.parse_args(argv)
    if reason := tensorrt.why_not_here():
        print(f"nothing can be timed: {reason}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    kept: dict[str, tuple[Subject, Path]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.only.split(","):
            subject, model, target = SUBJECTS[name], Path(scratch) / name, Path(scratch) / f"{name}-fp16"
            subject.make(model)
            shapes = tuple((subject.name, (batch, *subject.shape)) for batch in BATCHES)
            kinds = ("onnxruntime", "tensorrt")
            made = measure.convert(
                model, target, None, precision="fp16", engines=kinds, verify=False, profile="optimal", shapes=shapes
            )
            print(f"{name}: converted in {made.seconds:.0f} s", file=sys.stderr, flush=True)
            for batch in BATCHES:
                rows.append(_timed(name, subject, target, batch))
                print(rows[-1], file=sys.stderr, flush=True)
                _write(given.out, rows)  # what there is, should the rest not come to an end
            kept[name] = subject, target
        for index, row in enumerate(rows):  # last: profiling is the way of TensorRT that fewest go
            rows[index] = account(kept[row.model][1], kept[row.model][0], row)
            _write(given.out, rows)
    for index, row in enumerate(rows):
        if row.model == "ResNet50" and (ms := peers.resnet50_ms(row.batch, _ENQUEUES, _REPEATS)) is not None:
            rows[index] = replace(row, ms={**row.ms, "PyTorch": ms})
            _write(given.out, rows)
    return int(any(check.holds is False for check in checks(rows)))


def _timed(name: str, subject: Subject, target: Path, batch: int) -> Row:
    """A row whatever happens: what could not be timed costs that row alone."""
    try:
        return timed(name, subject, target, batch)
    except Exception as error:  # noqa: BLE001  (TensorFlow's, TensorRT's, PyTorch's)
        return Row(name, batch, {}, 0.0, {}, (), f"{type(error).__name__}: {first_line(error)}.")


def _write(folder: Path, rows: Sequence[Row]) -> None:
    data = {
        **record.machine(),
        "rows": [asdict(row) for row in rows],
        "checks": [asdict(check) for check in checks(rows)],
    }
    record.write(folder, "gpu-speed", data, markdown(data))


if __name__ == "__main__":
    sys.exit(main())
