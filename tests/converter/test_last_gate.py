"""The last gate: what is written after an island was verified is verified again, as the bundle will run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf

import refimpl
from refimpl.engines import describing
from refimpl.errors import InternalError
from tests.converter.small import write_model

Change = Callable[[Any], None]
SPEC = tf.TensorSpec([None, 8], tf.float32, name="x")
WEIGHTS = np.random.default_rng(3).standard_normal((8, 4)).astype(np.float32)


def dense(x: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"y": tf.nn.relu(tf.matmul(x, WEIGHTS) + 1.0) * 2.0}


def cannot_be_loaded(model: Any) -> None:
    model.graph.node[0].input[0] = "nowhere"


def is_wrong(model: Any) -> None:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(1), tensor.name))


@pytest.mark.parametrize("change", [cannot_be_loaded, is_wrong])
def test_an_island_that_was_spoiled_after_it_was_verified_does_not_ship(
    change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow would answer for it in every call, rightly, and nobody would learn that no engine runs."""
    describe = describing.describe

    def spoiled(file: Path, *facts: Any) -> None:
        describe(file, *facts)
        model = onnx.load(file)
        change(model)
        onnx.save(model, file)

    model = write_model(tmp_path / "model", dense, SPEC)
    refimpl.convert(model, tmp_path / "sound")
    monkeypatch.setattr(describing, "describe", spoiled)
    with pytest.raises(InternalError, match="no engine runs island TRTEngineOp_000_000 in the finished bundle: "):
        refimpl.convert(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
