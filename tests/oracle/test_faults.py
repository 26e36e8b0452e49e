"""Seeded faults in the islands of real bundles: every one is caught, and for what was planted.

Each is planted twice: with the probes of the bundle taken away, so that the runtime takes the engine and the verdict
alone stands between the fault and its user; and with the probes in place, so that the runtime has to refuse the engine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from refimpl.oracle import Outcome
from tests.oracle.faulting import (
    BLAMES_ENGINES,
    SHIPPED,
    Fault,
    attribute_before,
    both,
    bundle_of,
    case_of,
    caught,
    copied,
    every_weight,
    golden_of,
    judged,
    nan_swallowed,
    one_set_to,
    retyped,
    swapped_outputs,
    then,
    weight_of_another,
)
from tests.oracle.planting import attribute, edit_island, instead, one_element, operand, scaled, shifted, unguard

F32, I32, I64 = np.float32, np.int32, np.int64


def near(change):
    """A proof: the answer is the golden one so changed, by a tenth of a percent."""
    return lambda want, got: np.allclose(got, change(want.astype(got.dtype)), rtol=1e-3, atol=1e-5)


def only_at(*at: int):
    """A proof: nothing differs by more than rounding but one element."""

    def proof(want, got):
        off = ~np.isclose(got, want, rtol=1e-2, atol=1e-4)
        return np.argwhere(off).tolist() == [list(at)]

    return proof


FAULTS = [
    Fault(
        kind="scaled by a thousandth",
        model="convnet",
        edit=then("Mul", F32(1.001)),
        outputs=("logits",),
        proof=lambda want, got: np.allclose(got / want, 1.001, rtol=1e-5),
    ),
    Fault(
        kind="shifted",
        model="classifier",
        edit=then("Add", F32(0.01)),
        outputs=("probabilities",),
        says="15 of 15 beyond the tolerance",
        proof=near(lambda want: want + 0.01),
    ),
    Fault(
        kind="one element",
        model="encoder",
        edit=one_set_to(0.02, (0, 5), reduction="add"),
        outputs=("sentence",),
        says="1 of 48 beyond the tolerance",
        proof=only_at(0, 5),
    ),
    Fault(
        kind="one NaN",
        model="half",
        edit=one_set_to(np.nan, (0, 2), np.float16),
        outputs=("y",),
        says="NaN at different places (1)",
        proof=only_at(0, 2),
    ),
    Fault(
        kind="infinity in place of a number",
        model="half",
        edit=one_set_to(np.inf, (0, 3), np.float16),
        outputs=("y",),
        says="infinities differ (1)",
        proof=only_at(0, 3),
    ),
    Fault(
        kind="sign flipped",
        model="convnet",
        edit=then("Neg"),
        outputs=("logits",),
        says="30 of 30",
        proof=near(lambda want: -want),
    ),
    Fault(
        kind="zeroed output",
        model="lstm",
        edit=then("Mul", F32(0)),
        outputs=("state",),
        proof=lambda want, got: not got.any(),
    ),
    Fault(
        kind="zeroed second island",
        model="words",
        island=1,
        edit=then("Mul", F32(0)),
        outputs=("scores",),
        says="9 of 9",
        proof=lambda want, got: not got.any(),
    ),
    Fault(
        kind="transposed",
        model="encoder",
        edit=then("Transpose", perm=[1, 0]),
        outputs=("sentence",),
        says="shape [16,3], want [3,16]",
        proof=lambda want, got: np.allclose(got.T, want, atol=1e-5),
    ),
    Fault(
        kind="truncated batch",
        model="ranking",
        edit=then("Slice", np.array([0]), np.array([2]), np.array([0])),
        outputs=("scores",),
        says="shape [2,3], want [3,3]",
        proof=lambda want, got: np.allclose(got, want[:2], atol=1e-5),
        guarded="",
    ),
    Fault(
        kind="first row for every row",
        model="classifier",
        edit=then("Gather", I64(0), axis=0),
        outputs=("probabilities",),
        says="shape [5], want [3,5]",
        proof=lambda want, got: np.allclose(got, want[0], atol=1e-5),
    ),
    Fault(
        kind="wrong dtype",
        model="classifier",
        edit=then("Cast", to=TensorProto.DOUBLE),
        outputs=(),
        outcome=Outcome.RUN_FAILED,
        says="double",
    ),
    Fault(
        kind="swapped outputs",
        model="not_finite",
        island=1,
        edit=swapped_outputs,
        outputs=("max_pool", "avg_pool"),
        proof=lambda want, got: bool((got <= want + 1e-6).all()),
    ),
    Fault(
        kind="wrong weights in one layer",
        model="convnet",
        edit=operand("Conv2D_1", 1, scaled(1.05)),
        outputs=("logits",),
    ),
    Fault(
        kind="one wrong weight",
        model="convnet",
        edit=operand("depthwise", 1, one_element(4, 0.5)),
        outputs=("logits",),
    ),
    Fault(
        kind="weights of another layer",
        model="encoder",
        edit=weight_of_another("einsum_1/Einsum", 1, "einsum/Einsum"),
        outputs=("sentence",),
    ),
    Fault(
        kind="half-precision weights",
        model="convnet",
        edit=every_weight(lambda value: value.astype(np.float16)),
        outputs=("logits",),
        proof=lambda want, got: np.allclose(got, want, rtol=2e-2, atol=2e-3),
    ),
    Fault(
        kind="bias missing",
        model="classifier",
        edit=operand("matmul_1/MatMulAddFusion", 2, scaled(0)),
        outputs=("probabilities",),
    ),
    Fault(
        kind="recurrent weights missing",
        model="lstm",
        edit=operand("while_loop", 7, scaled(0)),
        outputs=("state", "scores"),
    ),
    Fault(kind="relu dropped", model="classifier", edit=instead("Relu", "Identity"), outputs=("probabilities",)),
    Fault(
        kind="softmax on the wrong axis",
        model="classifier",
        edit=attribute("Softmax", axis=0),
        outputs=("probabilities",),
        proof=lambda want, got: np.allclose(got.sum(0), 1, atol=1e-5),
    ),
    Fault(
        kind="wrong axis inside",
        model="encoder",
        edit=attribute("Softmax", axis=2),
        outputs=("sentence",),
    ),
    Fault(
        kind="wrong axis that cannot run",
        model="convnet",
        edit=operand("Mean", 1, lambda value: value - 1),
        outputs=(),
        outcome=Outcome.FALLBACK_USED,
        says="TRTEngineOp_000_000 ran in TensorFlow: onnxruntime: ONNX Runtime cannot load",
        guarded="onnxruntime: ONNX Runtime cannot load",
    ),
    Fault(kind="wrong padding", model="convnet", edit=attribute("BiasAdd", pads=[1, 1, 0, 0]), outputs=("logits",)),
    Fault(kind="wrong epsilon", model="encoder", edit=operand("add_1", 1, scaled(1e4)), outputs=("sentence",)),
    Fault(
        kind="clipped too early",
        model="convnet",
        edit=operand("Relu6", 2, scaled(0.2)),
        outputs=("logits",),
    ),
    Fault(
        kind="off-by-half resize",
        model="resizes",
        edit=attribute_before("resize_4/ResizeBilinear", coordinate_transformation_mode="asymmetric"),
        outputs=("bilinear_down",),
    ),
    Fault(
        kind="slice off by one",
        model="words",
        edit=both(operand("strided_slice", 1, shifted([0, 1])), operand("strided_slice", 2, shifted([0, 1]))),
        outputs=("scores",),
    ),
    Fault(
        kind="index off by one",
        model="ranking",
        edit=then("Add", I32(1), place=1),
        outputs=("places",),
        says="9 of 9 differ",
        proof=lambda want, got: bool((got == want + 1).all()),
    ),
    Fault(
        kind="largest for smallest",
        model="argmax_gather",
        edit=retyped("ArgMin", "ArgMax"),
        outputs=("worst",),
        says="of 3 differ",
    ),
    Fault(
        kind="integer overflow",
        model="ranking",
        edit=then("Mul", I32(2**31 - 1), place=1),
        outputs=("places",),
        proof=lambda want, got: bool((got == (want.astype(I64) * (2**31 - 1)).astype(I32)).all()),
        says="differ",
    ),
    Fault(
        kind="truncated to integers",
        model="encoder",
        edit=then("Floor"),
        outputs=("sentence",),
        proof=lambda want, got: np.allclose(got, np.floor(want), atol=1e-5),
    ),
    Fault(
        kind="rows of a table moved by one",
        model="encoder",
        edit=operand("Gather", 0, lambda value: np.roll(value, 1, 0)),
        outputs=("sentence",),
    ),
    Fault(kind="wrong constant", model="encoder", edit=operand("truediv", 1, scaled(1.1)), outputs=("sentence",)),
    Fault(kind="another activation", model="ranking", edit=instead("Tanh", "Softsign"), outputs=("scores",)),
    Fault(
        kind="NaN swallowed",
        model="half",
        edit=nan_swallowed,
        case="nonfinite",
        outputs=("y",),
        says="NaN at different places",
        guarded="",
    ),
]


def test_there_are_enough() -> None:
    assert len({fault.kind for fault in FAULTS}) == len(FAULTS)
    assert len(FAULTS) >= 25
    assert len({fault.model for fault in FAULTS}) >= 8


@pytest.mark.parametrize("name", sorted({*SHIPPED, *(fault.model for fault in FAULTS)}))
def test_a_bundle_without_a_fault_passes(name: str) -> None:
    verdict, _ = judged(bundle_of(name), golden_of(name))
    assert verdict.passed, verdict.problems
    assert verdict.outcome is Outcome.MATCH
    assert case_of(verdict, "normal-b3").accelerated


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_the_verdict_says_what_was_planted(fault: Fault, tmp_path: Path) -> None:
    path = copied(fault.model, tmp_path)
    edit_island(path, fault.edit, island=fault.island)
    unguard(path)
    caught(fault, path, golden_of(fault.model))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_the_probe_keeps_it_from_running(fault: Fault, tmp_path: Path) -> None:
    path = copied(fault.model, tmp_path)
    edit_island(path, fault.edit, island=fault.island)
    golden = golden_of(fault.model, ("normal-b3",) if fault.guarded else (fault.case,))
    if not fault.guarded:  # a probe holds no such values: the verdict is all there is
        caught(fault, path, golden)
        return
    verdict, _ = judged(path, golden)
    (case,) = verdict.cases
    assert (case.outcome, verdict.passed) == (Outcome.FALLBACK_USED, False), case
    assert case.right, "TensorFlow answered"
    island = f"TRTEngineOp_000_{fault.island:03}"
    assert case.reason.startswith(f"{island} ran in TensorFlow: ")
    assert fault.guarded in case.reason
    assert [run.engine for run in case.islands if run.island == island] == ["native"]
    assert BLAMES_ENGINES not in case.notes
