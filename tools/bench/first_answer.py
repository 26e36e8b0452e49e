"""One cold start, in a process of its own: ``python -m tools.bench.first_answer WAY MODEL BUNDLE BATCH ANSWER``.

WAY is ``peer`` (TensorFlow loads the original, ONNX Runtime opens the island and answers), ``infer`` or ``graph`` (the
bundle). What each imports, it imports before the clock starts. Writes the seconds to ANSWER, as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.bundle import MANIFEST

_IMPORTS = {
    "peer": ("tensorflow", "onnxruntime"),
    "infer": ("refimpl", "refimpl.runtime", "refimpl.engines.onnxruntime"),
    "graph": ("tensorflow", "refimpl", "refimpl.runtime", "refimpl.engines.onnxruntime"),
}


def given_value(bundle: Path, batch: int) -> tuple[str, Any]:
    """Name of the only input, and zeros for it, as the manifest has it: reading it costs no import."""
    signatures = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))["signatures"]
    (signature,) = [item["signature"] for item in signatures if item["converted"]]
    (spec,) = signature["inputs"]
    shape = [batch if size is None else size for size in spec["shape"]]
    return spec["name"], np.zeros(shape, spec["dtype"])


def peer(model: Path, bundle: Path, name: str, value: Any) -> object:
    """The original in TensorFlow, then a session that answers."""
    import onnxruntime as ort
    import tensorflow as tf

    kept = tf.saved_model.load(str(model))
    (file,) = (bundle / "refimpl" / "islands").glob("*.onnx")
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (spec,) = session.get_inputs()
    return kept, name, session.run(None, {spec.name: value})


def infer(model: Path, bundle: Path, name: str, value: Any) -> object:
    """The bundle without TensorFlow."""
    import refimpl

    return model, name, refimpl.load(bundle).infer(value)


def graph(model: Path, bundle: Path, name: str, value: Any) -> object:
    """The bundle as any SavedModel."""
    import tensorflow as tf

    return model, tf.saved_model.load(str(bundle)).signatures["serving_default"](**{name: tf.constant(value)})


WAYS: dict[str, Callable[[Path, Path, str, Any], object]] = {"peer": peer, "infer": infer, "graph": graph}


def main(way: str, model: Path, bundle: Path, batch: int, answer: Path) -> None:
    """Import, start the clock, answer, and write what it took."""
    name, value = given_value(bundle, batch)
    for module in _IMPORTS[way]:
        importlib.import_module(module)
    began = time.perf_counter()
    kept = WAYS[way](model, bundle, name, value)
    seconds = time.perf_counter() - began
    answer.write_text(json.dumps({"load s": seconds}), encoding="utf-8")
    if way == "infer" and "tensorflow" in sys.modules:
        raise AssertionError(f"infer went through TensorFlow: {type(kept)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
