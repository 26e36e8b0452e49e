"""Bundles behave as the model: state, order, seeds, several signatures, sessions, Python functions, moved and twice."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import refimpl
from refimpl.errors import RunError
from refimpl.oracle.compare import compare
from refimpl.oracle.runners import SavedModelRunner
from refimpl.runtime import EMPTY, NATIVE
from refimpl.tolerance import tolerance_for
from tests.bundles import make_bundle
from tests.converter.small import ALL, assert_agrees, default, left_types
from tests.models import MODELS, sample_inputs, saved_model
from tests.models_ops import normal, spec

v1 = tf.compat.v1
Arrays = Mapping[str, np.ndarray]
EVERYTHING = refimpl.Recipe(signatures=("*",), min_segment_size=1)


def fp32(dtype: str) -> Any:
    return tolerance_for("fp32", dtype)


@contextmanager
def in_session(path: Path) -> Iterator[Callable[..., dict[str, np.ndarray]]]:
    """A SavedModel as TensorFlow 1 programs and TensorFlow Serving load it."""
    with tf.Graph().as_default(), v1.Session() as session:
        definitions = v1.saved_model.load(session, ["serve"], str(path)).signature_def

        def run(inputs: Arrays, key: str = "serving_default") -> dict[str, np.ndarray]:
            definition = definitions[key]
            fetches = {name: info.name for name, info in definition.outputs.items()}
            feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
            values = session.run(fetches, feeds)
            return {name: np.asarray(v, dtype=object if isinstance(v, bytes) else None) for name, v in values.items()}

        yield run


# --- signatures and order


@pytest.mark.parametrize("asked", ["serving_default", "encode", "decide"])
def test_every_signature_survives_converted_or_not(asked: str, tmp_path: Path) -> None:
    model = saved_model("several_signatures")
    manifest = refimpl.convert(model, tmp_path / "bundle", refimpl.Recipe(signatures=(asked,), min_segment_size=1))
    assert [record.signature.key for record in manifest.signatures if record.converted] == [asked]
    others = MODELS["several_signatures"].expect.others
    feeds = {"serving_default": sample_inputs("several_signatures")[0]}
    feeds |= {key: make(np.random.default_rng(2)) for key, make in others.items()}
    for key, inputs in feeds.items():
        runs = assert_agrees(model, tmp_path / "bundle", inputs, key)
        assert [run.engine for run in runs] == (["onnxruntime"] if key == asked else [])


@pytest.mark.parametrize("name", ["odd_names", "pass_through", "many_dtypes", "bert", "tf1_table", "no_input"])
def test_names_types_and_shapes_are_the_models_own(name: str) -> None:
    original = tf.saved_model.load(str(saved_model(name))).signatures["serving_default"]
    stitched = tf.saved_model.load(str(make_bundle(name))).signatures["serving_default"]
    assert set(stitched.structured_outputs) == set(original.structured_outputs)
    for key, wanted in original.structured_outputs.items():
        assert stitched.structured_outputs[key].dtype == wanted.dtype
        assert stitched.structured_outputs[key].shape == wanted.shape or wanted.shape.rank is None
    assert stitched.structured_input_signature == original.structured_input_signature


def test_the_models_own_functions_stay() -> None:
    """``model.call(...)`` of a TF2 model is no signature; it runs in TensorFlow as before."""
    x = sample_inputs("counter")[0]["x"]
    bundle, model = (tf.saved_model.load(str(path)) for path in (make_bundle("counter"), saved_model("counter")))
    np.testing.assert_allclose(bundle.call(x)["y"], model.call(x)["y"], rtol=1e-5)
    assert [variable.shape for variable in bundle.holds] == [variable.shape for variable in model.holds]


# --- state


def test_a_counter_counts_and_its_variables_are_not_frozen() -> None:
    inputs = sample_inputs("counter")[0]
    loaded = refimpl.load(make_bundle("counter", ALL))
    runs = [loaded.run(inputs) for _ in range(3)]
    assert [int(run.outputs["calls"]) for run in runs] == [1, 2, 3]
    totals = [run.outputs["total"] for run in runs]
    np.testing.assert_allclose(totals[2], 3 * totals[0], rtol=1e-5)
    assert all(item.engine == "onnxruntime" for run in runs for item in run.islands)
    assert int(refimpl.load(make_bundle("counter", ALL)).run(inputs).outputs["calls"]) == 1  # another copy of the model


@pytest.fixture
def learner(tmp_path: Path) -> Path:
    """One signature adds to a weight that the other one multiplies with; a third variable never changes."""
    module = tf.Module()
    module.weight, module.fixed = tf.Variable(normal(4, 4, seed=90)), tf.Variable(normal(4, 4, seed=91))

    @tf.function(input_signature=[spec((4, 4), name="step")])
    def learn(step: tf.Tensor) -> dict[str, tf.Tensor]:
        module.weight.assign_add(tf.tanh(step) @ module.fixed)
        return {"norm": tf.norm(module.weight)}

    @tf.function(input_signature=[spec((None, 4), name="x")])
    def infer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = tf.nn.relu(x @ module.fixed) + 1.0
        return {"y": tf.nn.softmax(hidden @ module.weight)}

    module.learn, module.infer = learn, infer
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": infer, "learn": learn})
    return tmp_path / "model"


@pytest.mark.parametrize("signatures", [("serving_default",), ("learn",), ("*",)])
def test_what_one_signature_learns_another_one_knows(
    learner: Path, tmp_path: Path, signatures: tuple[str, ...]
) -> None:
    """Also where only one of them was converted."""
    manifest = refimpl.convert(learner, tmp_path / "bundle", refimpl.Recipe(signatures=signatures, min_segment_size=1))
    loaded = refimpl.load(tmp_path / "bundle")
    step, x = {"step": normal(4, 4, seed=92)}, {"x": normal(3, 4, seed=93)}
    with closing(SavedModelRunner(learner)) as truth:
        for _ in range(3):
            for key, inputs in (("serving_default", x), ("learn", step)):
                comparison = compare(truth.run(inputs, key), loaded.run(inputs, key).outputs, fp32)
                assert comparison.ok, f"{key}: {comparison.reason}"
    first, second = (loaded.run(x).outputs["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for record in manifest.signatures:
        assert not record.converted or "variable that a signature" in " ".join(op.reason for op in record.left)
    ran = {item.engine for item in loaded.counts()}
    assert ran == {"onnxruntime"}


def test_weights_can_be_replaced_where_the_model_reads_them_natively(learner: Path, tmp_path: Path) -> None:
    """The bundle's variables are the model's: no copy hides in the graph of an op that stayed."""
    refimpl.convert(learner, tmp_path / "bundle", EVERYTHING)
    loaded = tf.saved_model.load(str(tmp_path / "bundle"))
    x = tf.constant(normal(3, 4, seed=93))
    before = loaded.signatures["serving_default"](x=x)["y"].numpy()
    loaded.weight.assign(tf.zeros((4, 4)))
    after = loaded.signatures["serving_default"](x=x)["y"].numpy()
    assert np.abs(before - 0.25).max() > 0.01
    np.testing.assert_allclose(after, 0.25)


@pytest.mark.parametrize("name", ["captured_table", "tf1_table", "decode_and_label"])
def test_tables_are_filled(name: str) -> None:
    """From the graph, from an asset by a main op, from an asset of a TF2 model."""
    assert_agrees(saved_model(name), make_bundle(name), sample_inputs(name)[0])


def test_weights_are_stored_once() -> None:
    """Islands have theirs in their own files; the graph has none."""
    bundle = make_bundle("vit")
    proto = saved_model_pb2.SavedModel.FromString((bundle / "saved_model.pb").read_bytes())
    original = saved_model_pb2.SavedModel.FromString((saved_model("vit") / "saved_model.pb").read_bytes())
    assert proto.ByteSize() < 3 * original.ByteSize()
    largest = max(
        (
            len(node.attr["value"].tensor.tensor_content)
            for function in proto.meta_graphs[0].graph_def.library.function
            for node in function.node_def
            if node.op == "Const"
        ),
        default=0,
    )
    assert largest < 4096
    for file in (saved_model("vit") / "variables").iterdir():
        assert (bundle / "variables" / file.name).read_bytes() == file.read_bytes()


def test_an_assertion_still_fails(tmp_path: Path) -> None:
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 10.0)]):
            return {"y": tf.tanh(tf.nn.relu(x) * 2.0) - 1.0}

    module = tf.Module()
    module.call = tf.function(call, input_signature=[spec((None, 4), name="x")])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": module.call})
    record = default(refimpl.convert(tmp_path / "model", tmp_path / "bundle", ALL))
    assert "If" in left_types(record)  # its condition, with the Assert inside
    fine = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    assert assert_agrees(tmp_path / "model", tmp_path / "bundle", fine)
    with pytest.raises(RunError, match="assert"):
        refimpl.load(tmp_path / "bundle").run({"x": fine["x"] * 3})


# --- random numbers


@pytest.fixture
def lottery(tmp_path: Path) -> Path:
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        noise = tf.random.normal(tf.shape(x), seed=17)
        return {"y": tf.tanh(tf.nn.relu(x * 2.0) + noise), "same": tf.random.stateless_uniform([3], seed=[1, 2])}

    module = tf.Module()
    module.call = tf.function(call, input_signature=[spec((None, 4), name="x")])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": module.call})
    return tmp_path / "model"


def test_seeds_keep_their_meaning(lottery: Path, tmp_path: Path) -> None:
    """The same numbers one after the other as in the model, from the first call on."""
    record = default(refimpl.convert(lottery, tmp_path / "bundle", ALL))
    assert "random numbers are drawn by TensorFlow" in left_types(record)["RandomStandardNormal"]
    x = {"x": np.zeros((2, 4), np.float32)}
    with in_session(lottery) as original:
        wanted = [original(x) for _ in range(3)]
    with in_session(tmp_path / "bundle") as stitched:
        got = [stitched(x) for _ in range(3)]
    assert not np.array_equal(wanted[0]["y"], wanted[1]["y"])
    for want, have in zip(wanted, got, strict=True):
        assert compare(want, have, fp32).ok


# --- places and processes

SESSION = ["vit", "cond", "captured_table", "tf1_table", "tf1_ref_variables", "keras2_optimizer_slots", "many_dtypes"]


@pytest.mark.parametrize("name", SESSION)
def test_a_session_runs_the_engines_too(name: str) -> None:
    bundle = make_bundle(name)
    watcher = refimpl.load(bundle)
    before = Counter(watcher.counts())
    with in_session(saved_model(name)) as original, in_session(bundle) as stitched:
        for inputs in sample_inputs(name):
            comparison = compare(original(inputs), stitched(inputs), fp32)
            assert comparison.ok, comparison.reason
    ran = Counter(watcher.counts()) - before
    assert {run.engine for run in ran} == {"onnxruntime"}
    assert ran.total() == len(sample_inputs(name)) * len(default(watcher.manifest).islands)


def test_a_session_finds_the_engines_of_a_bundle_that_was_moved(tmp_path: Path) -> None:
    shutil.copytree(make_bundle("tf1_table"), tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    inputs = sample_inputs("tf1_table")[0]
    with in_session(tmp_path / "elsewhere") as stitched, in_session(saved_model("tf1_table")) as original:
        assert compare(original(inputs), stitched(inputs), fp32).ok
    assert {run.engine for run in refimpl.load(tmp_path / "elsewhere").counts()} == {"onnxruntime"}


def test_the_same_bundle_twice_in_one_process_has_state_twice() -> None:
    inputs = sample_inputs("counter")[0]
    bundle = make_bundle("counter", ALL)
    one, other = (tf.saved_model.load(str(bundle)).signatures["serving_default"] for _ in range(2))
    feeds = {name: tf.constant(value) for name, value in inputs.items()}
    assert [int(call(**feeds)["calls"]) for call in (one, one, other, one)] == [1, 2, 1, 3]


def test_two_bundles_of_one_model_do_not_mix(tmp_path: Path) -> None:
    """Same names of signatures, islands and functions, other contents."""
    model = saved_model("several_signatures")
    refimpl.convert(model, tmp_path / "small", refimpl.Recipe(min_segment_size=1))
    refimpl.convert(model, tmp_path / "kept", refimpl.Recipe(min_segment_size=1, keep_in_tf=("MatMul",)))
    inputs = sample_inputs("several_signatures")[0]
    loaded = [refimpl.load(tmp_path / name) for name in ("small", "kept")]
    results = [bundle.run(inputs) for bundle in (*loaded, *loaded)]
    assert [len(result.islands) for result in results] == [1, 2, 1, 2]
    for result in results:
        np.testing.assert_allclose(result.outputs["p"], results[0].outputs["p"], rtol=1e-5)


def test_an_empty_batch_keeps_dtypes_and_shapes() -> None:
    loaded = refimpl.load(make_bundle("several_signatures"))
    ran = loaded.run({"x": np.zeros((0, 12), np.float32)})
    assert ran.outputs["p"].shape == (0, 4)
    assert ran.outputs["p"].dtype == np.float32
    assert [(run.engine, run.reason) for run in ran.islands] == [(NATIVE, EMPTY)]


def test_bundles_can_be_called_in_functions_and_saved_graphs() -> None:
    """Traced into a user's own tf.function, the engine still runs at every call."""
    bundle = make_bundle("several_signatures")
    watcher = refimpl.load(bundle)
    model = tf.saved_model.load(str(bundle))
    serve = model.signatures["serving_default"]

    @tf.function
    def twice(x: tf.Tensor) -> tf.Tensor:
        return serve(x=x)["p"] + serve(x=x + 1.0)["p"]

    before = Counter(watcher.counts())
    x = tf.constant(sample_inputs("several_signatures")[0]["x"])
    for _ in range(2):
        total = twice(x)
    np.testing.assert_allclose(tf.reduce_sum(total, 1), 2.0, rtol=1e-5)
    ran = Counter(watcher.counts()) - before
    assert {run.engine: count for run, count in ran.items()} == {"onnxruntime": 4}


def test_python_functions_run_where_they_were_made(tmp_path: Path) -> None:
    """``py_function`` and ``numpy_function`` stay; the islands around them run in engines, in this process."""
    model = saved_model("python_function")
    record = default(refimpl.convert(model, tmp_path / "bundle", ALL))
    expect = MODELS["python_function"].expect
    assert set(left_types(record)) == set(expect.stay)
    assert all(expect.stay[kind] in reason for kind, reason in left_types(record).items())
    assert record.share >= expect.min_share
    inputs = sample_inputs("python_function")[0]
    original = tf.saved_model.load(str(model)).signatures["serving_default"]
    want = {name: tensor.numpy() for name, tensor in original(x=tf.constant(inputs["x"])).items()}
    ran = refimpl.load(tmp_path / "bundle").run(inputs)
    comparison = compare(want, ran.outputs, fp32)
    assert comparison.ok, comparison.reason
    assert len(ran.islands) == len(record.islands) == 3
    assert {run.engine for run in ran.islands} == {"onnxruntime"}


def test_native_segments_use_tensorflows_own_kernels(tmp_path: Path) -> None:
    """What falls back gives what the model gives, NaN included: fused kernels treat it unlike plain ones."""
    weight = tf.Variable(normal(3, 3, 2, 8, seed=95))

    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(image, weight, 1, "SAME"), tf.ones(8)))
        return {"y": tf.nn.max_pool2d(x, 2, 2, "VALID")}

    module = tf.Module()
    module.weight, module.call = weight, tf.function(call, input_signature=[spec((None, 8, 8, 2), name="image")])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": module.call})
    refimpl.convert(tmp_path / "model", tmp_path / "bundle", ALL)
    image = normal(2, 8, 8, 2, seed=96)
    image[0, 3, 3] = np.nan
    original = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    want = {"y": original(image=tf.constant(image))["y"].numpy()}
    ran = refimpl.load(tmp_path / "bundle").run({"image": image})
    assert [run.engine for run in ran.islands] == [NATIVE]
    comparison = compare(want, ran.outputs, fp32)
    assert comparison.ok, comparison.reason
