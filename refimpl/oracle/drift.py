"""What became worse, or better, since a baseline, and whether that is allowed. One table of allowances."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refimpl.errors import RecipeError
from refimpl.oracle.baseline import Key, Snapshot

NOISE = 1e-3  # seconds: what a busy scheduler adds to one call and not to the next
FLOOR = 0.1  # an error within a tenth of its tolerance is as good as none, whatever it was before


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much worse a number may get without failing, and why so much."""

    value: float
    why: str


ALLOWED: Mapping[str, Allowance] = {
    "accuracy": Allowance(2.0, "a factor, above a tenth of the tolerance: another kernel sums in another order"),
    "share": Allowance(0.0, "the same model must not lose an op from its engines unnoticed"),
    "islands": Allowance(0.0, "one island more is one crossing into TensorFlow and back more"),
    "size": Allowance(0.05, "builders choose other kernels; a twentieth more is another layout, more is other weights"),
    "latency": Allowance(0.25, "medians of the ratio to TensorFlow scatter; and by a millisecond in any case"),
    "metric": Allowance(0.005, "one borderline example in two hundred may fall the other way"),
}


class Change(enum.Enum):
    """What became of one number."""

    SAME = "same"
    BETTER = "better"
    ALLOWED = "allowed"  # worse, by no more than it may be
    NEW = "new"
    NOT_JUDGED = "not judged"
    WORSE = "worse"
    VANISHED = "vanished"


FAILS = (Change.WORSE, Change.VANISHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number then and now; None where it was not there."""

    quantity: str  # a key of ALLOWED, or "engine" or "case"
    name: str
    was: float | str | None
    now: float | str | None
    limit: float | None  # the worst that is allowed
    change: Change
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """All rows, in the order of their quantities."""

    baseline: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not any(row.change in FAILS for row in self.rows)

    @property
    def problem(self) -> str:
        """What failed, in one line; "" when nothing did."""
        bad = [f"{row.quantity} of {row.name} {row.change.value}" for row in self.rows if row.change in FAILS]
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        return f"since baseline {self.baseline}: {', '.join(bad[:3])}{more}" if bad else ""

    def to_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "change": row.change.value} for row in self.rows]
        return {"baseline": self.baseline, "passed": self.passed, "notes": list(self.notes), "rows": rows}


def allowances(given: Sequence[str]) -> dict[str, float]:
    """The table's values, those of ``KEY=VALUE`` put over them (``share=1%``, ``accuracy=3``).

    Raises:
        RecipeError: an unknown key, or a value that is no number from 0 on (from 1 on for ``accuracy``).
    """
    allowed = {name: item.value for name, item in ALLOWED.items()}
    for text in given:
        name, _, value = text.partition("=")
        if name not in ALLOWED:
            raise RecipeError(f"--allow-drift {text!r}: no such quantity", hint=f"there are: {', '.join(ALLOWED)}")
        try:
            number = float(value.removesuffix("%")) / (100.0 if value.endswith("%") else 1.0)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= (1.0 if name == "accuracy" else 0.0)):
            raise RecipeError(
                f"--allow-drift {text!r}: {value!r} is no amount", hint="give share=1%, size=0.1, islands=2, accuracy=3"
            )
        allowed[name] = number
    return allowed


def compare_with(name: str, was: Snapshot, now: Snapshot, allowed: Mapping[str, float]) -> Drift:
    """Every number of two verdicts on one model.

    Args:
        name: what to call the baseline.
        was: the baseline.
        now: the present verdict.
        allowed: how much worse each quantity may be: :func:`allowances`.
    """
    same_machine = was.machine == now.machine
    notes = [] if was.passed else ["the baseline itself did not pass"]
    if was.recorded_on != now.recorded_on:
        notes.append("golden was recorded again since: the same names may stand for other inputs")
    if was.latencies and now.latencies and not same_machine:
        notes.append("latency is not judged: the baseline was measured on another machine")

    def slower(key: Key, ratio: float) -> float:
        native = now.native_seconds.get(key, 0.0)
        return max(ratio * (1 + allowed["latency"]), ratio + NOISE / native if native else 0.0)

    rows = [
        *_cases(was.outcomes, now.outcomes),
        *_pairs("accuracy", *_worst_errors(was, now), lambda _, v: max(allowed["accuracy"] * v, FLOOR), up=True),
        *_pairs("metric", was.drops, now.drops, lambda _, v: v + allowed["metric"], up=True),
        *_pairs("share", was.shares, now.shares, lambda _, v: v - allowed["share"], up=False),
        *_pairs("islands", was.islands, now.islands, lambda _, v: v + allowed["islands"], up=True),
        *_pairs("size", was.sizes, now.sizes, lambda _, v: v * (1 + allowed["size"]), up=True),
        *_pairs("latency", was.latencies, now.latencies, slower if same_machine else None, up=True),
    ]
    return Drift(baseline=name, rows=tuple(rows), notes=tuple(notes))


def _cases(was: Mapping[Key, str], now: Mapping[Key, str]) -> Iterator[Row]:
    """Engines and cases that came, went, or have another outcome. Whether an outcome passes is the verdict's to say."""
    engines = [list(dict.fromkeys(key[0] for key in keys)) for keys in (was, now)]
    for engine in dict.fromkeys([*engines[0], *engines[1]]):
        if engine not in engines[1]:
            yield Row(quantity="engine", name=engine, was="judged", now=None, limit=None, change=Change.VANISHED)
        elif engine not in engines[0]:
            yield Row(quantity="engine", name=engine, was=None, now="judged", limit=None, change=Change.NEW)
    for key in dict.fromkeys([*was, *now]):
        before, after = was.get(key), now.get(key)
        if before == after or key[0] not in engines[0] or key[0] not in engines[1]:
            continue
        change = Change.NEW if before is None else Change.VANISHED if after is None else Change.NOT_JUDGED
        yield Row(quantity="case", name="/".join(key), was=before, now=after, limit=None, change=change)


def _worst_errors(was: Snapshot, now: Snapshot) -> tuple[dict[Key, float], dict[Key, float]]:
    """The largest error of every output, over the cases that both verdicts have where both have the output."""
    shared = was.outcomes.keys() & now.outcomes.keys()
    found: tuple[dict[Key, float], dict[Key, float]] = ({}, {})
    for worst, errors in zip(found, (was.errors, now.errors), strict=True):
        for (engine, signature, case, output), value in errors.items():
            if (engine, signature, case) in shared:
                key = (engine, signature, output)
                worst[key] = max(worst.get(key, 0.0), math.inf if math.isnan(value) else value)
    return found


def _pairs(
    quantity: str,
    was: Mapping[Key, float],
    now: Mapping[Key, float],
    limit_of: Callable[[Key, float], float] | None,
    *,
    up: bool,
) -> Iterator[Row]:
    """One row for each key; ``up``: more is worse. Without ``limit_of`` nothing is judged."""
    for key in dict.fromkeys([*was, *now]):
        before, after = was.get(key), now.get(key)
        limit = None
        if before is None or after is None:
            gone = Change.NOT_JUDGED if quantity == "latency" else Change.VANISHED  # it need not be measured
            change = Change.NEW if before is None else gone
        elif limit_of is None:
            change = Change.NOT_JUDGED
        else:
            limit = limit_of(key, before)
            change = _change(before, after, limit, up=up)
        yield Row(quantity=quantity, name="/".join(key), was=before, now=after, limit=limit, change=change)


def _change(before: float, after: float, limit: float, *, up: bool) -> Change:
    if before == after:
        return Change.SAME
    if math.isnan(after) or (after > limit if up else after < limit):
        return Change.WORSE
    return Change.BETTER if (after < before) == up else Change.ALLOWED
