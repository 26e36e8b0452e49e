"""Converting, in whole processes: against tf2onnx alone, and against tf2onnx and then an engine through Polygraphy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from tools.bench import machine, processes
from tools.bench.parts import Pair, Part, Subject, model_of
from tools.bench.processes import python
from tools.bench.samples import Round, Sample
from tools.bench.workshop import Workshop, convert, read_all

TF2ONNX, ENGINE, BOTH, OURS = "tf2onnx", "engine through Polygraphy", "tf2onnx + engine", "refimpl"
OPSET = "18"
# Without an engine of a peer: for the exact GELU tf2onnx writes Erfc, which is no op of ONNX and which no parser takes.
NO_ENGINE = ("bert_base",)


def tf2onnx(model: Path, target: Path) -> list[str]:
    """The command: its defaults, but for an opset that is not old."""
    return python("-m", "tf2onnx.convert", "--saved-model", model, "--output", target, "--opset", OPSET)


def commands(model: Path, folder: Path, subject: Subject) -> dict[str, list[str]]:
    """What is run, in this order; the second reads what the first has written."""
    onnx = folder / "tf2onnx.onnx"
    found = {
        TF2ONNX: tf2onnx(model, onnx),
        ENGINE: python("-m", "tools.bench.peer_engine", onnx, folder / "peer.engine"),
        OURS: convert(model, folder / "bundle", *subject.options),
    }
    return {name: words for name, words in found.items() if name != ENGINE or subject.spec not in NO_ENGINE}


def one_after_the_other(first: Sample, second: Sample) -> Sample:
    """Two processes: times add up, and the peak is the higher one."""
    return {
        name: max(value, second[name]) if name.startswith("peak") else value + second[name]
        for name, value in first.items()
    }


def rounds(subject: Subject, shop: Workshop, count: int) -> Iterator[Round]:
    """One conversion each in turn; nothing is kept."""
    model = shop.saved_model(subject.spec)
    read_all(model)
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=shop.folder) as folder:
            wanted = commands(model, Path(folder), subject)
            found = machine.take_turns({name: partial(processes.run, words) for name, words in wanted.items()})
        samples = dict(found.samples)
        if ENGINE in samples:
            samples[BOTH] = one_after_the_other(samples[TF2ONNX], samples[ENGINE])
        yield Round(samples, found.beside, found.seconds)


def spelled(subject: Subject) -> Mapping[str, str]:
    """The commands as one types them."""
    wanted = commands(Path("MODEL"), Path(), subject)
    return model_of(subject) | {name: processes.spelled(words) for name, words in wanted.items()}


def _subject(name: str, spec: str = "") -> Subject:
    return Subject(name, spec or name, ("--engine", "tensorrt"))


PART = Part(
    name="conversion",
    title="Conversion",
    about=(
        "Whole processes, from start to exit. *refimpl* loads, lowers, judges, partitions, verifies, builds an engine "
        "with TensorRT for RTX, saves, loads the bundle and compares it again. *tf2onnx* only lowers; *tf2onnx + "
        "engine* also builds an engine of what came out, through Polygraphy, with batches of 1 to 8, and compares "
        "nothing; where TensorRT does not take what tf2onnx writes, there is none. "
        "Peaks are of resident memory; of two processes, the higher."
    ),
    full=(_subject("resnet50"), _subject("bert_base"), _subject("efficientnetb0")),
    quick=(_subject("dense", "dense_stack:width=64,depth=2"),),
    repeats=5,
    rounds=rounds,
    commands=spelled,
    pairs=(Pair(OURS, TF2ONNX), Pair(OURS, BOTH)),
)
