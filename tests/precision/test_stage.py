"""Whole conversions to fp16, bf16 and int8: what ships, what it answers, and what stays as it was."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import helper

from refimpl import bundle, calibration
from refimpl.bundle import Manifest
from refimpl.converter.precision import refine as refine_module
from refimpl.converter.precision import rewrite as rewrite_module
from refimpl.engines import tensorrt
from refimpl.errors import RecipeError
from tests import models_quant
from tests.models import saved_model
from tests.models_ops import normal, spec
from tests.precision.helpers import (
    Tiny,
    batches,
    convert,
    error,
    images,
    in_tensorflow,
    layers_of,
    outputs_of,
    small_cnn,
)

ERRORS = {"fp16": 2e-3, "bf16": 2e-2, "int8": 3e-2}
PRECISIONS = pytest.mark.parametrize("precision", list(ERRORS))


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cnn(tmp_path_factory.mktemp("cnn") / "model")


@pytest.fixture(scope="module")
def made(cnn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundle of each precision; nobody may change them."""
    folder = tmp_path_factory.mktemp("made")
    for precision in ERRORS:
        convert(cnn, folder / precision, samples=batches(), precision=precision)
    return {precision: folder / precision for precision in ERRORS}


def ops_of(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """(op, dtype of its first result) of every node of the stored ONNX files, as far as dtypes are known."""
    from refimpl.engines import rounding

    names = {1: "float32", 10: "float16", 16: "bfloat16", 3: "int8"}
    found = []
    for island in manifest.islands:
        model = onnx.load(folder / island.engines[0].file)
        types = rounding.tensor_types(model)
        found += [(node.op_type, names.get(types.get(node.output[0], 0), "")) for node in model.graph.node]
    return found


@PRECISIONS
def test_the_answers_are_near(precision: str, made: dict[str, Path], cnn: Path) -> None:
    """On data that nobody calibrated with, in both engines that run the same file."""
    x = images(16, seed=99)
    want = in_tensorflow(cnn, x)["y"]
    got, engines = outputs_of(made[precision], x, "onnxruntime")
    assert engines == {"onnxruntime"}
    assert got["y"].dtype == np.float32
    assert 1e-5 < error(want, got["y"]) < ERRORS[precision]
    second, engines = outputs_of(made[precision], x, "numpy")
    assert engines == {"numpy"}
    assert error(got["y"], second["y"]) < ERRORS[precision] / 20


@PRECISIONS
def test_the_manifest_says_what_computes_in_what(precision: str, made: dict[str, Path]) -> None:
    manifest = bundle.read(made[precision])
    assert manifest.precision == precision
    (island,) = manifest.islands
    assert island.precision == island.engines[0].precision == precision
    assert island.finite_only
    kinds = {name.rsplit("/", 1)[-1]: found for name, found in layers_of(manifest).items()}
    assert kinds.pop("Mean") == ("fp32", "it sums many values")
    assert set(kinds.values()) == {(precision, "")}
    assert len(kinds) == 4
    assert island.accuracy is not None
    assert 0 < island.accuracy["relative"] < ERRORS[precision]
    assert island.accuracy["cosine"] > 0.999
    assert island.notes[0].startswith(f"4 {precision}, 1 fp32; relative error ")
    ops = ops_of(made[precision], manifest)
    dtype = {"fp16": "float16", "bf16": "bfloat16", "int8": "float32"}[precision]
    assert [kind for op, kind in ops if op == "Conv"] == [dtype] * 3
    assert [op for op, _ in ops].count("QuantizeLinear") == (4 if precision == "int8" else 0)


@PRECISIONS
def test_an_input_far_beyond_what_was_seen(precision: str, made: dict[str, Path], cnn: Path) -> None:
    """A million times larger: float16 overflows, so TensorFlow answers; bfloat16 does not; int8 clips."""
    x = images(4, seed=98, scale=1e6)
    got, engines = outputs_of(made[precision], x)
    assert np.isfinite(got["y"]).all()
    assert engines == ({"native"} if precision == "fp16" else {"onnxruntime"})
    if precision != "int8":
        assert error(in_tensorflow(cnn, x)["y"], got["y"]) < ERRORS[precision]


@PRECISIONS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_go_to_tensorflow(bad: float, precision: str, made: dict[str, Path]) -> None:
    x = images(2, seed=97)
    x["x"][0, 0, 0, 0] = bad
    _, engines = outputs_of(made[precision], x)
    assert engines == {"native"}


@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
@PRECISIONS
def test_tensorrt_builds_it(precision: str, cnn: Path, tmp_path: Path) -> None:
    manifest = convert(
        cnn, tmp_path / "b", samples=batches(2), precision=precision, engines=("onnxruntime", "tensorrt")
    )
    (island,) = manifest.islands
    assert [(item.kind, item.precision) for item in island.engines] == [
        ("onnxruntime", precision),
        ("tensorrt", precision),
    ]


def an_op_is_missing(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.graph.node:
        if item.op_type == "Relu":
            item.CopyFrom(helper.make_node("Identity", list(item.input), list(item.output), item.name))
    return copy


@PRECISIONS
def test_a_wrong_rewrite_stays_float32_and_says_why(
    precision: str, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rewrite_module.rewrite

    def wrong(*args: Any) -> Any:
        found = right(*args)
        return replace(found, model=an_op_is_missing(found.model))

    monkeypatch.setattr(refine_module, "rewrite", wrong)
    manifest = convert(cnn, tmp_path / "b", samples=batches(2), precision=precision)
    (island,) = manifest.islands
    assert (manifest.precision, island.precision) == ("fp32", "fp32")
    notes = [note for note in island.notes if note.startswith(f"not in {precision}: ")]
    assert len(notes) == 1
    assert "beyond tolerance" in notes[0]
    x = images(4, seed=96)
    got, engines = outputs_of(tmp_path / "b", x)
    assert engines == {"onnxruntime"}
    assert error(in_tensorflow(cnn, x)["y"], got["y"]) < 1e-5


@PRECISIONS
def test_layers_that_the_user_keeps(precision: str, cnn: Path, tmp_path: Path) -> None:
    """By node name, by TensorFlow's op type; Conv2D would be three."""
    manifest = convert(cnn, tmp_path / "b", samples=batches(2), precision=precision, keep_fp32=("*conv1*", "MatMul"))
    kinds = {name.rsplit("/", 2)[-2 if "head" in name else -1]: kind for name, (kind, _) in layers_of(manifest).items()}
    assert kinds == {"conv0": precision, "conv1": "fp32", "conv2": precision, "Mean": "fp32", "head": "fp32"}
    whys = [why for name, (_, why) in layers_of(manifest).items() if "conv1" in name]
    assert "kept in float32 as asked (*conv1*)" in whys[0]


@PRECISIONS
def test_unverified_is_no_claim(precision: str, cnn: Path, tmp_path: Path) -> None:
    manifest = convert(cnn, tmp_path / "b", samples=batches(2), precision=precision, verify=False)
    (island,) = manifest.islands
    assert island.precision == precision
    assert island.accuracy is None
    assert island.finite_only
    assert any("not compared with TensorFlow" in note for note in island.notes)
    json.dumps(manifest.to_json(), allow_nan=False)


# Other kinds of models.


def test_several_signatures_have_a_table_each(tmp_path: Path) -> None:
    kernels = [tf.Variable(normal(16, 16, seed=seed, scale=0.3)) for seed in (1, 2)]
    module = tf.Module()
    module.kernels = kernels

    def scaled(kernel: Any, factor: float) -> Any:
        def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.nn.relu(tf.matmul(tf.nn.relu(x * factor), kernel))}

        return tf.function(call, input_signature=[spec((None, 16), name="x")])

    functions = {"serving_default": scaled(kernels[0], 1.0), "other": scaled(kernels[1], 10.0)}
    module.functions = list(functions.values())
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=functions)
    samples = [{"x": normal(8, 16, seed=seed)} for seed in (1, 2)]
    manifest = convert(
        tmp_path / "model", tmp_path / "b", samples=samples, precision="int8", signatures=("*",), calibrator="minmax"
    )
    assert [island.precision for island in manifest.islands] == ["int8", "int8"]
    tables = {item.signature: item for item in calibration.load(tmp_path / "b" / bundle.CALIBRATION)}
    assert tables.keys() == {"serving_default", "other"}
    (a,), (b,) = (tables[key].ranges.values() for key in ("serving_default", "other"))
    assert b.threshold == pytest.approx(10 * a.threshold, rel=1e-6)
    assert {item.batches for item in tables.values()} == {2}


def test_a_model_of_float16_stays_as_it_is(tmp_path: Path) -> None:
    samples = None
    for precision in ("fp16", "bf16"):
        manifest = convert(saved_model("half"), tmp_path / precision, samples=samples, precision=precision)
        halves = [island for island in manifest.islands if island.precision == "half"]
        assert halves
        assert all("keeps doing so" in " ".join(island.notes) for island in halves)
        assert not any(island.layers for island in halves)


def classifier(target: Path, *, scores: bool) -> Path:
    kernels = [tf.Variable(normal(16, 16, seed=seed, scale=0.3)) for seed in (1, 2)]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.matmul(tf.nn.relu(tf.matmul(x, kernels[0])), kernels[1])
        found = {"label": tf.argmax(y, -1), "large": y > 1.0, "top": tf.math.top_k(y, 2).indices}
        return {**found, "scores": y} if scores else found

    return Tiny(call, spec((None, 16), name="x"), holds=kernels).save(target)


@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_islands_that_end_in_decisions(precision: str, scores: bool, tmp_path: Path) -> None:
    """A few rows may be decided otherwise, no more; dtypes stay; and what overflows is decided by TensorFlow."""
    model = classifier(tmp_path / "model", scores=scores)
    samples = [{"x": normal(256, 16, seed=seed)} for seed in (1, 2)]
    manifest = convert(model, tmp_path / "b", samples=samples, precision=precision)
    kinds = {kind for kind, _ in layers_of(manifest).values()}
    assert (precision in kinds) == (scores or precision != "fp16")
    for scale in (1.0, 1e6):
        x = {"x": normal(512, 16, seed=3, scale=scale)}
        want, (got, engines) = in_tensorflow(model, x), outputs_of(tmp_path / "b", x)
        assert ("native" in engines) == (scale > 1 and scores and precision == "fp16")
        if scale > 1 and precision == "int8":
            continue  # it clips
        for name in ("label", "large", "top"):
            assert got[name].dtype == want[name].dtype
            assert np.mean(got[name] != want[name]) <= {"fp16": 0.01, "bf16": 0.06, "int8": 0.06}[precision], name


def test_batches_of_several_shapes(tmp_path: Path) -> None:
    kernel = tf.Variable(normal(3, 3, 4, 16, seed=1, scale=0.2))
    second = tf.Variable(normal(3, 3, 16, 16, seed=2, scale=0.1))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.conv2d(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), second, 2, "SAME")}

    model = Tiny(call, spec((None, None, None, 4), name="x"), holds=(kernel, second)).save(tmp_path / "model")
    samples = [images(rows, size, seed=size) for rows, size in ((3, 8), (1, 12), (5, 7))]
    manifest = convert(model, tmp_path / "b", samples=samples, precision="int8", calibrator="minmax")
    assert {kind for kind, _ in layers_of(manifest).values()} == {"int8"}
    (table,) = calibration.load(tmp_path / "b" / bundle.CALIBRATION)
    seen = max(table.ranges.values(), key=lambda item: item.low * -1)
    assert seen.threshold == max(float(np.abs(item["x"]).max()) for item in samples)
    assert seen.values == sum(item["x"].size for item in samples)
    for item in samples:
        assert error(in_tensorflow(model, item)["y"], outputs_of(tmp_path / "b", item)[0]["y"]) < 0.03


def test_two_hundred_batches_are_streamed(cnn: Path, tmp_path: Path) -> None:
    """What verification keeps is bounded, and calibration keeps nothing."""
    alive: list[Any] = []
    most, given = [0], [0]

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for seed in range(200):
            item = images(2, seed=seed)
            alive.append(weakref.ref(item["x"]))
            given[0] += 1
            yield item
            del item
            if seed % 20 == 0:
                gc.collect()
                most[0] = max(most[0], sum(ref() is not None for ref in alive))

    manifest = convert(cnn, tmp_path / "b", samples=stream, precision="int8")
    assert given[0] >= 200
    assert most[0] <= 20
    (table,) = calibration.load(tmp_path / "b" / bundle.CALIBRATION)
    assert table.batches == 200
    assert manifest.precision == "int8"


def test_nothing_to_convert(tmp_path: Path) -> None:
    """No island, so nothing to calibrate: the model stays as it is."""
    model = Tiny(lambda x: {"y": tf.strings.as_string(x)}, spec((None, 4), name="x")).save(tmp_path / "model")
    for precision in ("fp16", "int8", "auto"):
        manifest = convert(model, tmp_path / precision, samples=[{"x": normal(3, 4, seed=1)}], precision=precision)
        assert manifest.islands == ()
        assert not (tmp_path / precision / bundle.CALIBRATION).exists()


# Ranges of the model's own.


@pytest.mark.parametrize("name", ["symmetric_conv", "per_channel", "asymmetric_conv"])
def test_a_quantized_model_needs_no_data(name: str, tmp_path: Path) -> None:
    getattr(models_quant, name)(tmp_path / "model")
    manifest = convert(tmp_path / "model", tmp_path / "b", precision="int8", use_calibration=False)
    products = [item[2] for island in manifest.islands for item in island.layers if item[1] in ("Conv", "MatMul")]
    assert len(products) >= 2
    assert set(products) == {"int8"}
    assert manifest.precision == "int8"
    assert not (tmp_path / "b" / bundle.CALIBRATION).exists()
    x = models_quant.images(np.random.default_rng(1))
    want = in_tensorflow(tmp_path / "model", x)["y"]
    got, engines = outputs_of(tmp_path / "b", x, "onnxruntime")
    assert engines == {"onnxruntime"}
    assert error(want, got["y"]) < 0.02
    second, engines = outputs_of(tmp_path / "b", x, "numpy")
    assert engines == {"numpy"}
    assert error(got["y"], second["y"]) < 0.01


def test_a_layer_without_a_range_is_named(tmp_path: Path) -> None:
    models_quant.missing_range(tmp_path / "model")
    with pytest.raises(RecipeError) as caught:
        convert(tmp_path / "model", tmp_path / "b", precision="int8", use_calibration=False)
    assert "bare" in caught.value.message
    assert "second" in caught.value.message
    assert "has no range in the model" in caught.value.message
    assert not (tmp_path / "b").exists()


def test_a_quantized_layer_that_the_user_keeps(tmp_path: Path) -> None:
    """Its weights become the float32 values that their levels stand for, so the answers stay and nothing is int8."""
    models_quant.per_channel(tmp_path / "model")
    manifest = convert(
        tmp_path / "model", tmp_path / "b", precision="int8", use_calibration=False, keep_fp32=("*Conv2D_1",)
    )
    products = [item for island in manifest.islands for item in island.layers if item[1] in ("Conv", "MatMul")]
    assert [kind for _, _, kind, _ in products] == ["int8", "fp32", "int8"]
    assert products[1][3] == "kept in float32 as asked (*Conv2D_1)"
    (island,) = manifest.islands
    model = onnx.load(tmp_path / "b" / island.engines[0].file)
    stored = {item.name: item.data_type for item in model.graph.initializer}
    convolutions = [item for item in model.graph.node if item.op_type == "Conv"]
    assert [stored.get(item.input[1]) for item in convolutions] == [None, onnx.TensorProto.FLOAT]
    assert sum(kind == onnx.TensorProto.INT8 and bool(name) for name, kind in stored.items()) >= 2
    x = models_quant.images(np.random.default_rng(2))
    assert error(in_tensorflow(tmp_path / "model", x)["y"], outputs_of(tmp_path / "b", x)[0]["y"]) < 0.01


def test_names_do_not_depend_on_what_was_lowered_before(tmp_path: Path) -> None:
    """Tables name tensors: one that is made and used again in another order of work must mean the same."""
    kernels = [tf.Variable(normal(3, 3, 16, 16, seed=seed, scale=0.1)) for seed in (1, 2)]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.conv2d(tf.math.sigmoid(tf.nn.conv2d(x, kernels[0], 1, "SAME")), kernels[1], 1, "SAME")
        return {"y": tf.nn.avg_pool2d(y, 2, 2, "VALID")}

    model = Tiny(call, spec((None, 8, 8, 16), name="x"), holds=kernels).save(tmp_path / "model")
    samples = [images(4, channels=16, seed=1)]
    files = []
    for number in range(2):
        manifest = convert(model, tmp_path / f"b{number}", samples=samples, precision="int8")
        files.append((tmp_path / f"b{number}" / manifest.islands[0].engines[0].file).read_bytes())
    assert files[0] == files[1]
    (a,), (b,) = (calibration.load(tmp_path / f"b{number}" / bundle.CALIBRATION) for number in range(2))
    assert a.ranges == b.ranges


def test_a_product_is_kept_by_its_name_although_its_bias_gives_the_node_its_own(tmp_path: Path) -> None:
    kernels, bias = [tf.Variable(normal(3, 3, 16, 16, seed=seed, scale=0.1)) for seed in (1, 2)], tf.ones(16)

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        for number, kernel in enumerate(kernels):
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME", name=f"conv{number}"), bias))
        return {"y": x}

    model = Tiny(call, spec((None, 8, 8, 16), name="x"), holds=kernels).save(tmp_path / "model")
    for index, (pattern, want) in enumerate({"Conv2D": [], "*conv1": ["fp16", "fp32"]}.items()):  # []: nothing is left
        manifest = convert(model, tmp_path / f"b{index}", precision="fp16", keep_fp32=(pattern,))
        assert [kind for island in manifest.islands for _, op, kind, _ in island.layers if op == "Conv"] == want
