"""Text for people on stdout: tables and sentences that fit the terminal, plain when asked for or when it is none."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from refimpl import env, tables
from refimpl.tables import Column
from refimpl.text import printable


def stdout_console() -> Console:
    """For data: without colours when asked for or when stdout is no terminal, never markup."""
    return Console(highlight=False, markup=False, no_color=env.prefers_plain_text() or None)


def print_table(console: Console, head: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """A table, no wider than the console; its headings in bold where the terminal has them."""
    found = tables.lines(head, rows, max(console.width, 20))
    for number, line in enumerate(found):
        console.print(Text(line, style="bold" if number == 0 else ""), soft_wrap=True)


def print_line(console: Console, line: str, style: str = "") -> None:
    """A sentence, wrapped at words; what is indented stays indented, and what is wrapped stands two blanks deeper."""
    indent = len(line) - len(line.lstrip(" "))
    width = max(console.width - indent, 20)
    text = printable(line[indent:])
    first, *rest = tables.wrapped(text, width)
    # What is left of the text itself: a word that was parted must not come out with a blank in it.
    left = text[len(first) :].lstrip() if text.startswith(first) else " ".join(rest)
    deeper = tables.wrapped(left, width - 2) if rest else []
    for part in [first, *(f"  {part}" for part in deeper)]:
        console.print(Text(f"{line[:indent]}{part}", style=style), soft_wrap=True)
