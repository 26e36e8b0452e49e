"""The task metric of labelled cases, its drop, and the confidence intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import RecipeError
from refimpl.oracle import CheckOptions, Verdict, check
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from refimpl.oracle.task_metric import TaskMetric, bootstrap_interval, wilson_interval
from tests.oracle.fakes import SIGNATURE, FakeBundle, make_case, write_golden

ROWS = 40


@pytest.fixture
def labelled(tmp_path: Path) -> Golden:
    """Two cases of 40 examples; TensorFlow is right on 90 % of the first and on all of the second."""
    first, second = (make_case(name, ROWS, CaseKind.USER, seed) for name, seed in (("a", 1), ("b", 2)))
    label = first.outputs["classes"].copy()
    label[:4] = (label[:4] + 1) % 6
    cases = [replace(first, labels={"label": label}), replace(second, labels={"label": second.outputs["classes"]})]
    return write_golden(tmp_path / "labelled", [*cases, make_case("without", 3)])


def confused(count: int) -> Any:
    """The right class is no longer the largest in the last ``count`` rows of every answer; off by a lot."""

    def bend(outputs: dict[str, Any]) -> dict[str, Any]:
        scores = outputs["scores"].copy()
        if len(scores) == ROWS and count:
            scores[-count:] = -scores[-count:]
        return {**outputs, "scores": scores}

    return bend


def judge(golden: Golden, fault: Any = lambda outputs: outputs, **options: Any) -> Verdict:
    return check("b", golden.path, CheckOptions(**options), open_with=FakeBundle(golden, fault).opener())


def task(*args: Any, **options: Any) -> TaskMetric:
    found = judge(*args, **options).task
    assert found is not None
    return found


def test_the_metric_of_both_over_all_labelled_cases(labelled: Golden) -> None:
    found = task(labelled, confused(5))
    assert (found.metric, found.examples) == ("top1", 2 * ROWS)
    assert found.tensorflow == pytest.approx(76 / 80)
    assert found.bundle == pytest.approx(66 / 80)
    assert found.drop == pytest.approx(10 / 80)
    low, high = found.drop_interval or (0, 0)
    assert 0 < low < 10 / 80 < high
    assert found.tensorflow_interval == pytest.approx(wilson_interval(76, 80))
    assert found.bundle_interval == pytest.approx(wilson_interval(66, 80))


def test_signatures_are_not_put_together(labelled: Golden, tmp_path: Path) -> None:
    """One that loses nothing must not halve what the other one loses."""
    twins = [replace(case, signature="twin") for case in labelled.cases]
    signatures = (SIGNATURE, replace(SIGNATURE, key="twin"))
    both = write_golden(tmp_path / "both", [*labelled.cases, *twins], signatures)

    class OnlyOne(FakeBundle):
        def run(self, inputs: Any, signature: str) -> Any:
            bent, self.fault = self.fault, (self.fault if signature == "serving_default" else lambda outputs: outputs)
            try:
                return super().run(inputs, signature)
            finally:
                self.fault = bent

    found = check("b", both.path, CheckOptions(), open_with=OnlyOne(both, confused(5)).opener()).task
    assert found is not None
    assert (found.signature, found.examples) == ("serving_default", 2 * ROWS)
    assert found.drop == pytest.approx(10 / 80)


def test_the_interval_is_paired(labelled: Golden) -> None:
    """The same answers have no drop and no doubt about it, however uncertain the metric itself is."""
    found = task(labelled)
    assert (found.drop, found.drop_interval) == (0.0, (0.0, 0.0))
    assert found.tensorflow_interval is not None
    assert found.tensorflow_interval[1] - found.tensorflow_interval[0] > 0.05


def test_it_decides_only_when_asked_to(labelled: Golden) -> None:
    harmless = {"precision": "int8"}
    bend = confused(1)
    free = judge(labelled, bend, **harmless)
    assert free.task is not None
    assert not free.task.problem
    strict = judge(labelled, bend, max_drop=0.01, **harmless)
    assert "top1 drops by 0.025, more than 0.01" in strict.problems
    assert strict.exit_code == 1
    within = judge(labelled, bend, max_drop=0.03, **harmless)
    assert not any("top1" in problem for problem in within.problems)
    assert within.task is not None
    assert within.task.uncertain, "the interval reaches beyond what is allowed"


def test_a_match_that_loses_accuracy_fails(labelled: Golden) -> None:
    """Every output within its tolerance, and one label lost: the metric alone fails it."""
    verdict = judge(labelled, max_drop=0.0)
    assert verdict.passed
    worse = replace(verdict, task=replace(verdict.task, drop=0.01))  # type: ignore[type-var]
    assert not worse.passed
    assert worse.problems == ("top1 drops by 0.01, more than 0",)


@pytest.mark.parametrize("drop", [math.nan, math.inf])
def test_a_drop_that_is_no_number_fails(drop: float) -> None:
    found = TaskMetric(metric="mae", examples=2, tensorflow=0.1, bundle=drop, drop=drop, max_drop=1.0)
    assert found.problem


def test_outputs_that_cannot_be_measured_fail(labelled: Golden) -> None:
    found = task(labelled, lambda outputs: {**outputs, "scores": outputs["scores"][:, :2]}, max_drop=0.5)
    assert found.drop is None
    assert found.problem == "top1 was not measured: no comparable outputs in a, b"
    broken = judge(labelled, lambda outputs: 1 / 0, max_drop=0.5)
    assert "top1 was not measured" in broken.problems[-1]


def test_a_drop_without_labels_is_an_error(golden: Golden) -> None:
    with pytest.raises(RecipeError, match="--max-drop judges top1 on labelled cases, and golden has none"):
        judge(golden, max_drop=0.1)
    assert judge(golden).task is None


def test_an_unknown_metric_is_an_error(labelled: Golden) -> None:
    with pytest.raises(RecipeError, match="there is no metric 'bleu'"):
        judge(labelled, metric="bleu")


def test_a_metric_where_less_is_better(tmp_path: Path) -> None:
    case = make_case("a", ROWS, CaseKind.USER)
    record = write_golden(
        tmp_path / "mae", [replace(case, labels={"scores": case.outputs["scores"] + np.float32(0.5)})]
    )
    found = task(record, lambda outputs: {**outputs, "scores": outputs["scores"] - np.float32(0.25)}, metric="mae")
    assert found.tensorflow == pytest.approx(0.5, rel=1e-5)
    assert found.bundle == pytest.approx(0.75, rel=1e-5)
    assert found.drop == pytest.approx(0.25, rel=1e-4), "worse by a quarter"
    assert found.tensorflow_interval is None, "no share, no Wilson interval"


def test_wilson_against_published_values() -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(0.3, 1.0, 80))
        covered += low <= 0.3 <= high
    assert 85 <= covered <= 100
    values = rng.normal(size=50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(50), rel=0.15)


def test_large_sets_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from refimpl.oracle import task_metric

    values = np.random.default_rng(0).normal(size=1000)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(task_metric, "_AT_ONCE", 3000)
    assert bootstrap_interval(values) == pytest.approx(whole, rel=1e-9)
