"""What was measured, as JSON and as Markdown: no measuring here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.figures.measure import Section

_TITLE = "# Precision: figures"
_MARKED = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def to_json(section: Section, *, date: str, seconds: float) -> dict[str, Any]:
    """One section as plain data, with when it was measured and how long that took."""
    return {**dataclasses.asdict(section), "date": date, "seconds": round(seconds, 1)}


def merged(old: Mapping[str, Any], new: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """The new record, with sections of an old one that were not measured again.

    Sections that were measured with other versions or on another processor are left out: they are not comparable.
    """
    same = all(old.get(name) == new[name] for name in ("versions", "processor"))
    sections = {**(old.get("sections", {}) if same else {}), **new["sections"]}
    return {**new, "sections": {name: sections[name] for name in order if name in sections}}


def markdown(record: Mapping[str, Any]) -> str:
    """The whole record for people."""
    return "\n".join(_lines(record)).rstrip() + "\n"


def filled(text: str, record: Mapping[str, Any]) -> str:
    """A document with the tables of sections between its marks, ``<!-- digits -->`` and ``<!-- end -->``.

    Raises:
        KeyError: a mark names no section that was measured.
    """

    def tables(found: re.Match[str]) -> str:
        lines = [line for table in record["sections"][found[1]]["tables"] for line in _table(table)]
        return "\n".join([f"<!-- {found[1]} -->", "", *lines, "<!-- end -->"])

    return _MARKED.sub(tables, text)


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (_TITLE, "")
    yield f"Written by `{record['command']}`; do not edit. What it means is said in [precision.md](../precision.md)."
    yield from ("", f"* {record['processor']}")
    yield f"* {', '.join(f'{name} {version}' for name, version in record['versions'].items())}"
    for section in record["sections"].values():
        yield from ("", f"## {section['title']}", "")
        yield from (section["text"], "")
        for table in section["tables"]:
            yield from _table(table)
        yield from _verdicts(section["wanted"])
        yield f"Measured {section['date']}, in {section['seconds']:.0f} s."


def _table(table: Mapping[str, Any]) -> Iterator[str]:
    if table["title"]:
        yield from (f"**{table['title']}**", "")
    yield _row(table["head"])
    yield _row(["---"] * len(table["head"]))
    for row in table["rows"]:
        yield _row(row)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _verdicts(wanted: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for item in wanted:
        yield f"* {'holds' if item['holds'] else '**DOES NOT HOLD**'}: {item['what']} ({item['found']})"
    if wanted:
        yield ""
