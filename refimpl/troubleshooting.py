"""The page docs/troubleshooting.md as data: which entry a message belongs to, and what it says. Standard library only.

The page is shipped with the package and read when it is needed, so there is no second list to keep up to date. Its
format: a section begins with ``## ``, an entry with ``### ANCHOR``; then come its messages, a line ``* `MESSAGE``` each
with ``...`` for the parts that vary, then what to do.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from pathlib import Path

PAGE = "docs/troubleshooting.md"
_FILE = Path(__file__).with_name("troubleshooting.md")  # in a checkout, a link to PAGE
_LONGEST = 2000  # characters of a message that are looked at
_ENTRY = re.compile(r"^### (\S+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_MESSAGE = re.compile(r"^\* (?:\w+: )?`([^`]+)`", re.MULTILINE)
# What happened to an island; a cause that is named in the same message has an entry that helps more.
_COLLECTIVE = "engine-not-used"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the page.

    Attributes:
        anchor: its heading, which is also its anchor on the page.
        section: the heading of the section that it is in.
        messages: what it is about, with ``...`` for the parts that vary.
        text: all that stands under its heading, as Markdown.
    """

    anchor: str
    section: str
    messages: tuple[str, ...]
    text: str


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All entries, in the order of the page."""
    found = []
    for part in re.split(r"^(?=## )", _FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        section = part.partition("\n")[0].removeprefix("## ")
        for anchor, text in _ENTRY.findall(part):
            found.append(Entry(anchor, section, tuple(_MESSAGE.findall(text)), text.strip()))
    return tuple(found)


def entry_of(message: str) -> Entry | None:
    """The entry of a message: the one that has most of its words. None when no entry has it.

    A message that begins with the words of an entry is preferred to one that holds them somewhere.
    """
    message = message[:_LONGEST]
    best, rank = None, (False, False, 0)
    for entry in entries():
        for pattern in entry.messages:
            found = _compiled(pattern).search(message)
            if found:
                begins = found.start() == 0 and not pattern.startswith("...")
                own = (entry.anchor != _COLLECTIVE, begins, len(pattern.replace("...", "")))
                if own > rank:
                    best, rank = entry, own
    return best


def named(anchor: str) -> Entry | None:
    """The entry with this anchor."""
    return next((entry for entry in entries() if entry.anchor == anchor), None)


def nearest(words: str) -> tuple[str, ...]:
    """Anchors that resemble these words, the nearest first."""
    wanted = words.lower().replace(" ", "-")
    anchors = [entry.anchor for entry in entries()]
    holding = [anchor for anchor in anchors if wanted in anchor]
    return tuple(dict.fromkeys([*holding, *difflib.get_close_matches(wanted, anchors, n=5, cutoff=0.5)]))


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    fixed = pattern.removeprefix("...").removesuffix("...").split("...")
    return re.compile(".*?".join(map(re.escape, fixed)), re.DOTALL)
