"""A cold start: from a fresh process to the first answer, against loading the original and an ONNX Runtime session."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from tools.bench import machine, processes
from tools.bench.parts import Pair, Part, Subject, facts_of, made
from tools.bench.samples import Round, Sample
from tools.bench.workshop import Workshop, read_all

PEER, INFER, GRAPH = "TensorFlow + ONNX Runtime", "infer", "bundle through TensorFlow"
_WAYS = {PEER: "peer", INFER: "infer", GRAPH: "graph"}


def rounds(subject: Subject, shop: Workshop, count: int) -> Iterator[Round]:
    """A process each in turn."""
    model, bundle = shop.saved_model(subject.spec), shop.bundle(subject.spec, *subject.options)
    read_all(model)
    read_all(bundle)
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=shop.folder) as folder:
            answer = Path(folder, "answer.json")
            first = partial(_first_answer, model=model, bundle=bundle, subject=subject, answer=answer)
            yield machine.take_turns({name: partial(first, way) for name, way in _WAYS.items()})


def _words(way: str, model: Path, bundle: Path, subject: Subject, answer: Path) -> list[str]:
    batch = subject.settings.get("batch", 1)
    return processes.python("-m", "tools.bench.first_answer", way, model, bundle, str(batch), answer)


def _first_answer(way: str, model: Path, bundle: Path, subject: Subject, answer: Path) -> Sample:
    taken = processes.run(_words(way, model, bundle, subject, answer))
    told = json.loads(answer.read_text(encoding="utf-8"))
    return {"load s": told["load s"], **taken}


def spelled(subject: Subject) -> Mapping[str, str]:
    """The commands as one types them."""
    paths = Path("MODEL"), Path("BUNDLE"), subject, Path("ANSWER")
    return {**made(subject), **{name: processes.spelled(_words(way, *paths)) for name, way in _WAYS.items()}}


PART = Part(
    name="start",
    title="Cold start",
    about=(
        "Fresh processes; files were read once before. *load s* begins after the imports and ends with the first "
        "answer to a batch of 1; *wall s* is the whole process, imports and exit included. *TensorFlow + ONNX Runtime* "
        "is `tf.saved_model.load` of the original and a session over the bundle's island, which answers. *infer* "
        "compares every file of the bundle with its checksum and the engine with TensorFlow's answers on the way; "
        "*bundle through TensorFlow* is `tf.saved_model.load` of the bundle and a call."
    ),
    full=(Subject("resnet50", "resnet50", (), {"batch": 1}),),
    quick=(Subject("dense", "dense_stack:width=64,depth=2", (), {"batch": 1}),),
    repeats=5,
    rounds=rounds,
    commands=spelled,
    facts=facts_of,
    pairs=(Pair(INFER, PEER), Pair(GRAPH, PEER)),
)
