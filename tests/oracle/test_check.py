"""The whole judgement, with bundles that answer from golden outputs and one planted fault each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import runtime
from refimpl.errors import BundleError, GoldenError, InternalError, RecipeError, RunError
from refimpl.oracle import CheckOptions, Outcome, Verdict, check
from refimpl.oracle import verdict as verdict_module
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from refimpl.oracle.verdict import IslandNote
from refimpl.specs import Signature, TensorSpec
from tests.oracle.fakes import IN_ENGINE, SIGNATURE, FakeBundle, FakeIsland, fake_manifest, make_case, write_golden

Bend = Callable[[dict[str, Any]], dict[str, Any]]


def judge(bundle: FakeBundle, **options: Any) -> Verdict:
    told = {name: options.pop(name) for name in ("progress",) if name in options}
    return check("some/bundle", bundle.golden.path, CheckOptions(**options), open_with=bundle.opener(), **told)


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {case.case: case.outcome.value for case in verdict.cases}


def test_a_right_bundle_passes_and_every_case_ran(golden: Golden) -> None:
    bundle = FakeBundle(golden)
    verdict = judge(bundle)
    assert verdict.passed
    assert verdict.exit_code == 0
    assert verdict.outcome is Outcome.MATCH
    assert outcomes(verdict) == {"normal-b1": "match", "normal-b3": "match", "empty-batch": "match"}
    assert bundle.asked == [("serving_default", case.name) for case in golden.cases]
    assert [len(case.comparison.tensors) for case in verdict.cases if case.comparison] == [4, 4, 4]


def on(name: str, bend: Callable[[Any], Any]) -> Bend:
    return lambda outputs: {**outputs, name: bend(outputs[name])}


def last_element(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def bend(array: np.ndarray) -> np.ndarray:
        if array.size:
            array.reshape(-1)[-1] = change(array.reshape(-1)[-1])
        return array

    return bend


FAULTS: dict[str, tuple[Bend, str]] = {
    "scaled": (on("scores", lambda y: y * 3), "scores: "),
    "rolled": (on("scores", lambda y: np.roll(y, 1, axis=-1)), "beyond the tolerance"),
    "zeroed": (on("scores", np.zeros_like), "beyond the tolerance"),
    "one element": (on("scores", last_element(lambda v: v * 1.02)), "1 of"),
    "one NaN": (on("scores", last_element(lambda v: np.nan)), "NaN at different places (1)"),
    "transposed": (on("scores", lambda y: y.T), "shape"),
    "wider": (on("scores", lambda y: y.astype(np.float64)), "dtype float64, want float32"),
    "batch cut": (on("classes", lambda y: y[:-1]), "shape"),
    "int off by one": (on("classes", last_element(lambda v: v + 1)), "classes: 1 of"),
    "int narrowed": (on("classes", lambda y: y.astype(np.int32)), "dtype int32, want int64"),
    "string changed": (on("labels", last_element(lambda v: v + b" ")), "labels: 1 of"),
    "flag flipped": (on("flags", last_element(lambda v: not v)), "flags: 1 of"),
    "missing": (lambda o: {k: v for k, v in o.items() if k != "flags"}, "missing outputs: flags"),
    "extra": (lambda o: {**o, "more": o["flags"]}, "golden does not have: more"),
    "swapped": (lambda o: {**o, "classes": o["flags"], "flags": o["classes"]}, "classes: dtype bool, want int64"),
    "nothing": (lambda o: {}, "missing outputs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_ends_in_mismatch_for_its_reason(golden: Golden, fault: str) -> None:
    bend, reason = FAULTS[fault]
    verdict = judge(FakeBundle(golden, bend))
    assert not verdict.passed
    assert verdict.exit_code == 1
    assert verdict.outcome is Outcome.MISMATCH
    for case in verdict.cases[:2]:
        assert case.outcome is Outcome.MISMATCH, case
        assert reason in case.reason


def test_stale_answers_are_caught(golden: Golden) -> None:
    """A bundle that answers every call with the outputs of its first."""
    first: dict[str, Any] = {}

    def stale(outputs: dict[str, Any]) -> dict[str, Any]:
        return first.setdefault("outputs", outputs)

    assert outcomes(judge(FakeBundle(golden, stale))) == {
        "normal-b1": "match",
        "normal-b3": "mismatch",
        "empty-batch": "mismatch",
    }


def test_a_bundle_that_spoils_its_inputs_does_not_reach_golden(golden: Golden) -> None:
    class Spoiler(FakeBundle):
        def run(self, inputs: Any, signature: str) -> Any:
            result = super().run(inputs, signature)
            inputs["x"][...] = 0
            return result

    assert judge(Spoiler(golden)).passed


@pytest.mark.parametrize("options", [{}, {"allow_fallback": True}])
def test_no_engine_at_all_is_no_pass(golden: Golden, options: dict[str, bool]) -> None:
    verdict = judge(FakeBundle(golden, islands=lambda case: ()), **options)
    assert verdict.outcome is Outcome.MATCH_NOTHING_ACCELERATED
    assert verdict.exit_code == 1
    assert "no engine ran" in verdict.problems[0]
    assert judge(FakeBundle(golden, islands=lambda case: ()), allow_unaccelerated=True).exit_code == 0


def native(reason: str) -> tuple[FakeIsland, ...]:
    return (IN_ENGINE[0], FakeIsland("TRTEngineOp_000_001", "native", reason))


def test_unplanned_fallback_is_no_pass(golden: Golden) -> None:
    bundle = FakeBundle(golden, islands=lambda case: native("the probe disagreed on this device"))
    verdict = judge(bundle)
    assert verdict.outcome is Outcome.FALLBACK_USED
    assert not verdict.passed
    assert "TRTEngineOp_000_001 ran in TensorFlow: the probe disagreed" in verdict.cases[0].reason
    assert judge(bundle, allow_fallback=True).passed


def test_a_wrong_answer_of_a_fallback_is_a_mismatch(golden: Golden) -> None:
    bundle = FakeBundle(golden, on("scores", lambda y: -y), islands=lambda case: native("why not"))
    assert judge(bundle, allow_fallback=True).outcome is Outcome.MISMATCH


@pytest.mark.parametrize("reason", ["empty input", "empty input: x has shape [0,4]", "non-finite values"])
def test_documented_fallback_is_a_match_and_listed(golden: Golden, reason: str) -> None:
    def islands(case: Any) -> tuple[FakeIsland, ...]:
        return native(reason) if case.kind is CaseKind.EMPTY_BATCH else IN_ENGINE

    verdict = judge(FakeBundle(golden, islands=islands))
    assert verdict.passed
    assert any(reason in note for note in verdict.cases[2].notes)


def test_the_runtime_gives_the_documented_reasons() -> None:
    assert verdict_module.MADE_NOT_FINITE == runtime.MADE_NOT_FINITE
    for reason in runtime.BY_DESIGN:
        assert IslandNote("i", runtime.NATIVE, reason).expected
    assert not IslandNote("i", runtime.NATIVE, "onnxruntime: it broke").expected


def test_an_island_in_a_loop_is_told_once(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden, islands=lambda case: IN_ENGINE * 100))
    assert [len(case.islands) for case in verdict.cases] == [2, 2, 2]


def test_documented_fallback_everywhere_accelerates_nothing(golden: Golden) -> None:
    every = tuple(FakeIsland(run.island, "native", "empty input") for run in IN_ENGINE)
    verdict = judge(FakeBundle(golden, islands=lambda case: every))
    assert verdict.outcome is Outcome.MATCH_NOTHING_ACCELERATED
    assert not verdict.passed


def test_an_engine_that_was_not_asked_for_is_no_pass(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden), engines=["tensorrt"])
    assert verdict.outcome is Outcome.FALLBACK_USED
    assert "ran in onnxruntime, which was not asked for" in verdict.cases[0].reason
    assert judge(FakeBundle(golden), engines=["tensorrt", "onnxruntime"]).passed


@pytest.mark.parametrize(
    ("error", "text"),
    [(RunError("broke", hint="h"), "broke"), (ValueError("odd"), "ValueError: odd"), (MemoryError(), "Mem")],
)
def test_a_run_that_fails(golden: Golden, error: Exception, text: str) -> None:
    def fail(outputs: Any) -> Any:
        raise error

    verdict = judge(FakeBundle(golden, fail))
    assert verdict.outcome is Outcome.RUN_FAILED
    assert text in verdict.cases[0].reason
    assert len(verdict.cases) == 3


def test_our_own_bugs_are_not_verdicts(golden: Golden) -> None:
    def fail(outputs: Any) -> Any:
        raise InternalError("broken invariant")

    with pytest.raises(InternalError):
        judge(FakeBundle(golden, fail))


def test_golden_of_another_model_is_an_error(golden: Golden) -> None:
    with pytest.raises(GoldenError, match="recorded from another SavedModel"):
        judge(FakeBundle(golden, manifest=fake_manifest(source_sha256="6" * 64)))


def test_a_signature_that_the_bundle_lacks_is_not_run(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden, signatures={"other": replace(SIGNATURE, key="other")}))
    assert verdict.outcome is Outcome.NOT_RUN
    assert not verdict.passed
    assert "no signature 'serving_default', only other" in verdict.cases[0].reason


@pytest.mark.parametrize(
    "changed",
    [
        replace(SIGNATURE, outputs=SIGNATURE.outputs[1:]),
        replace(SIGNATURE, inputs=(TensorSpec("x", "float64", (None, 4)),)),
        replace(SIGNATURE, inputs=(TensorSpec("y", "float32", (None, 4)),)),
    ],
)
def test_a_signature_that_changed_is_not_run(golden: Golden, changed: Signature) -> None:
    verdict = judge(FakeBundle(golden, signatures={"serving_default": changed}))
    assert {case.outcome for case in verdict.cases} == {Outcome.NOT_RUN}
    assert "differ from golden's" in verdict.cases[0].reason


def test_what_golden_does_not_cover_is_said(golden: Golden) -> None:
    both = {"serving_default": SIGNATURE, "embed": replace(SIGNATURE, key="embed")}
    verdict = judge(FakeBundle(golden, signatures=both))
    assert verdict.passed
    assert "'embed' was not checked" in verdict.notes[0]


def test_answers_that_zeros_would_match_are_said(tmp_path: Path) -> None:
    case = make_case("normal", 2)
    zeros = {"classes": np.zeros(2, np.int64), "flags": np.zeros(2, bool), "scores": np.zeros((2, 6), np.float32)}
    signature = replace(SIGNATURE, outputs=tuple(spec for spec in SIGNATURE.outputs if spec.name in zeros))
    weak = write_golden(tmp_path / "weak", [replace(case, outputs=zeros)], (signature,))
    assert "zeros would pass every case" in judge(FakeBundle(weak)).notes[0]


def test_empty_outputs_are_counted_in_one_line(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden))
    assert [case.notes for case in verdict.cases] == [(), (), ("4 of 4 outputs are empty: nothing to compare",)]


def test_only_empty_outputs_are_no_match(tmp_path: Path) -> None:
    """An ordinary case whose outputs are all empty compares nothing."""
    empty = make_case("normal", 0)
    record = write_golden(tmp_path / "g", [empty, make_case("normal-b3", 3)])
    verdict = judge(FakeBundle(record))
    assert outcomes(verdict) == {"normal": "mismatch", "normal-b3": "match"}
    assert "nothing was compared" in verdict.cases[0].reason


def test_only_unrepeatable_outputs_are_no_match(tmp_path: Path) -> None:
    case = make_case("normal", 2)
    record = write_golden(tmp_path / "g", [replace(case, unstable=dict.fromkeys(case.outputs, "values"))])
    assert "nothing was compared" in judge(FakeBundle(record)).cases[0].reason


def test_unrepeatable_outputs_are_listed(tmp_path: Path) -> None:
    record = write_golden(tmp_path / "g", [replace(make_case("normal", 2), unstable={"scores": "values"})])
    verdict = judge(FakeBundle(record, on("scores", lambda y: y + 1)))
    assert verdict.passed
    assert "TensorFlow's own values differ" in verdict.cases[0].notes[0]
    assert verdict.notes == ("signature 'serving_default': never compared in any case: scores",)


def test_precision_chooses_the_tolerance(golden: Golden) -> None:
    assert judge(FakeBundle(golden)).precision == "fp32"
    with pytest.raises(RecipeError, match="no tolerance is known for float32 outputs of precision 'int3'"):
        judge(FakeBundle(golden), precision="int3")


def test_errors_of_loading_pass_through(golden: Golden) -> None:
    def refuse(path: Any, engines: Any) -> Any:
        raise BundleError("damaged")

    with pytest.raises(BundleError, match="damaged"):
        check("b", golden.path, open_with=refuse)
    with pytest.raises(GoldenError, match="does not exist"):
        check("b", golden.path / "nowhere", open_with=refuse)


def test_checking_writes_nothing(golden: Golden, tmp_path: Path) -> None:
    def snapshot() -> dict[str, str]:
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = snapshot()
    lines: list[str] = []
    judge(FakeBundle(golden), progress=lines.append)
    assert snapshot() == before
    assert lines == [f"serving_default/{name}: match" for name in ("normal-b1", "normal-b3", "empty-batch")]
