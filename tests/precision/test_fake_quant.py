"""Quantization-aware models: fake quantization exact in float islands, and INT8 from the model's own ranges."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf

import refimpl
from refimpl.artifacts import Array
from refimpl.converter import fake_quant, lower
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.plan import mutable_state, signature_source
from refimpl.converter.refusals import refuse_statically
from refimpl.converter.source import Source
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from tests import models_quant
from tests.converter.small import ALL, converted_types, default, left_types, write_model
from tests.models_ops import normal, spec

raw, fake = tf.raw_ops, tf.quantization
Call = Callable[[Any], Any]
f32 = np.float32


def vars_op(low: float, high: float, **options: Any) -> Call:
    return lambda x: fake.fake_quant_with_min_max_vars(x, low, high, **options)


def args_op(low: float, high: float, **options: Any) -> Call:
    return lambda x: fake.fake_quant_with_min_max_args(x, low, high, **options)


def qdq(low: float, high: float, kind: str = "V2", **options: Any) -> Call:
    options = {"range_given": True, "num_bits": 8, **options}
    return lambda x: getattr(raw, f"QuantizeAndDequantize{kind}")(input=x, input_min=low, input_max=high, **options)


LOWS, HIGHS = -np.geomspace(0.3, 2.0, 8).astype(f32), np.geomspace(2.5, 0.7, 8).astype(f32)
ON = np.array([1, 1, 0, 1, 1, 1, 0, 1], f32)
# The op, its scale as INT8 (float32, computed as the kernel or TensorRT does), None when it cannot be INT8.
ROWS: dict[str, tuple[Call, Any]] = {
    "symmetric_narrow": (vars_op(-2.1, 2.1, narrow_range=True), f32(2.1) / f32(127)),
    "symmetric": (vars_op(-2.1, 2.1), (f32(2.1) - f32(-2.1)) / f32(255)),
    "asymmetric": (vars_op(-1.03, 2.2), f32(2.2) / f32(127)),
    "relu": (vars_op(0.0, 6.0), f32(6) / f32(127)),
    "above_zero": (vars_op(0.5, 3.1), (f32(3.1) - f32(0.5)) / f32(127)),
    "below_zero": (vars_op(-3.1, -0.5), (f32(-0.5) - f32(-3.1)) / f32(127)),
    "half_way_nudge": (vars_op(-0.5, 254.5), f32(254.5) / f32(127)),
    "no_range": (vars_op(0.0, 0.0), np.finfo(f32).tiny),
    "four_bits": (vars_op(-2.0, 2.0, num_bits=4), None),
    "sixteen_bits": (vars_op(-2.0, 2.0, num_bits=16), None),
    "args": (args_op(-6.0, 6.0), f32(12) / f32(255)),
    "args_narrow": (args_op(-3.3, 3.3, narrow_range=True), f32(3.3) / f32(127)),
    "args_relu": (args_op(0.0, 6.0), f32(6) / f32(127)),
    "args_three_bits": (args_op(-0.7, 1.9, num_bits=3), None),
    "channels": (lambda x: fake.fake_quant_with_min_max_vars_per_channel(x, LOWS, HIGHS), None),
    "v2": (qdq(-2.1, 2.1), f32(2.1) / f32(127)),
    "v2_narrow": (qdq(-2.1, 2.1, narrow_range=True), f32(2.1) / f32(127)),
    "v2_from_min": (qdq(-3.1, 2.2), f32(-3.1) / f32(-128)),
    "v2_from_max": (qdq(-0.4, 2.2), f32(2.2) / f32(127)),
    "v2_half_up": (qdq(-2.0, 2.0, round_mode="HALF_UP"), f32(2) / f32(127)),
    "v2_unsigned": (qdq(0.0, 5.1, signed_input=False), f32(5.1) / f32(127)),
    "v2_four_bits": (qdq(-2.0, 2.0, num_bits=4), None),
    "v2_data": (qdq(0.0, 0.0, range_given=False), None),
    "v2_data_unsigned": (lambda x: qdq(0.0, 0.0, range_given=False, signed_input=False)(tf.nn.relu(x)), None),
    "v2_data_of_zeros": (lambda x: qdq(0.0, 0.0, range_given=False)(tf.abs(x)), None),
    "channels_without_range": (lambda x: fake.fake_quant_with_min_max_vars_per_channel(x, LOWS * ON, HIGHS * ON), None),
    "v2_data_by_channel": (qdq(LOWS, HIGHS, range_given=False, axis=1), None),
    "v3": (qdq(-2.1, 2.1, kind="V3"), f32(2.1) / f32(127)),
    "v3_four_bits": (qdq(-2.0, 2.0, kind="V3", num_bits=4), None),
    "v3_by_channel": (qdq(LOWS, HIGHS, kind="V3", axis=1), None),
    "v3_unsigned_three_bits": (qdq(0.0, 2.0, kind="V3", num_bits=3, signed_input=False), None),
    "v4": (qdq(-2.1, 2.1, kind="V4"), f32(2.1) / f32(127)),
    "v4_half_up_narrow": (qdq(-2.1, 2.1, kind="V4", round_mode="HALF_UP", narrow_range=True), f32(2.1) / f32(127)),
}
INT8 = {name: row for name, row in ROWS.items() if row[1] is not None}


def every_row(x: Any) -> dict[str, Any]:
    shared = x + 0.0
    return {name: call(shared) for name, (call, _) in ROWS.items()}


@dataclass(frozen=True)
class Opened:
    graph: OpGraph
    native: NativeGraph

    @property
    def ops(self) -> list[str]:
        return list(self.graph.ops)

    def cuts(self) -> tuple[list[str], list[str]]:
        _, entering, leaving = lower.subgraph_nodes(self.graph, self.ops, marked=False)
        return entering, leaving

    def tensorflow(self, *inputs: Array) -> list[Array]:
        entering, leaving = self.cuts()
        return list(self.native.run(dict(zip(entering, inputs, strict=True)), leaving))


@contextmanager
def opened(model: Path) -> Iterator[Opened]:
    with Source(model) as source:
        signature, graph = signature_source(source, "serving_default", mutable_state(source))
        yield Opened(graph, NativeGraph(source, signature))


@pytest.fixture(autouse=True)
def leave_pairs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """BASIC would quantize the biases behind pairs to int32, which TensorRT refuses, and repeat pairs."""
    left_out = ["WeightBiasQuantization", "QDQPropagationTransformer"]
    session = functools.partial(ort.InferenceSession, disabled_optimizers=left_out)
    monkeypatch.setattr(ort, "InferenceSession", session)


def float_island(it: Opened, target: Path, save: Any = onnxruntime.optimize) -> Path:
    model, weights = lower.to_onnx(it.graph, it.ops, marked=False)
    save(model, weights, target)
    return target


def int8_island(it: Opened, target: Path) -> onnx.ModelProto:
    model, weights = lower.to_onnx(it.graph, it.ops, marked=False, quantized=True)
    onnxruntime.optimize(model, weights, target)
    model = onnx.load(target)
    fake_quant.tidy_pairs(model)
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return model


def run(file: Path, *inputs: Array) -> list[Array]:
    return onnxruntime.open(file).run(list(inputs))


def op_types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def scales(model: onnx.ModelProto) -> list[Array]:
    """The scale of every DequantizeLinear."""
    values = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    return [values[node.input[1]] for node in model.graph.node if node.op_type == "DequantizeLinear"]


def boundaries() -> Array:
    """[n, 8]: levels of every row, half way between them, their neighbours in float32, and values out of range."""
    steps = {f32(scale) for _, scale in INT8.values() if scale > 1e-6}
    steps |= {
        f32(6 / 255),
        f32(3.23 / 255),
        f32(2.6 / 255),
        f32(4 / 15),
        f32(4 / 65535),
        f32(2 / 7),
        f32(2.6 / 7),
        f32(1),
    }
    level = np.arange(-300, 301).astype(f32)
    middle = np.concatenate([(level + f32(0.5)) * step for step in sorted(steps)])
    grid = np.concatenate([level * step for step in sorted(steps)])
    near = [np.nextafter(middle, f32(np.inf)), np.nextafter(middle, f32(-np.inf))]
    values = np.concatenate([middle, *near, grid, normal(20000, seed=1, scale=2.0), f32([0.0, -0.0, 1e9, -1e9])])
    return np.resize(values, (-(-len(values) // 8), 8))


@pytest.mark.parametrize("name", ROWS)
def test_float_islands_give_tensorflows_bits(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", lambda x: {"y": ROWS[name][0](x)}, spec((None, 8), name="x"))
    x = boundaries()
    with opened(model) as it:
        assert refuse_statically(it.graph, (), frozenset()) == {}
        (want,) = it.tensorflow(x)
        for save in (onnxruntime.optimize, onnxruntime.save_plain):
            (got,) = run(float_island(it, tmp_path / "island.onnx", save), x)
            np.testing.assert_array_equal(got, want, strict=True)


def test_one_island_holds_them_all(tmp_path: Path) -> None:
    """TensorRT's parser takes them; before, tf2onnx or TensorRT refused most of them, and some were wrong."""
    model = write_model(tmp_path / "model", every_row, spec((None, 8), name="x"))
    record = default(refimpl.convert(model, tmp_path / "bundle", ALL))
    assert left_types(record) == {}
    assert len(record.islands) == 1
    found = converted_types(record)
    assert sum(found[kind] for kind in found if kind.startswith(("FakeQuant", "QuantizeAnd"))) == len(ROWS)


@pytest.mark.parametrize("name", INT8)
def test_int8_is_one_pair_within_one_step(name: str, tmp_path: Path) -> None:
    call, scale = INT8[name]
    model = write_model(tmp_path / "model", lambda x: {"y": call(x)}, spec((None, 8), name="x"))
    x = boundaries()
    with opened(model) as it:
        assert fake_quant.not_int8(it.graph) == {}
        island = int8_island(it, tmp_path / "int8.onnx")
        (want,) = it.tensorflow(x)
    found = op_types(island)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)
    assert not set(found) - {"QuantizeLinear", "DequantizeLinear", "Clip"}
    (made,) = scales(island)
    assert made.dtype == f32
    assert made == scale
    (got,) = run(tmp_path / "int8.onnx", x)
    assert np.abs(got - want).max() <= scale * f32(1.001)


@pytest.mark.parametrize("name", [name for name, (_, scale) in ROWS.items() if scale is None])
def test_what_int8_cannot_be_stays_exact_and_says_why(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", lambda x: {"y": ROWS[name][0](x)}, spec((None, 8), name="x"))
    x = boundaries()
    with opened(model) as it:
        ((op, reason),) = fake_quant.not_int8(it.graph).items()
        assert it.graph.ops[op].type in reason
        assert any(word in reason for word in ("bits, and INT8 has 8", "per channel on an activation", "computed"))
        island = int8_island(it, tmp_path / "int8.onnx")
        assert "QuantizeLinear" not in op_types(island)
        np.testing.assert_array_equal(run(tmp_path / "int8.onnx", x)[0], it.tensorflow(x)[0], strict=True)


def test_ranges_of_variables_and_of_attributes(tmp_path: Path) -> None:
    models_quant.asymmetric_conv(tmp_path / "model")
    with opened(tmp_path / "model") as it:
        assert fake_quant.has_ranges(it.graph)
        found = fake_quant.ranges(it.graph)
    assert sorted(found.values()) == [(-3.0, 3.0), (-1.0, 2.5), (-0.75, 0.75), (0.0, 6.0)]
    assert all(tensor.endswith(":0") and "FakeQuant" in tensor for tensor in found)


def test_a_model_without_any(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", lambda x: {"y": tf.nn.relu(x)}, spec((None, 8), name="x"))
    with opened(model) as it:
        assert not fake_quant.has_ranges(it.graph)
        assert fake_quant.ranges(it.graph) == {}


# A model, its inputs, pairs on activations, pairs on weights.
NETWORKS = [
    ("symmetric_conv", models_quant.images, 2, 2),
    ("per_channel", models_quant.images, 3, 3),
    ("depthwise", models_quant.images, 3, 3),
    ("digits_qat", models_quant.digits_inputs, 4, 4),
]


@pytest.mark.parametrize(("name", "inputs", "activations", "weights"), NETWORKS)
def test_networks_with_symmetric_ranges_are_tensorflows(
    name: str, inputs: Any, activations: int, weights: int, tmp_path: Path
) -> None:
    getattr(models_quant, name)(tmp_path / "model")
    (x,) = inputs(np.random.default_rng(3)).values()
    with opened(tmp_path / "model") as it:
        assert refuse_statically(it.graph, (), frozenset()) == {}
        assert fake_quant.not_int8(it.graph) == {}
        island = int8_island(it, tmp_path / "int8.onnx")
        (want,) = it.tensorflow(x)
    found = op_types(island)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (activations, activations + weights)
    assert fake_quant.missing_ranges(island) == ()
    makers = {name: node for node in island.graph.node for name in node.output}
    layers = [node for node in island.graph.node if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
    assert [makers[node.input[1]].op_type for node in layers] == ["DequantizeLinear"] * weights
    int8 = [item for item in island.graph.initializer if item.data_type == onnx.TensorProto.INT8 and item.dims]
    assert sum(len(item.dims) > 1 for item in int8) == weights, "weights are stored as int8"
    (got,) = run(tmp_path / "int8.onnx", x)
    if name == "digits_qat":
        assert np.array_equal(got.argmax(1), want.argmax(1))
    # A sum that falls half way between two levels may be rounded either way: few, and then by little.
    assert np.mean(np.abs(got - want) > 1e-4 * np.abs(want).max()) < 0.02
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert_builds(tmp_path / "int8.onnx", x.shape)


def assert_builds(file: Path, shape: tuple[int, ...]) -> None:
    target = file.with_suffix(".engine")
    tensorrt.build(file, target, [Profile((shape,), (shape,), (shape,))], BuildOptions(False, 0))
    assert target.stat().st_size > 0


def test_asymmetric_ranges_are_clipped_and_build(tmp_path: Path) -> None:
    """From -1 to 2.5, int8 levels around zero reach down to -2.5: without the Clip values below -1 would pass."""
    models_quant.asymmetric_conv(tmp_path / "model")
    x = models_quant.images(np.random.default_rng(4))["x"]
    with opened(tmp_path / "model") as it:
        island = int8_island(it, tmp_path / "int8.onnx")
        (want,) = it.tensorflow(x)
    found = op_types(island)
    assert (found["QuantizeLinear"], found["DequantizeLinear"], found["Clip"]) == (2, 4, 2)  # one Clip is a ReLU6
    assert fake_quant.missing_ranges(island) == ()
    (got,) = run(tmp_path / "int8.onnx", x)
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()
    assert_builds(tmp_path / "int8.onnx", x.shape)


def test_scales_of_channels(tmp_path: Path) -> None:
    models_quant.per_channel(tmp_path / "model")
    with opened(tmp_path / "model") as it:
        island = int8_island(it, tmp_path / "int8.onnx")
    found = [scale for scale in scales(island) if scale.ndim]
    first, second, third = models_quant.per_channel_weights()
    wanted = [np.abs(item).max((0, 1, 2)) / f32(127) for item in (first, second)]
    wanted[0][models_quant.DEAD] = np.finfo(f32).tiny
    wanted.append(np.abs(third).max(0) / f32(127))
    assert len(found) == len(wanted)
    for want in wanted:
        assert any(np.array_equal(want, item) for item in found)


def test_a_layer_without_a_range_is_named(tmp_path: Path) -> None:
    models_quant.missing_range(tmp_path / "model")
    with opened(tmp_path / "model") as it:
        model, weights = lower.to_onnx(it.graph, it.ops, marked=False, quantized=True)
        island = int8_island(it, tmp_path / "int8.onnx")
        ((op, reason),) = fake_quant.not_int8(it.graph).items()
    assert "4 bits" in reason
    for found in (fake_quant.missing_ranges(model, weights), fake_quant.missing_ranges(island)):
        (second, bare), (third, four) = found
        assert (second.split("/")[-1], bare.split("/")[-1]) == ("second", "bare:0")
        assert (third.split("/")[-1], four) == ("third", f"{op}:0")


def test_weights_without_a_range_are_named(tmp_path: Path) -> None:
    weight = tf.Variable(normal(40, 40, seed=12))
    model = write_model(
        tmp_path / "model", lambda x: {"y": vars_op(-1, 1)(x) @ weight}, spec((None, 40), name="x"), holds=[weight]
    )
    with opened(model) as it:
        lowered, weights = lower.to_onnx(it.graph, it.ops, marked=False, quantized=True)
        island = int8_island(it, tmp_path / "int8.onnx")
    assert len(fake_quant.missing_ranges(lowered, weights)) == 1
    ((layer, _),) = fake_quant.missing_ranges(island)
    assert layer.endswith("matmul")


@pytest.mark.parametrize(
    ("call", "word"),
    [
        pytest.param(lambda x: qdq(-tf.reduce_max(x), tf.reduce_max(x))(x), "are computed", id="range"),
        pytest.param(
            lambda x: tf.cast(qdq(f32(-1).astype("f2"), f32(1).astype("f2"))(tf.cast(x, tf.float16)), tf.float32),
            "float16",
            id="half",
        ),
        pytest.param(
            lambda x: tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, args_op(-1, 1)(y) * 1.5), (0, x))[1],
            "inside",
            id="loop",
        ),
    ],
)
def test_what_cannot_be_exact_stays_in_tensorflow(call: Call, word: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", lambda x: {"y": call(tf.abs(x) + 1.0)}, spec((None, 8), name="x"))
    with opened(model) as it:
        refused = refuse_statically(it.graph, (), frozenset())
    assert any(word in reason for reason in refused.values())


def test_a_computed_range_of_fake_quant_is_exact(tmp_path: Path) -> None:
    """TensorFlow checks nothing about these, so an engine need not either."""

    def call(x: Any) -> dict[str, Any]:
        return {"y": vars_op(-tf.reduce_max(x), tf.reduce_max(x) + 0.5)(x)}

    model = write_model(tmp_path / "model", call, spec((None, 8), name="x"))
    x = normal(50, 8, seed=13)
    with opened(model) as it:
        assert refuse_statically(it.graph, (), frozenset()) == {}
        assert fake_quant.ranges(it.graph) == {}
        assert ["computed at every call" in reason for reason in fake_quant.not_int8(it.graph).values()] == [True]
        np.testing.assert_array_equal(run(float_island(it, tmp_path / "i.onnx"), x)[0], it.tensorflow(x)[0])
