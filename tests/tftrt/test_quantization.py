"""Models that were trained with quantization, where TF-TRT bypassed ops, refused without a reason, or forced INT8."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from refimpl import trt_convert as trt
from refimpl.errors import RecipeError
from refimpl.recipe import Recipe

RNG = np.random.default_rng(0)
FIRST = (RNG.standard_normal((32, 64)) * 0.3).astype(np.float32)
SECOND = (RNG.standard_normal((64, 16)) * 0.3).astype(np.float32)
X = RNG.random((5, 32), np.float32)
# Four bits, so that an op which is bypassed shows.
OPS = {
    "QuantizeAndDequantizeV2": lambda x: tf.raw_ops.QuantizeAndDequantizeV2(
        input=x, input_min=-1.0, input_max=1.0, num_bits=4, range_given=True
    ),
    "QuantizeAndDequantizeV3": lambda x: tf.raw_ops.QuantizeAndDequantizeV3(
        input=x, input_min=-1.0, input_max=1.0, num_bits=4, range_given=True
    ),
    "FakeQuantWithMinMaxArgs": lambda x: tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0, 4),
    "FakeQuantWithMinMaxVars": lambda x: tf.quantization.fake_quant_with_min_max_vars(x, -1.0, 1.0, 4),
}


def network(x, quantize):
    return tf.matmul(quantize(tf.nn.tanh(tf.matmul(quantize(x), FIRST))), SECOND)


@pytest.fixture(scope="module", params=sorted(OPS))
def kind(request):
    """The type of the quantization op."""
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    """A SavedModel of rank 2 with that op before each product."""
    module = tf.Module()
    spec = tf.TensorSpec([None, 32], name="x")
    module.run = tf.function(lambda x: {"y": network(x, OPS[kind])}, input_signature=[spec])
    folder = tmp_path_factory.mktemp("quantized") / "m"
    tf.saved_model.save(module, str(folder), module.run.get_concrete_function())
    return folder


def converted(model, **options):
    ops = options.pop("ops", "tensorrt")
    made = trt.TrtGraphConverterV2(
        input_saved_model_dir=str(model), minimum_segment_size=1, recipe=Recipe(op_set=ops), **options
    )
    calibrates = made._need_calibration
    made.convert((lambda: iter([(X,)] * 2)) if calibrates else None)
    modes = {node.attr["_precision_mode"].s.decode() for node in made._converted_graph_def.node if node.op == "PyFunc"}
    return made, modes


def error(made, want) -> float:
    got = made._converted_func(tf.constant(X))["y"].numpy()
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_the_op_computes_what_it_computes_in_tensorflow(kind, model):
    """TF-TRT took the unquantized tensor again behind an op of rank below four."""
    made, modes = converted(model)
    assert modes == {"FP32"}, "one such op made TF-TRT take INT8, whatever was asked for"
    assert error(made, network(X, OPS[kind]).numpy()) < 1e-4
    assert error(made, network(X, lambda x: x).numpy()) > 0.05, "the op is not bypassed"


def test_int8_with_calibration(kind, model):
    """TF-TRT asked for a table that nobody made."""
    made, modes = converted(model, precision_mode="INT8")
    assert modes == {"INT8"}
    assert all(node.attr["_calibration_data"].s for node in made._converted_graph_def.node if node.op == "PyFunc")
    assert error(made, network(X, OPS[kind]).numpy()) < 0.1


def test_tftrts_own_op_set_refuses_it_with_a_reason(kind, model):
    made, modes = converted(model, ops="tf-trt", use_dynamic_shape=True)
    assert modes == {"FP32"}
    assert {op.type: op.reason for op in made._record().left} == {kind: f"Op type {kind} is not supported."}
    assert len(made._record().islands) == 2, "it parts the graph"


def test_no_samples_is_an_error_that_names_them(model, caplog):
    made = trt.TrtGraphConverterV2(input_saved_model_dir=str(model), precision_mode="INT8")
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(RecipeError, match=r"^samples from calibration_input_fn yields no"),
    ):
        made.convert(lambda: iter(()))
    assert not made._converted
