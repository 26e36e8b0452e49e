"""Running on a CPU: the bundle through TensorFlow and through ``infer``, against TensorFlow and bare ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tools.bench import processes
from tools.bench.parts import Pair, Part, Subject, facts_of, made
from tools.bench.samples import Round
from tools.bench.workshop import Workshop

TENSORFLOW, SESSION, GRAPH, INFER = "TensorFlow", "ONNX Runtime", "bundle through TensorFlow", "infer"
MS, MICROSECONDS, RATE = "ms", "µs", "calls/s"
_WAYS = {
    TENSORFLOW: "tf.saved_model.load(MODEL).signatures[...](...)",
    SESSION: "onnxruntime.InferenceSession(ISLAND).run(None, {...})",
    GRAPH: "tf.saved_model.load(BUNDLE).signatures[...](...)",
    INFER: "refimpl.load(BUNDLE).infer(...)",
}


def threaded(way: str, threads: int) -> str:
    """The name of a peer that is called from so many Python threads."""
    return f"{way}, {threads} thread{'s' * (threads > 1)}"


def rounds(subject: Subject, shop: Workshop, count: int) -> Iterator[Round]:
    """All of a subject's peers live in one process (``tools.bench.calls``), which prints a round a line."""
    paths = shop.saved_model(subject.spec), shop.bundle(subject.spec, *subject.options)
    settings = [f"--{name}={value}" for name, value in {**subject.settings, "rounds": count}.items()]
    for line in processes.lines(processes.python("-m", "tools.bench.calls", *paths, *settings)):
        yield Round(**json.loads(line))


def spelled(subject: Subject) -> Mapping[str, str]:
    """What is called, by peer."""
    ways = [threaded(way, 1) for way in (SESSION, INFER)] if subject.settings.get("threads") else list(_WAYS)
    called = {way: _WAYS[way.partition(",")[0]] for way in ways}
    return {**made(subject), **called}


_PAIRS = (
    Pair(TENSORFLOW, GRAPH, only=MS),
    Pair(TENSORFLOW, INFER, only=MS),
    Pair(GRAPH, SESSION, only=MS),
    Pair(INFER, SESSION, only=MS),
    Pair(GRAPH, TENSORFLOW, difference=True, only=MICROSECONDS),
    Pair(INFER, SESSION, difference=True, only=MICROSECONDS),
    Pair(threaded(INFER, 2), threaded(INFER, 1)),
    Pair(threaded(SESSION, 2), threaded(SESSION, 1)),
    Pair(threaded(INFER, 2), threaded(SESSION, 2)),
)
_RELU = Subject("one Relu", "relu", ("--min-segment-size", "1"), {"batch": 1, "overhead": 1})

PART = Part(
    name="inference",
    title="Running on a CPU",
    about=(
        "All peers live in one process and take turns, in another order each round; a number is the mean of the calls "
        "of one turn. Every library has its own default of threads, which is all cores. *ONNX Runtime* is a bare "
        "session over the bundle's own island, NumPy in and NumPy out. *one Relu* computes next to nothing, so that a "
        "difference is what an engine node, or `infer`, costs. The rows of threads call from so many Python threads, "
        "with one core to a call."
    ),
    full=(
        Subject("resnet50, batch 1", "resnet50", (), {"batch": 1}),
        Subject("resnet50, batch 8", "resnet50", (), {"batch": 8}),
        Subject("resnet50, threads", "resnet50", (), {"batch": 1, "threads": 2}),
        _RELU,
    ),
    quick=(
        Subject("dense, batch 2", "dense_stack:width=64,depth=2", (), {"batch": 2}),
        Subject("dense, threads", "dense_stack:width=64,depth=2", (), {"batch": 2, "threads": 2}),
        _RELU,
    ),
    repeats=15,
    rounds=rounds,
    commands=spelled,
    facts=facts_of,
    pairs=_PAIRS,
)
