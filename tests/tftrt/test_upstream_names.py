"""Private names of TF-TRT's module and converter that its tests touch, and the attributes of its engine nodes."""

from __future__ import annotations

import logging
import shutil

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from refimpl import trt_convert as trt
from refimpl.trt_convert import support
from tests.tftrt.models import TWO, converted, converter


def engines(made):
    """Engine node -> the dtypes that go in and come out, as its attributes say."""
    found = {}

    def note(node):
        found[node.name] = tuple(
            [tf.as_dtype(item).name for item in node.attr[key].list.type] for key in ("_InT", "_OutT")
        )

    made._for_each_trt_node(made._converted_graph_def, note)
    return found


def test_names_of_the_module():
    assert trt._TRT_ENGINE_OP_NAME == "TRTEngineOp"
    assert trt._get_canonical_engine_name("a/b/TRTEngineOp_000_001") == "TRTEngineOp_000_001"
    assert trt._check_trt_version_compatibility() is None
    with pytest.raises(ValueError, match="is not supported"):
        trt._check_conversion_params(trt.TrtConversionParams(precision_mode="FP64"), is_v2=True)


def test_names_of_the_converter():
    made = converter(use_dynamic_shape=True)
    assert made._need_trt_profiles()
    assert not converter()._need_trt_profiles()
    assert made._device is None
    made._verify_profile_strategy("RANGE")
    with pytest.raises(ValueError, match="profile_strategy 'Best' is not supported"):
        made._verify_profile_strategy("Best")


def test_engine_nodes_say_their_own_dtypes():
    made = converted(TWO)
    found = engines(made)
    islands = {island.name: island for island in made._manifest.islands}
    assert found.keys() == islands.keys()
    for name, (entering, leaving) in found.items():
        assert entering == [spec.dtype for spec in islands[name].inputs]
        assert leaving == [spec.dtype for spec in islands[name].outputs]


@pytest.mark.parametrize(("dynamic", "strategy"), [(False, None), (True, b"range")])
def test_only_dynamic_shape_mode_has_a_strategy(dynamic, strategy):
    made = converted(TWO, use_dynamic_shape=dynamic)
    for node in made._converted_graph_def.node:
        if node.op == "PyFunc":
            assert ("_profile_strategy" in node.attr) == dynamic
            assert not dynamic or node.attr["_profile_strategy"].s == strategy
            assert node.attr["_max_batch_size"].i == -1
            assert not node.attr["_use_explicit_precision"].b
            assert not node.attr["_serialized_segment"].s


def test_functions_that_ask_to_be_converted_by_themselves_are_told(tmp_path, caplog):
    folder = shutil.copytree(TWO, tmp_path / "m")
    proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    function = proto.meta_graphs[0].graph_def.library.function[0]
    function.attr["_tftrt_convert_function"].b = True
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        converter(TWO)._open_model()
        assert "_tftrt_" not in caplog.text
        converter(folder)._open_model()
    assert f"_tftrt_* attributes have no effect ({function.signature.name})" in caplog.text


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("/job:localhost/replica:0/task:0/device:CPU:0", False),
        ("/job:localhost/replica:0/task:0/device:GPU:0", False),
        ("/job:localhost/replica:0/task:0/device:GPU:1", True),
    ],
)
def test_a_device_that_is_asked_for_is_told_to_have_no_effect(device, told, monkeypatch, caplog):
    class Tensor:
        def __init__(self) -> None:
            self.device = device

    monkeypatch.setattr(tf, "zeros", lambda shape: Tensor())
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        assert support.tell_scope() == (device if told else None)
    assert ("CUDA_VISIBLE_DEVICES" in caplog.text) == told
