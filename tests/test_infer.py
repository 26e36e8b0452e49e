"""A signature that is one island, answered without TensorFlow; threads; arrays that nobody copies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import script_ops

import refimpl
from refimpl import bundle, runtime
from refimpl.converter import pipeline
from refimpl.engines import onnxruntime
from refimpl.errors import BundleError, InternalError, RecipeError, RunError, SourceError
from refimpl.recipe import Recipe
from refimpl.specs import DirectCall
from tests.bundles import MANIFEST, POINTER, assert_same, call, feeds_of, logged, main, make_bundle, reseal

ISLAND = "TRTEngineOp_000_000"
SMALL = Recipe(min_segment_size=1)


class Model(tf.Module):
    """Names whose alphabetical order is neither the function's order nor that in which the ops come."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name=name) for name in ("y", "z", "x")])
    def serve(self, y, z, x):
        inner = z - 2 * x
        return {"b": tf.nn.softmax(inner), "c": tf.nn.relu(inner + y), "a": tf.tanh(inner) * y}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("infer") / "model"
    module = Model()
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


@pytest.fixture(scope="module")
def converted(model) -> Path:
    folder = model.parent / "bundle"
    refimpl.convert(model, folder, SMALL)
    return folder


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    """A bundle that the runtime has not seen."""
    return Path(shutil.copytree(converted, tmp_path / "bundle"))


def feeds(rows: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((rows, 3)).astype(np.float32) for name in ("x", "y", "z")}


def wanted(inputs) -> dict[str, np.ndarray]:
    x, y, z = (inputs[name] for name in ("x", "y", "z"))
    inner = z - 2 * x
    return {"b": tf.nn.softmax(inner).numpy(), "c": np.maximum(inner + y, 0), "a": np.tanh(inner) * y}


def direct_of(folder: Path, key: str = "serving_default") -> DirectCall | None:
    (record,) = [item for item in bundle.read(folder).signatures if item.signature.key == key]
    return record.direct


# Without TensorFlow.


def test_tensorflow_is_not_even_imported(converted):
    lines = [
        "import sys, numpy as np, refimpl",
        f"loaded = refimpl.load({str(converted)!r})",
        "got = loaded.infer({name: np.full((1, 3), 2, np.float32) for name in 'xyz'})",
        "print(got['c'].tolist(), [(run.engine, count) for run, count in loaded.counts().items()])",
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras', 'tf2onnx')])",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[0.0, 0.0, 0.0]] [('onnxruntime', 1)]\n[]\n"


def test_every_name_leads_to_its_tensor(converted):
    runtime.forget(converted)  # counts are of the process, and another test may have called it
    loaded, inputs = refimpl.load(converted), feeds()
    got = loaded.infer(inputs)
    assert list(got) == [spec.name for spec in loaded.signature().outputs]
    assert_same(got, wanted(inputs))
    assert_same(loaded.run(inputs).outputs, got)
    assert loaded.counts() == {runtime.IslandRun(ISLAND, "onnxruntime", ""): 2}


def test_an_array_is_enough_for_one_input():
    loaded = refimpl.load(make_bundle("several_signatures"))
    ((name, value),) = feeds_of("several_signatures").items()
    assert_same(loaded.infer(value), loaded.run({name: value}).outputs)


def test_arrays_that_are_not_contiguous(converted):
    inputs = {name: np.asfortranarray(value)[::-1] for name, value in feeds(4).items()}
    assert_same(refimpl.load(converted).infer(inputs), wanted(inputs))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "input 'y' is missing"),
        (feeds() | {"w": np.zeros(3)}, "unknown input 'w'"),
        (feeds() | {"x": np.zeros((2, 3))}, "input 'x' is float64"),
        (feeds() | {"x": np.zeros((2, 4), np.float32)}, r"input 'x' has shape \[2, 4\]"),
        (np.zeros((2, 3), np.float32), "it takes 3 inputs, not an array"),
    ],
)
def test_inputs_are_checked_as_run_checks_them(inputs, says, converted):
    loaded = refimpl.load(converted)
    with pytest.raises(SourceError, match=says) as caught:
        loaded.infer(inputs)
    assert caught.value.hint
    assert not any(isinstance(run, str) for run in loaded.counts())


# What is not one island.


@pytest.mark.parametrize("name", ["odd_ops", "pass_through"])
def test_what_else_must_run_runs_in_tensorflow(name):
    """Several islands; an output that is an input as it came."""
    folder = make_bundle(name)
    assert direct_of(folder) is None
    loaded = refimpl.load(folder)
    got, told = loaded.infer(feeds_of(name)), loaded.run(feeds_of(name)).outputs
    assert list(got) == list(told)
    for key, value in told.items():
        np.testing.assert_array_equal(got[key], value)


def test_an_op_that_stays_is_not_skipped(model, tmp_path):
    refimpl.convert(model, tmp_path / "b", Recipe(min_segment_size=1, keep_in_tf=("Softmax",)))
    assert direct_of(tmp_path / "b") is None
    assert_same(refimpl.load(tmp_path / "b").infer(feeds()), wanted(feeds()))


def test_an_assertion_that_no_output_reads_is_not_skipped(tmp_path):
    """TensorFlow answers nothing to this input, and neither may an engine."""

    class Careful(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x"), tf.TensorSpec([], tf.bool, name="fine")])
        def serve(self, x, fine):
            tf.debugging.Assert(fine, [x])
            return {"y": tf.nn.softmax(tf.nn.relu(2 * x) + 1)}

    module = Careful()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    refimpl.convert(tmp_path / "m", tmp_path / "b", SMALL)
    loaded, x = refimpl.load(tmp_path / "b"), np.ones((1, 3), np.float32)
    assert loaded.infer({"x": x, "fine": True})["y"].shape == (1, 3)
    with pytest.raises(RunError):
        loaded.infer({"x": x, "fine": False})


def test_a_name_that_leads_elsewhere_does_not_ship(model, tmp_path, monkeypatch):
    honest = pipeline.direct_call

    def swapped(graph, island):
        found = honest(graph, island)
        return DirectCall(found.inputs[::-1], found.outputs)

    monkeypatch.setattr(pipeline, "direct_call", swapped)
    with pytest.raises(InternalError, match=r"without TensorFlow, \w+ is another"):
        refimpl.convert(model, tmp_path / "b", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_the_field_is_run_in_tensorflow(folder):
    data = json.loads((folder / MANIFEST).read_text())
    for record in data["signatures"]:
        del record["direct"]
    (folder / MANIFEST).write_text(json.dumps(data))
    pointer = json.loads((folder / POINTER).read_text())
    pointer["manifest_sha256"] = bundle.file_sha256(folder / MANIFEST)
    (folder / POINTER).write_text(json.dumps(pointer))
    assert direct_of(folder) is None
    assert_same(refimpl.load(folder).infer(feeds()), wanted(feeds()))


# When the engine cannot answer.


def islands_of(folder: Path, **changes) -> None:
    """Change the record of the island."""
    (record,) = [item for item in bundle.read(folder).signatures if item.converted]
    islands = tuple(bundle.IslandRecord(**{**vars(item), **changes}) for item in record.islands)
    changed = bundle.SignatureRecord(**{**vars(record), "islands": islands})
    signatures = bundle.read(folder).signatures
    reseal(folder, signatures=tuple(changed if item.converted else item for item in signatures))


@pytest.mark.parametrize(("value", "reason"), [("nan", runtime.NOT_FINITE), ("empty", runtime.EMPTY)])
def test_tensorflow_answers_what_is_not_for_engines(value, reason, folder):
    islands_of(folder, finite_only=True)
    inputs = feeds(0 if value == "empty" else 2)
    if value == "nan":
        inputs["y"][1, 1] = np.nan
    loaded = refimpl.load(folder)
    with logged() as lines:
        assert_same(loaded.infer(inputs), wanted(inputs))
    assert lines == []
    assert loaded.counts() == {runtime.IslandRun(ISLAND, "native", reason): 1}, "counted once, by the graph's node"


def test_tensorflow_answers_when_the_engine_fails(folder, monkeypatch):
    loaded = refimpl.load(folder)

    def fail(self, inputs):
        raise RunError("the device fell off the bus")

    monkeypatch.setattr(onnxruntime.OrtEngine, "run", fail)
    islands_of(folder, probe="")
    with logged() as lines:
        for _ in range(2):
            assert_same(loaded.infer(feeds()), wanted(feeds()))
    assert {run.engine for run in loaded.counts()} == {"native"}
    assert len(lines) == 1


def test_a_savedmodel_that_was_changed_meanwhile_is_not_loaded(folder):
    loaded = refimpl.load(folder)
    file = folder / "saved_model.pb"
    file.write_bytes(file.read_bytes() + b"\0")
    assert_same(loaded.infer(feeds()), wanted(feeds()))
    with pytest.raises(BundleError, match="checksum mismatch"):
        loaded.infer(feeds(rows=0))
    with pytest.raises(BundleError, match="checksum mismatch"):
        loaded.run(feeds())


def test_an_engine_file_that_changes_while_it_is_opened_is_not_used(folder, monkeypatch):
    honest = onnxruntime.open

    def slow(path, threads=0):
        engine = honest(path, threads)
        path.write_bytes(path.read_bytes())
        return engine

    monkeypatch.setattr(onnxruntime, "open", slow)
    loaded = refimpl.load(folder)
    with logged() as lines:
        assert_same(loaded.infer(feeds()), wanted(feeds()))
    assert len(lines) == 1
    assert "was changed while it was opened" in lines[0]


# Threads.


def test_eight_threads_are_answered_and_counted_each(folder):
    loaded = refimpl.load(folder)
    inputs = [feeds(1 + index, seed=index) for index in range(8)]
    answers = [wanted(item) for item in inputs]
    start = threading.Barrier(8)

    def work(index):
        start.wait()
        for turn in range(200):
            at = (index + turn) % 8
            assert_same(loaded.infer(inputs[at]), answers[at])

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, index) for index in range(8)]:
            done.result()
    assert loaded.counts() == {runtime.IslandRun(ISLAND, "onnxruntime", ""): 8 * 200}


def test_infer_does_not_wait_for_a_run_that_listens(folder):
    loaded = refimpl.load(folder)
    with loaded._current().listening(), ThreadPoolExecutor(1) as pool:
        assert_same(pool.submit(loaded.infer, feeds()).result(timeout=60), wanted(feeds()))


def opened_session(loaded):
    ((_, engine),) = loaded._current().island(ISLAND)._candidates
    return engine._session


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_threads_of_an_op_are_the_users(threads, folder):
    loaded = refimpl.load(folder, intra_op_threads=threads)
    loaded.infer(feeds())
    assert opened_session(loaded).get_session_options().intra_op_num_threads == threads


@pytest.mark.parametrize("threads", [-1, 1.0, "2", True])
def test_what_is_no_number_of_threads(threads, converted):
    with pytest.raises(RecipeError, match="intra_op_threads is"):
        refimpl.load(converted, intra_op_threads=threads)


def test_the_threads_of_the_command_line(folder, monkeypatch, capsys):
    seen = []
    honest = onnxruntime.open
    monkeypatch.setattr(onnxruntime, "open", lambda path, threads: seen.append(threads) or honest(path, threads))
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "0")  # put back afterwards
    assert main("run", folder, "--inputs", "random", "--intra-op-threads", 2) == 0
    assert seen == [2]
    assert main("run", folder, "--inputs", "random", "--intra-op-threads", 0) == 2
    capsys.readouterr()


# Nobody copies.


def test_arrays_cross_tensorflow_and_the_engine_without_a_copy(folder, monkeypatch):
    taken, given = [], []
    honest = onnxruntime.OrtEngine.run

    def run(self, inputs):
        outputs = honest(self, inputs)
        taken[:], given[:] = inputs, outputs
        return outputs

    monkeypatch.setattr(onnxruntime.OrtEngine, "run", run)
    function = tf.saved_model.load(str(folder)).signatures["serving_default"]
    tensors = {name: tf.constant(value) for name, value in feeds(1000).items()}
    results = function(**tensors)
    assert len(taken) == len(given) == 3
    for array in taken:
        assert any(np.shares_memory(array, np.asarray(tensor)) for tensor in tensors.values())
    for array in given:
        assert any(np.shares_memory(array, np.asarray(tensor)) for tensor in results.values())
        assert not array.flags.owndata, "ONNX Runtime's own memory"


def test_infer_hands_over_what_the_engine_gave(folder, monkeypatch):
    loaded, inputs = refimpl.load(folder), feeds(1000)
    taken, given = [], []
    honest = onnxruntime.OrtEngine.run

    def run(self, arrays):
        taken[:] = arrays
        given[:] = honest(self, arrays)
        return given

    loaded.infer(inputs)
    monkeypatch.setattr(onnxruntime.OrtEngine, "run", run)
    got = loaded.infer(inputs)
    assert {id(array) for array in taken} == {id(array) for array in inputs.values()}
    assert {id(array) for array in given} == {id(array) for array in got.values()}


def test_tensorflow_takes_the_results_as_they_are(folder, monkeypatch):
    def convert(value, dtype=None):
        raise AssertionError("converted once more")

    monkeypatch.setattr(script_ops._py_funcs, "_convert", convert, raising=True)
    assert_same(call(tf.saved_model.load(str(folder)), feeds()), wanted(feeds()))
