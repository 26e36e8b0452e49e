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

from refimpl.oracle import Outcome, Verdict, check
from refimpl.oracle.golden import Golden
from refimpl.oracle.render import print_verdict, to_json_text, to_junit, to_markdown
from refimpl.oracle.verdict import CaseResult, conversion_failed
from tests.oracle.fakes import FakeBundle, FakeIsland, make_case, write_golden


def wrong(outputs: dict[str, Any]) -> dict[str, Any]:
    scores = outputs["scores"]
    if len(scores) == 3:
        scores[1, 2] = np.nan
        scores[2, 4] = np.inf
    return outputs


@pytest.fixture
def failed(golden: Golden) -> Verdict:
    return check("a bundle", golden.path, open_with=FakeBundle(golden, wrong).opener())


@pytest.fixture
def passed(golden: Golden) -> Verdict:
    return check("a bundle", golden.path, open_with=FakeBundle(golden).opener())


def text_of(verdict: Verdict, width: int = 80) -> str:
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=width))
    return stream.getvalue()


def test_text_ends_with_the_verdict(passed: Verdict, failed: Verdict) -> None:
    assert text_of(passed).splitlines()[-1] == "PASSED: 3 of 3 cases match TensorFlow"
    assert text_of(failed).splitlines()[-1] == "FAILED: 1 of 3 cases: mismatch"
    assert "normal-b3: scores: NaN at different places (1); infinities differ (1)" in text_of(failed)
    assert "scores[1, 2]: want" in text_of(failed)


def test_text_fits_80_columns_whatever_the_names(tmp_path: Path) -> None:
    case = replace(make_case("a-very-long-case-name-" * 4, 2), signature="signature_" * 9)
    signature = replace(FakeBundle(write_golden(tmp_path / "x", [make_case("n", 2)])).signatures["serving_default"])
    record = write_golden(tmp_path / "g", [case], (replace(signature, key="signature_" * 9),))
    island = FakeIsland("TRTEngineOp_000_000" * 3, "native", "because " * 40)
    verdict = check("b", record.path, open_with=FakeBundle(record, islands=lambda c: (island,)).opener())
    assert max(len(line) for line in text_of(verdict).splitlines()) <= 80
    assert "fallback-used" in text_of(verdict)


def test_markup_in_names_is_not_interpreted(passed: Verdict) -> None:
    odd = replace(passed, cases=(replace(passed.cases[0], case="[red]x[/red]"),))
    assert "[red]x[/red]" in text_of(odd)


def test_no_colour_when_told_so(failed: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    print_verdict(failed, Console(file=stream, width=80, force_terminal=True))
    assert "\x1b[3" not in stream.getvalue()  # no colours; bold may stay


def test_json_is_strict_and_stable(failed: Verdict) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(to_json_text(failed), parse_constant=refuse)
    assert data["passed"] is False
    assert data["outcome"] == "mismatch"
    assert data["counts"] == {**dict.fromkeys((o.value for o in Outcome), 0), "match": 2, "mismatch": 1}
    case = data["cases"][1]
    assert (case["signature"], case["case"], case["outcome"]) == ("serving_default", "normal-b3", "mismatch")
    scores = next(output for output in case["outputs"] if output["name"] == "scores")
    assert scores["got"] == "NaN"
    assert scores["worst_index"] == [1, 2]
    assert scores["tolerance"]["why"]
    assert list(data)[:4] == ["format", "format_version", "passed", "outcome"]


def test_junit(failed: Verdict, passed: Verdict) -> None:
    suite = ET.fromstring(to_junit(failed))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "2", "0")
    assert [node.get("name") for node in suite if node.find("failure") is not None] == ["normal-b3", "verdict"]
    assert ET.fromstring(to_junit(passed)).get("failures") == "0"


def test_junit_survives_what_xml_forbids(passed: Verdict) -> None:
    bad = CaseResult(
        signature="s", case="a\0b", kind="user", outcome=Outcome.RUN_FAILED, reason="broke \x1b[31m <here> & \ud800"
    )
    suite = ET.fromstring(to_junit(replace(passed, cases=(bad,))))
    assert suite.get("errors") == "1"
    assert "<here> &" in str(suite[0][0].get("message"))


def test_junit_fails_when_nothing_was_accelerated(golden: Golden) -> None:
    verdict = check("b", golden.path, open_with=FakeBundle(golden, islands=lambda case: ()).opener())
    suite = ET.fromstring(to_junit(verdict))
    assert [node.get("name") for node in suite if node.find("failure") is not None] == ["verdict"]


def test_markdown(failed: Verdict) -> None:
    odd = replace(failed, cases=(replace(failed.cases[1], case="a|b\nc"),))
    lines = to_markdown(odd).splitlines()
    assert lines[0] == "## FAILED: 1 of 1 cases: mismatch"
    row = next(line for line in lines if line.startswith("| a"))
    assert row.startswith("| a\\|b c | mismatch | scores |")
    assert "onnxruntime 2" in row


def test_failed_conversion() -> None:
    verdict = conversion_failed("b", "g", [("s", "normal")], "no lowering")
    assert verdict.outcome is Outcome.CONVERSION_FAILED
    assert verdict.exit_code == 1
    assert "no lowering" in text_of(verdict)
    assert ET.fromstring(to_junit(verdict)).get("errors") == "1"


def test_no_case_is_no_pass() -> None:
    verdict = conversion_failed("b", "g", [], "")
    assert not verdict.passed
    assert verdict.problems == ("no case was run",)


@pytest.mark.parametrize("outcome", Outcome)
def test_what_passes(passed: Verdict, outcome: Outcome) -> None:
    verdict = replace(passed, cases=(passed.cases[0], replace(passed.cases[1], outcome=outcome)))
    good = outcome in (Outcome.MATCH, Outcome.MATCH_NOTHING_ACCELERATED)
    assert verdict.passed == good
    assert replace(verdict, allow_fallback=True).passed == (good or outcome is Outcome.FALLBACK_USED)
    assert replace(verdict, allow_unaccelerated=True).passed == good
