"""Words and lengths: counted nouns, and names that are too long for their place."""

from __future__ import annotations

import unicodedata

_GAP = "..."
_IRREGULAR = {"entry": "entries", "batch": "batches"}


def counted(count: int, noun: str) -> str:
    """``counted(1, "island")`` is "1 island", ``counted(2, "island")`` is "2 islands"."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of the last word of a noun, as far as refimpl's nouns go."""
    before, space, last = noun.rpartition(" ")
    return before + space + _IRREGULAR.get(last, f"{last}s")


def agreeing(count: int) -> str:
    """``agreeing(1)`` is "1 sample agrees", ``agreeing(2)`` is "2 samples agree"."""
    return f"{counted(count, 'sample')} {'agrees' if count == 1 else 'agree'}"


def shortened(name: str, width: int) -> str:
    """A name in at most ``width`` columns: its middle gives way, since TensorFlow's names differ at both ends.

    The end keeps two thirds, where the layer and the output are named.
    """
    if columns(name) <= width:
        return name
    room = width - len(_GAP)
    if room < 2:
        return _first(name, width)
    head = room // 3
    return _first(name, head) + _GAP + _first(name[::-1], room - head)[::-1]


def printable(text: str) -> str:
    """The same in one line: control characters, which a terminal would obey, are written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def columns(text: str) -> int:
    """How many columns of a terminal a text takes; letters of East Asia take two, accents none."""
    return sum(map(_width, text))


def _width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _first(text: str, width: int) -> str:
    """As much of the beginning as fits."""
    taken = 0
    for index, char in enumerate(text):
        taken += _width(char)
        if taken > width:
            return text[:index]
    return text
