"""Engines are run on the GPU at hand before they are stored; what it computes wrongly is taken from it, no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf

from refimpl.bundle import Manifest
from refimpl.converter import repair
from refimpl.converter.narrow import Budget
from refimpl.engines import tensorrt
from tests.fake_gpu import WHERE, FakeGpu, Fault, Nodes, depthwise
from tests.models_ops import normal, spec
from tests.precision.helpers import Tiny, convert, error, in_tensorflow, outputs_of

BLOCKS = 3
BOTH = ("onnxruntime", "tensorrt")
Array = np.ndarray


def mobile(target: Path) -> Path:
    """Three blocks as in MobileNetV2 (1x1 wider, 3x3 depthwise, 1x1 narrower), and a dense layer with tanh."""
    stem = tf.Variable(normal(3, 3, 3, 8, seed=1, scale=0.3))
    held: list[tf.Variable] = [stem]
    blocks = []
    for number in range(BLOCKS):
        wide = tf.Variable(normal(1, 1, 8, 24, seed=10 + number, scale=0.4))
        deep = tf.Variable(normal(3, 3, 24, 1, seed=20 + number, scale=0.4))
        narrow = tf.Variable(normal(1, 1, 24, 8, seed=30 + number, scale=0.3))
        blocks.append((wide, deep, narrow))
    head = tf.Variable(normal(8, 6, seed=40, scale=0.5))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.nn.relu6(tf.nn.conv2d(x, stem, 1, "SAME", name="stem"))
        for number, (wide, deep, narrow) in enumerate(blocks):
            with tf.name_scope(f"block{number}"):
                y = tf.nn.relu6(tf.nn.conv2d(x, wide, 1, "SAME", name="wide"))
                y = tf.nn.relu6(tf.nn.depthwise_conv2d(y, deep, [1, 1, 1, 1], "SAME", name="deep"))
                x = x + tf.nn.conv2d(y, narrow, 1, "SAME", name="narrow")
        return {"y": tf.tanh(tf.matmul(tf.reduce_mean(x, [1, 2]), head, name="head"), name="last")}

    return Tiny(call, spec((None, 8, 8, 3), name="x"), holds=[*held, *sum(blocks, ()), head]).save(target)


def batches_of() -> Callable[[], list[dict[str, Array]]]:
    return lambda: [{"x": normal(2, 8, 8, 3, seed=seed)} for seed in range(3)]


def narrow_convolutions(nodes: Nodes) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]]:
    for conv in nodes.of("Conv"):
        clip = nodes.before(conv, "Cast")
        if clip is not None and clip.op_type == "Clip" and depthwise(deep := nodes.before(clip, "Cast")):
            assert deep is not None
            yield conv, clip, deep


def fused_in_half(nodes: Nodes) -> Iterator[onnx.NodeProto]:
    for conv, clip, deep in narrow_convolutions(nodes):
        if all(map(nodes.is_half, (conv, clip, deep))) and nodes.before(conv) is clip:
            yield conv


PREFIX = "StatefulPartitionedCall/StatefulPartitionedCall/"
NARROW = {f"block{number}/narrow" for number in range(BLOCKS)}
DEEP = {f"block{number}/deep" for number in range(BLOCKS)}
USUALLY_EXACT = {"Mean"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mobile(tmp_path_factory.mktemp("mobile") / "m")


class Conversion:
    """The network, converted on a machine with the fake GPU."""

    def __init__(self, model: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._model, self._bundle, self._patch = model, folder / "b", patch
        self.gpu = FakeGpu()

    def run(self, fault: Fault = lambda nodes: (), precision: str = "fp16", **choices: object) -> Manifest:
        self.gpu.fault = fault
        self.gpu.install(self._patch)
        choices = {"samples": batches_of(), "engines": BOTH, **choices}
        return convert(self._model, self._bundle, precision=precision, **choices)

    def ran_right(self, *engines: str, within: float = 5e-3) -> None:
        """The bundle answers as TensorFlow does, on these engines, and still on the GPU that is wrong."""
        inputs = {"x": normal(5, 8, 8, 3, seed=77)}
        got, ran = outputs_of(self._bundle, inputs)
        assert ran == set(engines)
        assert error(in_tensorflow(self._model, inputs)["y"], got["y"]) < within


@pytest.fixture
def conversion(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    return Conversion(model, tmp_path, monkeypatch)


def layers(manifest: Manifest) -> dict[str, str]:
    """Layer -> precision, of all that are decided one by one."""
    found = (layer for island in manifest.islands for layer in island.layers)
    return {name.removeprefix(PREFIX): precision for name, _, precision, _ in found}


def left(manifest: Manifest) -> dict[str, str]:
    (signature,) = manifest.signatures
    return {op.name.removeprefix(PREFIX): op.reason for op in signature.left if WHERE in op.reason}


def notes(manifest: Manifest) -> str:
    return "\n".join(note for island in manifest.islands for note in island.notes)


def in_float32(manifest: Manifest) -> set[str]:
    return {name for name, precision in layers(manifest).items() if precision == "fp32"}


def test_a_right_engine_is_built_once_and_told(conversion):
    manifest = conversion.run()
    assert len(conversion.gpu.built) == 1
    assert in_float32(manifest) == USUALLY_EXACT
    assert f"{WHERE}: 3 samples agree with TensorFlow, relative error" in notes(manifest)
    conversion.ran_right("tensorrt")


def test_without_a_gpu_nothing_is_opened(conversion, monkeypatch):
    conversion.gpu.install(monkeypatch)
    monkeypatch.setattr(conversion.gpu, "install", lambda patch: None)
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "no usable NVIDIA GPU")
    manifest = conversion.run(fused_in_half)
    assert (len(conversion.gpu.built), conversion.gpu.ran) == (1, 0)
    assert {engine.kind for island in manifest.islands for engine in island.engines} == set(BOTH)
    assert WHERE not in notes(manifest)


def test_without_verification_nothing_is_proven(conversion):
    manifest = conversion.run(samples=None, verify=False)
    assert len(conversion.gpu.built) == 1
    assert WHERE not in notes(manifest)


@pytest.mark.parametrize(("target", "tried"), [("sm86", False), ("sm90", True)])
def test_an_engine_for_another_gpu_is_not_tried_here(target, tried, conversion, monkeypatch):
    monkeypatch.setattr(tensorrt, "check_targets", lambda given: None)
    manifest = conversion.run(targets=(target,))
    assert (WHERE in notes(manifest)) is tried


def test_what_goes_wrong_together_is_parted_everywhere(conversion, monkeypatch):
    """The projections, in float32, are right; nothing else is lifted, and nothing goes to TensorFlow."""
    budgets: list[Budget] = []
    monkeypatch.setattr(repair, "Budget", lambda *given: budgets.append(Budget(*given)) or budgets[-1])
    manifest = conversion.run(fused_in_half)
    assert in_float32(manifest) == USUALLY_EXACT | NARROW
    assert left(manifest) == {}
    reasons = {name.removeprefix(PREFIX): why for i in manifest.islands for name, _, _, why in i.layers}
    assert reasons["block0/narrow"].startswith(f"{WHERE} computes it wrongly in fp16 (relative error 0.5")
    assert reasons["block1/narrow"] == f"it is like {PREFIX}block0/narrow, which {WHERE} computes wrongly"
    assert "3 of its layers compute in fp32" in notes(manifest)
    (budget,) = budgets
    assert len(conversion.gpu.built) <= 12, "halving takes few engines"
    assert len(conversion.gpu.built) - 2 == repair.BUILDS - budget.builds, "all but the first, and the product"
    conversion.ran_right("tensorrt")


def test_neighbours_follow_where_the_layer_alone_does_not_help(conversion):
    """Wrong whenever the depthwise convolution before is in float16, whatever the projection computes in."""

    def fault(nodes: Nodes) -> Iterator[onnx.NodeProto]:
        return (conv for conv, _, deep in narrow_convolutions(nodes) if nodes.is_half(deep))

    manifest = conversion.run(fault)
    between = {f"block{number}/Relu6_1" for number in range(BLOCKS)}
    assert in_float32(manifest) == USUALLY_EXACT | NARROW | DEEP | between
    assert left(manifest) == {}
    conversion.ran_right("tensorrt")


def test_only_the_place_that_is_wrong_is_lifted(conversion):
    def fault(nodes: Nodes) -> Iterator[onnx.NodeProto]:
        return (conv for conv in fused_in_half(nodes) if "block1" in conv.name)

    manifest = conversion.run(fault)
    assert in_float32(manifest) == USUALLY_EXACT | {"block1/narrow"}
    conversion.ran_right("tensorrt")


def test_two_kinds_of_faults_are_found_one_after_the_other(conversion):
    def fault(nodes: Nodes) -> Iterator[onnx.NodeProto]:
        yield from fused_in_half(nodes)
        yield from (node for node in nodes.of("MatMul") if nodes.is_half(node))

    manifest = conversion.run(fault)
    assert in_float32(manifest) == USUALLY_EXACT | NARROW | {"head"}
    conversion.ran_right("tensorrt")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_what_is_wrong_in_float32_too_goes_back_to_tensorflow(precision, conversion):
    manifest = conversion.run(lambda nodes: nodes.of("Tanh"), precision)
    (op,) = left(manifest)
    assert op == "last"
    assert left(manifest)[op].startswith(f"{WHERE} computes it wrongly")
    assert left(manifest)[op].endswith("the embedded engine is right")
    (island,) = manifest.islands
    assert {engine.kind for engine in island.engines} == set(BOTH)
    if precision == "fp16":
        assert in_float32(manifest) == USUALLY_EXACT
    conversion.ran_right("tensorrt")


def test_many_of_a_kind_go_back_at_once(conversion, monkeypatch):
    """The second depthwise convolution takes the third along."""
    monkeypatch.setattr(repair, "_ROUNDS", 2)

    def fault(nodes: Nodes) -> Iterator[onnx.NodeProto]:
        return (node for node in nodes.of("Conv") if depthwise(node))

    manifest = conversion.run(fault, "fp32")
    assert set(left(manifest)) == DEEP
    assert {engine.kind for island in manifest.islands for engine in island.engines} == set(BOTH)
    conversion.ran_right("tensorrt", within=1e-4)


def test_where_everything_is_wrong_no_layer_is_blamed(conversion):
    manifest = conversion.run(lambda nodes: nodes.of("Conv", "MatMul", "Gemm"))
    (island,) = manifest.islands
    assert [engine.kind for engine in island.engines] == ["onnxruntime"]
    assert f"no TensorRT engine is stored for it: {WHERE} does not even multiply two matrices" in notes(manifest)
    assert left(manifest) == {}
    assert len(conversion.gpu.built) == 3, "one in each precision, and the product"
    conversion.ran_right("onnxruntime")


def test_what_is_wrong_without_end_ships_without_an_engine(conversion, monkeypatch):
    """Every elementwise op, in any precision: rounds are bounded."""
    monkeypatch.setattr(repair, "_ROUNDS", 1)
    manifest = conversion.run(lambda nodes: nodes.of("Clip", "Add", "Tanh"), "fp32")
    assert "went back to TensorFlow 1 times for that, and no more do" in notes(manifest)
    conversion.ran_right("onnxruntime", within=1e-4)


def test_where_nothing_would_be_left_in_float16_the_next_form_ships(tmp_path, monkeypatch):
    """One dense layer, right in float32: no op has to leave for that."""
    weight = tf.Variable(normal(8, 6, seed=40, scale=0.5))
    dense = Tiny(lambda x: {"y": tf.tanh(tf.matmul(x, weight))}, spec((None, 8), name="x"), holds=[weight])
    FakeGpu(lambda nodes: [node for node in nodes.of("MatMul") if nodes.is_half(node)]).install(monkeypatch)
    samples = [{"x": normal(3, 8, seed=seed)} for seed in range(2)]
    manifest = convert(dense.save(tmp_path / "m"), tmp_path / "b", samples=samples, precision="fp16", engines=BOTH)
    assert left(manifest) == {}
    (island,) = manifest.islands
    assert [engine.precision for engine in island.engines] == ["fp32", "fp32"]
    assert f"not in fp16: {WHERE} computes it wrongly" in notes(manifest)


@pytest.mark.parametrize("budget", [{"BUILDS": 2}, {"SECONDS": 0.0}])
def test_the_search_is_bounded(budget, conversion, monkeypatch):
    for name, value in budget.items():
        monkeypatch.setattr(repair, name, value)
    manifest = conversion.run(fused_in_half)
    (island,) = manifest.islands
    assert island.precision == "fp32", "the form after it is right"
    assert f"not in fp16: {WHERE} computes it wrongly" in notes(manifest)
    conversion.ran_right("tensorrt", within=1e-4)


@pytest.mark.slow
def test_parts_that_cannot_be_built_end_the_search(conversion):
    conversion.gpu.refuses = lambda model: len(model.graph.output) > 1
    manifest = conversion.run(fused_in_half)
    assert "cannot be tried: out of memory" in notes(manifest)
    (island,) = manifest.islands
    assert island.precision == "fp32"
    conversion.ran_right("tensorrt", within=1e-4)


def test_an_engine_that_cannot_run_is_not_stored(conversion):
    conversion.gpu.fails = lambda model: True
    manifest = conversion.run()
    (island,) = manifest.islands
    assert [engine.kind for engine in island.engines] == ["onnxruntime"]
    assert f"{WHERE} cannot run it: out of memory on the GPU" in notes(manifest)
    assert len(conversion.gpu.built) == 2, "one in each precision"
    conversion.ran_right("onnxruntime")


@pytest.mark.slow
def test_rounding_that_adds_up_is_shared_out(conversion):
    """No layer is to blame alone: those that cost most compute in float32, as many as it takes."""

    def fault(nodes: Nodes) -> Iterator[onnx.NodeProto]:
        return (node for node in nodes.of("Conv", "MatMul") if nodes.is_half(node))

    conversion.gpu.factor = 1.003
    manifest = conversion.run(fault)
    (island,) = manifest.islands
    lifted = in_float32(manifest) - USUALLY_EXACT
    assert island.precision == "fp16"
    assert 0 < len(lifted) <= 5
    assert f"or {WHERE} would compute it wrongly" in notes(manifest)
    conversion.ran_right("tensorrt", within=2e-2)


def test_float32_that_is_rounded_to_tf32_is_named(conversion):
    fault: Callable[[Nodes], list[onnx.NodeProto]] = lambda nodes: nodes.of("Tanh")  # noqa: E731
    conversion.gpu.factor = 1.002
    manifest = conversion.run(fault, "fp32")
    assert f"{WHERE} rounds its float32 products to TF32, which is not allowed; --tf32 allows it (" in notes(manifest)
    assert left(manifest) == {}
    assert len(conversion.gpu.built) == 1
    conversion.ran_right("onnxruntime", within=1e-4)


def test_where_float32_is_never_exact_no_layer_of_it_is_looked_for(conversion):
    """As with TensorRT for RTX 1.6: what is wrong taken apart, too, has no form that is right there."""
    conversion.gpu.rounds, conversion.gpu.factor = "as on an H100", 1.03
    manifest = conversion.run(lambda nodes: nodes.of("Conv"), "fp32")
    assert f"{WHERE} rounds its float32 products to TF32, also taken apart (max" in notes(manifest)
    assert f"{WHERE} rounds its float32 products to TF32, which is not allowed" in notes(manifest)
    assert left(manifest) == {}
    assert len(conversion.gpu.built) == 2
    conversion.ran_right("onnxruntime", within=1e-4)


@pytest.mark.parametrize(("rounds", "leaves"), [("", set()), ("as on an H100", {"last"})])
def test_with_tf32_ops_leave_only_where_there_is_nothing_better(rounds, leaves, conversion):
    conversion.gpu.rounds = rounds

    def fault(nodes: Nodes) -> list[onnx.NodeProto]:
        return nodes.of("Tanh") if conversion.gpu.asked[-1][1].tf32 else []

    manifest = conversion.run(fault, "fp32", tf32=True)
    assert set(left(manifest)) == leaves
    assert {island.precision for island in manifest.islands} == {"tf32" if leaves else "fp32"}
    conversion.ran_right("tensorrt")
