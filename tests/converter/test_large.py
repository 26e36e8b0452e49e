"""Weights that are too large for a protobuf, at a small scale: the limit is lowered, the way is the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle
from refimpl.converter import drafts, folding
from refimpl.converter.plan import signature_source
from refimpl.converter.source import Source
from refimpl.engines import external, onnxruntime, tensorrt
from refimpl.recipe import Recipe
from tests.converter.small import ALL, assert_agrees, default, write_model
from tests.models_ops import normal

KERNEL, DENSE = (3, 3, 16, 32), (32, 64)  # 18 KB and 8 KB
LIMIT, SMALL = 20_000, 1_000  # bytes


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A convolution, whose kernel ONNX wants transposed, a table that is gathered from, and a product."""
    kernel, dense, table = (tf.Variable(normal(*shape, seed=6, scale=0.2)) for shape in (KERNEL, DENSE, (50, 64)))

    def call(x: Any, ids: Any) -> dict[str, Any]:
        y = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), (1, 2))
        return {"y": tf.tanh(y @ dense) + tf.gather(table, ids)}

    specs = (tf.TensorSpec((None, 8, 8, 16), tf.float32, name="x"), tf.TensorSpec((None,), tf.int32, name="ids"))
    return write_model(tmp_path / "network", call, *specs, holds=[kernel, dense, table])


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "EXTERNAL_BYTES", LIMIT)
    monkeypatch.setattr(external, "SMALL", SMALL)


def inputs() -> dict[str, np.ndarray]:
    return {"x": normal(3, 8, 8, 16, seed=1), "ids": np.array([4, 0, 49], np.int32)}


def stored(folder: Path) -> Path:
    (file,) = (folder / bundle.FOLDER / "islands").glob("*.onnx")
    return file


@pytest.mark.parametrize("drafted", [True, False], ids=["drafted", "by atoms"])
@pytest.mark.parametrize("optimized", [True, False], ids=["optimized", "plain"])
def test_weights_lie_beside_the_model(
    network: Path, tmp_path: Path, low_limit: None, monkeypatch: pytest.MonkeyPatch, drafted: bool, optimized: bool
) -> None:
    if not drafted:
        monkeypatch.setattr(drafts.Inspection, "_draft", lambda self, ops: None)
    if not optimized:
        monkeypatch.setattr(onnxruntime, "optimize", onnxruntime.save_plain)
    manifest = refimpl.convert(network, tmp_path / "bundle", ALL)
    assert default(manifest).share == 1.0
    file = stored(tmp_path / "bundle")
    assert file.stat().st_size < 15_000
    proto = onnx.load(file, load_external_data=False)
    sizes = {
        tuple(item.dims): next(int(entry.value) for entry in item.external_data if entry.key == "length")
        for item in proto.graph.initializer
        if item.external_data
    }
    kernel = (32, 16, 3, 3) if optimized else KERNEL  # stored as ONNX reads it, so that nothing turns it at every start
    assert sizes == {kernel: 4 * 3 * 3 * 16 * 32, DENSE: 4 * 32 * 64, (50, 64): 4 * 50 * 64}
    (run,) = assert_agrees(network, tmp_path / "bundle", inputs())
    assert run.engine == "onnxruntime"


def test_factors_of_products_are_not_shown_to_the_optimizer(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the limit of a protobuf: the kernel is shown, what MatMul and Gather read goes to the file as it is."""
    monkeypatch.setattr(onnxruntime, "FACTOR_BYTES", 20_000)
    monkeypatch.setattr(external, "SMALL", SMALL)
    manifest = refimpl.convert(network, tmp_path / "bundle", ALL)
    file = stored(tmp_path / "bundle")
    proto = onnx.load(file, load_external_data=False)
    places = {tuple(item.dims): bool(item.external_data) for item in proto.graph.initializer if len(item.dims) > 1}
    assert places == {(32, 16, 3, 3): False, DENSE: True, (50, 64): True}
    weights = file.with_name(f"{file.name}{bundle.WEIGHTS_SUFFIX}").read_bytes()
    assert all(normal(*shape, seed=6, scale=0.2).tobytes() in weights for shape in (DENSE, (50, 64)))
    assert default(manifest).share == 1.0
    assert_agrees(network, tmp_path / "bundle", inputs())


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_weights_beside_the_model_in_other_precisions(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """What is rewritten is written whole; what is not brings its file along. Nothing is stored that nothing reads."""
    monkeypatch.setattr(onnxruntime, "FACTOR_BYTES", 20_000)
    monkeypatch.setattr(external, "SMALL", SMALL)
    recipe = dataclasses.replace(ALL, precision="fp32" if precision == "tf32" else precision, tf32=precision == "tf32")
    manifest = refimpl.convert(network, tmp_path / "bundle", recipe)
    assert default(manifest).share == 1.0
    file = stored(tmp_path / "bundle")
    assert ("tf32" in file.name, "half" in file.name) == (precision == "tf32", precision == "fp16")
    assert file.with_name(f"{file.name}{bundle.WEIGHTS_SUFFIX}").exists() == (precision == "tf32")
    (result,) = refimpl.load(tmp_path / "bundle").run(inputs()).islands
    assert (result.engine, result.reason) == ("onnxruntime", "")


def test_a_model_that_is_written_over_leaves_no_weights(network: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    beside = target.with_name(f"{target.name}{bundle.WEIGHTS_SUFFIX}")
    beside.write_bytes(b"of the model before")
    value = onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "m", [], [], [value]))
    onnxruntime.save(model, target)
    assert target.exists()
    assert not beside.exists()


def test_a_moved_bundle_finds_its_weights(network: Path, tmp_path: Path, low_limit: None) -> None:
    refimpl.convert(network, tmp_path / "bundle", ALL)
    (tmp_path / "bundle").rename(tmp_path / "moved")
    assert_agrees(network, tmp_path / "moved", inputs())


@pytest.mark.skipif(not tensorrt.version(), reason="TensorRT is not installed")
def test_tensorrt_builds_from_weights_beside_the_model(network: Path, tmp_path: Path, low_limit: None) -> None:
    recipe = Recipe(min_segment_size=1, engines=("onnxruntime", "tensorrt"))
    manifest = refimpl.convert(network, tmp_path / "bundle", recipe)
    (island,) = manifest.islands
    (engine,) = (tmp_path / "bundle" / item.file for item in island.engines if item.kind == "tensorrt")
    assert engine.stat().st_size > 4 * 3 * 3 * 16 * 32


def test_values_of_a_large_model_are_mapped_not_held(network: Path, low_limit: None) -> None:
    with Source(network) as source:
        _, graph = signature_source(source, "serving_default", frozenset())
    assert {value.shape for value in graph.lowering.weights.values()} == {KERNEL, DENSE, (50, 64)}
    for value in graph.lowering.weights.values():
        assert isinstance(value, np.memmap)
        assert np.array_equal(value, normal(*value.shape, seed=6, scale=0.2))


def test_a_wrong_offset_would_be_seen(network: Path, tmp_path: Path, low_limit: None) -> None:
    """The verification reads the file that ships."""
    original = external._reference

    def shifted(name: str, value: Any, location: str, offset: int) -> onnx.TensorProto:
        return original(name, value, location, max(offset - 4, 0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external, "_reference", shifted)
        manifest = refimpl.convert(network, tmp_path / "bundle", ALL)
    assert default(manifest).share < 1.0


# --- constants, folded by TensorFlow


def lowering_of(target: Path, call: Any, *holds: tf.Variable) -> Any:
    write_model(target, call, tf.TensorSpec((None, 64), tf.float32, name="x"), holds=holds)
    with Source(target) as source:
        return signature_source(source, "serving_default", frozenset())[1].lowering


def test_what_is_computed_from_constants_becomes_one(tmp_path: Path) -> None:
    weight, scale = tf.Variable(normal(64, 64, seed=2)), tf.Variable(np.abs(normal(64, seed=3)) + 0.5)
    lowering = lowering_of(
        tmp_path / "m", lambda x: {"y": (x @ (tf.transpose(weight) * 2.0)) * tf.math.rsqrt(scale + 0.1)}, weight, scale
    )
    large = [value for value in lowering.weights.values() if value.shape == (64, 64)]
    assert any(np.array_equal(value, 2.0 * weight.numpy().T) for value in large)
    small = [tf.make_ndarray(b[-1].attr["value"].tensor) for b in lowering.folded.values() if b[-1].op == "Const"]
    want = tf.math.rsqrt(scale + 0.1).numpy()
    assert any(value.shape == (64,) and np.array_equal(value, want) for value in small)


def test_a_weight_that_is_read_twice_is_stored_once(tmp_path: Path) -> None:
    weight = tf.Variable(normal(64, 64, seed=2))
    lowering = lowering_of(tmp_path / "m", lambda x: {"y": tf.nn.relu(x @ weight) @ weight}, weight)
    assert [value.shape for value in lowering.weights.values()] == [(64, 64)]


def test_a_constant_that_grows_stays_a_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_LARGE", 5_000)
    weight = tf.Variable(normal(64, 64, seed=2))
    lowering = lowering_of(tmp_path / "m", lambda x: {"y": x @ tf.tile(weight, (1, 4))}, weight)
    assert all(value.shape == (64, 64) for value in lowering.weights.values())


def test_the_graph_of_the_model_itself_is_not_folded(tmp_path: Path) -> None:
    """Refusals and TF-TRT's rules look at the ops as the model has them."""
    weight = tf.Variable(normal(64, 64, seed=2))
    lowering = lowering_of(tmp_path / "m", lambda x: {"y": x @ tf.transpose(weight)}, weight)
    (name,) = (node.name for node in lowering.order if node.op == "Transpose")
    assert [node.op for node in lowering.bodies[name]] == ["Transpose"]
    assert [node.op for node in lowering.lowered(name)] == ["Placeholder", "Identity"]
