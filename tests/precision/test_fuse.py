"""Re-fused normalisations and GELUs: what is found in graphs that tf2onnx writes, what is not, and the numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from refimpl.converter import lower
from refimpl.converter.plan import signature_source
from refimpl.converter.precision import fuse as fuse_module
from refimpl.converter.precision.fuse import Fused, fuse
from refimpl.converter.source import Source
from refimpl.engines import BuildOptions, Profile, onnxruntime, rounding, tensorrt
from tests.models_ops import save
from tests.precision.fused import GELU, IN, LN, RMS, ops_of, opset_of, run, true_layer_norm


def island(saved: Path, folder: Path) -> onnx.ModelProto:
    """The clean ONNX of a whole signature, as the converter makes it."""
    with Source(saved) as source:
        _, graph = signature_source(source, "serving_default", frozenset())
        model, weights = lower.to_onnx(graph, list(graph.ops), marked=False)
    onnxruntime.optimize(model, weights, folder / "island.onnx")
    return onnx.load(folder / "island.onnx")


def keras_island(call, shape, folder: Path) -> onnx.ModelProto:
    """The same of Keras layers over float32[batch, *shape], every weight random."""
    x = keras.Input(shape)
    model = keras.Model(x, call(x))
    rng = np.random.default_rng(4)
    for weight in model.weights:
        weight.assign(rng.normal(1.0, 0.3, weight.shape))
    model.export(folder / "model", verbose=False)
    return island(folder / "model", folder)


def tf_island(call, shape, folder: Path) -> onnx.ModelProto:
    save(folder / "model", call, tf.TensorSpec(shape, tf.float32, name="x"))
    return island(folder / "model", folder)


def kinds(fused: Fused) -> list[str]:
    return [line.split(" at ")[0] for line in fused.found]


def assert_same_numbers(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Within 1e-6 of each other at any scale, and at least as near to float64 where the mean drowns the variance."""
    name = before.graph.input[0].name
    shape = [dim.dim_value or 4 for dim in before.graph.input[0].type.tensor_type.shape.dim]
    draw = np.random.default_rng(5).standard_normal(shape)
    for scale in (1e-3, 1.0, 1e3):
        feeds = {name: (scale * draw).astype(np.float32)}
        want = run(before, **feeds)[0]
        for got in (run(after, **feeds)[0], ReferenceEvaluator(after).run(None, feeds)[0]):
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    far = (1e3 + 0.1 * draw).astype(np.float32)
    truth = ReferenceEvaluator(retyped(before, np.float64)).run(None, {name: far.astype(np.float64)})[0]
    chain, one = (np.abs(run(model, **{name: far})[0] - truth).max() for model in (before, after))
    assert one <= chain + 1e-6 * np.abs(truth).max()
    zeros = {name: np.zeros(shape, np.float32)}
    want = run(before, **zeros)[0]
    np.testing.assert_allclose(run(after, **zeros)[0], want, rtol=0, atol=1e-6 * np.abs(want).max())


def retyped(model: onnx.ModelProto, dtype: type) -> onnx.ModelProto:
    """The model with every float32 tensor in another dtype."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for item in copy.graph.initializer:
        if item.data_type == TensorProto.FLOAT:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(dtype), item.name))
    for item in [*copy.graph.input, *copy.graph.output]:
        item.type.tensor_type.elem_type = kind
    return copy


def textbook(x):
    far = x - tf.reduce_mean(x, -1, keepdims=True)
    root = tf.sqrt(tf.reduce_mean(tf.square(far), -1, keepdims=True) + 1e-6)
    return far / root * np.arange(8, dtype=np.float32) + np.float32(0.3)


def batch_normalization(x):
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    gamma, beta = tf.linspace(0.5, 2.0, 8), tf.linspace(-1.0, 1.0, 8)
    return tf.nn.batch_normalization(x, mean, variance, gamma, beta, 1e-5)


def gpt_gelu(x):
    return 0.5 * x * (1 + tf.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def bert_gelu(x):
    return x * (0.5 * (1.0 + tf.math.erf(x / 1.4142135)))


def exact(x):
    return keras.activations.gelu(x, approximate=False)


def tanh(x):
    return keras.activations.gelu(x, approximate=True)


def two_layers(x):
    y = layers.Dense(16, activation=exact)(layers.LayerNormalization()(x))
    return layers.RMSNormalization()(x + layers.Dense(8)(y))


def in_transposed_layout(x):
    """ONNX Runtime moves the transposes of the convolutions past the normalisation: its axis becomes 1."""
    return layers.Conv2D(6, 2)(layers.LayerNormalization()(layers.Conv2D(8, 2)(x)))


norm, group = layers.LayerNormalization, layers.GroupNormalization
KERAS = {
    "plain": (norm, (5, 8), [f"{LN} (13 nodes)"], {LN: 1}, 18),
    "dynamic": (norm, (None, 8), [f"{LN} (13 nodes)"], {LN: 1}, 18),
    "no scale": (lambda: norm(scale=False), (5, 8), [f"{LN} (12 nodes)"], {LN: 1}, 18),
    "no center": (lambda: norm(center=False), (5, 8), [f"{LN} (12 nodes)"], {LN: 1}, 18),
    "neither": (lambda: norm(scale=False, center=False), (5, 8), [f"{LN} (11 nodes)"], {LN: 1}, 18),
    "epsilon": (lambda: norm(epsilon=1e-12), (8,), [f"{LN} (13 nodes)"], {LN: 1}, 18),
    "three axes": (lambda: norm(axis=[1, 2, 3]), (4, 4, 3), [f"{LN} (13 nodes)"], {LN: 1}, 18),
    "two axes": (lambda: norm(axis=[2, 3]), (4, 4, 3), [f"{LN} (13 nodes)"], {LN: 1}, 18),
    "first axis": (lambda: norm(axis=1), (4, 5, 3), [f"{LN} (13 nodes)"], {LN: 1, "Transpose": 2}, 18),
    "rms": (layers.RMSNormalization, (5, 8), [f"{RMS} (7 nodes)"], {RMS: 1}, 23),
    "gelu": (lambda: exact, (5, 8), [f"{GELU} (6 nodes)"], {GELU: 1}, 20),
    "tanh": (lambda: tanh, (8,), [f"{GELU} (8 nodes)"], {GELU: 1}, 20),
    "several": (
        lambda: two_layers,
        (5, 8),
        [f"{LN} (13 nodes)", f"{GELU} (6 nodes)", f"{RMS} (7 nodes)"],
        {LN: 1, GELU: 1, RMS: 1},
        23,
    ),
    "transposed": (lambda: in_transposed_layout, (7, 6, 3), [f"{LN} (13 nodes)"], {LN: 1, "Conv": 2}, 18),
}
TENSORFLOW = {
    "textbook": (textbook, [f"{LN} (9 nodes)"], {LN: 1}),
    "batch_normalization": (batch_normalization, [f"{LN} (12 nodes)"], {LN: 1}),
    "gpt": (gpt_gelu, [f"{GELU} (9 nodes)"], {GELU: 1}),
    "bert": (bert_gelu, [f"{GELU} (5 nodes)"], {GELU: 1}),
}
ATTRIBUTES = {"epsilon": ("epsilon", 1e-12), "two axes": ("axis", -2), "three axes": ("axis", -3), "rms": ("axis", -1)}


def check(model: onnx.ModelProto, fused: Fused, found: list[str], left: dict[str, int], folder: Path) -> None:
    assert [f"{kind} {line[line.rindex('(') :]}" for kind, line in zip(kinds(fused), fused.found, strict=True)] == found
    counted = ops_of(fused.model)
    for chained in ("ReduceMean", "Sqrt", "Reciprocal", "Erf", "Tanh", "Pow", "Neg", "Sub"):
        assert not counted[chained]
    for kind, count in left.items():
        assert counted[kind] >= count
    onnx.checker.check_model(fused.model, full_check=True)
    read = {name for item in fused.model.graph.node for name in item.input}
    assert {item.name for item in fused.model.graph.initializer} <= read
    assert [item.name for item in fused.model.graph.output] == [item.name for item in model.graph.output]
    assert_same_numbers(model, fused.model)
    if tensorrt.version():
        build(fused.model, folder)


def build(model: onnx.ModelProto, folder: Path) -> None:
    onnx.save(model, folder / "fused.onnx")
    shapes = [[dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in model.graph.input]
    low = tuple(tuple(size or 1 for size in shape) for shape in shapes)
    high = tuple(tuple(size or 8 for size in shape) for shape in shapes)
    options = BuildOptions(tf32=False, workspace_bytes=0)
    tensorrt.build(folder / "fused.onnx", folder / "e.engine", [Profile(low, high, high)], options)


@true_layer_norm
@pytest.mark.parametrize("name", KERAS)
def test_keras_layers(name: str, tmp_path: Path) -> None:
    call, shape, found, left, opset = KERAS[name]
    model = keras_island(call(), shape, tmp_path)
    before = model.SerializeToString()
    fused = fuse(model)
    assert model.SerializeToString() == before
    assert opset_of(fused.model) == opset
    if len(found) == 1 and len(left) == 1:
        assert ops_of(fused.model) == left
    if name in ATTRIBUTES:
        key, value = ATTRIBUTES[name]
        attributes = {item.name: helper.get_attribute_value(item) for item in fused.model.graph.node[0].attribute}
        assert attributes[key] == pytest.approx(value)
    check(model, fused, found, left, tmp_path)


@true_layer_norm
@pytest.mark.parametrize("name", TENSORFLOW)
def test_other_spellings(name: str, tmp_path: Path) -> None:
    call, found, left = TENSORFLOW[name]
    model = tf_island(call, (None, 5, 8), tmp_path)
    fused = fuse(model)
    assert ops_of(fused.model) == left
    check(model, fused, found, left, tmp_path)


@pytest.mark.parametrize("shape", [(6, 5, 8), (None, None, 8)], ids=["static", "dynamic"])
@pytest.mark.parametrize("groups", [2, -1, 1])
def test_group_normalization(groups: int, shape: tuple[int | None, ...], tmp_path: Path) -> None:
    """Whatever the sizes. One group of known sizes is a layer normalisation, its scale inside."""
    model = keras_island(group(groups), shape, tmp_path)
    kind, left = IN, {IN: 1, "Transpose": 2, "Mul": 1, "Add": 1}
    if groups == 1 and shape[0]:
        kind, left = LN, {LN: 1, "Transpose": 2}
    if not fuse_module._runs_true(kind):
        pytest.skip("this ONNX Runtime's LayerNormalization cancels")
    fused = fuse(model)
    assert opset_of(fused.model) == 18
    check(model, fused, [f"{kind} (13 nodes)"], left, tmp_path)


def test_attention_stays(tmp_path: Path) -> None:
    model = keras_island(lambda x: layers.MultiHeadAttention(2, 4)(x, x), (6, 8), tmp_path)
    fused = fuse(model)
    assert fused.found == ()
    assert fused.model is model
    assert ops_of(fused.model)["Softmax"] == 1


@true_layer_norm
def test_bert(model: Callable[[str], Path], tmp_path: Path) -> None:
    before = island(model("bert"), tmp_path)
    fused = fuse(before)
    assert Counter(kinds(fused)) == {LN: 7, GELU: 3}
    # Keras numbers its layers through the whole process, so that the numbers depend on the models made before.
    assert re.fullmatch(r"LayerNormalization at functional\w*/layer_normalization\w* \(13 nodes\)", fused.found[0])
    counted = ops_of(fused.model)
    assert not set(counted) & {"ReduceMean", "Sqrt", "Reciprocal", "Erf"}
    assert len(before.graph.node) - len(fused.model.graph.node) == 7 * 12 + 3 * 5
    assert opset_of(fused.model) == 20
    onnx.checker.check_model(fused.model, full_check=True)
    rng = np.random.default_rng(6)
    ids, mask = (item.name for item in before.graph.input)
    feeds = {ids: rng.integers(0, 1000, (3, 48), np.int32), mask: (np.arange(48) < [[9], [30], [48]]).astype(np.int32)}
    for want, got in zip(run(before, **feeds), run(fused.model, **feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
    if tensorrt.version():
        build(fused.model, tmp_path)


@true_layer_norm
def test_why(tmp_path: Path) -> None:
    """In float16 the chain overflows where the op does not, and loses digits everywhere."""
    before = keras_island(norm(), (5, 64), tmp_path)
    after = fuse(before).model
    name = before.graph.input[0].name
    draw = np.random.default_rng(7).standard_normal((4, 5, 64))
    errors: dict[tuple[str, str], float] = {}
    for what, x in (("large", 300 * draw), ("shifted", 30 + draw)):
        half = x.astype(np.float16)
        truth = ReferenceEvaluator(retyped(before, np.float64)).run(None, {name: half.astype(np.float64)})[0]
        for kind, model in (("chain", before), ("op", after)):
            got = run(rounding.spelled_out(retyped(model, np.float16)), **{name: half})[0].astype(np.float64)
            errors[what, kind] = float(np.abs(got - truth).max() / np.abs(truth).max())
    assert errors["large", "chain"] > 0.5  # every variance is infinite, so that only beta is left
    assert errors["large", "op"] < 1e-3
    assert errors["shifted", "op"] < 1e-3
    assert errors["shifted", "chain"] > 10 * errors["shifted", "op"]
