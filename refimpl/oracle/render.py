"""A verdict for people and for machines: text for a terminal, Markdown, JUnit XML, JSON. Decides nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from refimpl.oracle.compare import TensorDiff
from refimpl.oracle.verdict import NATIVE, CaseResult, Outcome, Verdict

_STYLE = {Outcome.MATCH: "green", Outcome.MATCH_NOTHING_ACCELERATED: "yellow", Outcome.FALLBACK_USED: "yellow"}
_SHORT = {Outcome.MATCH_NOTHING_ACCELERATED: "match, in TF"}
_ERRORS = (Outcome.RUN_FAILED, Outcome.CONVERSION_FAILED, Outcome.NOT_RUN)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_json_text(verdict: Verdict) -> str:
    """Strict JSON with a stable order of keys."""
    return json.dumps(verdict.to_json(), indent=1, allow_nan=False)


def print_verdict(verdict: Verdict, console: Console) -> None:
    """A table of the cases, what went wrong, and the verdict in the last line. Fits 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("case", "outcome", "worst output"):
        table.add_column(title, overflow="fold")
    table.add_column("max |Δ|", justify="right", no_wrap=True)
    table.add_column("islands", overflow="fold")
    for case in verdict.cases:
        worst = worst_tensor(case)
        outcome = Text(_SHORT.get(case.outcome, case.outcome.value), style=_STYLE.get(case.outcome, "bold red"))
        name = Text(case_name(case, verdict))
        table.add_row(name, outcome, Text(worst.name if worst else "-"), _number(worst), Text(engines_text(case)))
    parts: list[Table | Text] = [Text(heading(verdict)), Text(), table, Text()]
    for case in verdict.cases:
        if not verdict.tolerates(case.outcome):
            parts += [Text(f"{case_name(case, verdict)}: {case.reason}", style="red"), *_worst_lines(case)]
        parts += [Text(f"{case_name(case, verdict)}: {note}", style="dim") for note in case.notes]
    parts += [Text(f"note: {note}", style="yellow") for note in verdict.notes]
    parts.append(Text(conclusion(verdict), style="bold green" if verdict.passed else "bold red"))
    console.print(Group(*parts), soft_wrap=False, highlight=False)


def to_markdown(verdict: Verdict) -> str:
    """A report that can be pasted into an issue."""
    lines = [f"## {_md(conclusion(verdict))}", "", _md(heading(verdict)), ""]
    lines += ["| case | outcome | worst output | max abs | max rel | over | islands |", "|---|---|---|---|---|---|---|"]
    for case in verdict.cases:
        worst = worst_tensor(case)
        cells = [case_name(case, verdict), case.outcome.value, worst.name if worst else "-", _number(worst)]
        cells += [_float(worst.max_rel if worst else None), str(worst.over if worst else "-"), engines_text(case)]
        lines.append("| " + " | ".join(_md(cell) for cell in cells) + " |")
    remarks = [
        f"- **{_md(case_name(case, verdict))}**: {_md(text)}"
        for case in verdict.cases
        for text in (case.reason, *case.notes)
        if text
    ]
    remarks += [f"- {_md(note)}" for note in verdict.notes]
    return "\n".join([*lines, "", *remarks]).rstrip() + "\n"


def to_junit(verdict: Verdict) -> str:
    """JUnit XML: one test per case, and one for the bundle as a whole."""
    suite = ET.Element("testsuite", name=_xml(f"refimpl check {verdict.bundle}"))
    failures = errors = 0
    for case in verdict.cases:
        node = _testcase(suite, case.signature, case.case, case.seconds)
        if not verdict.tolerates(case.outcome):
            kind = "error" if case.outcome in _ERRORS else "failure"
            failures, errors = failures + (kind == "failure"), errors + (kind == "error")
            fault = ET.SubElement(node, kind, type=case.outcome.value, message=_xml(case.reason))
            fault.text = _xml("\n".join([case.reason, *(line.plain for line in _worst_lines(case))]))
    whole = _testcase(suite, "bundle", "verdict", 0.0)
    if not verdict.passed:
        failures += 1
        ET.SubElement(whole, "failure", type=verdict.outcome.value, message=_xml("; ".join(verdict.problems)))
    suite.set("tests", str(len(verdict.cases) + 1))
    suite.set("failures", str(failures))
    suite.set("errors", str(errors))
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def conclusion(verdict: Verdict) -> str:
    """The verdict in one line."""
    if not verdict.passed:
        return f"FAILED: {'; '.join(verdict.problems)}"
    whole = "" if verdict.accelerated else ", nothing was accelerated"
    fallbacks = sum(case.outcome is Outcome.FALLBACK_USED for case in verdict.cases)
    whole += f", {fallbacks} with a fallback" if fallbacks else ""
    return f"PASSED: {len(verdict.cases)} of {len(verdict.cases)} cases match TensorFlow{whole}"


def heading(verdict: Verdict) -> str:
    """What was compared with what, and how strictly."""
    asked = f", engines {', '.join(verdict.engines_asked)}" if verdict.engines_asked is not None else ""
    return f"bundle {verdict.bundle} against golden {verdict.golden}, tolerances of {verdict.precision or '-'}{asked}"


def case_name(case: CaseResult, verdict: Verdict) -> str:
    """``SIGNATURE/CASE``, or the case alone where there is only one signature."""
    several = len({other.signature for other in verdict.cases}) > 1
    return f"{case.signature}/{case.case}" if several else case.case


def engines_text(case: CaseResult) -> str:
    """``onnxruntime 3, TensorFlow 1``: how many islands ran where."""
    return ", ".join(f"{'TensorFlow' if name == NATIVE else name} {n}" for name, n in case.engines.items()) or "-"


def worst_tensor(case: CaseResult) -> TensorDiff | None:
    """The output that is wrong, or else the one with the largest error relative to its own size."""
    tensors: Sequence[TensorDiff] = case.comparison.tensors if case.comparison else ()
    return max(tensors, key=lambda t: (not t.ok, t.over, t.max_rel or 0.0, t.max_abs or 0.0), default=None)


def _worst_lines(case: CaseResult) -> list[Text]:
    tensors = case.comparison.tensors if case.comparison else ()
    wrong = [tensor for tensor in tensors if not tensor.ok and tensor.worst_index is not None]
    return [
        Text(f"  {t.name}{list(t.worst_index or ())}: want {t.want}, got {t.got} (max rel {_float(t.max_rel)})")
        for t in wrong
    ]


def _testcase(suite: ET.Element, group: str, name: str, seconds: float) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=_xml(group), name=_xml(name), time=f"{seconds:.4f}")


def _number(tensor: TensorDiff | None) -> str:
    return _float(tensor.max_abs if tensor else None)


def _float(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}" if value else "0"


def _md(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
