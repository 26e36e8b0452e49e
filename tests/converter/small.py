"""Small SavedModels of the tests of the converter, and the questions that they ask of a bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import refimpl
from refimpl.bundle import IDLE_OPS, Manifest, SignatureRecord
from refimpl.oracle.compare import compare
from refimpl.oracle.runners import SavedModelRunner
from refimpl.runtime import IslandRun
from refimpl.tolerance import tolerance_for
from tests.models_ops import save

ALL = refimpl.Recipe(min_segment_size=1)  # even single ops
Arrays = Mapping[str, np.ndarray]


def write_model(target: Path, call: Callable[..., Any], *specs: tf.TensorSpec, holds: Any = ()) -> Path:
    save(target, call, *specs, holds=holds)
    return target


def default(manifest: Manifest) -> SignatureRecord:
    return next(record for record in manifest.signatures if record.signature.key == "serving_default")


def converted_types(record: SignatureRecord) -> Counter[str]:
    """How often each type is in an island; those that compute nothing do not count."""
    return Counter(kind for island in record.islands for _, kind in island.ops if kind not in IDLE_OPS)


def left_types(record: SignatureRecord) -> dict[str, str]:
    """Type -> reason of every op that stays."""
    return {op.type: op.reason for op in record.left}


def answers(model: Path, inputs: Arrays, key: str = "serving_default") -> dict[str, np.ndarray]:
    """TensorFlow's own."""
    with closing(SavedModelRunner(model)) as runner:
        return runner.run(inputs, key)


def assert_agrees(model: Path, bundle: Path, inputs: Arrays, key: str = "serving_default") -> tuple[IslandRun, ...]:
    """The bundle gives TensorFlow's answers on these inputs; what ran its islands."""
    loaded = refimpl.load(bundle)
    ran = loaded.run(inputs, key)
    precision = loaded.manifest.precision
    comparison = compare(answers(model, inputs, key), ran.outputs, lambda dtype: tolerance_for(precision, dtype))
    assert comparison.ok, comparison.reason
    assert comparison.compared
    return ran.islands
