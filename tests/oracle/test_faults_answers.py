"""Seeded faults beside the engines: precision, answers on their way out, and what the command makes of a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import refimpl
from refimpl import bundle, runtime
from refimpl.oracle import CheckOptions, Outcome
from refimpl.recipe import Recipe
from tests.bundles import main, reseal
from tests.contract.sources import ROOT
from tests.oracle.faulting import DISAGREES, Outputs, bundle_of, copied, golden_folder, golden_of, judged, then
from tests.oracle.planting import edit_island, unguard


def test_a_precision_that_forgives_too_much(tmp_path: Path) -> None:
    """A bundle says itself what it computes in, and so how it is judged; whoever asks for fp32 is not fooled."""
    path = copied("convnet", tmp_path)
    edit_island(path, then("Mul", np.float32(1.05)))
    unguard(path)
    manifest = bundle.read(path, check_files=False)
    signatures = tuple(
        replace(
            item,
            islands=tuple(
                replace(one, precision="int8", engines=tuple(replace(e, precision="int8") for e in one.engines))
                for one in item.islands
            ),
        )
        for item in manifest.signatures
    )
    reseal(path, signatures=signatures, precision="int8")
    golden = golden_of("convnet", ("normal-b3",))
    fooled, _ = judged(path, golden)
    assert {case.precision for case in fooled.cases} == {"int8"}, "which the verdict tells"
    asked, _ = judged(path, golden, CheckOptions(precision="fp32"))
    assert (asked.outcome, asked.cases[0].precision) == (Outcome.MISMATCH, "fp32")
    assert "30 of 30 beyond the tolerance" in asked.cases[0].reason


def test_int8_with_a_quarter_of_its_ranges(tmp_path: Path) -> None:
    golden = golden_of("encoder", ("normal-b3", "normal-b7"))
    samples = [dict(case.inputs) for case in golden.cases]
    path = tmp_path / "bundle"
    refimpl.convert(ROOT / "golden" / "encoder" / "saved_model", path, Recipe(precision="int8"), samples=samples)
    assert judged(path, golden)[0].passed

    def quartered(model: onnx.ModelProto) -> None:
        scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        scalars = [item for item in model.graph.initializer if item.name in scales and not item.dims]
        assert scalars
        for item in scalars:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) / np.float32(4), item.name))

    edit_island(path, quartered)
    guarded, _ = judged(path, golden)
    assert guarded.outcome is Outcome.FALLBACK_USED
    assert all(DISAGREES in case.reason for case in guarded.cases)
    unguard(path)
    runtime.forget(path)
    verdict, _ = judged(path, golden)
    assert verdict.outcome is Outcome.MISMATCH
    assert {case.precision for case in verdict.cases} == {"int8"}
    assert all("sentence: " in case.reason and "beyond the tolerance" in case.reason for case in verdict.cases)


# Faults on the way from the bundle to its user.


def bent(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Outputs], Outputs]:
    return lambda outputs: {**outputs, name: change(outputs[name])}


def changed_word(value: np.ndarray) -> np.ndarray:
    value[-1] += b" "
    return value


def largest_infinite(value: np.ndarray) -> np.ndarray:
    return np.where(value == value.max(), np.float32(np.inf), value)


ON_THE_WAY = {  # name: (bend, model, case, words of the reason)
    "output missing": (lambda out: {"state": out["state"]}, "lstm", "normal-b3", "missing outputs: scores"),
    "output too many": (
        lambda out: {**out, "more": out["state"]}, "lstm", "normal-b3", "outputs that golden does not have: more",
    ),
    "outputs swapped": (
        lambda out: {"scores": out["state"], "state": out["scores"]}, "lstm", "normal-b3", "scores: shape [3,8], want",
    ),
    "string changed": (bent("word", changed_word), "words", "normal-b3", "word: 1 of 3 differ"),
    "an axis too many": (bent("word", lambda y: y[None]), "words", "normal-b3", "word: shape [1,3], want [3]"),
    "an axis too few": (bent("probabilities", lambda y: y[0]), "classifier", "normal-b1", "shape [5], want [1,5]"),
    "widened": (bent("logits", lambda y: y.astype(np.float64)), "convnet", "normal-b3", "dtype float64, want float32"),
    "narrowed": (bent("places", lambda y: y.astype(np.int16)), "ranking", "normal-b3", "dtype int16, want int32"),
    "a list": (bent("logits", lambda y: y.tolist()), "convnet", "normal-b3", "not an array but list"),
    "NaN filled up": (
        bent("logits", np.nan_to_num), "convnet", "nonfinite", "NaN at different places (10)",
    ),
    "large number as infinity": (bent("logits", largest_infinite), "convnet", "large", "infinities differ (1)"),
    "last row lost": (bent("state", lambda y: y[:-1]), "lstm", "normal-b3", "state: shape [2,8], want [3,8]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ON_THE_WAY)
def test_an_answer_that_changes_on_its_way(fault: str) -> None:
    bend, model, name, says = ON_THE_WAY[fault]
    verdict, _ = judged(bundle_of(model), golden_of(model, (name,)), bend=bend)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.MISMATCH, 1)
    assert says in verdict.cases[0].reason


# The command.


@pytest.mark.parametrize(
    ("edit", "guarded", "outcome", "says"),
    [
        (then("Mul", np.float32(1.01)), False, "mismatch", "of 15 beyond the tolerance"),
        (then("Transpose", perm=[1, 0]), False, "mismatch", "probabilities: shape [5,3], want [3,5]"),
        (then("Mul", np.float32(1.01)), True, "fallback-used", DISAGREES),
    ],
)
def test_the_command_says_it(
    edit: Any, guarded: bool, outcome: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copied("classifier", tmp_path)
    edit_island(path, edit)
    if not guarded:
        unguard(path)
    assert main("check", path, golden_folder("classifier"), "--json", "--repeat", "0") == 1
    found = json.loads(capfd.readouterr().out)
    assert (found["passed"], found["outcome"]) == (False, outcome)
    case = next(case for case in found["verdicts"][0]["cases"] if case["case"] == "normal-b3")
    assert case["outcome"] == outcome
    assert says in case["reason"]
