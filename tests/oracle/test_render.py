"""Text, JSON, JUnit XML and Markdown of verdicts, the same facts in each."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from rich.console import Console

from refimpl.oracle import CheckOptions, Outcome, VerdictSet, allowances, compare_with, judge
from refimpl.oracle.baseline import Snapshot
from refimpl.oracle.golden import Golden
from refimpl.oracle.latency import Latency
from refimpl.oracle.render import print_verdicts, to_json_text
from refimpl.oracle.render_junit import to_junit
from refimpl.oracle.render_markdown import to_markdown
from refimpl.oracle.task_metric import TaskMetric
from refimpl.oracle.verdict import CaseResult, Verdict, conversion_failed
from tests.oracle.fakes import FakeBundle, FakeIsland, make_case, write_golden


def judged(bundle: FakeBundle, *, all_engines: bool = False, **options: Any) -> VerdictSet:
    return judge(
        "a bundle",
        bundle.golden.path,
        CheckOptions(**options),
        all_engines=all_engines,
        open_with=bundle.opener(),
        manifest_with=lambda path: bundle.manifest,
    )


def with_verdict(verdicts: VerdictSet, verdict: Verdict) -> VerdictSet:
    return replace(verdicts, verdicts=(verdict,))


def with_case(verdicts: VerdictSet, number: int, **changes: Any) -> VerdictSet:
    """The verdict of one case alone, changed."""
    verdict = verdicts.verdicts[0]
    return with_verdict(verdicts, replace(verdict, cases=(replace(verdict.cases[number], **changes),)))


def wrong(outputs: dict[str, Any]) -> dict[str, Any]:
    scores = outputs["scores"]
    if len(scores) == 3:
        scores[1, 2] = np.nan
        scores[2, 4] = np.inf
    return outputs


@pytest.fixture
def failed(golden: Golden) -> VerdictSet:
    return judged(FakeBundle(golden, wrong))


@pytest.fixture
def passed(golden: Golden) -> VerdictSet:
    return judged(FakeBundle(golden))


@pytest.fixture
def full(passed: VerdictSet) -> VerdictSet:
    """Everything that a verdict may have: a latency, a task metric, and a drift with a row of every sort."""
    verdict = replace(
        passed.verdicts[0],
        latencies=(
            Latency(signature="serving_default", case="normal-b3", runs=5, seconds=0.002, native_seconds=0.004),
        ),
        task=TaskMetric(
            metric="top1",
            signature="serving_default",
            examples=8,
            tensorflow=0.75,
            bundle=0.5,
            drop=0.25,
            drop_interval=(0.0, 0.5),
            tensorflow_interval=(0.4, 0.9),
            max_drop=0.1,
        ),
    )
    now = with_verdict(passed, verdict)
    after = Snapshot.of(now.to_json())
    before = replace(after, shares={("serving_default",): 1.25}, islands={("serving_default",): 3})
    return replace(now, drift=compare_with("was.json", before, after, allowances([])))


def text_of(verdicts: VerdictSet, width: int = 80) -> str:
    stream = io.StringIO()
    print_verdicts(verdicts, Console(file=stream, width=width))
    return stream.getvalue()


def test_text_ends_with_the_verdict(passed: VerdictSet, failed: VerdictSet) -> None:
    assert text_of(passed).splitlines()[-1] == "PASSED: 3 of 3 cases match TensorFlow"
    assert text_of(failed).splitlines()[-1] == "FAILED: 1 of 3 cases: mismatch"
    assert "normal-b3: scores: NaN at different places (1); infinities differ (1)" in text_of(failed)
    assert "scores[1, 2]: want" in text_of(failed)
    assert "NaN in the bundle: 1, at [1, 2]" in text_of(failed)
    assert "infinities in the bundle: 1, at [2, 4]" in text_of(failed)
    assert "gives the golden answer here" in text_of(failed)


def test_text_has_the_facts(full: VerdictSet) -> None:
    text = text_of(full, 200)
    assert "serving_default: 2 of 2 ops (100%) in 2 islands" in text
    assert "2 ms a call, 0.50 of TensorFlow's 4 ms (serving_default/normal-b3, median of 5)" in text
    assert "top1 on 8 examples of signature 'serving_default': TensorFlow 0.75 (95 %: 0.4 to 0.9), bundle 0.5" in text
    assert "drop 0.25 (95 %: 0 to 0.5)" in text
    assert "share     serving_default  125.0%  100.0%  125.0%   worse" in text
    assert "islands   serving_default  3       2       3        better" in text
    assert text.splitlines()[-1] == (
        "FAILED: top1 drops by 0.25, more than 0.1; since baseline was.json: share of serving_default worse"
    )


def test_text_fits_80_columns_whatever_the_names(tmp_path: Path, full: VerdictSet) -> None:
    case = replace(make_case("a-very-long-case-name-" * 4, 2), signature="signature_" * 9)
    signature = replace(FakeBundle(write_golden(tmp_path / "x", [make_case("n", 2)])).signatures["serving_default"])
    record = write_golden(tmp_path / "g", [case], (replace(signature, key="signature_" * 9),))
    island = FakeIsland("TRTEngineOp_000_000" * 3, "native", "because " * 40)
    verdicts = judged(FakeBundle(record, islands=lambda c: (island,)))
    for item in (verdicts, full, judged(FakeBundle(record), all_engines=True)):
        assert max(len(line) for line in text_of(item).splitlines()) <= 80
    assert "fallback-used" in text_of(verdicts)


def test_markup_in_names_is_not_interpreted(passed: VerdictSet) -> None:
    assert "[red]x[/red]" in text_of(with_case(passed, 0, case="[red]x[/red]"))


def test_no_colour_when_told_so(failed: VerdictSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    print_verdicts(failed, Console(file=stream, width=80, force_terminal=True))
    assert "\x1b[3" not in stream.getvalue()  # no colours; bold may stay


def strict(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return data


def test_json_is_strict_and_stable(failed: VerdictSet) -> None:
    data = strict(to_json_text(failed))
    assert list(data) == [
        *("format", "format_version", "passed", "outcome", "problems", "bundle", "golden", "machine", "versions"),
        *("verdicts", "drift"),
    ]
    assert (data["format"], data["format_version"]) == ("refimpl-verdict", 2)
    assert (data["passed"], data["outcome"], data["drift"]) == (False, "mismatch", None)
    verdict = data["verdicts"][0]
    assert verdict["engine"] == "any"
    assert verdict["counts"] == {**dict.fromkeys((o.value for o in Outcome), 0), "match": 2, "mismatch": 1}
    case = verdict["cases"][1]
    assert (case["signature"], case["case"], case["outcome"]) == ("serving_default", "normal-b3", "mismatch")
    scores = next(output for output in case["outputs"] if output["name"] == "scores")
    assert scores["got"] == "NaN"
    assert scores["worst_index"] == [1, 2]
    assert scores["nan_got"] == {"count": 1, "first": [[1, 2]]}
    assert scores["share"] == "Infinity"
    assert sum(scores["histogram"]) == scores["compared"] - 2
    assert scores["tolerance"]["why"]


def test_json_has_the_facts(full: VerdictSet) -> None:
    data = strict(to_json_text(full))
    signature = data["bundle"]["signatures"][0]
    assert (signature["share"], signature["islands"], signature["ops_total"]) == (1.0, 2, 2)
    assert data["bundle"]["engine_versions"] == {"onnxruntime": "any 1"}
    assert {"system", "machine", "processor", "gpus"} == set(data["machine"])
    assert data["versions"]["numpy"] == np.__version__
    assert data["verdicts"][0]["latencies"][0]["ratio"] == 0.5
    assert data["verdicts"][0]["task"]["problem"] == "top1 drops by 0.25, more than 0.1"
    changes = {(row["quantity"], row["name"]): row["change"] for row in data["drift"]["rows"]}
    assert changes["share", "serving_default"] == "worse"
    assert changes["accuracy", "any/serving_default/scores"] == "same"
    assert data["drift"]["passed"] is False


def suites(verdicts: VerdictSet) -> dict[str, ET.Element]:
    root = ET.fromstring(to_junit(verdicts))
    assert root.tag == "testsuites"
    for element in (root, *root):  # the counts that a CI system trusts
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert element.get(name) == str(len(list(element.iter(tag)))), (element.get("name"), name)
    return {str(suite.get("name")): suite for suite in root}


def test_junit(failed: VerdictSet, passed: VerdictSet) -> None:
    suite = suites(failed)["refimpl.check.any"]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "2", "0")
    assert [node.get("name") for node in suite if node.find("failure") is not None] == ["normal-b3", "verdict"]
    assert suites(failed)["refimpl.check"].get("failures") == "1"
    assert ET.fromstring(to_junit(passed)).get("failures") == "0"


def test_junit_of_the_drift(full: VerdictSet) -> None:
    suite = suites(full)["refimpl.check.drift"]
    found = {(node.get("classname"), node.get("name")) for node in suite if node.find("failure") is not None}
    assert found == {("share", "serving_default")}
    assert "was 125.0%, is 100.0%, allowed 125.0%" in str(next(suite.iter("failure")).get("message"))


def test_junit_survives_what_xml_forbids(passed: VerdictSet) -> None:
    bad = CaseResult(
        signature="s", case="a\0b", kind="user", outcome=Outcome.RUN_FAILED, reason="broke \x1b[31m <here> & \ud800"
    )
    suite = suites(with_verdict(passed, replace(passed.verdicts[0], cases=(bad,))))["refimpl.check.any"]
    assert suite.get("errors") == "1"
    assert "<here> &" in str(suite[0][0].get("message"))


def test_junit_fails_when_nothing_was_accelerated(golden: Golden) -> None:
    suite = suites(judged(FakeBundle(golden, islands=lambda case: ())))["refimpl.check.any"]
    assert [node.get("name") for node in suite if node.find("failure") is not None] == ["verdict"]


def test_what_is_left_out_is_skipped_in_junit(golden: Golden, passed: VerdictSet) -> None:
    everything = suites(judged(FakeBundle(golden), all_engines=True))
    assert everything["refimpl.check.tensorrt"].get("skipped") == "1"
    assert everything["refimpl.check.tensorrt"].get("tests") == "1"
    left = with_case(passed, 0, outcome=Outcome.NOT_RUN, reason="too far", excused=True)
    assert suites(left)["refimpl.check.any"].get("skipped") == "1"


def test_markdown(failed: VerdictSet, full: VerdictSet) -> None:
    lines = to_markdown(with_case(failed, 1, case="a|b\nc")).splitlines()
    assert lines[0] == "## FAILED: 1 of 1 cases: mismatch"
    row = next(line for line in lines if line.startswith("| a"))
    assert row.startswith("| a\\|b c | mismatch | scores |")
    assert "onnxruntime 2" in row
    text = to_markdown(full)
    assert "| share | serving_default | 125.0% | 100.0% | 125.0% | **worse** |" in text
    assert "- top1 on 8 examples of signature 'serving_default': " in text
    assert "- latency: 2 ms a call" in text
    for table in text.split("\n\n"):
        assert len({line.count(" | ") for line in table.splitlines() if line.startswith("|")}) <= 1, table


def test_failed_conversion(passed: VerdictSet) -> None:
    verdict = conversion_failed("b", "g", [("s", "normal")], "no lowering")
    assert verdict.outcome is Outcome.CONVERSION_FAILED
    assert verdict.exit_code == 1
    assert not replace(verdict, allow_unaccelerated=True).passed, "nothing was compared"
    assert "no lowering" in text_of(with_verdict(passed, verdict))
    assert suites(with_verdict(passed, verdict))["refimpl.check.any"].get("errors") == "1"


def test_no_case_is_no_pass() -> None:
    verdict = conversion_failed("b", "g", [], "")
    assert not verdict.passed
    assert verdict.problems == ("no case was run",)


@pytest.mark.parametrize("outcome", Outcome)
def test_what_passes(passed: VerdictSet, outcome: Outcome) -> None:
    verdict = passed.verdicts[0]
    verdict = replace(verdict, cases=(verdict.cases[0], replace(verdict.cases[1], outcome=outcome)))
    good = outcome in (Outcome.MATCH, Outcome.MATCH_NOTHING_ACCELERATED)
    assert verdict.passed == good
    assert replace(verdict, allow_fallback=True).passed == (good or outcome is Outcome.FALLBACK_USED)
    # Right answers of a signature that was not converted are answers without an engine.
    assert replace(verdict, allow_unaccelerated=True).passed == (good or outcome is Outcome.CONVERSION_FAILED)
