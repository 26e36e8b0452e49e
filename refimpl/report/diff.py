"""Print the difference between two conversions, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from refimpl.diff import Difference, OpChange, SignatureDifference
from refimpl.tables import Column
from refimpl.terminal import print_line, print_table
from refimpl.text import counted, plural, shortened

_MANY = 12  # rows shown before the rest is only counted
_OPS = (Column("op", "name"), Column("type", "name"), Column("before", "text"), Column("after", "text"))
_FACTS = (Column("what", "text"), Column("before", "text"), Column("after", "text"))
_LAYERS = (Column("layer", "name"), Column("before"), Column("after"), Column("why", "text"))
_ISLANDS = (Column("island"), Column("what", "text"), Column("before", "text"), Column("after", "text"))
_TIMINGS = (Column("stage"), Column("before", "number"), Column("after", "number"))


def print_difference(console: Console, found: Difference) -> None:
    """What changed from the first conversion to the second, or that nothing did."""
    print_line(console, f"before: {found.names[0]}{_plan(found.plans[0])}")
    print_line(console, f"after:  {found.names[1]}{_plan(found.plans[1])}")
    if found.same:
        print_line(console, "no difference" + (" in what both say" if any(found.plans) else ""), style="bold")
    for keys, which in zip(found.missing, ("before", "after"), strict=True):
        for key in keys:
            print_line(console, f"signature {key} is there only {which}")
    for item in found.signatures:
        if not item.same:
            _print_signature(console, item)
    if found.facts:
        print_line(console, "made otherwise:", style="bold")
        print_table(console, _FACTS, [(name, old or "-", new or "-") for name, old, new in found.facts])
    for notes, which in zip(found.notes, ("before", "after"), strict=True):
        for note in notes:
            print_line(console, f"note, only {which}: {note}")
    if any(old != new for _, old, new in found.timings):
        rows = [(stage, f"{old:.1f} s", f"{new:.1f} s") for stage, old, new in found.timings]
        print_table(console, _TIMINGS, [row for row in rows if row[1] != row[2]])


def _plan(is_plan: bool) -> str:
    return " (a plan: nothing was built, so engines, precision and timings are not compared)" if is_plan else ""


def _print_signature(console: Console, item: SignatureDifference) -> None:
    (old, old_total), (new, new_total) = item.share
    print_line(console, "")
    line = f"signature {item.key}: {_share(old, old_total)} before, {_share(new, new_total)} after"
    print_line(console, line, style="bold")
    if item.reason[0] != item.reason[1]:
        print_line(console, f"why not converted, before: {item.reason[0] or 'it was'}")
        print_line(console, f"why not converted, after: {item.reason[1] or 'it was'}")
    for names, whole in item.merged:
        print_line(console, f"merged: {', '.join(names)} are one island now, {whole}")
    for whole, names in item.split:
        print_line(console, f"split: {whole} is {counted(len(names), 'island')} now, {', '.join(names)}")
    _print_ops(console, "into an engine", item.entered)
    _print_ops(console, "back to TensorFlow", item.left)
    _print_ops(console, "in TensorFlow still, for another reason", item.reasons)
    for names, which in ((item.only_before, "before"), (item.only_after, "after")):
        if names:
            shown = ", ".join(shortened(name, 60) for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            print_line(console, f"{counted(len(names), 'op')} only {which}: {shown}{more}")
    _print_rows(console, _LAYERS, "layer", "in another precision", item.layers)
    _print_rows(console, _ISLANDS, "change", "of islands and their engines", item.islands)


def _share(converted: int, total: int) -> str:
    percent = f" ({100 * converted / total:.1f} %)" if total else ""
    return f"{converted} of {counted(total, 'op')} in islands{percent}"


def _print_ops(console: Console, title: str, changes: Sequence[OpChange]) -> None:
    rows = [
        (
            item.name,
            item.type,
            item.before.island or item.before.reason,
            item.after.island or item.after.reason,
        )
        for item in changes
    ]
    _print_rows(console, _OPS, "op", title, rows)


def _print_rows(console: Console, head: Sequence[Column], noun: str, title: str, rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    print_line(console, f"{counted(len(rows), noun)} {title}:")
    print_table(console, head, rows[:_MANY])
    if len(rows) > _MANY:
        rest = len(rows) - _MANY
        print_line(console, f"... and {rest} more {noun if rest == 1 else plural(noun)} (all of them with --json)")
