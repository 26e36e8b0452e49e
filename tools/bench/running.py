"""What running a bundle costs, each figure beside a peer's of the same minute: ``python -m tools.bench.running DIR``.

DIR holds ``resnet50`` and its bundle ``resnet50_bundle``; what is missing is made. Writes JSON to stdout:

* ``overhead``: microseconds per call of an island of one Relu on one element, above TensorFlow's Relu (through the
  graph) and above a bare ONNX Runtime session (through ``infer``);
* ``inference``: milliseconds of ResNet-50 at batch 1 and 8 in TensorFlow, in a bare ONNX Runtime session, and in the
  bundle through the graph and through ``infer``;
* ``loading``: seconds until the first answer, in processes of their own: ``tf.saved_model.load`` of the original plus
  an ONNX Runtime session, against ``refimpl.load`` plus ``infer``; imports apart;
* ``threads``: images per second by how many Python threads call ``infer``, with one core to a call and with all.

Peers take turns, so that a busy machine slows all of them. A ratio is the median of the ratios of every turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Times = dict[str, list[float]]
_SETTLE = 2  # calls before a turn is timed


def take_turns(calls: Mapping[str, Callable[[], Any]], turns: int, repeat: int) -> Times:
    """Seconds per call of each, once per turn."""
    times: Times = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            for _ in range(_SETTLE):
                call()
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            times[name].append((time.perf_counter() - start) / repeat)
    return times


def spread(values: list[float], unit: float = 1.0) -> dict[str, float]:
    """Smallest, median and largest, in ``unit`` seconds."""
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value / unit:.4g}") for name, value in found.items()}


def ratio(times: Times, name: str, peer: str) -> float:
    """Median over the turns of ``name`` to ``peer``."""
    return round(statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True)), 3)


def bare_session(bundle: Path) -> Any:
    """An ONNX Runtime session over the only island of a bundle, as anybody would make it."""
    import onnxruntime as ort

    (file,) = (bundle / "refimpl" / "islands").glob("*.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def overhead(folder: Path, turns: int) -> dict[str, Any]:
    """What an engine node, and ``infer``, add to a call that computes next to nothing."""
    import tensorflow as tf

    import refimpl

    module = tf.Module()
    module.serve = tf.function(
        lambda x: {"y": tf.nn.relu(x)}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    )
    source, target = folder / "tiny", folder / "tiny_bundle"
    if not target.exists():
        tf.saved_model.save(module, str(source), signatures=module.serve)
        refimpl.convert(source, target, refimpl.Recipe(min_segment_size=1))
    original, graph = (tf.saved_model.load(str(path)).signatures["serving_default"] for path in (source, target))
    loaded, session = refimpl.load(target), bare_session(target)
    (name,), x, tensor = (item.name for item in session.get_inputs()), np.ones(1, np.float32), tf.ones(1)
    outputs = [item.name for item in session.get_outputs()]
    times = take_turns({"tensorflow": lambda: original(x=tensor), "graph": lambda: graph(x=tensor)}, turns, 300)
    times |= take_turns(
        {"session": lambda: session.run(outputs, {name: x}), "infer": lambda: loaded.infer(x)}, turns, 2000
    )
    added = {
        "graph - tensorflow": [a - b for a, b in zip(times["graph"], times["tensorflow"], strict=True)],
        "infer - session": [a - b for a, b in zip(times["infer"], times["session"], strict=True)],
    }
    return {name: spread(values, 1e-6) for name, values in (times | added).items()}


def inference(source: Path, target: Path, turns: int) -> dict[str, Any]:
    """ResNet-50 in TensorFlow, in ONNX Runtime and in the bundle."""
    import tensorflow as tf

    import refimpl

    original, graph = (tf.saved_model.load(str(path)).signatures["serving_default"] for path in (source, target))
    loaded, session = refimpl.load(target), bare_session(target)
    (key,), (name,) = (item.name for item in loaded.signature().inputs), (item.name for item in session.get_inputs())
    found: dict[str, Any] = {}
    for batch in (1, 8):
        x = np.random.default_rng(0).random((batch, 224, 224, 3), np.float32)
        tensor = tf.constant(x)
        calls = {
            "tensorflow": lambda tensor=tensor: original(**{key: tensor}),
            "session": lambda x=x: session.run(None, {name: x}),
            "graph": lambda tensor=tensor: graph(**{key: tensor}),
            "infer": lambda x=x: loaded.infer(x),
        }
        times = take_turns(calls, turns, 4 if batch == 1 else 2)
        found[f"batch {batch}"] = {
            **{what: spread(values, 1e-3) for what, values in times.items()},
            "tensorflow / infer": ratio(times, "tensorflow", "infer"),
            "tensorflow / graph": ratio(times, "tensorflow", "graph"),
            "infer / session": ratio(times, "infer", "session"),
            "graph / session": ratio(times, "graph", "session"),
        }
    return found


_PEER = """
import time, sys, numpy as np
from pathlib import Path
import tensorflow as tf, onnxruntime
from tools.bench.running import bare_session
x = np.zeros((1, 224, 224, 3), np.float32)
start = time.perf_counter()
model = tf.saved_model.load({source!r})
session = bare_session(Path({target!r}))
session.run(None, {{session.get_inputs()[0].name: x}})
print(time.perf_counter() - start)
"""
_OURS = """
import time, numpy as np
import refimpl, refimpl.runtime, refimpl.engines.onnxruntime
x = np.zeros((1, 224, 224, 3), np.float32)
start = time.perf_counter()
refimpl.load({target!r}).infer(x)
print(time.perf_counter() - start)
"""


def loading(source: Path, target: Path, turns: int) -> dict[str, Any]:
    """Seconds to the first answer without imports, and of the whole process with them."""
    times: Times = {}
    for _ in range(turns):
        for what, program in (("peer", _PEER), ("refimpl", _OURS)):
            text = program.format(source=str(source), target=str(target))
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
            times.setdefault(f"{what}, process", []).append(time.perf_counter() - start)
            times.setdefault(what, []).append(float(done.stdout))
    return {
        **{what: spread(values) for what, values in times.items()},
        "refimpl / peer": ratio(times, "refimpl", "peer"),
        "refimpl / peer, process": ratio(times, "refimpl, process", "peer, process"),
    }


def threads(target: Path, turns: int, images: int = 24) -> dict[str, Any]:
    """Images per second of ResNet-50 at batch 1 by Python threads."""
    import refimpl

    x = np.zeros((1, 224, 224, 3), np.float32)
    found: dict[str, Any] = {}
    for cores in (0, 1):
        loaded = refimpl.load(target, intra_op_threads=cores)
        for count in (1, 2, 4):
            with ThreadPoolExecutor(count) as pool:
                call = lambda pool=pool, loaded=loaded: list(pool.map(loaded.infer, [x] * images))  # noqa: E731
                (times,) = take_turns({"": call}, turns, 1).values()
            rates = [images / seconds for seconds in times]
            found[f"{count} threads, {'one core' if cores else 'all cores'} to a call"] = spread(rates)
    return found


def main() -> None:
    """Measure all of it and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", action="append", choices=["overhead", "inference", "loading", "threads"])
    given = parser.parse_args()
    from refimpl import env

    env.require_tensorflow()
    source, target = given.folder / "resnet50", given.folder / "resnet50_bundle"
    if not target.exists():
        import refimpl
        from tools.bench.models import resnet50

        if not source.exists():
            resnet50(source)
        refimpl.convert(source, target)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": lambda: overhead(given.folder, given.turns),
        "inference": lambda: inference(source, target, given.turns),
        "loading": lambda: loading(source, target, min(given.turns, 5)),
        "threads": lambda: threads(target, min(given.turns, 5)),
    }
    wanted = given.only or list(parts)
    print(json.dumps({"machine": env.fingerprint(), **{name: parts[name]() for name in wanted}}, indent=1))


if __name__ == "__main__":
    main()
