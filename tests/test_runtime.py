"""Which engine of a bundle is picked, when TensorFlow runs instead, what is counted and what is said."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper

import refimpl
from refimpl import bundle, runtime
from refimpl.engines import onnxruntime, tensorrt
from refimpl.errors import RunError, UnsupportedError
from refimpl.recipe import Recipe
from tests.bundles import (
    answers,
    assert_same,
    call,
    command,
    copy_of,
    counts_of,
    engines_of,
    feeds_of,
    logged,
    reseal,
)
from tests.models import saved_model

NAME = "odd_ops"
ALL = Recipe(signatures=("*",))
ISLANDS = ("TRTEngineOp_000_000", "TRTEngineOp_000_001")
FEEDS = feeds_of(NAME)
ON_ORT = {("onnxruntime", "")}

needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


# Which engine.


@pytest.fixture(scope="module")
def with_tensorrt(tmp_path_factory) -> Path:
    """A bundle that stores TensorRT engines, built ahead of time on a machine without a GPU."""
    target = tmp_path_factory.mktemp("b") / "b"
    refimpl.convert(saved_model(NAME), target, Recipe(engines=("tensorrt",)))  # the embedded one is always there
    return target


@needs_tensorrt
def test_tensorrt_is_stored_and_onnxruntime_runs_without_a_gpu(with_tensorrt, tmp_path):
    if not tensorrt.why_not_here():
        pytest.skip("TensorRT can execute on this machine")
    folder = Path(shutil.copytree(with_tensorrt, tmp_path / "b"))
    manifest = bundle.read(folder)
    assert [[engine.kind for engine in island.engines] for island in manifest.islands] == [
        ["onnxruntime", "tensorrt"]
    ] * 2
    for island in manifest.islands:
        stored = island.engines[1]
        assert (folder / stored.file).stat().st_size > 1000
        assert stored.version == tensorrt.version()
        assert stored.profiles, "its batch is open"
    with logged(logging.INFO) as lines:
        loaded = refimpl.load(folder)
        result = loaded.run(FEEDS)
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert [(run.island, run.engine, run.reason) for run in result.islands] == [
        (name, "onnxruntime", "") for name in ISLANDS
    ]
    for name in ISLANDS:
        assert f"island {name} runs on onnxruntime; tensorrt: {tensorrt.why_not_here()}" in lines
    with logged() as warnings:
        refimpl.load(folder).run(FEEDS)
    assert warnings == [], "no GPU is no fault"


@needs_tensorrt
def test_the_command_line_says_what_was_picked(with_tensorrt):
    done = command("-v", "run", with_tensorrt, "--inputs", "random")
    assert done.returncode == 0, done.stderr
    assert f"INFO island {ISLANDS[0]} runs on onnxruntime" in done.stderr
    assert "2 islands ran on onnxruntime" in done.stdout
    quiet = command("run", with_tensorrt, "--inputs", "random")
    assert "INFO" not in quiet.stderr


@needs_tensorrt
def test_only_tensorrt_allowed_but_no_gpu(with_tensorrt, tmp_path):
    if not tensorrt.why_not_here():
        pytest.skip("TensorRT can execute on this machine")
    folder = Path(shutil.copytree(with_tensorrt, tmp_path / "b"))
    loaded = refimpl.load(folder, engines=["tensorrt"])
    with logged() as lines:
        result = loaded.run(FEEDS)
        loaded.run(FEEDS)
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert {run.engine for run in result.islands} == {"native"}
    assert all("no usable NVIDIA GPU" in run.reason for run in result.islands)
    assert len(lines) == 2, "one warning per island"


def test_numpy_agrees_and_is_only_used_when_asked_for(tmp_path):
    folder = copy_of(NAME, tmp_path)
    loaded = refimpl.load(folder, engines=["numpy"])
    result = loaded.run(FEEDS)
    assert {run.engine for run in result.islands} == {"numpy"}
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert engines_of(refimpl.load(folder), FEEDS) == ON_ORT


def test_the_order_of_engines_is_the_users(tmp_path):
    folder = copy_of(NAME, tmp_path)
    assert engines_of(refimpl.load(folder, engines=["numpy", "onnxruntime"]), FEEDS) == {("numpy", "")}
    assert engines_of(refimpl.load(folder, engines=["onnxruntime", "numpy"]), FEEDS) == ON_ORT
    assert engines_of(refimpl.load(folder, engines=()), FEEDS) == ON_ORT
    with pytest.raises(UnsupportedError, match="engine 'cuda' is not known"):
        refimpl.load(folder, engines=["cuda"])


# An engine that is wrong, or fails.


def spoil(file: Path, scale: float = 1.5) -> None:
    """Multiply a stored weight."""
    model = onnx.load(file)
    found = [item for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT and list(item.dims)]
    weight = max(found, key=lambda item: np.prod(item.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(scale), weight.name))
    onnx.save(model, file)


def test_an_engine_that_disagrees_with_the_probe_is_never_used(tmp_path):
    folder = copy_of(NAME, tmp_path)
    spoil(folder / f"refimpl/islands/{ISLANDS[1]}.onnx")
    reseal(folder)
    loaded = refimpl.load(folder)
    with logged() as lines:
        for _ in range(3):
            result = loaded.run(FEEDS)
            assert_same(result.outputs, answers(NAME, FEEDS))
    by_island = {run.island: run for run in result.islands}
    assert by_island[ISLANDS[0]].engine == "onnxruntime"
    assert by_island[ISLANDS[1]].engine == "native"
    assert "onnxruntime: its engine disagrees with TensorFlow on this machine: max |Δ|" in by_island[ISLANDS[1]].reason
    assert len(lines) == 1
    assert ISLANDS[1] in lines[0]
    assert loaded.counts()[by_island[ISLANDS[1]]] == 3


def test_the_next_kind_takes_over_from_an_engine_that_disagrees(tmp_path, monkeypatch):
    folder = copy_of(NAME, tmp_path)
    real = onnxruntime.OrtEngine.run
    monkeypatch.setattr(onnxruntime.OrtEngine, "run", lambda self, inputs: [item + 1 for item in real(self, inputs)])
    loaded = refimpl.load(folder, engines=["onnxruntime", "numpy"])
    with logged() as lines:
        for _ in range(2):
            result = loaded.run(FEEDS)
    assert {(run.engine, run.reason) for run in result.islands} == {("numpy", "")}
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert len(lines) == len(ISLANDS)
    assert all("disagrees with TensorFlow" in line and "numpy runs instead" in line for line in lines)


def test_without_a_probe_nothing_is_compared(tmp_path):
    """An unverified bundle says so; its engines run as they are."""
    folder = tmp_path / "b"
    manifest = refimpl.convert(saved_model(NAME), folder, Recipe(verify=False))
    assert not manifest.verified
    assert not any(island.probe or island.verified for island in manifest.islands)
    assert any("UNVERIFIED" in note for note in manifest.notes)
    spoil(folder / f"refimpl/islands/{ISLANDS[1]}.onnx", scale=-2)
    reseal(folder)
    result = refimpl.load(folder).run(FEEDS)
    assert {run.engine for run in result.islands} == {"onnxruntime"}
    assert not np.allclose(result.outputs["y"], answers(NAME, FEEDS)["y"], atol=1e-3), "the spoilt weight matters"


def test_an_engine_that_fails_later_is_counted_and_said_once(tmp_path, monkeypatch):
    folder = copy_of(NAME, tmp_path)
    loaded = refimpl.load(folder)
    loaded.run(FEEDS)

    def fail(self, inputs):
        raise RunError("the device fell off the bus")

    monkeypatch.setattr(onnxruntime.OrtEngine, "run", fail)
    with logged() as lines:
        for _ in range(3):
            result = loaded.run(FEEDS)
            assert_same(result.outputs, answers(NAME, FEEDS))
    reason = "onnxruntime: the device fell off the bus"
    assert {(run.engine, run.reason) for run in result.islands} == {("native", reason)}
    assert counts_of(folder) == {("onnxruntime", ""): 2, ("native", reason): 6}
    assert len(lines) == len(ISLANDS)
    monkeypatch.undo()
    assert engines_of(loaded, FEEDS) == ON_ORT, "it may recover"


def test_the_next_engine_takes_over_from_one_that_fails_later(tmp_path, monkeypatch):
    folder = copy_of(NAME, tmp_path)
    loaded = refimpl.load(folder, engines=["onnxruntime", "numpy"])
    loaded.run(FEEDS)

    def fail(self, inputs):
        raise RunError("out of memory")

    monkeypatch.setattr(onnxruntime.OrtEngine, "run", fail)
    with logged() as lines:
        for _ in range(2):
            result = loaded.run(FEEDS)
    assert {(run.engine, run.reason) for run in result.islands} == {("numpy", "")}
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert len(lines) == len(ISLANDS)
    assert all("out of memory; numpy runs instead" in line for line in lines)


@pytest.mark.parametrize("error", [ValueError("no"), AttributeError("no"), MemoryError()])
def test_whatever_opening_an_engine_raises_tensorflow_answers(tmp_path, monkeypatch, error):
    """Running in TensorFlow is always a right answer; a library that fails in its own way must not prevent it."""

    def fail(path, threads):
        raise error

    folder = copy_of(NAME, tmp_path)
    monkeypatch.setattr(onnxruntime, "open", fail)
    model = tf.saved_model.load(str(folder))
    with logged() as lines:
        assert_same(call(model, FEEDS), answers(NAME, FEEDS))
    assert len(lines) == len(ISLANDS)
    assert all(type(error).__name__ in line for line in lines)


# By design in TensorFlow.


def test_empty_inputs_run_in_tensorflow_without_a_warning(tmp_path):
    folder = copy_of("empty_and_dynamic", tmp_path)
    loaded = refimpl.load(folder)
    full = feeds_of("empty_and_dynamic")
    empty = {name: value[:0] for name, value in full.items()}
    assert engines_of(loaded, full) == ON_ORT
    with logged() as lines:
        result = loaded.run(empty)
    assert_same(result.outputs, answers("empty_and_dynamic", empty))
    assert {(run.engine, run.reason) for run in result.islands} == {("native", runtime.EMPTY)}
    assert lines == []
    assert engines_of(loaded, full) == ON_ORT


def with_nan(feeds):
    return {
        name: np.where(np.arange(value.size).reshape(value.shape) == 5, np.nan, value).astype(value.dtype)
        for name, value in feeds.items()
    }


@pytest.mark.parametrize("finite_only", [True, False])
def test_nan_runs_in_tensorflow_where_the_island_is_for_finite_values_only(finite_only, tmp_path):
    folder = copy_of("several_signatures", tmp_path)
    manifest = bundle.read(folder)
    (record,) = [item for item in manifest.signatures if item.converted]
    islands = tuple(bundle.IslandRecord(**{**vars(item), "finite_only": finite_only}) for item in record.islands)
    changed = bundle.SignatureRecord(**{**vars(record), "islands": islands})
    reseal(folder, signatures=tuple(changed if item is record else item for item in manifest.signatures))
    loaded = refimpl.load(folder)
    feeds = feeds_of("several_signatures")
    assert engines_of(loaded, feeds) == ON_ORT
    with logged() as lines:
        result = loaded.run(with_nan(feeds))
    wanted = {("native", runtime.NOT_FINITE)} if finite_only else ON_ORT
    assert {(run.engine, run.reason) for run in result.islands} == wanted
    assert lines == []
    if finite_only:
        assert_same(result.outputs, answers("several_signatures", with_nan(feeds)))


def test_a_nan_is_by_design_also_where_there_is_no_engine(tmp_path):
    """Else it would count as a fallback, though no engine would have been asked."""
    folder = copy_of("several_signatures", tmp_path)
    manifest = bundle.read(folder)
    (record,) = [item for item in manifest.signatures if item.converted]
    bare = {"engines": (), "finite_only": True}
    islands = tuple(bundle.IslandRecord(**{**vars(item), **bare}) for item in record.islands)
    changed = bundle.SignatureRecord(**{**vars(record), "islands": islands})
    reseal(folder, signatures=tuple(changed if item is record else item for item in manifest.signatures))
    loaded, feeds = refimpl.load(folder), feeds_of("several_signatures")
    assert {run.reason for run in loaded.run(with_nan(feeds)).islands} == {runtime.NOT_FINITE}
    assert {run.reason for run in loaded.run(feeds).islands} == {"the bundle stores no engine for it"}


def test_a_nan_that_comes_out_runs_in_tensorflow_too(tmp_path, monkeypatch):
    folder = copy_of("several_signatures", tmp_path)
    manifest = bundle.read(folder)
    if not all(island.finite_only for island in manifest.islands):
        (record,) = [item for item in manifest.signatures if item.converted]
        islands = tuple(bundle.IslandRecord(**{**vars(item), "finite_only": True}) for item in record.islands)
        changed = bundle.SignatureRecord(**{**vars(record), "islands": islands})
        reseal(folder, signatures=tuple(changed if item is record else item for item in manifest.signatures))
    loaded = refimpl.load(folder)
    feeds = feeds_of("several_signatures")
    assert engines_of(loaded, feeds) == ON_ORT
    monkeypatch.setattr(onnxruntime.OrtEngine, "run", lambda self, inputs: [np.full((3, 4), np.inf, np.float32)])
    result = loaded.run(feeds)
    assert {(run.engine, run.reason) for run in result.islands} == {("native", runtime.MADE_NOT_FINITE)}
    assert_same(result.outputs, answers("several_signatures", feeds))


# Files that go.


def test_a_bundle_that_is_removed_while_loaded(tmp_path):
    """Engines that are open go on; a graph whose engines were never opened runs in TensorFlow."""
    folder = copy_of(NAME, tmp_path)
    opened, never = refimpl.load(folder), tf.saved_model.load(str(folder))
    assert engines_of(opened, FEEDS) == ON_ORT
    other = copy_of(NAME, tmp_path / "other")
    late = tf.saved_model.load(str(other))
    shutil.rmtree(folder)
    shutil.rmtree(other)
    assert engines_of(opened, FEEDS) == ON_ORT
    assert_same(call(never, FEEDS), answers(NAME, FEEDS))
    with logged() as lines:
        for _ in range(2):
            assert_same(call(late, FEEDS), answers(NAME, FEEDS))
    assert len(lines) == 1
    assert "no such bundle" in lines[0]


def test_only_the_folder_of_engines_is_missing(tmp_path):
    folder = copy_of(NAME, tmp_path)
    shutil.rmtree(folder / "refimpl" / "islands")
    model = tf.saved_model.load(str(folder))
    with logged() as lines:
        assert_same(call(model, FEEDS), answers(NAME, FEEDS))
    assert len(lines) == len(ISLANDS)
    assert all("cannot be read" in line for line in lines)
    assert set(counts_of(folder).values()) == {1}
    assert {engine for engine, _ in counts_of(folder)} == {"native"}


def test_an_island_that_the_manifest_does_not_know(tmp_path):
    folder = copy_of(NAME, tmp_path)
    manifest = bundle.read(folder)
    record = manifest.signatures[0]
    fewer = bundle.SignatureRecord(**{**vars(record), "islands": record.islands[:1]})
    reseal(folder, signatures=(fewer,))
    loaded = refimpl.load(folder)
    with logged() as lines:
        result = loaded.run(FEEDS)
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert {run.engine for run in result.islands} == {"onnxruntime", "native"}
    assert len(lines) == 1
    assert f"the manifest knows no island {ISLANDS[1]}" in lines[0]


def test_an_island_without_an_engine(tmp_path):
    folder = copy_of(NAME, tmp_path)
    manifest = bundle.read(folder)
    record = manifest.signatures[0]
    bare = tuple(bundle.IslandRecord(**{**vars(item), "engines": ()}) for item in record.islands)
    reseal(folder, signatures=(bundle.SignatureRecord(**{**vars(record), "islands": bare}),))
    result = refimpl.load(folder).run(FEEDS)
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert {run.reason for run in result.islands} == {"the bundle stores no engine for it"}
