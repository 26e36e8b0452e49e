"""Names, defaults, checks and messages of TF-TRT's API."""

from __future__ import annotations

import fnmatch
import inspect
import logging
import subprocess
import sys

import pytest
import tensorflow as tf

from refimpl import tftrt_env
from refimpl import trt_convert as trt
from refimpl.errors import UnsupportedError
from refimpl.recipe import Recipe
from refimpl.trt_convert import params


def test_every_public_name_is_there():
    names = """TrtGraphConverterV2 TrtGraphConverter TrtConversionParams TrtPrecisionMode DEFAULT_TRT_CONVERSION_PARAMS
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES PROFILE_STRATEGY_RANGE PROFILE_STRATEGY_OPTIMAL PROFILE_STRATEGY_RANGE_OPTIMAL
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE supported_profile_strategies create_inference_graph
    get_tensorrt_rewriter_config Converter ConversionParams""".split()
    assert sorted(names) == sorted(trt.__all__)
    assert all(hasattr(trt, name) for name in names)
    assert trt.Converter is trt.TrtGraphConverterV2
    assert trt.ConversionParams is trt.TrtConversionParams


def test_importing_it_imports_no_tensorflow():
    heavy = ["tensorflow", "onnx", "onnxruntime", "tf2onnx", "tensorrt", "tensorrt_rtx"]
    code = f"import sys; from refimpl import trt_convert as trt; print(*set(sys.modules) & {set(heavy)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_parameters_have_tftrts_order_and_defaults():
    found = inspect.signature(trt.TrtGraphConverterV2).parameters
    assert {name: item.default for name, item in found.items() if name != "recipe"} == {
        "input_saved_model_dir": None,
        "input_saved_model_tags": None,
        "input_saved_model_signature_key": None,
        "use_dynamic_shape": None,
        "dynamic_shape_profile_strategy": None,
        "max_workspace_size_bytes": trt.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        "precision_mode": "FP32",
        "minimum_segment_size": 3,
        "maximum_cached_engines": 1,
        "use_calibration": True,
        "allow_build_at_runtime": True,
        "conversion_params": None,
    }
    assert found["recipe"].kind is inspect.Parameter.KEYWORD_ONLY, "ours is the only one more"
    methods = {name: list(inspect.signature(getattr(trt.TrtGraphConverterV2, name)).parameters)[1:] for name in METHODS}
    assert methods == METHODS


METHODS = {
    "convert": ["calibration_input_fn"],
    "build": ["input_fn"],
    "save": ["output_saved_model_dir", "save_gpu_specific_engines", "options"],
    "summary": ["line_length", "detailed", "print_fn"],
}


def test_conversion_params_are_a_named_tuple():
    assert trt.TrtConversionParams._fields == (
        "max_workspace_size_bytes",
        "precision_mode",
        "minimum_segment_size",
        "maximum_cached_engines",
        "use_calibration",
        "allow_build_at_runtime",
    )
    assert trt.TrtConversionParams() == trt.DEFAULT_TRT_CONVERSION_PARAMS
    changed = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(precision_mode="nonsense", minimum_segment_size=0)
    assert changed._asdict()["precision_mode"] == "nonsense", "nothing is checked here"


def test_precision_modes_and_strategies():
    modes = trt.TrtPrecisionMode
    assert (modes.FP32, modes.FP16, modes.INT8) == ("FP32", "FP16", "INT8")
    assert modes.supported_precision_modes() == ["FP32", "FP16", "INT8", "fp32", "fp16", "int8"]
    assert trt.supported_profile_strategies() == ["Range", "Optimal", "Range+Optimal", "ImplicitBatchModeCompatible"]
    assert trt.PROFILE_STRATEGY_RANGE_OPTIMAL == "Range+Optimal"


@pytest.mark.parametrize("mode", ["Fp16", "tf32", None])
def test_unknown_precision(mode):
    with pytest.raises(ValueError, match="is not supported") as caught:
        trt.TrtGraphConverterV2(input_saved_model_dir="x", precision_mode=mode)
    assert str(caught.value) == (
        f"precision mode '{mode}' is not supported.It should be one of ['FP32', 'FP16', 'INT8', 'fp32', 'fp16', 'int8']"
    )


@pytest.mark.parametrize("size", [0, -2])
def test_impossible_segment_size(size):
    with pytest.raises(ValueError, match="minimum segment size") as caught:
        trt.TrtGraphConverterV2(minimum_segment_size=size)
    assert str(caught.value) == "minimum segment size should be positive or -1 (to disable main graph conversion)."


def test_segment_size_that_is_no_number():
    with pytest.raises(TypeError):
        trt.TrtGraphConverterV2(minimum_segment_size="3")


def test_strategies_are_checked_in_dynamic_mode_only():
    with pytest.raises(ValueError, match="profile_strategy") as caught:
        trt.TrtGraphConverterV2(use_dynamic_shape=True, dynamic_shape_profile_strategy="Widest")
    assert str(caught.value) == (
        "profile_strategy 'Widest' is not supported. It should be one of "
        "['Range', 'Optimal', 'Range+Optimal', 'ImplicitBatchModeCompatible']"
    )
    assert trt.TrtGraphConverterV2(dynamic_shape_profile_strategy="Widest")._profile_strategy == "Unknown"
    assert trt.TrtGraphConverterV2(use_dynamic_shape=True)._profile_strategy == "Range"
    any_case = trt.TrtGraphConverterV2(use_dynamic_shape=True, dynamic_shape_profile_strategy="range+OPTIMAL")
    assert any_case._profile_strategy == "range+OPTIMAL"


def test_the_deprecated_strategy_is_told(caplog):
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        trt.TrtGraphConverterV2(use_dynamic_shape=True, dynamic_shape_profile_strategy="ImplicitBatchModeCompatible")
    assert "deprecated" in caplog.text


def test_conversion_params_win():
    given = trt.TrtConversionParams(precision_mode="fp32", minimum_segment_size=7)
    made = trt.TrtGraphConverterV2(precision_mode="nonsense", minimum_segment_size=2, conversion_params=given)
    assert made._conversion_params is given


def test_only_in_eager_mode():
    with tf.Graph().as_default(), pytest.raises(AssertionError):
        trt.TrtGraphConverterV2(input_saved_model_dir="x", precision_mode="nonsense")


DEFAULT = Recipe()


def recipe(base: Recipe = DEFAULT, strategy: str = "", **changes: object) -> Recipe:
    given = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(**changes)
    return params.recipe_for(given, base, strategy=strategy, tags=("serve",), key="k")


def test_the_recipe_of_the_defaults(monkeypatch):
    monkeypatch.delenv("TF_TRT_MAX_ALLOWED_ENGINES", raising=False)
    made = recipe()
    assert (made.min_segment_size, made.max_engines, made.precision, made.profile) == (3, 20, "fp32", "implicit-batch")
    assert made.workspace_bytes in (0, 1 << 30), "TF-TRT's default for what is installed"
    assert made.max_cached_engines == 1
    assert made.signatures == ("k",)
    assert not made.keep_in_tf


def test_a_denylist_is_of_types_and_no_pattern(monkeypatch):
    monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Conv2D,Conv*")
    assert [fnmatch.fnmatchcase("Conv2D", item) for item in recipe().keep_in_tf] == [True, False]


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"minimum_segment_size": -1}, "keep_in_tf", ("*",)),
        ({"minimum_segment_size": 5}, "min_segment_size", 5),
        ({"maximum_cached_engines": -1}, "max_cached_engines", 0),
        ({"max_workspace_size_bytes": 1 << 20}, "workspace_bytes", 1 << 20),
        ({"max_workspace_size_bytes": sys.maxsize}, "workspace_bytes", 0),
        ({"strategy": "ImplicitBatchModeCompatible"}, "profile", "implicit-batch"),
        ({"strategy": "Range+Optimal"}, "profile", "range+optimal"),
        ({"strategy": "OPTIMAL"}, "profile", "optimal"),
        ({"base": Recipe(op_set="tf-trt")}, "op_set", "tf-trt-implicit"),
        ({"base": Recipe(op_set="tf-trt"), "strategy": "Range"}, "op_set", "tf-trt"),
        ({"base": Recipe(verify=False)}, "verify", False),
    ],
)
def test_the_recipe_of_a_choice(given, field, value):
    assert getattr(recipe(**given), field) == value


def test_variables_reach_the_recipe(monkeypatch):
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "-4")
    monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Conv2D, Relu")
    monkeypatch.setenv("TF_TRT_EXPERIMENTAL_FEATURES", "reject_all_fp_cast_ops")
    made = recipe(Recipe(keep_in_tf=("*/head/*",)))
    assert made.max_engines == 0
    assert made.keep_in_tf == ("*/head/*", "Conv2D", "Relu", "Cast")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"is_dynamic_op": True}, UnsupportedError, "cannot convert a graph while it runs"),
        ({"is_dynamic_op": None}, ValueError, "can't be None for TF1"),
        ({"is_dynamic_op": False, "is_v2": True}, ValueError, "either None or True for TF2"),
        ({"is_dynamic_op": True, "max_batch_size": 3}, ValueError, "has to be None"),
        ({"is_dynamic_op": False}, ValueError, "has to be an integer"),
    ],
)
def test_online_conversion_says_what_to_use_instead(arguments, error, says):
    with pytest.raises(error, match=says):
        trt.get_tensorrt_rewriter_config(trt.DEFAULT_TRT_CONVERSION_PARAMS, **arguments)


def test_freezing_can_be_off_in_dynamic_mode_only(monkeypatch, caplog):
    monkeypatch.setenv("TF_TRT_EXPERIMENTAL_FEATURES", "disable_graph_freezing")
    assert not trt.TrtGraphConverterV2(use_dynamic_shape=True).freeze
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        assert trt.TrtGraphConverterV2().freeze
    assert "dynamic shape mode" in caplog.text


def test_a_variable_that_does_nothing_is_told_once(monkeypatch, caplog):
    monkeypatch.setenv("TF_TRT_USE_IMPLICIT_BATCH", "1")
    tftrt_env._told.clear()
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        trt.TrtGraphConverterV2()
        trt.TrtGraphConverterV2()
    assert caplog.text.count("TF_TRT_USE_IMPLICIT_BATCH") == 1
    assert "use_dynamic_shape" in caplog.text
