"""TF1: ``TrtGraphConverter`` and ``create_inference_graph`` in graph mode."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle, runtime, tf_private
from refimpl import trt_convert as trt
from refimpl.bundle import LeftOp
from refimpl.engines import tensorrt
from refimpl.errors import SourceError
from refimpl.trt_convert.frozen import on_other_devices
from refimpl.trt_convert.support import in_tftrt_words

VALUE = np.random.default_rng(0).random((2, 6), np.float32)
needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


@pytest.fixture(autouse=True)
def graph_mode():
    with tf.Graph().as_default():
        yield


def build_model():
    x = tf.compat.v1.placeholder(tf.float32, [None, 6], name="x")
    w = tf.compat.v1.get_variable("w", initializer=np.full((6, 4), 0.25, np.float32))
    y = tf.nn.relu(tf.matmul(x, w, name="product") - 0.5, name="relu")
    values, indices = tf.nn.top_k(tf.nn.softmax(y * 3.0 + 1.0), 2, name="best")
    return x, tf.identity(values, name="values"), tf.identity(indices, name="indices")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A TF1 SavedModel, the answers to VALUE, and its frozen GraphDef."""
    folder = tmp_path_factory.mktemp("v1") / "model"
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        x, values, indices = build_model()
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(
            session, str(folder), {"source": x}, {"values": values, "indices": indices}
        )
        want = session.run([values, indices], {x: VALUE})
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), ["values", "indices"]
        )
    return folder, want, frozen


def run(graph_def, fetches=("values:0", "indices:0")):
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        return session.run(list(fetches), {"x:0": VALUE})


def assert_same(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_array_equal(got[1], want[1])


def engines(graph_def):
    return [node.name for node in graph_def.node if node.name.startswith("TRTEngineOp") and node.op == "PyFunc"]


def test_a_graph_def(model):
    _, want, frozen = model
    converter = trt.TrtGraphConverter(input_graph_def=frozen, nodes_denylist=["values:0", "indices"])
    converted = converter.convert()
    assert engines(converted) == ["TRTEngineOp_000_000"]
    names = {node.name for node in converted.node}
    assert {"x", "values", "indices"} <= names, "inputs and outputs are left alone"
    assert "product" not in names
    assert "TRTEngineOp_000_000_native_segment" in {item.signature.name for item in converted.library.function}
    assert_same(run(converted), want)
    with pytest.raises(ValueError, match=r"^Not able to save to a SavedModel since input is a GraphDef$"):
        converter.save("anywhere")
    with pytest.raises(AssertionError):
        converter.convert()


def test_outputs_of_a_graph_def_that_nobody_names(model):
    _, want, frozen = model
    assert_same(run(trt.TrtGraphConverter(input_graph_def=frozen).convert()), want)


def test_the_engine_runs_and_not_tensorflow(model, monkeypatch):
    _, want, frozen = model
    converted = trt.TrtGraphConverter(input_graph_def=frozen).convert()
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "0")
    assert_same(run(converted), want)


def test_a_saved_model(model, tmp_path):
    folder, want, _ = model
    converter = trt.TrtGraphConverter(input_saved_model_dir=str(folder), is_dynamic_op=True, max_batch_size=None)
    assert_same(run(converter.convert()), want)
    converter.save(str(tmp_path / "out"))
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "out")).signature_def
        outputs = signature["serving_default"].outputs
        fetches = [outputs["values"].name, outputs["indices"].name]
        assert_same(session.run(fetches, {signature["serving_default"].inputs["source"].name: VALUE}), want)
    assert bundle.read(tmp_path / "out").islands
    with tf_private.eagerly():
        result = refimpl.load(tmp_path / "out").run({"source": VALUE})
    assert_same([result.outputs["values"], result.outputs["indices"]], want)
    assert [run.engine for run in result.islands] != ["native"]


def test_create_inference_graph(model, tmp_path):
    folder, want, frozen = model
    assert_same(run(trt.create_inference_graph(frozen, ["values", "indices"], max_batch_size=2)), want)
    out = tmp_path / "out"
    made = trt.create_inference_graph(None, None, input_saved_model_dir=str(folder), output_saved_model_dir=str(out))
    assert_same(run(made), want)
    assert bundle.read(out).islands


@needs_tensorrt
def test_static_engines_are_built_for_the_largest_batch(model, tmp_path):
    folder, want, _ = model
    converter = trt.TrtGraphConverter(input_saved_model_dir=str(folder), max_batch_size=1)
    assert_same(run(converter.convert()), want)
    (record,) = [item for item in bundle.read(converter._folder).islands[0].engines if item.kind == "tensorrt"]
    assert record.file
    assert [item["max"] for item in record.profiles] == [[[1, 6]]]
    probe, _ = runtime.read_probe(converter._folder / bundle.read(converter._folder).islands[0].probe)
    assert probe[0].shape == (1, 6)


@pytest.mark.parametrize(
    ("device", "stays"),
    [("/CPU:0", True), ("/job:localhost/replica:0/task:0/device:CPU:0", True), ("nonsense:", True), ("", False)],
)
def test_nodes_on_another_device_stay_there(model, device, stays, caplog):
    frozen = tf.compat.v1.GraphDef()
    frozen.CopyFrom(model[2])
    (product,) = (node for node in frozen.node if node.name == "product")
    product.device = device
    assert on_other_devices(frozen) == (["product"] if stays else [])
    if device == "nonsense:":
        return  # TensorFlow refuses such a graph itself
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        converted = trt.TrtGraphConverter(
            input_graph_def=frozen, nodes_denylist=["values", "indices"], minimum_segment_size=2
        ).convert()
    assert ("product" in {node.name for node in converted.node}) == stays
    assert ("- MatMul -> 1x" in caplog.text) == stays
    assert engines(converted)
    assert_same(run(converted), model[1])


def test_reasons_in_tftrts_words(monkeypatch, caplog, model):
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", "1")
    frozen = tf.compat.v1.GraphDef()
    frozen.CopyFrom(model[2])
    next(node for node in frozen.node if node.name == "product").device = "/CPU:0"
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        trt.TrtGraphConverter(input_graph_def=frozen, nodes_denylist=["values", "indices", "relu"]).convert()
    assert "[Count: 1x] node can't be placed on GPU" in caplog.text
    assert "excluded by segmenter option. Most likely an input or output node." in caplog.text


def test_only_what_was_kept_as_asked_gets_tftrts_words():
    reasons = {"a": "kept in TensorFlow as asked (a)", "b": "too small"}
    left = [LeftOp(name=name, type="Relu", reason=reason) for name, reason in reasons.items()]
    said = [op.reason for op in in_tftrt_words(left, ["Relu"], {"a": "elsewhere", "b": "elsewhere"})]
    assert said == ["elsewhere", "too small"]


def test_a_denylist_keeps_nodes(model):
    _, want, frozen = model
    converted = trt.TrtGraphConverter(
        input_graph_def=frozen, nodes_denylist=["values", "indices", "product"], minimum_segment_size=2
    ).convert()
    assert "product" in {node.name for node in converted.node}
    assert_same(run(converted), want)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "^Must specify one of input_graph_def and input_saved_model_dir$"),
        (
            {"input_graph_def": "g", "input_saved_model_dir": "d"},
            "^Can only specify one of input_graph_def and input_saved_model_dir$",
        ),
        (
            {"input_saved_model_dir": "d", "max_batch_size": None},
            r"^When is_dynamic_op==False max_batch_size should be an integer$",
        ),
        ({"input_saved_model_dir": "d", "precision_mode": "FP8"}, "^precision mode 'FP8' is not supported"),
        ({"input_saved_model_dir": "d", "minimum_segment_size": 0}, "^minimum segment size should be"),
    ],
)
def test_impossible_parameters(arguments, says):
    with pytest.raises(ValueError, match=says):
        trt.TrtGraphConverter(**arguments)


def test_not_in_eager_mode():
    with (
        tf_private.eagerly(),
        pytest.raises(RuntimeError, match=r"^Please use tf\.experimental\.tensorrt"),
    ):
        trt.TrtGraphConverter(input_saved_model_dir="d")


def test_int8_makes_the_op_dynamic(caplog):
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        made = trt.TrtGraphConverter(input_saved_model_dir="d", precision_mode="INT8")
    assert made._is_dynamic_op
    assert "is_dynamic_op is taken for True" in caplog.text
    assert "max_batch_size should be None" in caplog.text


def test_wrong_graphs(model):
    folder, _, frozen = model
    with pytest.raises(SourceError, match="no node 'nothing'"):
        trt.TrtGraphConverter(input_graph_def=frozen, nodes_denylist=["nothing"]).convert()
    with pytest.raises(KeyError, match="other"):
        trt.TrtGraphConverter(input_saved_model_dir=str(folder), input_saved_model_signature_key="other").convert()
