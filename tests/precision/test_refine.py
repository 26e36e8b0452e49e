"""An island in its precision: what does not stand it is lifted and nothing else; a wrong rewrite never ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from refimpl.converter.precision import refine as refine_module
from refimpl.converter.precision import rewrite as rewrite_module
from refimpl.converter.precision.observe import maxima
from refimpl.converter.precision.quantize import tensors_to_observe
from refimpl.converter.precision.refine import Refined, Refiner, Task, describe
from refimpl.converter.precision.rewrite import Lift, Ranges
from refimpl.converter.verify import Evidence
from refimpl.engines import onnxruntime
from tests.onnx_models import node
from tests.precision.helpers import graph

LAYERS = ("first", "middle", "last")


def draw(*shape: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def network(first: np.ndarray | None = None) -> onnx.ModelProto:
    """Three products in a row, 16 wide, the first with given weights."""
    nodes = [
        node("MatMul", "x w1", "a", name="first"),
        node("Relu", "a", "r1"),
        node("MatMul", "r1 w2", "b", name="middle"),
        node("Relu", "b", "r2"),
        node("MatMul", "r2 w3", "c", name="last"),
        node("Add", "c bias", "y"),
    ]
    first = draw(16, 16, seed=1, scale=0.3) if first is None else first
    more = {"w2": draw(16, 16, seed=2, scale=0.3), "w3": draw(16, 24, seed=3, scale=0.3), "bias": draw(24, seed=4)}
    return graph(nodes, {"x": ("n", 16)}, "y", w1=first, **more)


def cancelling() -> tuple[onnx.ModelProto, np.ndarray]:
    """Every weight of the first product is about a thousand, and every row of its input sums to zero: what is left is
    what the weights differ by, which neither float16 nor int8 can tell.
    """
    x = np.random.default_rng(5).integers(-8, 9, (32, 16)).astype(np.float32)
    x[:, -1] -= x.sum(1)
    return network(1000 + draw(16, 16, seed=6, scale=0.3)), x


def outlier() -> tuple[onnx.ModelProto, np.ndarray]:
    """One channel of the input is a hundred times the others and counts for little: int8 has no steps for them."""
    x, w = draw(32, 16, seed=7), draw(16, 16, seed=8, scale=0.3)
    x[:, 3] *= 100
    w[3] *= 1e-3
    return network(w), x


def plain() -> tuple[onnx.ModelProto, np.ndarray]:
    return network(), draw(32, 16, seed=9)


def task_of(made: tuple[onnx.ModelProto, np.ndarray], folder: Path, **changes: Any) -> Task:
    model, x = made
    onnx.save(model, folder / "plain.onnx")
    outputs = onnxruntime.open(folder / "plain.onnx").run([x])
    seen = maxima(folder / "plain.onnx", [[x]])
    thresholds = {name: seen[name] for name in tensors_to_observe(model)}
    evidence = (Evidence("sample", (x,), tuple(outputs)),)
    # No maxima: the rule for large values would keep what these tests want to see found.
    return replace(Task(model, ("MatMul",), ("y:0",), evidence, Ranges(thresholds=thresholds)), **changes)


def refiner(task: Task, folder: Path) -> Refiner:
    return Refiner(task, folder, "r", onnxruntime.HALF_SUFFIX, lambda _: None)


def refined(made: tuple[onnx.ModelProto, np.ndarray], precision: str, folder: Path, **changes: Any) -> Refined:
    found = refiner(task_of(made, folder, **changes), folder).refine(precision)
    assert found is not None
    return found


def precisions(found: Refined) -> dict[str, str]:
    return {layer.name: layer.precision for layer in found.layers if layer.name in LAYERS}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_what_agrees_is_left_alone(precision: str, tmp_path: Path) -> None:
    found = refined(plain(), precision, tmp_path)
    assert precisions(found) == dict.fromkeys(LAYERS, precision)
    assert found.finding.problem == ""
    assert found.finding.compared == 1
    assert found.finding.probe is not None
    assert found.notes == ()
    assert found.precision == precision
    assert 0 < found.accuracy.relative < {"fp16": 2e-3, "bf16": 2e-2, "int8": 3e-2}[precision]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_values_that_are_not_finite_are_left_to_tensorflow(precision: str, tmp_path: Path) -> None:
    assert refined(plain(), precision, tmp_path).finding.finite_only
    assert refined(plain(), precision, tmp_path, evidence=()).finding.finite_only


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_layer_that_half_precision_ruins_is_lifted_and_only_it(precision: str, tmp_path: Path) -> None:
    made = cancelling()
    found = refined(made, precision, tmp_path)
    assert precisions(found) == {"first": "fp32", "middle": precision, "last": precision}
    (first,) = [layer for layer in found.layers if layer.name == "first"]
    assert f"{precision} of it alone costs the island a relative error of" in first.reason
    assert found.finding.problem == ""
    (note,) = found.notes
    assert f"1 of 4 layers compute in fp32, not {precision}, or it would disagree with TensorFlow (" in note
    assert note.startswith(f"WARNING: this network does not stand {precision} as a whole"), "its cosine was 0.2"
    assert note.endswith("): first")
    assert onnx.load(found.file).graph.initializer[0].name == "w1"
    (got,) = onnxruntime.open(found.file).run([made[1]])
    assert found.finding.probe is not None
    np.testing.assert_allclose(got, found.finding.probe.outputs[0], rtol=0.1, atol=0.1)


def test_a_layer_that_int8_ruins_computes_in_float16(tmp_path: Path) -> None:
    found = refined(outlier(), "int8", tmp_path)
    assert precisions(found) == {"first": "fp16", "middle": "int8", "last": "int8"}
    assert found.finding.problem == ""
    assert found.accuracy.relative < 0.05


def test_a_layer_that_float16_ruins_too_computes_in_float32(tmp_path: Path) -> None:
    found = refined(cancelling(), "int8", tmp_path)
    assert precisions(found) == {"first": "fp32", "middle": "int8", "last": "int8"}
    assert found.finding.problem == ""


def test_the_user_may_keep_a_layer(tmp_path: Path) -> None:
    keep = {"middle": Lift("fp32", "as asked")}
    for precision in ("fp16", "int8"):
        found = refined(outlier() if precision == "int8" else cancelling(), precision, tmp_path, keep=keep)
        assert precisions(found)["middle"] == "fp32"
        assert precisions(found)["last"] == precision
        assert precisions(found)["first"] != precision
    attempt = refiner(task_of(plain(), tmp_path, keep=keep), tmp_path).attempt("int8", {"last": Lift("fp16", "worse")})
    assert attempt is not None
    assert precisions(attempt) == {"first": "int8", "middle": "fp32", "last": "fp16"}


def test_what_nothing_helps_says_why(tmp_path: Path) -> None:
    """TensorFlow's answers are others: no choice of layers makes the island agree."""
    task = task_of(plain(), tmp_path)
    (item,) = task.evidence
    task = replace(task, evidence=(replace(item, outputs=(item.outputs[0] * np.float32(1.5),)),))
    for precision in ("int8", "fp16", "bf16"):
        found = refiner(task, tmp_path).refine(precision)
        assert found is not None
        assert "elements beyond tolerance at y:0 (sample)" in found.finding.problem


def test_nothing_to_lower(tmp_path: Path) -> None:
    keep = dict.fromkeys(LAYERS, Lift("fp32", "as asked"))
    assert refiner(task_of(plain(), tmp_path, keep=keep), tmp_path).refine("fp16") is None
    assert refiner(task_of(plain(), tmp_path, keep=keep), tmp_path).refine("int8") is None


def test_without_repair_it_is_as_asked(tmp_path: Path) -> None:
    found = refined(cancelling(), "fp16", tmp_path, repair=False)
    assert set(precisions(found).values()) == {"fp16"}
    assert found.finding.problem


def test_without_evidence_nothing_is_claimed(tmp_path: Path) -> None:
    found = refined(plain(), "int8", tmp_path, evidence=())
    assert found.finding.compared == 0
    assert describe(found)[0].endswith("not compared with TensorFlow")
    assert "nan" not in " ".join(describe(found))


def test_a_low_cosine_is_loud(tmp_path: Path) -> None:
    found = refined(plain(), "int8", tmp_path)
    assert not any("WARNING" in line for line in describe(found))
    loud = replace(found, accuracy=replace(found.accuracy, cosine=0.98))
    assert "WARNING: int8 changes its answers: cosine 0.980" in " ".join(describe(loud))


def test_the_ranking_is_of_single_layers(tmp_path: Path) -> None:
    ranked = refiner(task_of(outlier(), tmp_path), tmp_path).costs("int8")
    assert next(iter(ranked)) == "first"
    assert set(ranked) == set(LAYERS)
    assert ranked["first"] > 5 * max(ranked["middle"], ranked["last"])


# Faults in the rewriter itself.


def initializers(change: Callable[[str, np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    def damage(model: Any) -> Any:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for item in copy.graph.initializer:
            value = numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(change(item.name, value).astype(value.dtype), item.name))
        return copy

    return damage


def two_percent(name: str, value: np.ndarray) -> np.ndarray:
    return value * np.float32(1.02) if name.startswith("w2/half") or name == "w2/scale" else value


def one_step(name: str, value: np.ndarray) -> np.ndarray:
    """One element of one weight, by a step."""
    value = value.copy()
    if name.startswith(("w2/half", "w2/quantized")):
        value.flat[5] += 1 if value.dtype == np.int8 else 0.01
    return value


def wrong_scale(name: str, value: np.ndarray) -> np.ndarray:
    return value * np.float32(1.1) if name == "r1/scale" else value


def tight_scale(name: str, value: np.ndarray) -> np.ndarray:
    """Of another tensor's range, which clips."""
    return value * np.float32(0.5) if name == "r1/scale" else value


def shifted_bias(name: str, value: np.ndarray) -> np.ndarray:
    return value + np.float32(0.01) if name.startswith("bias") else value


def wrong_axis(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.graph.node:
        for attribute in item.attribute:
            if item.op_type == "DequantizeLinear" and item.input[0].startswith("w2/"):
                attribute.i = 0
    return copy


def two_scales(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "other"))
    for item in copy.graph.node:
        if item.op_type == "DequantizeLinear" and item.input[0].startswith("r1/"):
            item.input[1] = "other"
    return copy


def a_step_is_missing(model: Any) -> Any:
    """An op of the model is gone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.graph.node:
        if item.name == "r2":
            item.CopyFrom(helper.make_node("Identity", list(item.input), list(item.output), "r2"))
    return copy


FAULTS = {
    "a weight 2 % off": (initializers(two_percent), ("fp16", "bf16", "int8")),
    "one weight one step off": (initializers(one_step), ("fp16", "int8")),
    "a wrong scale": (initializers(wrong_scale), ("int8",)),
    "a scale that clips": (initializers(tight_scale), ("int8",)),
    "a shifted bias": (initializers(shifted_bias), ("fp16", "bf16", "int8")),
    "scales along a wrong axis": (wrong_axis, ("int8",)),
    "two scales of one tensor": (two_scales, ("int8",)),
    "an op is missing": (a_step_is_missing, ("fp16", "bf16", "int8")),
}


@pytest.mark.parametrize(
    ("name", "precision"), [(name, precision) for name, (_, where) in FAULTS.items() for precision in where]
)
def test_a_fault_of_the_rewriter_never_ships(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs alone would not give all of them away: int8 may cost 10 %."""
    damage, _ = FAULTS[name]
    right = rewrite_module.rewrite

    def wrong(*args: Any) -> Any:
        found = right(*args)
        return replace(found, model=damage(found.model))

    task = task_of(plain(), tmp_path)
    assert refiner(task, tmp_path).refine(precision) is not None
    monkeypatch.setattr(refine_module, "rewrite", wrong)
    found = refiner(task, tmp_path).refine(precision)
    if found is not None and not found.finding.problem:  # only without what was wrong
        assert name == "an op is missing"
        assert set(precisions(found).values()) == {"fp32"}
    elif found is not None and name != "an op is missing":
        assert "its rewrite is wrong: " in found.finding.problem


def test_every_single_step_counts(tmp_path: Path) -> None:
    """A weight may be half a step off what the model has, and no more."""
    model, _ = plain()
    ranges = Ranges(thresholds=dict.fromkeys(tensors_to_observe(model), 1.0))
    right = rewrite_module.rewrite(model, "int8", ranges, {}).model
    for index in range(40):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(right)
        (item,) = [item for item in wrong.graph.initializer if item.name == "w2/quantized"]
        steps = numpy_helper.to_array(item).copy()
        steps.flat[index] += 1 if steps.flat[index] < 127 else -1
        item.CopyFrom(numpy_helper.from_array(steps, item.name))
        assert "weight w2 of middle is " in refine_module.rewrite_fault(model, wrong, ranges.thresholds), index


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_right_rewrite_has_no_fault(precision: str, tmp_path: Path) -> None:
    """The control, over all the layers that int8 can have."""
    from tests.precision.test_simulate import X, network, thresholds

    model = network()
    ranges = Ranges(thresholds=thresholds(model, tmp_path))
    found = rewrite_module.rewrite(model, precision, ranges, {})
    assert len(found.lowered) >= 4
    assert refine_module.rewrite_fault(model, found.model, ranges.thresholds if precision == "int8" else {}) == ""
    assert X.size
