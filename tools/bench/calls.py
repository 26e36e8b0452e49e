"""The process in which peers of ``tools.bench.inference`` live and take turns: prints one round a line, as JSON.

``python -m tools.bench.calls MODEL BUNDLE --batch 8 --rounds 15``; one island is the bundle's whole signature.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.inference import GRAPH, INFER, MICROSECONDS, MS, RATE, SESSION, TENSORFLOW, threaded
from tools.bench.machine import Meter
from tools.bench.samples import Round

Call = Callable[[], object]
_TURN = 0.25  # seconds that the calls of one turn take, about
_MOST = 2000  # calls of a turn
_PAUSE = 0.05  # seconds: threads of the peer before, which spin for a while after a call, are at rest then
_SETTLE = 2  # calls before a turn is timed
_TOGETHER = 16  # calls that threads share


def turns(calls: Mapping[str, Call], count: int, unit: str, scale: Callable[[float], float]) -> Iterator[Round]:
    """Time every peer once a round, in another order each round.

    Args:
        calls: the peers.
        count: how many rounds.
        unit: the quantity's name.
        scale: from seconds a call to that quantity.
    """
    repeats = {name: repeats_of(call) for name, call in calls.items()}
    names = list(calls)
    for number in range(count):
        meter, samples = Meter(), {}
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            samples[name] = {unit: scale(_timed(calls[name], repeats[name]))}
        yield Round({name: samples[name] for name in names}, *meter.read())


def repeats_of(call: Call, wanted: float = _TURN) -> int:
    """How many calls take about so many seconds: two at least."""
    call()
    began = time.perf_counter()
    call()
    return min(_MOST, max(2, math.ceil(wanted / max(time.perf_counter() - began, 1e-7))))


def _timed(call: Call, repeat: int) -> float:
    time.sleep(_PAUSE)
    for _ in range(_SETTLE):
        call()
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def bare_session(bundle: Path, threads: int = 0) -> Any:
    """An ONNX Runtime session over the only island of a bundle, as anybody would make it.

    Raises:
        ValueError: the bundle has not exactly one island.
    """
    import onnxruntime as ort

    (file,) = (bundle / "refimpl" / "islands").glob("*.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def session_call(session: Any, value: Any) -> Call:
    """The call of a bare session, NumPy to NumPy."""
    outputs, (name,) = [item.name for item in session.get_outputs()], [item.name for item in session.get_inputs()]
    feeds = {name: value}
    return lambda: session.run(outputs, feeds)


def value_for(bundle: Path, batch: int) -> Any:
    """Values for the only input of a bundle: uniform in [0, 1), ``batch`` wherever a dimension is open."""
    import refimpl

    (spec,) = refimpl.load(bundle).signature().inputs
    shape = tuple(batch if size is None else size for size in spec.shape or ())
    return np.random.default_rng(0).random(shape).astype(spec.numpy_dtype())


def peers(model: Path, bundle: Path, value: Any) -> dict[str, Call]:
    """The four ways to the same answer. Outputs of TensorFlow's functions are ready when they return, on a CPU."""
    import tensorflow as tf

    import refimpl

    loaded = refimpl.load(bundle)
    (key,) = (spec.name for spec in loaded.signature().inputs)
    original, graph = (tf.saved_model.load(str(path)).signatures["serving_default"] for path in (model, bundle))
    given = {key: tf.constant(value)}
    return {
        TENSORFLOW: lambda: original(**given),
        SESSION: session_call(bare_session(bundle), value),
        GRAPH: lambda: graph(**given),
        INFER: lambda: loaded.infer(value),
    }


def in_threads(call: Call, threads: int, calls: int) -> Call:
    """So many calls, shared by so many Python threads."""
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda _: call(), range(calls)))


def threaded_peers(bundle: Path, value: Any, most: int, calls: int) -> dict[str, Call]:
    """``infer`` and a bare session from 1 to ``most`` threads, with one core to a call."""
    import refimpl

    loaded = refimpl.load(bundle, intra_op_threads=1)
    ways = {SESSION: session_call(bare_session(bundle, threads=1), value), INFER: lambda: loaded.infer(value)}
    counts = range(1, most + 1)
    return {threaded(way, count): in_threads(call, count, calls) for count in counts for way, call in ways.items()}


def in_engine(bundle: Path, value: Any) -> None:
    """See to it that the bundle's island answers, and not TensorFlow behind it.

    Raises:
        ValueError: TensorFlow does.
    """
    import refimpl

    loaded = refimpl.load(bundle)
    (spec,) = loaded.signature().inputs
    found = [(item.island, item.engine) for item in loaded.run({spec.name: value}).islands]
    if [engine for _, engine in found] != ["onnxruntime"]:
        raise ValueError(f"{bundle.name} is to be one island in ONNX Runtime: {found}")


def same_answers(calls: Mapping[str, Call]) -> None:
    """A peer that computes something else is no peer.

    Raises:
        ValueError: two of the peers do not agree, about.
    """
    answers = {name: np.concatenate([np.ravel(item) for item in _arrays(call())]) for name, call in calls.items()}
    (first, want), *rest = answers.items()
    for name, got in rest:
        if got.shape != want.shape or not np.allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max()):
            raise ValueError(f"{name} does not answer what {first} does")


def _arrays(answer: Any) -> list[Any]:
    values = answer.values() if isinstance(answer, Mapping) else answer
    return [np.asarray(value) for value in values]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="measure calls from 1 to so many Python threads instead")
    parser.add_argument("--overhead", type=int, default=0, help="1: in microseconds")
    given = parser.parse_args()
    from refimpl import env

    env.require_tensorflow()
    value = value_for(given.bundle, given.batch)
    in_engine(given.bundle, value)
    if given.threads:
        found = threaded_peers(given.bundle, value, given.threads, _TOGETHER)
        measured = turns(found, given.rounds, RATE, lambda seconds: _TOGETHER / seconds)
    else:
        found = peers(given.model, given.bundle, value)
        same_answers(found)
        unit, scale = (MICROSECONDS, 1e6) if given.overhead else (MS, 1e3)
        measured = turns(found, given.rounds, unit, lambda seconds: scale * seconds)
    for item in measured:
        print(json.dumps(asdict(item)), flush=True)


if __name__ == "__main__":
    main()
