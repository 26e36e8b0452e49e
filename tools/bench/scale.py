"""What a conversion costs as models grow: in ops, weights, islands; against what TensorFlow takes to load them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tools.bench import machine, processes, workshop
from tools.bench.conversion import TF2ONNX, tf2onnx
from tools.bench.parts import Pair, Part, Subject, model_of
from tools.bench.processes import python
from tools.bench.samples import Round, Sample
from tools.bench.workshop import Workshop, convert, read_all

OURS, LOADED = "refimpl", "TensorFlow loads it"
AXES = {"ops": "ops", "weights": "weights MiB", "islands": "islands"}  # by the first word of a subject's name
_TENSORRT = ("--engine", "tensorrt")
_LOAD = "import sys, tensorflow as tf; tf.saved_model.load(sys.argv[1])"


def rounds(subject: Subject, shop: Workshop, count: int) -> Iterator[Round]:
    """One process each in turn. What the bundle tells of itself is noted beside what it took."""
    model = shop.saved_model(subject.spec)
    read_all(model)
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=shop.folder) as folder:
            yield machine.take_turns(_peers(subject, model, Path(folder)))


def _peers(subject: Subject, model: Path, folder: Path) -> dict[str, Callable[[], Sample]]:
    found: dict[str, Callable[[], Sample]] = {
        LOADED: lambda: processes.run(python("-c", _LOAD, model)),
        OURS: lambda: _converted(subject, model, folder / "bundle"),
    }
    if subject.settings.get("tf2onnx"):
        found[TF2ONNX] = lambda: processes.run(tf2onnx(model, folder / "tf2onnx.onnx"))
    return found


def _converted(subject: Subject, model: Path, bundle: Path) -> Sample:
    taken = processes.run(convert(model, bundle, *subject.options))
    return {**taken, **workshop.facts(model, bundle)}


def spelled(subject: Subject) -> Mapping[str, str]:
    """The commands as one types them."""
    model = Path("MODEL")
    found = {LOADED: python("-c", _LOAD, model), OURS: convert(model, Path("BUNDLE"), *subject.options)}
    if subject.settings.get("tf2onnx"):
        found[TF2ONNX] = tf2onnx(model, Path("tf2onnx.onnx"))
    return model_of(subject) | {name: processes.spelled(words) for name, words in found.items()}


def _ops(count: int, blocks: int, peer: bool = False) -> Subject:
    spec = f"dilated_resnets:count={count},blocks={blocks}"
    return Subject(f"ops: {count} x {blocks} blocks", spec, (), {"tf2onnx": int(peer)})


def _weights(width: int, depth: int) -> Subject:
    return Subject(f"weights: {depth} x {width} x {width}", f"dense_stack:width={width},depth={depth}")


def _islands(count: int) -> Subject:
    return Subject(f"islands: {count}", f"many_islands:count={count}", _TENSORRT)


HEAVIEST = _weights(8192, 8)
TABLE = Subject("large table", "large_embedding")
STACK = Subject("large stack, TensorRT engine", HEAVIEST.spec, _TENSORRT)

PART = Part(
    name="scale",
    title="Cost against size",
    about=(
        "Whole processes: `refimpl convert`, and beside it a process that only loads the model with "
        "`tf.saved_model.load`; for models of up to some 3,000 ops `tf2onnx.convert`, too. *ops*: dilated 1-D ResNets "
        "side by side; *weights*: a stack of Dense layers; both with the embedded engine. *islands*: each with a "
        "TensorRT engine, and ops on strings in between. *large table*: an embedding of 2.5 GB; *large "
        "stack*: the largest of *weights* again, with a TensorRT engine."
    ),
    full=(
        *(_ops(1, 20, peer=True), _ops(1, 100, peer=True), _ops(3, 100, peer=True), _ops(4, 150), _ops(5, 240)),
        *(_weights(64, 2), *(_weights(8192, depth) for depth in (1, 2, 4)), HEAVIEST),
        *(TABLE, STACK),
        *(_islands(count) for count in (1, 10, 50, 100, 200)),
    ),
    quick=(_islands(1), _islands(2), _islands(4)),
    repeats=1,
    rounds=rounds,
    commands=spelled,
    pairs=(Pair(OURS, LOADED), Pair(OURS, TF2ONNX)),
)
