"""TF-TRT's narrower set of ops: which ops its converters refused, in either mode, and with which words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import Recipe
from refimpl.converter.plan import mutable_state, signature_source
from refimpl.converter.source import Source
from refimpl.converter.tftrt_ops import batches, refuse_like_tftrt
from tests.converter.small import write_model
from tests.tftrt.integration import constant

BATCH = "TensorRT does not allow manipulation of the batch dimension"
RANK = "implicit batch mode requires input shape with at least two dimensions"
PRODUCT = (
    "MatMul with 2D tensors requires explicit batch mode, or that tensor A is not transposed and B is a constant "
    "tensor."
)
X, IMAGE = tf.TensorSpec([None, 6], name="x"), tf.TensorSpec([None, 8, 8, 2], name="x")
INTS = tf.TensorSpec([None, 6], tf.int32, name="x")
FIXED = tf.TensorSpec([4, 6], name="x")


def refusals(folder, call, spec, op_set, precision="fp32") -> dict[str, str]:
    """Op type -> reason, of the ops of a model of one input."""
    with Source(write_model(folder / "m", call, spec)) as source:
        _, graph = signature_source(source, "serving_default", mutable_state(source))
        refused = refuse_like_tftrt(graph, op_set, precision)
        return {graph.ops[name].type: reason for name, reason in refused.items()}


CASES = {
    "an op without a converter": (tf.math.erfc, X, "Erfc", "Op type Erfc is not supported."),
    "argmax of the default type": (lambda x: tf.argmax(x, 1), X, "ArgMax", "Output type int64 is not supported"),
    "half-pixel resizing": (
        lambda x: tf.image.resize(x, (4, 4)),
        IMAGE,
        "ResizeBilinear",
        "Cannot Convert Bilinear Resize when align_corners=False",
    ),
    "padding of two dimensions": (
        lambda x: tf.pad(x, [[0, 0], [1, 1]]),
        X,
        "Pad",
        "Convertpad requires at least 4D input",
    ),
    "padding everywhere": (
        lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [1, 1]]),
        IMAGE,
        "Pad",
        "Padding layer does not support padding on > 2",
    ),
    "a computed kernel": (
        lambda x: tf.nn.conv2d(x, tf.reshape(x[0, :3, :3, :], [3, 3, 2, 1]), 1, "SAME"),
        IMAGE,
        "Conv2D",
        'The input "filter" for Conv2D must be a constant',
    ),
    "strides of a new axis": (
        lambda x: x[:, tf.newaxis],
        X,
        "StridedSlice",
        "new_axis_mask is not supported for StridedSlice",
    ),
    "unsorted": (
        lambda x: tf.nn.top_k(x, 2, sorted=False)[0],
        X,
        "TopKV2",
        "Only sorted=True is supported",
    ),
    "a sum of integers": (
        lambda x: tf.reduce_sum(x, 1),
        INTS,
        "Sum",
        "Sum op is not supported - Allowed input dtypes: [float32, float16]. Received: int32",
    ),
    "a cast to integers": (
        lambda x: tf.cast(x, tf.int32),
        X,
        "Cast",
        "Cast op is not supported - Allowed output dtypes: [float32, float16]",
    ),
    "an einsum with dots": (
        lambda x: tf.einsum("...i,ij->...j", x, constant(6, 3)),
        X,
        "Einsum",
        "No conversion for einsum equation.",
    ),
    "indices of int64": (
        lambda x: tf.gather(constant(10, 3), tf.cast(x, tf.int64)),
        INTS,
        "GatherV2",
        "GatherV2 op is not supported - Allowed input dtypes of indices: [int32]",
    ),
    "fake quantization": (
        tf.quantization.fake_quant_with_min_max_args,
        X,
        "FakeQuantWithMinMaxArgs",
        "Op type FakeQuantWithMinMaxArgs is not supported.",
    ),
}


@pytest.mark.parametrize("op_set", ["tf-trt", "tf-trt-implicit"])
@pytest.mark.parametrize("case", CASES)
def test_refused_in_both_modes(case, op_set, tmp_path):
    call, spec, kind, reason = CASES[case]
    assert refusals(tmp_path, call, spec, op_set).get(kind) == reason


IMPLICIT = {
    "a transposed batch": (lambda x: tf.transpose(x, [1, 0]), X, "Transpose", BATCH),
    "a reshaped batch": (lambda x: tf.reshape(x, [-1, 3]), X, "Reshape", BATCH),
    "a joined batch": (lambda x: tf.concat([x, x], 0), X, "ConcatV2", BATCH),
    "a reduced batch": (lambda x: tf.reduce_max(x, [0, 1]), X, "Max", BATCH),
    "a new first dimension": (lambda x: tf.expand_dims(x, 0), X, "ExpandDims", BATCH),
    "a split batch": (lambda x: tf.split(x, 2, 0), FIXED, "Split", BATCH),
    "a stacked batch": (lambda x: tf.stack([x, x], 0), X, "Pack", BATCH),
    "an unstacked batch": (lambda x: tf.unstack(x, axis=0), FIXED, "Unpack", BATCH),
    "a sliced batch": (lambda x: x[1:], X, "StridedSlice", BATCH),
    "a vector": (tf.nn.relu, tf.TensorSpec([None], name="x"), "Relu", RANK),
    "a product with itself": (
        lambda x: tf.matmul(x, x, transpose_a=True),
        X,
        "MatMul",
        PRODUCT,
    ),
    "a shape": (tf.shape, X, "Shape", "Shape is only supported for explicit batch mode."),
    "a comparison": (lambda x: x > 0.5, X, "Greater", "Greater is not supported in implicit batch mode"),
}


@pytest.mark.parametrize("case", IMPLICIT)
def test_refused_in_implicit_batch_mode_only(case, tmp_path):
    call, spec, kind, reason = IMPLICIT[case]
    assert refusals(tmp_path, call, spec, "tf-trt-implicit").get(kind) == reason
    assert kind not in refusals(tmp_path / "again", call, spec, "tf-trt")


def network(x):
    y = tf.nn.conv2d(x, constant(3, 3, 2, 4), 2, "SAME")
    y = tf.nn.relu(tf.nn.bias_add(y, constant(4)))
    y = tf.nn.max_pool2d(y, 2, 2, "VALID")
    y = tf.reshape(y, [-1, 16])
    y = tf.nn.softmax(tf.matmul(y, constant(16, 5)) * 0.5)
    return tf.concat([y[:, :2], tf.squeeze(tf.expand_dims(y, 1), [1])], 1)


@pytest.mark.parametrize("op_set", ["tf-trt", "tf-trt-implicit"])
def test_a_common_network_is_taken_whole(op_set, tmp_path):
    assert refusals(tmp_path, network, IMAGE, op_set) == {}


def test_quantization_ops_convert_in_int8_only(tmp_path):
    def call(x):
        return tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0)

    assert refusals(tmp_path, call, X, "tf-trt", "int8") == {}


def test_segments_of_different_batches_stay_apart_in_implicit_batch_mode(tmp_path):
    """And an op that leads from one to the other and back does not close a cycle."""

    def call(x):
        small = tf.nn.tanh(tf.nn.relu(x * 2.0) - 1.0)  # of batch 4
        large = tf.nn.tanh(tf.nn.relu(small + constant(8, 4, 6)) - 1.0)  # the batch is 8
        return {"a": tf.nn.relu(tf.reduce_max(large, [1]) * 3.0), "b": tf.nn.softmax(small)}

    write_model(tmp_path / "m", call, FIXED)
    counts = {}
    for op_set in ("tf-trt", "tf-trt-implicit"):
        (record,) = refimpl.convert(tmp_path / "m", tmp_path / op_set, Recipe(op_set=op_set)).signatures
        counts[op_set] = len(record.islands)
        value = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
        outputs = refimpl.load(tmp_path / op_set).run({"x": value}).outputs
        for name, want in call(tf.constant(value)).items():
            np.testing.assert_allclose(outputs[name], want, rtol=1e-4, atol=1e-5)
    assert counts == {"tf-trt": 1, "tf-trt-implicit": 2}


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [
        (([4, 6], [4, 6]), 4),
        (([None, 6], [1, 6]), -1),
        (([None, 6], [4, 6]), None),
        (([6], [4, 6]), 4),
        (([1, 6], [1, 6]), 1),
        (([6], [6]), None),
    ],
)
def test_the_batch_of_an_op(shapes, batch, tmp_path):
    """The inputs of the highest rank decide; an open batch beside another one does not."""
    module = tf.Module()
    specs = [tf.TensorSpec(shape, name=name) for name, shape in zip("xy", shapes, strict=True)]
    module.run = tf.function(lambda x, y: {"z": x + y}, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path / "m"), module.run.get_concrete_function())
    with Source(tmp_path / "m") as source:
        _, graph = signature_source(source, "serving_default", mutable_state(source))
        assert next((value for value in batches(graph).values()), None) == batch


def test_the_recipe_reproduces_it(tmp_path):
    """What TensorRT takes today and TF-TRT did not stays in TensorFlow, with TF-TRT's reason."""

    def call(x):
        return tf.nn.relu(tf.math.erfc(tf.nn.relu(x * 2.0) - 1.0) * 2.0)

    write_model(tmp_path / "m", call, X)
    islands = {}
    for op_set in ("tensorrt", "tf-trt"):
        recipe = Recipe(op_set=op_set, min_segment_size=1)
        (record,) = refimpl.convert(tmp_path / "m", tmp_path / op_set, recipe).signatures
        islands[op_set] = len(record.islands)
    assert islands == {"tensorrt": 1, "tf-trt": 2}
    assert [op.reason for op in record.left] == ["Op type Erfc is not supported."]
    loaded = refimpl.load(tmp_path / "tf-trt")
    value = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    (output,) = loaded.run({"x": value}).outputs.values()
    np.testing.assert_allclose(output, call(tf.constant(value)), rtol=1e-4, atol=1e-5)
