"""Verdicts as JUnit XML, for a CI system. Decides nothing."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from refimpl.oracle import wording
from refimpl.oracle.drift import FAILS, Drift
from refimpl.oracle.verdict import CaseResult, Outcome, Verdict
from refimpl.oracle.verdict_set import VerdictSet

_ERRORS = (Outcome.RUN_FAILED, Outcome.CONVERSION_FAILED, Outcome.NOT_RUN)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(verdicts: VerdictSet) -> str:
    """One suite per verdict, with a test per case and one for the whole; a suite for the drift since a baseline.

    What was left out on purpose is ``skipped``, with the reason; so is an engine that cannot run here.
    """
    root = ET.Element("testsuites", name=_xml(f"refimpl check {verdicts.facts.bundle.name}"))
    for verdict in verdicts.verdicts:
        _verdict(ET.SubElement(root, "testsuite", name=_xml(f"refimpl.check.{verdict.engine}")), verdict)
    if verdicts.drift is not None:
        _drift(ET.SubElement(root, "testsuite", name="refimpl.check.drift"), verdicts.drift)
    whole = ET.SubElement(root, "testsuite", name="refimpl.check")
    node = _testcase(whole, "bundle", "check", 0.0)
    if not verdicts.passed:
        _add(node, "failure", verdicts.outcome.value, "; ".join(verdicts.problems))
    for suite in root:
        _count(suite)
    _count(root)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _verdict(suite: ET.Element, verdict: Verdict) -> None:
    for case in verdict.cases:
        node = _testcase(suite, case.signature, case.case, case.seconds)
        if case.excused:
            ET.SubElement(node, "skipped", message=_xml(case.reason))
        elif not verdict.tolerates(case):
            kind = "error" if case.outcome in _ERRORS else "failure"
            _add(node, kind, case.outcome.value, case.reason, _details(case))
    whole = _testcase(suite, verdict.engine, "verdict", 0.0)
    if verdict.excused:
        ET.SubElement(whole, "skipped", message=_xml(verdict.excused))
    elif not verdict.passed:
        _add(whole, "failure", verdict.outcome.value, "; ".join(verdict.problems))


def _details(case: CaseResult) -> str:
    return "\n".join([case.reason, *wording.worst_lines(case), *case.notes])


def _drift(suite: ET.Element, drift: Drift) -> None:
    for row in drift.rows:
        quantity, name, was, now, limit, change = wording.row_cells(row)
        node = _testcase(suite, quantity, name, 0.0)
        if row.change in FAILS:
            _add(node, "failure", change, f"was {was}, is {now}, allowed {limit}")


def _testcase(suite: ET.Element, group: str, name: str, seconds: float) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=_xml(group), name=_xml(name), time=f"{seconds:.4f}")


def _add(node: ET.Element, kind: str, what: str, message: str, text: str = "") -> None:
    ET.SubElement(node, kind, type=what, message=_xml(message)).text = _xml(text or message)


def _count(element: ET.Element) -> None:
    element.set("tests", str(sum(1 for _ in element.iter("testcase"))))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(sum(1 for _ in element.iter(tag))))


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
