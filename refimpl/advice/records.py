"""What a piece of advice is: plain data, for the terminal, for JSON and for the HTML report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refimpl.advice.traffic import Traffic
from refimpl.text import counted


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One cause that keeps ops in TensorFlow, what it costs, and what to do about it.

    Attributes:
        signature: key of the signature.
        family: of the reason; a heading of ``docs/advice.md``.
        title: what stays, and why; a sentence.
        action: what to do; a sentence.
        needed: whether anything should be done; false where it costs next to nothing.
        reasons: as the converter gave them, each once.
        ops: names of the TensorFlow ops that compute something and are kept out by it.
        types: op type to how many of them.
        place: where they stand: ``between`` islands, at the ``start`` (islands only after them), at the ``end``
            (islands only before them), ``apart`` from every island.
        merged: names of the islands that would be one if these ops were convertible, for each such island; None where
            that could not be computed exactly.
        splits_alone: how many islands more there would be if this were the only cause, so that all else converted; None
            as for ``merged``. Where several causes lie on paths side by side, none of them alone merges anything.
        splitters: those of ``ops`` that keep islands apart each by itself, as far as they were tried.
        gained: how many ops more would be in islands; None as for ``merged``.
        traffic: bytes that islands give to these ops or take from them in one call.
        islands: names of the islands that it is about, where it is about islands.
        seconds: what was measured, by name: of a call, ``crossing`` into engines and ``tensorflow`` for the same ops.
    """

    signature: str
    family: str
    title: str
    action: str
    needed: bool
    reasons: tuple[str, ...]
    ops: tuple[str, ...]
    types: Mapping[str, int]
    place: str
    merged: tuple[tuple[str, ...], ...] | None
    splits_alone: int | None
    splitters: tuple[str, ...]
    gained: int | None
    traffic: Traffic
    islands: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def splits(self) -> int:
        """How many islands there are more because of it, as far as known."""
        return sum(len(names) - 1 for names in self.merged or ())

    @property
    def cost(self) -> str:
        """What it costs, as a phrase."""
        if self.seconds:
            times = [_microseconds(self.seconds[name]) for name in ("crossing", "tensorflow")]
            return f"{times[0]} a call for crossing alone, where TensorFlow takes {times[1]} (measured when converted)"
        parts = [f"keeps {counted(len(self.ops), 'op')} out"] if self.ops else []
        if self.gained is not None and self.gained > len(self.ops):
            parts.append(f"{counted(self.gained, 'op')} would join islands without it")
        if self.merged:
            whole = len(self.merged)
            parts.append(f"splits {counted(whole, 'island')} into {self.splits + whole}")
        elif self.splits_alone:
            parts.append(f"with other causes keeps {self.splits_alone + 1} islands apart")
        if self.traffic.tensors:
            parts.append(f"{self.traffic} a call pass between it and islands")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data: the attributes, and the cost as text."""
        return {
            "signature": self.signature,
            "family": self.family,
            "title": self.title,
            "action": self.action,
            "needed": self.needed,
            "cost": self.cost,
            "reasons": list(self.reasons),
            "ops": list(self.ops),
            "types": dict(self.types),
            "place": self.place,
            "splits": None if self.merged is None else self.splits,
            "merged": None if self.merged is None else [list(names) for names in self.merged],
            "splits_alone": self.splits_alone,
            "splitters": list(self.splitters),
            "gained": self.gained,
            "traffic": self.traffic.to_json(),
            "islands": list(self.islands),
            "seconds": dict(self.seconds),
        }


def _microseconds(seconds: float) -> str:
    """Nothing shorter than the noise of a clock is told."""
    return f"{1e6 * seconds:.0f} µs" if seconds >= 1e-5 else "less than 10 µs"
