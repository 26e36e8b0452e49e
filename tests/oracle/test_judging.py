"""By which tolerance a case is judged, who is blamed, and what the converter's own record adds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import calibration
from refimpl.bundle import CALIBRATION, Manifest
from refimpl.oracle import CheckOptions, Outcome, Verdict, check
from refimpl.oracle.calibrated import outside, tables_of
from refimpl.oracle.golden import Golden
from refimpl.oracle.judging import PLANNED_REASONS
from refimpl.oracle.precision import precision_of_run
from refimpl.oracle.verdict import IslandNote
from refimpl.tolerance import LOOSEST_FIRST, TABLE, loosest
from tests.contract.sources import PACKAGE
from tests.oracle.fakes import IN_ENGINE, ISLANDS, SIGNATURE, FakeBundle, FakeIsland, fake_manifest, island


def judge(bundle: FakeBundle, path: str | Path = "some/bundle", **options: Any) -> Verdict:
    return check(path, bundle.golden.path, CheckOptions(**options), open_with=bundle.opener())


def off_by(share: float) -> Any:
    """Scores that are wrong by a share of themselves."""
    return lambda outputs: {**outputs, "scores": outputs["scores"] * np.float32(1 + share)}


# The row of the table


def row(manifest: Manifest, *runs: tuple[str, str]) -> str:
    return precision_of_run(manifest, "serving_default", [IslandNote(name, engine) for name, engine in runs])


def test_what_ran_decides() -> None:
    manifest = fake_manifest(island("a", "fp16"), island("b", "fp32"), precision="fp16")
    assert row(manifest, ("a", "onnxruntime"), ("b", "onnxruntime")) == "fp16"
    assert row(manifest, ("b", "onnxruntime")) == "fp32", "the float16 island did not run"
    assert row(manifest, ("a", "native"), ("b", "onnxruntime")) == "fp32", "TensorFlow ran it in float32"
    assert row(manifest, ("a", "numpy")) == "fp16", "the same file as ONNX Runtime's"
    assert row(manifest) == "fp32"


def test_what_is_not_in_the_manifest_counts_as_the_bundle() -> None:
    manifest = fake_manifest(island("a"), precision="int8")
    assert row(manifest, ("other", "onnxruntime")) == "int8"
    assert row(manifest, ("a", "tensorrt")) == "int8"


@pytest.mark.parametrize(
    ("record", "own"),
    [
        (island("a", "half"), "half"),
        (island("a", "fp32", dtype="float16"), "half"),
        (island("a", "int8", op="FakeQuantWithMinMaxVars"), "quantized"),
        (island("a", "bf16"), "fp32"),
    ],
)
def test_tensorflow_computes_in_the_models_own_precision(record: Any, own: str) -> None:
    assert row(fake_manifest(record, precision=record.precision), ("a", "native")) == own


def test_every_precision_has_a_place_in_the_order() -> None:
    assert {precision for precision, _ in TABLE} == set(LOOSEST_FIRST)
    assert loosest(["fp32", "int8", "fp16"]) == "int8"
    assert loosest([]) == "fp32"
    assert loosest(["fp32", "int3"]) == "fp32"
    assert loosest(["int3"]) == "int3"


def test_a_loose_engine_that_did_not_run_hides_nothing(golden: Golden) -> None:
    """An error of 1 % in the float32 island, in a bundle whose other, float16 island fell back."""
    manifest = fake_manifest(island(ISLANDS[0], "fp32"), island(ISLANDS[1], "fp16"), precision="fp16")
    ran = (IN_ENGINE[0], FakeIsland(ISLANDS[1], "native", "empty input"))
    both = judge(FakeBundle(golden, off_by(0.005), manifest=manifest))
    assert both.passed
    assert {case.precision for case in both.cases} == {"fp16"}
    one = judge(FakeBundle(golden, off_by(0.005), manifest=manifest, islands=lambda case: ran))
    assert one.outcome is Outcome.MISMATCH
    assert {case.precision for case in one.cases} == {"fp32"}
    asked = {"precision": "fp16", "allow_fallback": True}  # the float16 island ran in no case
    assert judge(FakeBundle(golden, off_by(0.005), manifest=manifest, islands=lambda case: ran), **asked).passed


# Who is blamed


def test_an_engine_is_to_blame(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden, off_by(1.0)))
    assert verdict.cases[0].notes == ("TensorFlow itself, without engines, gives the golden answer here",)


def test_tensorflow_is_to_blame(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden, off_by(1.0), native_fault=off_by(1.0)))
    assert verdict.outcome is Outcome.MISMATCH
    assert verdict.cases[0].reason.startswith(
        "TensorFlow itself, without engines, leaves the golden answer here too (scores: "
    )
    assert "; with engines: scores: " in verdict.cases[0].reason


def test_where_no_engine_ran_nobody_else_is_asked(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden, off_by(1.0), islands=lambda case: ()))
    assert verdict.cases[0].reason.endswith("no engine ran, TensorFlow itself gave this answer")


def test_a_diagnosis_that_fails_is_told(golden: Golden) -> None:
    def fail(outputs: Any) -> Any:
        raise ValueError

    verdict = judge(FakeBundle(golden, off_by(1.0), native_fault=fail))
    assert verdict.outcome is Outcome.MISMATCH
    assert "could not be asked: ValueError" in verdict.cases[0].notes[0]


def test_every_float_output_has_a_second_opinion(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden))
    opinions = {t.name: t.second_opinion for t in verdict.cases[0].comparison.tensors}
    assert opinions["scores"] == "agrees"
    assert all(text.startswith("not asked: ") for name, text in opinions.items() if name != "scores")


# A signature that was not converted


def unconverted(reason: str) -> Manifest:
    manifest = fake_manifest()
    return replace(manifest, signatures=(replace(manifest.signatures[0], converted=False, reason=reason),))


def test_a_refused_signature_is_a_failed_conversion(golden: Golden) -> None:
    bundle = FakeBundle(golden, islands=lambda case: (), manifest=unconverted("TF1 control flow (Enter) cannot be cut"))
    verdict = judge(bundle)
    assert verdict.outcome is Outcome.CONVERSION_FAILED
    assert verdict.exit_code == 1
    assert "the signature was not converted, TensorFlow ran it: TF1 control flow" in verdict.cases[0].reason
    assert judge(bundle, allow_unaccelerated=True).passed
    bundle.fault = off_by(1.0)
    wrong = judge(bundle, allow_unaccelerated=True)
    assert wrong.cases[0].outcome is Outcome.MISMATCH
    assert not wrong.passed


@pytest.mark.parametrize("reason", PLANNED_REASONS)
def test_a_signature_that_stays_by_plan_is_no_failed_conversion(golden: Golden, reason: str) -> None:
    verdict = judge(FakeBundle(golden, islands=lambda case: (), manifest=unconverted(f"{reason} ...")))
    assert verdict.outcome is Outcome.MATCH_NOTHING_ACCELERATED


@pytest.mark.parametrize("reason", PLANNED_REASONS)
def test_the_converter_gives_these_reasons(reason: str) -> None:
    rooms = [(PACKAGE / "converter" / name).read_text(encoding="utf-8") for name in ("pipeline.py", "records.py")]
    assert any(f'"{reason}' in text for text in rooms)


# Calibrated ranges


def table(threshold: float, key: str = "0" * 12 + "/mk/arg/0/0:0") -> calibration.CalibrationTable:
    seen = calibration.TensorRange(
        low=-threshold,
        high=threshold,
        threshold=threshold,
        clipped=0.0,
        values=10,
        zeros=0,
        nonfinite=0,
        quantiles={},
        histogram=(1,) * calibration.BUCKETS,
    )
    return calibration.make_table(
        "5" * 64, "serving_default", {key: seen}, method="minmax", percentile=99.99, batches=1
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (4.0, ""),
        (4.9, ""),
        (5.1, "input 'x' goes to 5.1, it was calibrated to 4: int8 clips"),
        (-3200.0, "input 'x' goes to 3.2e+03, it was calibrated to 4: int8 clips"),
        (0.03, "input 'x' stays within 0.03, a step of int8 is 0.0315: it is lost"),
        (0.04, ""),
        (0.0, ""),
        (np.nan, ""),
    ],
)
def test_inputs_beyond_the_ranges(value: float, says: str) -> None:
    assert outside(SIGNATURE, {"x": np.full((1, 4), value, np.float32)}, [table(4.0)]) == says


def test_nothing_is_said_where_nothing_is_known() -> None:
    far = {"x": np.full((1, 4), 1e9, np.float32)}
    assert outside(SIGNATURE, far, []) == ""
    assert outside(SIGNATURE, far, [table(4.0, "0" * 12 + "/mk/conv/0:0")]) == ""
    assert outside(replace(SIGNATURE, key="other"), far, [table(4.0)]) == ""


def test_a_mismatch_beyond_the_ranges_is_explained(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "b/refimpl").mkdir(parents=True)
    calibration.save(table(1e-3), tmp_path / "b" / CALIBRATION)
    assert len(tables_of(tmp_path / "b")) == 1
    verdict = judge(FakeBundle(golden, off_by(1.0)), tmp_path / "b")
    assert verdict.outcome is Outcome.MISMATCH, "it stays one"
    assert "it was calibrated to 0.001: int8 clips" in verdict.cases[0].notes[-1]
    assert judge(FakeBundle(golden), tmp_path / "b").cases[0].notes == (), "a match needs no excuse"


def test_calibrated_only_leaves_cases_out_by_name(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "b/refimpl").mkdir(parents=True)
    calibration.save(table(1e-3), tmp_path / "b" / CALIBRATION)
    verdict = judge(FakeBundle(golden, off_by(1.0)), tmp_path / "b", calibrated_only=True)
    left = [case for case in verdict.cases if case.excused]
    assert [case.case for case in left] == ["normal-b1", "normal-b3"]
    assert {case.outcome for case in left} == {Outcome.NOT_RUN}
    assert all("calibrated to" in case.reason for case in left)
    assert [case.case for case in verdict.judged] == ["empty-batch"]


def test_leaving_everything_out_is_no_pass(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "b/refimpl").mkdir(parents=True)
    calibration.save(table(1e-3), tmp_path / "b" / CALIBRATION)
    verdict = judge(FakeBundle(golden), tmp_path / "b", calibrated_only=True)
    everything = replace(verdict, cases=verdict.cases[:2])
    assert everything.outcome is Outcome.NOT_RUN
    assert not everything.passed
    assert everything.problems == ("no case was run",)


# Time


def test_the_time_limit_is_told_and_fails(golden: Golden) -> None:
    verdict = judge(FakeBundle(golden), time_limit=0.0)
    assert {case.outcome for case in verdict.cases} == {Outcome.NOT_RUN}
    assert "time limit of 0 s" in verdict.cases[0].reason
    assert not verdict.passed
    assert not judge(FakeBundle(golden), time_limit=0.0, excuse_unfinished=True).passed, "nothing was run"
    assert judge(FakeBundle(golden), time_limit=60.0).passed


def test_latency_of_the_largest_natural_case_beside_tensorflows(golden: Golden) -> None:
    bundle = FakeBundle(golden)
    verdict = judge(bundle, repeat=3)
    (latency,) = verdict.latencies
    assert (latency.signature, latency.case, latency.runs) == ("serving_default", "normal-b3", 3)
    assert latency.seconds > 0
    assert latency.ratio == pytest.approx(latency.seconds / latency.native_seconds)
    assert len(bundle.asked) == 3 + 1 + 3, "every case once, one call to warm up, three measured"
    assert judge(FakeBundle(golden)).latencies == ()


@pytest.mark.parametrize("broken", [{"islands": lambda case: ()}, {"fault": off_by(1.0)}])
def test_no_latency_of_what_did_not_run_or_is_wrong(golden: Golden, broken: dict[str, Any]) -> None:
    assert judge(FakeBundle(golden, **broken), repeat=2).latencies == ()
