"""``--signature``: what is left out is told everywhere, and never reads like a pass of everything."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from refimpl.oracle import CheckOptions, Verdict, check
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from tests.oracle.commands import checked, invoke
from tests.oracle.fakes import SIGNATURE, FakeBundle, fake_manifest, island, make_case, write_golden

OTHER = "embed"


@pytest.fixture
def two(bundle: FakeBundle, tmp_path: Path) -> FakeBundle:
    """A bundle and a record of two signatures, the second of which is wrong."""
    cases = [make_case("normal-b1", 1), make_case("normal-b3", 3, seed=4)]
    cases += [replace(make_case(f"e{rows}", rows, seed=9 + rows), signature=OTHER) for rows in (2, 5)]
    signatures = (SIGNATURE, replace(SIGNATURE, key=OTHER))
    bundle.golden = write_golden(tmp_path / "two", cases, signatures)
    bundle.signatures = bundle.golden.signatures
    bundle.fault = lambda outputs: {
        name: value + 1 if name == "scores" and len(value) in (2, 5) else value for name, value in outputs.items()
    }
    first = fake_manifest(*map(island, ("TRTEngineOp_000_000", "TRTEngineOp_000_001"))).signatures[0]
    bundle.manifest = fake_manifest(signatures=(first, replace(first, signature=signatures[1])))
    return bundle


def test_only_what_was_chosen_runs(two: FakeBundle) -> None:
    assert not checked("b", two.golden.path)["passed"]
    two.asked.clear()
    data = checked("b", two.golden.path, "--signature", "serving_default", "--repeat", "0")
    assert data["passed"]
    assert {signature for signature, _ in two.asked} == {"serving_default"}
    assert checked("b", two.golden.path, "--signature", OTHER)["outcome"] == "mismatch"
    both = ("--signature", "serving_default", "--signature", OTHER)
    assert checked("b", two.golden.path, *both)["verdicts"][0]["unchecked"] == []


def test_what_was_left_out_is_told_in_every_report(two: FakeBundle, tmp_path: Path) -> None:
    xml, markdown = tmp_path / "r.xml", tmp_path / "r.md"
    chosen = ("--signature", "serving_default", "--junit", xml, "--markdown", markdown)
    text = invoke("b", two.golden.path, *chosen).stdout
    end = " ".join(text.split()).partition("PASSED: ")[2]
    assert end == f"2 of 2 cases match TensorFlow; NOT checked: 1 signature: {OTHER} (left out by --signature)"
    assert f"signature '{OTHER}' was not checked: left out by --signature" in text
    assert f"NOT checked: 1 signature: {OTHER}" in markdown.read_text().splitlines()[0]
    root = ET.parse(xml).getroot()
    assert (root.get("failures"), root.get("errors"), root.get("skipped")) == ("0", "0", "1")
    (skipped,) = root.iter("skipped")
    assert "left out by --signature" in str(skipped.get("message"))
    data = json.loads(invoke("b", two.golden.path, *chosen, "--json").stdout)
    assert data["verdicts"][0]["unchecked"] == [{"signature": OTHER, "why": "left out by --signature"}]


def test_every_engine_alone_tells_it_too(two: FakeBundle) -> None:
    text = invoke("b", two.golden.path, "--signature", "serving_default", "--all-engines").stdout
    assert f"NOT checked: 1 signature: {OTHER}" in " ".join(text.split())


def test_what_golden_has_no_case_of(two: FakeBundle, tmp_path: Path) -> None:
    """Every case of the second signature was dropped when it was recorded: only its name is there."""
    cases = [case for case in two.golden.cases if case.signature != OTHER]
    two.golden = write_golden(tmp_path / "one", cases, tuple(two.golden.signatures.values()))
    data = checked("b", two.golden.path)
    assert data["passed"]
    assert data["verdicts"][0]["unchecked"] == [{"signature": OTHER, "why": "golden has no case for it"}]
    assert "NOT checked: 1 signature: embed (golden has no case for it)" in " ".join(
        invoke("b", two.golden.path).stdout.split()
    )


def test_a_signature_whose_cases_were_all_left_out(two: FakeBundle) -> None:
    limited = {"engines": ("onnxruntime",), "time_limit": 0.0, "excuse_unfinished": True}
    verdict = check("b", two.golden.path, CheckOptions(**limited), open_with=two.opener())
    assert [item.why for item in verdict.unchecked] == ["all its cases were left out"] * 2
    assert verdict.problems == ("no case was run",)


# With a baseline


def test_a_baseline_is_compared_as_far_as_it_goes(two: FakeBundle, tmp_path: Path) -> None:
    two.fault = lambda outputs: outputs
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(checked("b", two.golden.path, "--repeat", "0")), encoding="utf-8")
    part = checked("b", two.golden.path, "--repeat", "0", "--baseline", whole, "--signature", "serving_default")
    assert part["passed"], part["problems"]
    assert not [row for row in part["drift"]["rows"] if OTHER in row["name"] and row["quantity"] == "accuracy"]
    assert [row["name"] for row in part["drift"]["rows"] if row["quantity"] == "share"] == ["serving_default", OTHER]
    assert f"not compared: signature '{OTHER}' was left out by --signature" in part["drift"]["notes"]
    (tmp_path / "part.json").write_text(json.dumps(part), encoding="utf-8")
    later = checked("b", two.golden.path, "--repeat", "0", "--baseline", tmp_path / "part.json")
    assert later["passed"]
    assert {row["change"] for row in later["drift"]["rows"] if row["name"].startswith(f"any/{OTHER}")} == {"new"}


# Labels


def test_labels_of_a_signature_that_was_left_out(two: FakeBundle, tmp_path: Path) -> None:
    first, *others = two.golden.cases
    cases = [replace(first, kind=CaseKind.USER, labels={"label": first.outputs["classes"]}), *others]
    two.golden = write_golden(tmp_path / "labels", cases, tuple(two.golden.signatures.values()))
    result = invoke("b", two.golden.path, "--max-drop", "1%", "--signature", OTHER)
    assert "--max-drop judges top1 on labelled cases, and golden has none" in str(result.exception)
    assert checked("b", two.golden.path, "--max-drop", "1%", "--signature", "serving_default")["passed"]


# The text, one table for each signature


def test_each_signature_has_a_table_of_its_own(two: FakeBundle) -> None:
    text = invoke("b", two.golden.path).stdout
    assert re.findall(r"^signature (\S+)$", text, re.MULTILINE) == ["serving_default", OTHER]
    assert len(re.findall(r"^case +outcome", text, re.MULTILINE)) == 2
    assert re.search(r"^normal-b1 +match ", text, re.MULTILINE)
    assert re.search(r"^e2 +mismatch ", text, re.MULTILINE)
    assert f"{OTHER}/e2: scores: " in text, "what is not in a table says of which signature it is"


def test_a_record_of_one_signature_needs_no_heading(golden: Golden) -> None:
    def judge(**options: Any) -> Verdict:
        return check("b", golden.path, CheckOptions(**options), open_with=FakeBundle(golden).opener())

    assert judge().unchecked == ()
    assert judge(signatures=("serving_default",)).unchecked == ()
