"""FP16 and INT8 through TF-TRT's API: when ranges are found, what the nodes say, and what may be saved when."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle, runtime
from refimpl import trt_convert as trt
from refimpl.engines import tensorrt
from tests.tftrt.models import WIDE, call, converter

PRECISION = "_precision_mode"


def values(count: int = 5):
    return np.random.default_rng(count).random((count, 32), np.float32)


def samples():
    """Ragged on purpose: TF-TRT dropped every batch that had not the first one's size."""
    for size in (4, 4, 3):
        yield (values(size),)


def engine_nodes(made):
    return [node for node in made._converted_graph_def.node if node.op == "PyFunc"]


def assert_close(got, tolerance):
    want = call(WIDE, x=values())["y"]
    np.testing.assert_allclose(np.asarray(got["y"]), want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("mode", ["FP16", "fp16"])
def test_fp16(mode, tmp_path):
    made = converter(WIDE, precision_mode=mode)
    assert_close(made.convert()(values()), 1e-2)
    assert {node.attr[PRECISION].s for node in engine_nodes(made)} == {b"FP16"}
    made.build(input_fn=samples)
    made.save(str(tmp_path / "out"))
    assert_close(call(tmp_path / "out", x=values()), 1e-2)
    assert bundle.read(tmp_path / "out").precision == "fp16"


def test_int8_in_implicit_batch_mode_is_calibrated_by_convert(tmp_path):
    made = converter(WIDE, precision_mode="INT8")
    assert_close(made.convert(calibration_input_fn=samples)(values()), 0.1)
    for node in engine_nodes(made):
        assert node.attr[PRECISION].s == b"INT8"
        assert node.attr["_use_calibration"].b
        assert json.loads(node.attr["_calibration_data"].s)
    assert any(layer[2] == "int8" for layer in made._manifest.islands[0].layers)
    made.save(str(tmp_path / "out"))  # build() is not needed
    assert_close(call(tmp_path / "out", x=values()), 0.1)
    assert refimpl.load(tmp_path / "out").manifest.precision == "int8"


def test_int8_in_dynamic_shape_mode_is_calibrated_by_build(tmp_path):
    reads = []

    def calibration():
        reads.append(1)
        yield from samples()

    made = converter(WIDE, precision_mode="int8", use_dynamic_shape=True)
    made.convert(calibration_input_fn=calibration)
    assert not reads
    assert not any(node.attr["_calibration_data"].s for node in engine_nodes(made))
    assert {node.attr[PRECISION].s for node in engine_nodes(made)} == {b"INT8"}
    with pytest.raises(RuntimeError, match=r"^A model that requires INT8 calibration has to be built before saving it"):
        made.save(str(tmp_path / "out"))
    made.build(input_fn=lambda: iter([np.zeros((8, 32), np.float32)]))
    assert reads == [1], "it may be a generator that cannot start again"
    assert all(node.attr["_calibration_data"].s for node in engine_nodes(made))
    made.save(str(tmp_path / "out"), save_gpu_specific_engines=False)
    assert_close(call(tmp_path / "out", x=values()), 0.1)
    inputs, _ = runtime.read_probe(made._folder / made._manifest.islands[0].probe)
    if tensorrt.version():
        assert inputs[0].shape == (8, 32)
        assert set(np.unique(inputs[0])) <= set(np.unique(values(4))), "real values, within the calibrated range"
    records = {engine.kind: engine for engine in bundle.read(tmp_path / "out").islands[0].engines}
    assert records["tensorrt"].profiles[0]["max"][0] == [8, 32], "of build()'s shapes, not of the calibration's"


def test_int8_without_calibration_and_without_ranges_is_fp16(tmp_path, caplog):
    made = converter(WIDE, precision_mode="INT8", use_calibration=False)
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        assert_close(made.convert()(values()), 1e-2)
    assert "Set engine precision to FP16 due to missing QDQ OP" in caplog.text
    assert {node.attr[PRECISION].s for node in engine_nodes(made)} == {b"FP16"}
    made.save(str(tmp_path / "out"))


def test_calibration_of_tf1(tmp_path):
    rng = np.random.default_rng(0)
    values = [rng.random((4, 6), np.float32) for _ in range(3)]
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 6], name="x")
        w = tf.constant(rng.standard_normal((6, 8)).astype(np.float32))
        tf.nn.relu(tf.matmul(x, w, name="product") + 0.5, name="y")
        want = session.run("y:0", {"x:0": values[0]})
        made = trt.TrtGraphConverter(
            input_graph_def=graph.as_graph_def(), nodes_denylist=["y"], precision_mode="INT8", is_dynamic_op=True,
            max_batch_size=None, minimum_segment_size=2,
        )  # fmt: skip
        made.convert()
        with pytest.raises(ValueError, match=r"^Should specify one and only one of feed_dict_fn and input_map_fn.$"):
            made.calibrate(fetch_names=["y:0"], num_runs=3)
        feeds = iter(values)
        converted = made.calibrate(fetch_names=["y:0"], num_runs=3, feed_dict_fn=lambda: {"x:0": next(feeds)})
    (node,) = [node for node in converted.node if node.op == "PyFunc"]
    assert node.attr["_calibration_data"].s
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(converted, name="")
        np.testing.assert_allclose(session.run("y:0", {"x:0": values[0]}), want, atol=0.1 * want.max())
