"""The engines that run everywhere: building, opening, running, and how each says no."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import helper

import refimpl
from refimpl import engines
from refimpl.engines import BuildOptions, onnxruntime
from refimpl.engines import numpy as numpy_engine
from refimpl.errors import BuildError, BundleError, RunError
from tests.bundles import assert_same, call, files_of, logged
from tests.onnx_models import WANT, WEIGHTS, X, dense, info, make_model, node, relu, rng, saved

OPTIONS = BuildOptions(tf32=False, workspace_bytes=0)


def test_preference_and_protocol():
    assert engines.KINDS == ("tensorrt", "onnxruntime"), "numpy is never chosen unless asked for"
    for name in (*engines.KINDS, "numpy"):
        kind = engines.kind(name)
        assert name == kind.NAME
        for method in ("version", "why_not_here", "build", "open"):
            wanted = inspect.signature(getattr(engines.EngineKind, method)).parameters
            assert list(inspect.signature(getattr(kind, method)).parameters) == list(wanted)[1:], (name, method)


@pytest.mark.parametrize("name", ["onnxruntime", "numpy"])
def test_kinds_that_run_everywhere(name, tmp_path):
    kind = engines.kind(name)
    assert kind.why_not_here() == ""
    assert kind.version()
    target = tmp_path / f"built{kind.SUFFIX}"
    kind.build(saved(tmp_path, dense(weights_are_inputs=False)), target, (), OPTIONS)
    (y,) = kind.open(target).run([X])
    assert y.flags.c_contiguous
    np.testing.assert_allclose(y, WANT, rtol=1e-5, atol=1e-5)
    assert kind.open(target).run([X[:0]])[0].shape == (600, 0)


@pytest.mark.parametrize("kind", [onnxruntime, numpy_engine])
def test_errors_are_mapped(kind, tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"\x08\x09 this is no model")
    with pytest.raises(RunError, match=r"cannot load garbage.onnx"):
        kind.open(tmp_path / "garbage.onnx")
    with pytest.raises(RunError, match=r"cannot load missing.onnx"):
        kind.open(tmp_path / "missing.onnx")
    engine = kind.open(saved(tmp_path, dense(weights_are_inputs=False)))
    with pytest.raises(RunError, match="failed"):
        engine.run([X[:, :5]])
    with pytest.raises(RunError, match="failed"):
        engine.run([X, X])
    np.testing.assert_allclose(engine.run([X])[0], WANT, rtol=1e-5, atol=1e-5, err_msg="still usable after errors")


def test_onnxruntime_refuses_a_wrong_dtype(tmp_path):
    with pytest.raises(RunError, match=r"ONNX Runtime failed: .*double"):
        onnxruntime.open(relu(tmp_path)).run([np.ones((2, 3))])


# onnxruntime


def test_building_garbage_is_a_build_error(tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"\x08\x09 this is no model")
    with pytest.raises(BuildError, match=r"cannot load garbage.onnx"):
        onnxruntime.build(tmp_path / "garbage.onnx", tmp_path / "t.onnx", (), OPTIONS)
    assert not (tmp_path / "t.onnx").exists()


@pytest.mark.parametrize("limit", [onnxruntime.EXTERNAL_BYTES, 1000], ids=["inside", "external"])
@pytest.mark.parametrize("save", [onnxruntime.optimize, onnxruntime.save_plain])
def test_saving_puts_the_weights_back(save, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "EXTERNAL_BYTES", limit)
    target = tmp_path / "island.onnx"
    save(dense(), WEIGHTS, target)
    outside = tmp_path / "island.onnx.data"
    assert outside.exists() == (limit == 1000)
    assert (target.stat().st_size < 4 * WEIGHTS["w"].size) == outside.exists()
    assert [item.name for item in onnx.load(target, load_external_data=False).graph.input] == ["x"]
    for kind in (onnxruntime, numpy_engine):
        np.testing.assert_allclose(kind.open(target).run([X])[0], WANT, rtol=1e-5, atol=1e-5)


def test_optimize_cancels_transposes_in_standard_ops(tmp_path):
    onnxruntime.optimize(dense(), WEIGHTS, tmp_path / "clean.onnx")
    onnxruntime.save_plain(dense(), WEIGHTS, tmp_path / "m.plain.onnx")
    clean, plain = onnx.load(tmp_path / "clean.onnx"), onnx.load(tmp_path / "m.plain.onnx")
    assert [item.op_type for item in plain.graph.node].count("Transpose") == 3
    assert [item.op_type for item in clean.graph.node].count("Transpose") == 1
    assert {item.domain for item in clean.graph.node} <= {"", "ai.onnx"}
    onnx.checker.check_model(clean)


def test_optimize_leaves_the_callers_weights_alone(tmp_path):
    before = {name: value.copy() for name, value in WEIGHTS.items()}
    onnxruntime.optimize(dense(), WEIGHTS, tmp_path / "clean.onnx")
    for name, value in before.items():
        np.testing.assert_array_equal(WEIGHTS[name], value)


def test_weights_can_move_to_a_file_of_another_name(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "EXTERNAL_BYTES", 1000)
    onnxruntime.optimize(dense(), WEIGHTS, tmp_path / "1.onnx")
    onnxruntime.move_weights(tmp_path / "1.onnx", "final.onnx.data")
    (tmp_path / "1.onnx.data").rename(tmp_path / "final.onnx.data")
    (tmp_path / "1.onnx").rename(tmp_path / "final.onnx")
    np.testing.assert_allclose(onnxruntime.open(tmp_path / "final.onnx").run([X])[0], WANT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("save", [onnxruntime.optimize, onnxruntime.save_plain])
def test_weights_of_every_dtype(save, tmp_path):
    given = {
        "f": np.float32([1.5, -2]),
        "h": np.float16([1.5, -2]),
        "i": np.int64([3, -4]),
        "u": np.uint8([3, 4]),
        "t": np.array([True, False]),
        "s": np.array(2.5, np.float32),
        "e": np.zeros((0, 2), np.float32),
    }
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in given.items()}
    nodes = [node("Identity", name, f"{name}_out") for name in given]
    model = make_model(
        nodes,
        [info(name, value.shape, kinds[name]) for name, value in given.items()],
        [info(f"{name}_out", value.shape, kinds[name]) for name, value in given.items()],
    )
    save(model, given, tmp_path / "m.onnx")
    for got, want in zip(onnxruntime.open(tmp_path / "m.onnx").run([]), given.values(), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_optimize_refuses_what_it_cannot_read(tmp_path):
    model = make_model([node("Levitate", "x", "y")], [info("x", (3,))], [info("y", (3,))])
    with pytest.raises(BuildError, match=r"ONNX Runtime refuses the island: .*Levitate"):
        onnxruntime.optimize(model, {}, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_plain_files_are_opened_without_optimizations(tmp_path, monkeypatch):
    levels = []
    real = onnxruntime.ort.InferenceSession
    monkeypatch.setattr(
        onnxruntime.ort,
        "InferenceSession",
        lambda path, options, **more: levels.append(options.graph_optimization_level) or real(path, options, **more),
    )
    model = dense(weights_are_inputs=False)
    for name in ("m.onnx", "m.plain.onnx"):
        onnxruntime.open(saved(tmp_path, model, name))
    level = onnxruntime.ort.GraphOptimizationLevel
    assert levels == [level.ORT_ENABLE_ALL, level.ORT_DISABLE_ALL]


def two_towers(target: Path) -> None:
    """Two signatures, each with weights of its own."""
    module = tf.Module()
    module.a, module.b = (tf.Variable(rng.standard_normal((40, 60)).astype(np.float32)) for _ in "ab")

    def tower(weight):
        call = tf.function(lambda x: {"y": tf.nn.relu(tf.tanh(x @ weight) + 0.1)})
        return call.get_concrete_function(tf.TensorSpec((None, 40), tf.float32, name="x"))

    module.f, module.g = tower(module.a), tower(module.b)
    tf.saved_model.save(module, str(target), signatures={"f": module.f, "g": module.g})


def test_large_weights_of_two_signatures_do_not_share_a_file(tmp_path, monkeypatch):
    """Weights outside the protobuf, in an island of either signature; each finds its own again."""
    monkeypatch.setattr(onnxruntime, "EXTERNAL_BYTES", 1000)
    source, target = tmp_path / "m", tmp_path / "b"
    two_towers(source)
    refimpl.convert(source, target, refimpl.Recipe(signatures=("*",)))
    stored = [name for name in files_of(target) if name.endswith(".data")]
    assert len(stored) == 2
    assert all(name.removesuffix(".data") in files_of(target) for name in stored)
    loaded, original = refimpl.load(target), tf.saved_model.load(str(source))
    x = rng.standard_normal((3, 40)).astype(np.float32)
    for key in "fg":
        result = loaded.run({"x": x}, key)
        assert {(run.engine, run.reason) for run in result.islands} == {("onnxruntime", "")}
        assert_same(result.outputs, call(original, {"x": x}, key))

    damaged = tmp_path / "damaged"
    shutil.copytree(target, damaged)
    data = bytearray((damaged / stored[0]).read_bytes())
    data[100] ^= 1
    (damaged / stored[0]).write_bytes(data)
    with pytest.raises(BundleError, match=stored[0]):
        refimpl.load(damaged)
    plain = tf.saved_model.load(str(damaged))
    with logged() as lines:
        for key in "fg":
            assert_same(call(plain, {"x": x}, key), call(original, {"x": x}, key))
    assert len(lines) == 1
    assert "checksum mismatch" in lines[0]
