"""Tables of text that fit a width: what a cell holds decides what gives way.

Numbers and words are never cut. Names lose their middle, texts are wrapped, and only when names have nothing more to
give are they wrapped as well. No cell means anything by its colour, and no line ends in blanks.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from refimpl.text import columns, printable, shortened

Kind = Literal["word", "number", "name", "text"]
_GAP = 2  # blanks between columns
_NAME = 12  # a name is not made shorter than that, nor a text narrower
_TEXT = 16


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        kind: ``word`` (left, never cut), ``number`` (right, never cut), ``name`` (left, loses its middle) or ``text``
            (left, wrapped).
    """

    title: str
    kind: Kind = "word"


def lines(head: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The table, its headings first; every line fits, unless words and numbers alone are wider than that.

    Args:
        head: the columns.
        rows: a text for each column.
        width: columns of the terminal, 20 at least.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    titles = [column.title for column in head]
    widths = [max(map(columns, texts)) for texts in zip(titles, *cells, strict=True)]
    widths = _shrunk(head, widths, width)
    if sum(widths) + _GAP * (len(head) - 1) > width:
        return _records(head, cells, width)
    return [line for row in [titles, *cells] for line in _row(head, row, widths)]


def _shrunk(head: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Widths that fit together; the widest of those that can give way does so first."""
    found = list(widths)
    least = {"name": _NAME, "text": _TEXT}
    excess = sum(found) + _GAP * (len(found) - 1) - width
    while excess > 0:
        able = [i for i, column in enumerate(head) if found[i] > least.get(column.kind, found[i])]
        if not able:
            break
        widest = max(able, key=lambda i: found[i])
        next_widest = max([least[head[widest].kind], *(found[i] for i in able if i != widest)])
        step = max(1, min(excess, found[widest] - next_widest))
        found[widest] -= step
        excess -= step
    return found


def _row(head: Sequence[Column], row: Sequence[str], widths: Sequence[int]) -> list[str]:
    parts = [_cell(column, cell, size) for column, cell, size in zip(head, row, widths, strict=True)]
    height = max(map(len, parts))
    found = []
    for number in range(height):
        texts = [part[number] if number < len(part) else "" for part in parts]
        padded = [
            _blank(size - columns(text)) + text if column.kind == "number" else text + _blank(size - columns(text))
            for column, text, size in zip(head, texts, widths, strict=True)
        ]
        found.append(_blank(_GAP).join(padded).rstrip())
    return found


def _cell(column: Column, cell: str, size: int) -> list[str]:
    if column.kind == "name":
        return [shortened(cell, size)]
    return wrapped(cell, size) if column.kind == "text" else [cell]


def _records(head: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> list[str]:
    """Where the columns cannot stand side by side: a line for each cell."""
    label = max(columns(column.title) for column in head)
    found = []
    for row in cells:
        for index, (column, cell) in enumerate(zip(head, row, strict=True)):
            room = max(width - label - _GAP, _NAME)
            texts = [shortened(cell, room)] if column.kind == "name" else wrapped(cell, room)
            for number, text in enumerate(texts):
                title = column.title if number == 0 else ""
                found.append(f"{title}{_blank(label + _GAP - columns(title))}{text}".rstrip())
            if index == len(head) - 1:
                found.append("")
    return found[:-1]


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of ``width`` columns; only a word that is longer than a line is parted, and nothing is lost."""
    found: list[str] = []
    for line in text.splitlines() or [""]:
        if columns(line) == len(line):
            parts = textwrap.wrap(line, width, break_on_hyphens=False)
            found += [part.rstrip() for part in parts] or [""]  # a blank is left where a word is parted at once
        else:
            found += _wrapped_wide(line, width)
    return found


def _wrapped_wide(line: str, width: int) -> list[str]:
    """As textwrap, which counts letters, for texts with letters of two columns."""
    found, now = [], ""
    for word in line.split():
        rest = f"{now} {word}" if now else word
        if columns(rest) > width and now:
            found.append(now)
            rest = word
        while columns(rest) > width:
            cut = next(size for size in range(len(rest), 0, -1) if size == 1 or columns(rest[:size]) <= width)
            found.append(rest[:cut])
            rest = rest[cut:]
        now = rest
    return [*found, now] if now else found or [""]


def _blank(count: int) -> str:
    return " " * count
