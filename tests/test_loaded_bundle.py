"""A loaded bundle among processes, threads, import orders and other bundles, and what it says of wrong inputs."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import engines, runtime
from refimpl.errors import RunError, SourceError
from refimpl.recipe import Recipe
from tests.bundles import (
    POINTER,
    answers,
    assert_same,
    call,
    copy_of,
    counts_of,
    engines_of,
    feeds_of,
    logged,
    make_bundle,
)
from tests.models_ops import save

NAME = "odd_ops"
ALL = Recipe(signatures=("*",))
ISLANDS = ("TRTEngineOp_000_000", "TRTEngineOp_000_001")
FEEDS = feeds_of(NAME)
ON_ORT = {("onnxruntime", "")}


# Processes and imports.

LOAD = (
    "m = tf.saved_model.load({folder!r}); x = tf.constant([[0.1] * 12] * 2); "
    "y = m.signatures['serving_default'](x=x)['y']"
)


def python(*lines: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120, check=False, **options
    )


@pytest.mark.parametrize(
    "imports", [("import refimpl", "import tensorflow as tf"), ("import tensorflow as tf", "import refimpl")]
)
def test_imports_in_either_order(imports):
    folder = make_bundle(NAME)
    done = python(
        *imports,
        LOAD.format(folder=str(folder)),
        "from refimpl import runtime",
        "(owner,) = runtime._open_bundles.values()",
        "print(sorted({run.engine for run in owner.counts}), sum(owner.counts.values()), y.shape)",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['onnxruntime'] 2 (2, 7)\n"


def test_refimpl_imported_after_the_bundle_was_loaded():
    folder = make_bundle(NAME)
    load, run = LOAD.format(folder=str(folder)).split("; x = ")
    done = python("import tensorflow as tf", load, "import refimpl", "x = " + run, "print(y.shape)")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 7)\n"


def test_without_refimpl_tensorflow_says_what_is_missing():
    done = python("import tensorflow as tf", LOAD.format(folder=str(make_bundle(NAME))), "print('ran')")
    assert done.returncode != 0
    assert "ran" not in done.stdout
    assert "refimpl.engine.v1" in done.stderr, "the token says whose function is missing"


def test_loading_imports_no_converter():
    done = python(
        "import sys, refimpl",
        f"m = refimpl.load({str(make_bundle(NAME))!r})",
        "import numpy as np",
        "m.run({'x': np.ones((2, 12), np.float32)})",
        "print([m for m in sys.modules if m.startswith(('tf2onnx', 'onnx_graphsurgeon', 'refimpl.converter'))])",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


# Threads, and several bundles in one process.


def test_eight_threads(tmp_path):
    folder = copy_of(NAME, tmp_path)
    model = tf.saved_model.load(str(folder))
    rng = np.random.default_rng(3)
    inputs = [{"x": rng.standard_normal((1 + index, 12)).astype(np.float32)} for index in range(8)]
    wanted = [answers(NAME, item) for item in inputs]
    start = threading.Barrier(8)

    def work(index):
        start.wait()
        for turn in range(50):
            at = (index + turn) % 8
            assert_same(call(model, inputs[at]), wanted[at])

    with logged() as lines, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, index) for index in range(8)]:
            done.result()
    assert lines == []
    assert counts_of(folder) == {("onnxruntime", ""): 8 * 50 * len(ISLANDS)}


def test_threads_that_meet_a_broken_bundle_are_warned_once(tmp_path):
    folder = copy_of(NAME, tmp_path)
    (folder / POINTER).write_text("{}")
    model = tf.saved_model.load(str(folder))
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(5):
            assert_same(call(model, FEEDS), answers(NAME, FEEDS))

    with logged() as lines, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(8)]:
            done.result()
    assert len(lines) == 1


def test_traces_of_threads_do_not_mix(tmp_path):
    """Two LoadedBundles of one place share its engines; each run reports its own islands, once each."""
    folder = copy_of(NAME, tmp_path)
    loaded = [refimpl.load(folder), refimpl.load(folder)]

    def work(index):
        return [tuple(run.island for run in loaded[index % 2].run(FEEDS).islands) for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        found = {trace for done in [pool.submit(work, index) for index in range(4)] for trace in done.result()}
    assert {tuple(sorted(trace)) for trace in found} == {ISLANDS}


def test_two_bundles_in_one_process(tmp_path):
    first, second = (
        refimpl.load(copy_of(NAME, tmp_path / "1")),
        refimpl.load(copy_of("several_signatures", tmp_path / "2", ALL)),
    )
    other = feeds_of("several_signatures")
    for _ in range(2):
        assert_same(first.run(FEEDS).outputs, answers(NAME, FEEDS))
        assert_same(second.run(other).outputs, answers("several_signatures", other))
    assert sum(first.counts().values()) == 2 * len(ISLANDS)
    assert sum(second.counts().values()) == 2
    assert {run.engine for run in (*first.counts(), *second.counts())} == {"onnxruntime"}


def test_forget_closes_and_the_next_call_opens_again(tmp_path):
    folder = copy_of(NAME, tmp_path)
    loaded = refimpl.load(folder, engines=["numpy"])
    loaded.run(FEEDS)
    before = loaded._runtime.island(ISLANDS[0])
    runtime.forget(folder)
    assert not [opened for opened in runtime._open_bundles.values() if opened.path == folder]
    result = loaded.run(FEEDS)
    assert_same(result.outputs, answers(NAME, FEEDS))
    assert [(run.island, run.engine) for run in result.islands] == [(name, "numpy") for name in ISLANDS]
    assert loaded.counts() == dict.fromkeys(result.islands, 1)
    assert loaded._runtime.island(ISLANDS[0]) is not before


def test_forget_knows_a_place_by_any_of_its_paths(tmp_path, monkeypatch):
    folder = copy_of(NAME, tmp_path)
    monkeypatch.chdir(tmp_path)
    call(tf.saved_model.load("bundle"), FEEDS)
    assert engines_of(refimpl.load("bundle"), FEEDS) == ON_ORT
    runtime.forget(folder)
    assert not [opened for opened in runtime._open_bundles.values() if opened.path.absolute() == folder]


# LoadedBundle.


@pytest.fixture(scope="module")
def several():
    return refimpl.load(make_bundle("several_signatures", ALL))


def test_signatures_are_described(several):
    assert set(several.signatures) == {"serving_default", "encode", "decide"}
    encode = several.signature("encode")
    assert [spec.describe() for spec in encode.inputs] == ["x: float32[?,12]"]
    assert [spec.name for spec in encode.outputs] == ["code"]
    assert several.signature().key == "serving_default"
    for key in several.signatures:
        feeds = {spec.name: np.ones((2, spec.shape[1]), np.float32) for spec in several.signature(key).inputs}
        assert_same(several.run(feeds, key).outputs, answers("several_signatures", feeds, key))


X = np.zeros((2, 12), np.float32)


@pytest.mark.parametrize(
    ("inputs", "signature", "says", "hint"),
    [
        ({}, "", "input 'x' is missing", "x: float32[?,12]"),
        ({"y": X}, "", "input 'x' is missing", "x: float32[?,12]"),
        ({"x": X, "y": X}, "", "unknown input 'y'", "inputs: x"),
        ({"x": X.astype(np.float64)}, "", "input 'x' is float64", "x: float32[?,12]"),
        ({"x": X.tolist()}, "", "input 'x' is float64", "x: float32[?,12]"),
        ({"x": X.astype(np.int32)}, "", "input 'x' is int32", "x: float32[?,12]"),
        ({"x": np.array(["a"])}, "", "input 'x' is <U1", "x: float32[?,12]"),
        ({"x": X[:, :5]}, "", "input 'x' has shape [2, 5]", "x: float32[?,12]"),
        ({"x": X[0]}, "", "input 'x' has shape [12]", "x: float32[?,12]"),
        ({"x": X}, "serve", "no signature 'serve'", "serving_default"),
        ({"x": X}, "decide", "input 'code' is missing", "code: float32[?,20]"),
    ],
)
def test_inputs_that_do_not_fit(several, inputs, signature, says, hint):
    with pytest.raises(SourceError) as caught:
        several.run(inputs, signature)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_strings_and_other_dtypes(tmp_path):
    loaded = refimpl.load(copy_of("many_dtypes", tmp_path))
    feeds = feeds_of("many_dtypes")
    result = loaded.run(feeds)
    want = answers("many_dtypes", feeds)
    for name, value in want.items():
        assert result.outputs[name].dtype == value.dtype, name
        if value.dtype.kind == "f":
            np.testing.assert_allclose(result.outputs[name], value, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(result.outputs[name], value)
    text = ["one", "", "zwölf", "four"]
    as_text = loaded.run({**feeds, "text": np.array(text)})
    assert as_text.outputs["length"].tolist() == [len(item.encode()) for item in text]
    for wrong in (np.ones(4, np.float32), np.array([1, 2, 3, None], object)):
        with pytest.raises(SourceError, match="input 'text' is "):
            loaded.run({**feeds, "text": wrong})


@pytest.mark.parametrize("ask", ["infer", "run"])
def test_scalars_are_arrays_too(ask, tmp_path):
    """TensorFlow hands them out bare."""

    def call(x):
        return {"total": tf.reduce_sum(tf.tanh(x)), "size": tf.size(x), "text": tf.strings.reduce_join(tf.as_string(x))}

    save(tmp_path / "model", call, tf.TensorSpec((None,), tf.float32, name="x"))
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", Recipe(min_segment_size=1))
    loaded = refimpl.load(tmp_path / "bundle")
    got = getattr(loaded, ask)({"x": np.float32([0, 1, 0])})
    outputs = got if ask == "infer" else got.outputs
    assert {name: (type(value), value.shape, value.dtype.name) for name, value in outputs.items()} == {
        "total": (np.ndarray, (), "float32"),
        "size": (np.ndarray, (), "int32"),
        "text": (np.ndarray, (), "object"),
    }
    assert outputs["size"] == 3


def test_what_tensorflow_refuses_is_a_run_error(tmp_path):
    loaded = refimpl.load(copy_of("many_dtypes", tmp_path))
    feeds = feeds_of("many_dtypes")
    with pytest.raises(RunError, match=r"TensorFlow fails on these inputs: .*") as caught:
        loaded.run({**feeds, "gain": feeds["gain"][:3]})
    assert caught.value.where["signature"] == "serving_default"
    assert "\n" not in caught.value.message
    assert loaded.run(feeds).islands, "and the next call works, trace and all"


def test_outputs_come_in_the_signatures_order(tmp_path):
    loaded = refimpl.load(copy_of("odd_names", tmp_path))
    result = loaded.run(feeds_of("odd_names"))
    assert list(result.outputs) == [spec.name for spec in loaded.signature().outputs]
    assert_same(result.outputs, answers("odd_names", feeds_of("odd_names")))


def test_an_engine_kind_is_a_module():
    assert {name: engines.kind(name).NAME for name in ("numpy", *engines.KINDS)} == {
        name: name for name in ("numpy", *engines.KINDS)
    }
