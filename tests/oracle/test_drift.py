"""What became worse since a baseline: a fault planted in every number, and the baseline files that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refimpl.errors import GoldenError, RecipeError
from refimpl.oracle import CheckOptions, Snapshot, allowances, compare_with, judge, read_baseline, require_same_model
from refimpl.oracle.drift import ALLOWED, FLOOR, Change, Drift
from refimpl.oracle.golden import Golden
from refimpl.oracle.render import to_json_text
from tests.oracle.fakes import FakeBundle

CASE = ("any", "serving_default", "normal-b1")
SCORES = (*CASE, "scores")


@pytest.fixture
def was(golden: Golden) -> Snapshot:
    """A baseline in which every number is there."""
    bundle = FakeBundle(golden)
    options = CheckOptions(repeat=1)
    found = judge("b", golden.path, options, open_with=bundle.opener(), manifest_with=lambda path: bundle.manifest)
    snapshot = Snapshot.of(json.loads(to_json_text(found)))
    return replace(
        snapshot,
        errors={**snapshot.errors, SCORES: 0.2},
        sizes={("total",): 1000, ("engines/onnxruntime",): 400},
        latencies={("any", "serving_default"): 0.8},
        native_seconds={("any", "serving_default"): 0.1},
        drops={("any", "top1"): 0.01},
    )


def drift(was: Snapshot, given: tuple[str, ...] = (), **changes: Any) -> Drift:
    return compare_with("was.json", was, replace(was, **changes), allowances(given))


def changes(found: Drift) -> dict[tuple[str, str], Change]:
    return {(row.quantity, row.name): row.change for row in found.rows if row.change is not Change.SAME}


def put(mapping: Mapping[Any, Any], key: Any, value: Any) -> dict[Any, Any]:
    return {**mapping, key: value}


def without(mapping: Mapping[Any, Any], key: Any) -> dict[Any, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def test_nothing_changed(was: Snapshot) -> None:
    found = drift(was)
    assert found.passed
    assert changes(found) == {}
    assert {row.quantity for row in found.rows} == {"accuracy", "metric", "share", "islands", "size", "latency"}


ACCURACY = ("accuracy", "any/serving_default/scores")
KEY = ("serving_default",)


@pytest.mark.parametrize(
    ("field", "key", "value", "row", "change"),
    [
        ("errors", SCORES, 0.41, ACCURACY, Change.WORSE),
        ("errors", SCORES, 0.39, ACCURACY, Change.ALLOWED),
        ("errors", SCORES, 0.05, ACCURACY, Change.BETTER),
        ("errors", SCORES, math.nan, ACCURACY, Change.WORSE),
        ("errors", SCORES, math.inf, ACCURACY, Change.WORSE),
        ("shares", KEY, 0.99, ("share", "serving_default"), Change.WORSE),
        ("islands", KEY, 3, ("islands", "serving_default"), Change.WORSE),
        ("islands", KEY, 1, ("islands", "serving_default"), Change.BETTER),
        ("sizes", ("total",), 1051, ("size", "total"), Change.WORSE),
        ("sizes", ("total",), 1049, ("size", "total"), Change.ALLOWED),
        ("sizes", ("engines/onnxruntime",), 500, ("size", "engines/onnxruntime"), Change.WORSE),
        ("sizes", ("engines/onnxruntime",), 300, ("size", "engines/onnxruntime"), Change.BETTER),
        ("latencies", ("any", "serving_default"), 1.01, ("latency", "any/serving_default"), Change.WORSE),
        ("latencies", ("any", "serving_default"), 0.99, ("latency", "any/serving_default"), Change.ALLOWED),
        ("latencies", ("any", "serving_default"), 0.5, ("latency", "any/serving_default"), Change.BETTER),
        ("drops", ("any", "top1"), 0.016, ("metric", "any/top1"), Change.WORSE),
        ("drops", ("any", "top1"), 0.014, ("metric", "any/top1"), Change.ALLOWED),
        ("drops", ("any", "top1"), -0.01, ("metric", "any/top1"), Change.BETTER),
        ("outcomes", CASE, "fallback-used", ("case", "/".join(CASE)), Change.NOT_JUDGED),
    ],
)
def test_one_number_changes(
    was: Snapshot, field: str, key: Any, value: Any, row: tuple[str, str], change: Change
) -> None:
    found = drift(was, **{field: put(getattr(was, field), key, value)})
    assert changes(found) == {row: change}
    assert found.passed == (change is not Change.WORSE)
    assert (f"{row[0]} of {row[1]} worse" in found.problem) == (change is Change.WORSE)


def test_a_small_error_may_grow_within_a_tenth_of_the_tolerance(was: Snapshot) -> None:
    none = replace(was, errors=put(was.errors, SCORES, 0.0))
    assert changes(drift(none, errors=put(was.errors, SCORES, FLOOR))) == {ACCURACY: Change.ALLOWED}
    assert changes(drift(none, errors=put(was.errors, SCORES, FLOOR + 0.01))) == {ACCURACY: Change.WORSE}


@pytest.mark.parametrize(
    ("field", "key", "rows"),
    [
        ("outcomes", CASE, {("case", "/".join(CASE))}),
        ("shares", KEY, {("share", "serving_default")}),
        ("islands", KEY, {("islands", "serving_default")}),
        ("sizes", ("engines/onnxruntime",), {("size", "engines/onnxruntime")}),
        ("drops", ("any", "top1"), {("metric", "any/top1")}),
    ],
)
def test_what_vanishes_is_named_and_fails(was: Snapshot, field: str, key: Any, rows: set[tuple[str, str]]) -> None:
    found = drift(was, **{field: without(getattr(was, field), key)})
    gone = {row for row, change in changes(found).items() if change is Change.VANISHED}
    assert gone == rows
    assert not found.passed
    assert "vanished" in found.problem
    came = compare_with("b", replace(was, **{field: without(getattr(was, field), key)}), was, allowances(()))
    assert {row for row, change in changes(came).items() if change is Change.NEW} == rows
    assert came.passed


def test_an_output_that_vanishes_everywhere_is_named(was: Snapshot) -> None:
    errors = {key: value for key, value in was.errors.items() if key[-1] != "scores"}
    assert changes(drift(was, errors=errors)) == {ACCURACY: Change.VANISHED}


def test_an_engine_that_vanishes_is_one_row(was: Snapshot) -> None:
    found = drift(was, outcomes={("numpy", *key[1:]): value for key, value in was.outcomes.items()})
    engines = {row: change for row, change in changes(found).items() if row[0] in ("engine", "case")}
    assert engines == {("engine", "any"): Change.VANISHED, ("engine", "numpy"): Change.NEW}


def test_only_cases_of_both_are_compared(was: Snapshot) -> None:
    """A new case with a larger error is new, not a loss of accuracy."""
    new = ("any", "serving_default", "large")
    found = drift(was, outcomes=put(was.outcomes, new, "match"), errors=put(was.errors, (*new, "scores"), 0.9))
    assert changes(found) == {("case", "/".join(new)): Change.NEW}


def test_latency_of_another_machine_is_not_judged(was: Snapshot) -> None:
    found = drift(was, machine={"processor": "another"}, latencies={("any", "serving_default"): 9.0})
    assert changes(found) == {("latency", "any/serving_default"): Change.NOT_JUDGED}
    assert found.passed
    assert found.notes == ("latency is not judged: the baseline was measured on another machine",)


def test_a_millisecond_is_noise(was: Snapshot) -> None:
    twice = {("any", "serving_default"): 1.6}
    assert not drift(was, latencies=twice).passed
    assert drift(was, latencies=twice, native_seconds={("any", "serving_default"): 1e-3}).passed
    assert not drift(was, latencies=twice, native_seconds={("any", "serving_default"): 2e-3}).passed


def test_latency_that_was_not_measured_is_not_judged(was: Snapshot) -> None:
    assert drift(was, latencies={}).passed


def test_what_a_reader_should_know_of_the_baseline(was: Snapshot) -> None:
    found = compare_with("b", replace(was, passed=False), replace(was, recorded_on="later"), allowances(()))
    assert found.notes == (
        "the baseline itself did not pass",
        "golden was recorded again since: the same names may stand for other inputs",
    )


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ("share=1%", {"shares": {KEY: 0.99}}),
        ("islands=2", {"islands": {KEY: 4}}),
        ("size=0.5", {"sizes": {("total",): 1500, ("engines/onnxruntime",): 600}}),
        ("latency=100%", {"latencies": {("any", "serving_default"): 1.6}}),
        ("metric=0.5", {"drops": {("any", "top1"): 0.5}}),
        ("accuracy=4", {"errors": {SCORES: 0.8}}),
    ],
)
def test_drift_is_allowed_by_name(was: Snapshot, given: str, changed: dict[str, Any]) -> None:
    was = replace(was, errors={SCORES: 0.2})
    assert not drift(was, **changed).passed
    assert drift(was, (given,), **changed).passed


@pytest.mark.parametrize("wrong", ["speed=1", "size", "size=", "size=lots", "size=-1", "accuracy=0.5", "share=inf"])
def test_an_allowance_that_means_nothing(wrong: str) -> None:
    with pytest.raises(RecipeError, match="--allow-drift"):
        allowances([wrong])


def test_every_allowance_has_a_reason() -> None:
    assert all(item.why for item in ALLOWED.values())
    assert allowances([]) == {name: item.value for name, item in ALLOWED.items()}


# Files


@pytest.fixture
def file(golden: Golden, tmp_path: Path) -> Path:
    bundle = FakeBundle(golden)
    found = judge("b", golden.path, open_with=bundle.opener(), manifest_with=lambda path: bundle.manifest)
    path = tmp_path / "verdict.json"
    path.write_text(to_json_text(found), encoding="utf-8")
    return path


def test_a_baseline_is_what_check_prints(file: Path) -> None:
    found = read_baseline(file)
    assert found.passed
    assert found.outcomes[CASE] == "match"
    assert found.errors[SCORES] == 0.0
    assert found.shares == {KEY: 1.0}


def edited(file: Path, **changes: Any) -> Path:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return file


def test_baselines_that_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match=r"nowhere\.json cannot be read"):
        read_baseline(tmp_path / "nowhere.json")
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole[:-20], encoding="utf-8")
    with pytest.raises(GoldenError, match="is damaged"):
        read_baseline(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GoldenError, match="is damaged"):
        read_baseline(file)
    for text in ("[]", "{}", '{"format": "refimpl-golden"}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(GoldenError, match="is no verdict of refimpl check"):
            read_baseline(file)
    file.write_text(whole, encoding="utf-8")
    with pytest.raises(GoldenError, match="has verdict format 1; this refimpl reads 2"):
        read_baseline(edited(file, format_version=1))


@pytest.mark.parametrize("key", ["bundle", "golden", "machine", "verdicts", "passed"])
@pytest.mark.parametrize("value", [None, 5, "text"])
def test_a_damaged_field_is_one_error(file: Path, key: str, value: Any) -> None:
    if key == "passed":
        data = json.loads(file.read_text(encoding="utf-8"))
        del data["passed"]
        file.write_text(json.dumps(data), encoding="utf-8")
    else:
        edited(file, **{key: value})
    with pytest.raises(GoldenError, match="is damaged: "):
        read_baseline(file)


@pytest.mark.parametrize("share", ["often", True, [], {}])
def test_a_damaged_number_is_one_error(file: Path, share: Any) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    data["verdicts"][0]["cases"][0]["outputs"][0]["share"] = share
    with pytest.raises(GoldenError, match="is damaged: "):
        read_baseline(edited(file, verdicts=data["verdicts"]))


def test_the_baseline_of_another_model(was: Snapshot) -> None:
    with pytest.raises(GoldenError, match=r"baseline was\.json is of another model \(666666666666\)"):
        require_same_model(replace(was, source_sha256="6" * 64), was, Path("was.json"))
    require_same_model(was, was, Path("was.json"))
