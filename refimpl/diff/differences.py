"""Compare two conversions: which ops changed sides and why, how islands, precision, engines and versions changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from refimpl.bundle import EngineRecord, IslandRecord
from refimpl.diff.sides import OpState, Side, SignatureSide

_SIZE = 0.01  # share by which an engine's size may change from build to build and still be the same
Pair = tuple[str, str]


@dataclass(frozen=True)
class OpChange:
    """An op whose place, or reason, changed; ``island`` is "" in TensorFlow."""

    name: str
    type: str
    before: OpState
    after: OpState

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "type": self.type,
            "before": {"island": self.before.island, "reason": self.before.reason},
            "after": {"island": self.after.island, "reason": self.after.reason},
        }


@dataclass(frozen=True)
class SignatureDifference:
    """One signature, before and after.

    Attributes:
        key: of the signature.
        reason: why it was not converted, before and after; ("", "") where nothing changed.
        share: ops in islands and all ops, before and after.
        entered: ops that are in an island now, and were not.
        left: ops that are in none now, and were.
        reasons: ops that stay out, for another reason.
        only_before: names of ops that are gone.
        only_after: names of ops that are new.
        merged: islands that have become one: their names before, and its name.
        split: an island that has become several: its name before, and their names.
        layers: layer, its precision before and after, and the reason after.
        islands: island after, what of it changed, before and after; engines are among that.
    """

    key: str
    reason: Pair
    share: tuple[tuple[int, int], tuple[int, int]]
    entered: tuple[OpChange, ...]
    left: tuple[OpChange, ...]
    reasons: tuple[OpChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    merged: tuple[tuple[tuple[str, ...], str], ...]
    split: tuple[tuple[str, tuple[str, ...]], ...]
    layers: tuple[tuple[str, str, str, str], ...]
    islands: tuple[tuple[str, str, str, str], ...]

    @property
    def same(self) -> bool:
        """Whether nothing changed."""
        changes = [getattr(self, item.name) for item in fields(self) if item.name not in ("key", "reason", "share")]
        return not any(changes) and self.reason[0] == self.reason[1] and self.share[0] == self.share[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the attributes."""
        return {
            "key": self.key,
            "reason": list(self.reason),
            "share": [{"converted": converted, "ops": total} for converted, total in self.share],
            **{name: [item.to_json() for item in getattr(self, name)] for name in ("entered", "left", "reasons")},
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
            "merged": [{"before": list(before), "after": after} for before, after in self.merged],
            "split": [{"before": before, "after": list(after)} for before, after in self.split],
            "layers": [dict(zip(("layer", "before", "after", "reason"), row, strict=True)) for row in self.layers],
            "islands": [dict(zip(("island", "what", "before", "after"), row, strict=True)) for row in self.islands],
        }


@dataclass(frozen=True)
class Difference:
    """Two conversions compared.

    Attributes:
        names: of the two.
        plans: which of the two are plans: what a plan does not say is not compared.
        facts: what was decided and with what: name, before, after.
        missing: signatures that only the first has, and only the second.
        signatures: those that both have.
        notes: sentences that only the first has, and only the second.
        timings: stage, seconds before and after; a conversion takes another time each time, so they are no difference.
    """

    names: Pair
    plans: tuple[bool, bool]
    facts: tuple[tuple[str, str, str], ...]
    missing: tuple[tuple[str, ...], tuple[str, ...]]
    signatures: tuple[SignatureDifference, ...]
    notes: tuple[tuple[str, ...], tuple[str, ...]]
    timings: tuple[tuple[str, float, float], ...]

    @property
    def same(self) -> bool:
        """Whether nothing changed but the time that it took."""
        return not (self.facts or any(self.missing) or any(self.notes)) and all(item.same for item in self.signatures)

    def to_json(self) -> dict[str, Any]:
        """Plain data: the attributes."""
        return {
            "names": list(self.names),
            "plans": list(self.plans),
            "same": self.same,
            "facts": [dict(zip(("name", "before", "after"), row, strict=True)) for row in self.facts],
            "missing": {"after": list(self.missing[0]), "before": list(self.missing[1])},
            "signatures": [item.to_json() for item in self.signatures],
            "notes": {"before": list(self.notes[0]), "after": list(self.notes[1])},
            "timings": [dict(zip(("stage", "before", "after"), row, strict=True)) for row in self.timings],
        }


def difference(before: Side, after: Side) -> Difference:
    """What changed from one conversion to the other; ops are matched by name, islands by the ops they share."""
    built = not (before.is_plan or after.is_plan)
    keys = [key for key in before.signatures if key in after.signatures]
    facts = [
        (name, before.facts.get(name, ""), after.facts.get(name, ""))
        for name in dict.fromkeys([*before.facts, *after.facts])
        if (built or name in before.facts.keys() & after.facts.keys())
        and before.facts.get(name, "") != after.facts.get(name, "")
    ]
    stages = [stage for stage in before.timings if stage in after.timings]
    return Difference(
        names=(before.name, after.name),
        plans=(before.is_plan, after.is_plan),
        facts=tuple(facts),
        missing=(_missing(before, after), _missing(after, before)),
        signatures=tuple(_signature(key, before, after) for key in keys),
        notes=(_only(before.notes, after.notes), _only(after.notes, before.notes)) if built else ((), ()),
        timings=tuple((stage, before.timings[stage], after.timings[stage]) for stage in stages),
    )


def _missing(side: Side, other: Side) -> tuple[str, ...]:
    """Signatures that the other side lacks. A plan holds those alone that would be converted, so it lacks no other."""
    keys = _only(side.signatures, other.signatures)
    return tuple(key for key in keys if not (other.is_plan and side.signatures[key].reason))


def _only(first: Any, second: Any) -> tuple[str, ...]:
    return tuple(item for item in first if item not in second)


def _signature(key: str, before: Side, after: Side) -> SignatureDifference:
    first, second = before.signatures[key], after.signatures[key]
    both = {name: (state, second.ops[name]) for name, state in first.ops.items() if name in second.ops}
    changes = [OpChange(name, now.type, old, now) for name, (old, now) in both.items()]
    built = not (before.is_plan or after.is_plan)
    partners = _partners(first, second)
    return SignatureDifference(
        key=key,
        reason=(first.reason, second.reason) if built else ("", ""),
        share=((first.converted, len(first.ops)), (second.converted, len(second.ops))),
        entered=tuple(item for item in changes if item.after.island and not item.before.island),
        left=tuple(item for item in changes if item.before.island and not item.after.island),
        reasons=tuple(
            item
            for item in changes
            if not (item.before.island or item.after.island) and item.before.reason != item.after.reason
        ),
        only_before=_only(first.ops, second.ops),
        only_after=_only(second.ops, first.ops),
        merged=tuple((old, new) for new, old in _grouped(second, first).items() if len(old) > 1),
        split=tuple((old, new) for old, new in _grouped(first, second).items() if len(new) > 1),
        layers=_layers(first, second) if built else (),
        islands=tuple(
            row
            for old, new in partners
            for row in _island(first.islands[old], second.islands[new], before.sizes, after.sizes)
        )
        if built
        else (),
    )


def _grouped(one: SignatureSide, other: SignatureSide) -> dict[str, tuple[str, ...]]:
    """Island of one side -> the islands of the other that its ops are in."""
    found = {}
    for name, members in one.members().items():
        states = (other.ops[op].island for op in sorted(members) if op in other.ops)
        found[name] = tuple(sorted({island for island in states if island}))
    return found


def _partners(first: SignatureSide, second: SignatureSide) -> list[Pair]:
    """Islands that are each other's nearest: they share more ops than either does with any other."""
    old, new = first.members(), second.members()
    forward = {name: _nearest(members, new) for name, members in old.items() if name in first.islands}
    backward = {name: _nearest(members, old) for name, members in new.items() if name in second.islands}
    return [(name, best) for name, best in forward.items() if best and backward.get(best) == name]


def _nearest(members: set[str], others: Mapping[str, set[str]]) -> str:
    shared = {name: len(members & other) for name, other in others.items()}
    best = max(shared, key=lambda name: shared[name], default="")
    return best if best and shared[best] else ""


def _layers(first: SignatureSide, second: SignatureSide) -> tuple[tuple[str, str, str, str], ...]:
    """Layers that compute in another precision; only what both conversions decided layer by layer can be compared."""
    old, new = (
        {name: (precision, reason) for island in side.islands.values() for name, _, precision, reason in island.layers}
        for side in (first, second)
    )
    return tuple(
        (name, old[name][0], precision, reason)
        for name, (precision, reason) in new.items()
        if name in old and old[name][0] != precision
    )


def _island(
    old: IslandRecord, new: IslandRecord, before: Mapping[str, int], after: Mapping[str, int]
) -> list[tuple[str, str, str, str]]:
    """What changed of an island: name after, what, before, after."""
    rows = [
        (new.name, what, str(getattr(old, field)), str(getattr(new, field)))
        for what, field in (("precision", "precision"), ("finite values only", "finite_only"))
        if getattr(old, field) != getattr(new, field)
    ]
    if bool(old.verified) != bool(new.verified):
        rows.append((new.name, "verified", old.verified or "no", new.verified or "no"))
    engines = ({item.kind: item for item in island.engines} for island in (old, new))
    first, second = engines
    for kind in dict.fromkeys([*first, *second]):
        texts = _engine(first.get(kind), before), _engine(second.get(kind), after)
        if texts[0] != texts[1] and not _alike(first.get(kind), second.get(kind), before, after):
            rows.append((new.name, f"{kind} engine", *texts))
    return rows


def _engine(engine: EngineRecord | None, sizes: Mapping[str, int]) -> str:
    if engine is None:
        return "none"
    size = f", {engine.nbytes(sizes) / 1024:.1f} KiB" if engine.file in sizes else ""
    targets = f", for {' '.join(engine.targets)}" if engine.targets else ""
    return f"{engine.precision}{size}, {engine.version}{targets}"


def _alike(
    old: EngineRecord | None, new: EngineRecord | None, before: Mapping[str, int], after: Mapping[str, int]
) -> bool:
    """Whether nothing changed but the size, and that by next to nothing."""
    if old is None or new is None:
        return False
    sizes = old.nbytes(before), new.nbytes(after)
    known = (old.precision, old.version, old.targets) == (new.precision, new.version, new.targets)
    return known and abs(sizes[0] - sizes[1]) <= _SIZE * max(sizes)
