"""The export of an island with int8 layers: run literally, with its ranges, beside its float32 form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import tensorflow as tf

import refimpl
from refimpl import calibration
from refimpl.recipe import Recipe
from tests.models_ops import save
from tests.test_export import ISLAND, edit, reproduce


def convolutions(image: tf.Tensor) -> dict[str, tf.Tensor]:
    """Wide enough for TensorRT's int8."""
    rng = np.random.default_rng(0)
    first = (rng.normal(size=(3, 3, 8, 32)) * 0.2).astype(np.float32)
    second = (rng.normal(size=(3, 3, 32, 32)) * 0.1).astype(np.float32)
    features = tf.nn.relu(tf.nn.conv2d(image, first, 1, "SAME"))
    return {"y": tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(features, second, 1, "SAME")), [1, 2])}


def quarter_the_ranges(graph: onnx.GraphProto) -> None:
    names = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    for item in graph.initializer:
        if item.name in names:
            item.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(item) * np.float32(0.25), item.name))


def test_an_int8_island(tmp_path: Path) -> None:
    save(tmp_path / "model", convolutions, tf.TensorSpec((None, 16, 16, 8), name="image"))
    values = np.random.default_rng(1).normal(size=(8, 16, 16, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", image=values)
    recipe = Recipe(precision="int8", calibration=str(tmp_path / "samples.npz"))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", recipe)
    made = refimpl.export(tmp_path / "bundle", tmp_path / "out", saved_model=tmp_path / "model")
    int8, float32 = made["islands"][0]["forms"]
    assert (int8["precision"], int8["quantizes"], int8["optimize"]) == ("int8", True, False)
    assert (float32["precision"], float32["optimize"]) == ("fp32", True)
    (table,) = calibration.load(tmp_path / "out" / "calibration.json")
    ranges = json.loads((tmp_path / "out" / ISLAND / "ranges.json").read_text())
    assert sorted(item["threshold"] for item in ranges.values()) == sorted(r.threshold for r in table.ranges.values())
    code, said = reproduce(tmp_path / "out")
    assert code == 0, said
    assert said.count("\nMATCH ") == 2
    edit(tmp_path / "out" / ISLAND / int8["file"], quarter_the_ranges)
    code, said = reproduce(tmp_path / "out")
    assert (code, said.count("\nMISMATCH "), said.count("\nMATCH ")) == (1, 1, 1), "only the one that was spoiled"
