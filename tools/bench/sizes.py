"""How large a bundle is: against the original's weights and the engines that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tools.bench import machine, workshop
from tools.bench.parts import Pair, Part, Subject, facts_of, made
from tools.bench.samples import Round, Sample
from tools.bench.workshop import Workshop

BUNDLE, PARTS, ORIGINAL, TENSORRT = "bundle", "weights + engines", "original", "weights + TensorRT engines"


def rounds(subject: Subject, shop: Workshop, count: int) -> Iterator[Round]:
    """Every round says the same: one is enough."""
    model, bundle = shop.saved_model(subject.spec), shop.bundle(subject.spec, *subject.options)
    weights = workshop.size(model / "variables")
    islands = bundle / "refimpl" / "islands"
    bytes_of: dict[str, int] = {
        BUNDLE: workshop.size(bundle),
        PARTS: weights + workshop.size(islands, *workshop.ENGINES),
        TENSORRT: weights + workshop.size(islands, "*.engine"),
        ORIGINAL: workshop.size(model),
    }
    for _ in range(count):
        yield machine.take_turns({name: partial(_mib, size) for name, size in bytes_of.items()})


def _mib(size: int) -> Sample:
    return {"MiB": size / (1 << 20)}


def _subject(name: str, spec: str = "") -> Subject:
    return Subject(name, spec or name, ("--engine", "tensorrt"))


PART = Part(
    name="size",
    title="Size of a bundle",
    about=(
        "All files of the bundle, against the variables of the original and the files that its engines are opened "
        "from: TensorRT's and the embedded engine's, which is the island's ONNX with weights of its own. *weights + "
        "TensorRT engines* leaves the embedded engine out. Keras' `export` has written the variables of these three "
        "models twice; a bundle keeps that file as it is."
    ),
    full=(_subject("resnet50"), _subject("bert_base"), _subject("efficientnetb0")),
    quick=(_subject("dense", "dense_stack:width=64,depth=2"),),
    repeats=1,
    rounds=rounds,
    commands=made,
    facts=facts_of,
    pairs=(Pair(BUNDLE, PARTS), Pair(BUNDLE, TENSORRT), Pair(BUNDLE, ORIGINAL)),
)
