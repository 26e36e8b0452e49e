"""JUnit: one fault is one failure, a failed check has at least one, a passed one has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from refimpl.oracle import CheckOptions, VerdictSet, allowances, compare_with, judge
from refimpl.oracle.baseline import Snapshot
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from refimpl.oracle.render_junit import to_junit
from tests.oracle.fakes import IN_ENGINE, FakeBundle, make_case, write_golden


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    """Two cases without labels and one with them, on which TensorFlow is right every time."""
    user = make_case("user", 8, CaseKind.USER)
    cases = [make_case("normal-b1", 1), make_case("normal-b3", 3, seed=4)]
    return write_golden(tmp_path / "g", [*cases, replace(user, labels={"label": user.outputs["classes"]})])


def judged(bundle: FakeBundle, *, all_engines: bool = False, **options: Any) -> VerdictSet:
    return judge(
        "b",
        bundle.golden.path,
        CheckOptions(**options),
        all_engines=all_engines,
        open_with=bundle.opener(),
        manifest_with=lambda path: bundle.manifest,
    )


def failures(verdicts: VerdictSet) -> list[str]:
    """``SUITE/TEST`` of every failure and error; the counts that CI systems trust are those of the tests."""
    root = ET.fromstring(to_junit(verdicts))
    found = [
        f"{suite.get('name')}/{test.get('name')}"
        for suite in root
        for test in suite
        if test.find("failure") is not None or test.find("error") is not None
    ]
    assert int(root.get("failures", "")) + int(root.get("errors", "")) == len(found)
    return found


def worse(rows: int, sign: int = -1) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers to a batch of this size are turned around, so that another class is the largest."""

    def bend(outputs: dict[str, Any]) -> dict[str, Any]:
        return {**outputs, "scores": sign * outputs["scores"]} if len(outputs["scores"]) == rows else outputs

    return bend


def test_a_drop_is_counted_once(golden: Golden) -> None:
    """The labelled case is a mismatch, and the metric drops: two tests, each of which says one of the two."""
    verdicts = judged(FakeBundle(golden, worse(8)), max_drop=0.01)
    assert failures(verdicts) == ["refimpl.check.any/user", "refimpl.check.any/drop of top1"]
    verdict = verdicts.verdicts[0]
    fine = replace(verdict, cases=tuple(case for case in verdict.cases if case.case != "user"))
    assert fine.problems == (fine.task.problem,) if fine.task else False
    assert failures(replace(verdicts, verdicts=(fine,))) == ["refimpl.check.any/drop of top1"]


def test_a_drop_that_is_only_reported_is_no_test(golden: Golden) -> None:
    text = to_junit(judged(FakeBundle(golden)))
    assert "drop of top1" not in text
    assert "drop of top1" in to_junit(judged(FakeBundle(golden), max_drop=0.5))


def with_drift(verdicts: VerdictSet) -> VerdictSet:
    now = Snapshot.of(verdicts.to_json())
    was = replace(now, shares={("serving_default",): 2.0})
    return replace(verdicts, drift=compare_with("b.json", was, now, allowances(())))


def nothing(golden: Golden) -> VerdictSet:
    return judged(FakeBundle(golden, islands=lambda case: ()))


def every(golden: Golden, **options: Any) -> VerdictSet:
    """All engines, but for NumPy's, which this bundle does not have."""
    found = judged(FakeBundle(golden), all_engines=True, **options)
    return replace(found, verdicts=tuple(item for item in found.verdicts if item.engine != "numpy"))


def no_engine_here(golden: Golden) -> VerdictSet:
    found = every(golden)
    return replace(found, verdicts=tuple(item for item in found.verdicts if item.reference or item.excused))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda golden: judged(FakeBundle(golden)), []),
        (every, []),
        (lambda golden: judged(FakeBundle(golden, worse(3))), ["any/normal-b3"]),
        (nothing, ["any/verdict"]),
        (lambda golden: judged(FakeBundle(golden, islands=lambda case: IN_ENGINE[:1])), ["any/verdict"]),
        (lambda golden: every(golden, engines=("tensorrt",)), ["tensorrt/verdict"]),
        (lambda golden: judged(FakeBundle(golden), time_limit=0.0), ["any/normal-b1", "any/normal-b3", "any/user"]),
        (lambda golden: with_drift(judged(FakeBundle(golden))), ["drift/serving_default"]),
        (no_engine_here, ["bundle"]),
    ],
)
def test_one_fault_is_one_failure(golden: Golden, make: Callable[[Golden], VerdictSet], expected: list[str]) -> None:
    verdicts = make(golden)
    assert verdicts.passed is (not expected)
    found = [name.replace("refimpl.check.", "").replace("refimpl.check/", "") for name in failures(verdicts)]
    assert found == (["check"] if expected == ["bundle"] else expected)
