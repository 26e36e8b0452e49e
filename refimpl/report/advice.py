"""Print advice: what keeps ops in TensorFlow, what it costs, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from refimpl.advice import Advice
from refimpl.terminal import print_line
from refimpl.text import counted, shortened

_SHOWN = 3  # pieces of advice on the terminal; all of them are in the JSON
_TITLE = 240  # characters of a title; TensorRT's words may be many


def print_advice(console: Console, found: Sequence[Advice], limit: int = _SHOWN) -> None:
    """The advice that costs most, a few lines each; nothing where nothing need be done.

    Args:
        console: where to.
        found: the advice, ranked.
        limit: how many are shown before the rest is only counted.
    """
    needed = [item for item in found if item.needed]
    if not needed:
        return
    several = len({item.signature for item in found}) > 1
    print_line(console, "what to do, the costliest first:", style="bold")
    for number, item in enumerate(needed[:limit], 1):
        place = f" [{item.signature}]" if several else ""
        print_line(console, f"{number}. {_cut(item.title)}{place}")
        if item.cost:
            print_line(console, f"   cost: {item.cost}")
        if item.splitters:
            names = ", ".join(shortened(name, 60) for name in item.splitters[:2])
            more = f" and {counted(len(item.splitters) - 2, 'other')}" if len(item.splitters) > 2 else ""
            print_line(console, f"   split by: {names}{more}")
        print_line(console, f"   do: {item.action}")
    if len(needed) > limit:
        print_line(console, f"... and {len(needed) - limit} more (all of it with --json)")


def _cut(title: str) -> str:
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 3]}..."
