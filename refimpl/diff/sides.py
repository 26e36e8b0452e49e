"""The two sides of a comparison: a bundle, or the plan of a conversion, in one form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refimpl.bundle import IDLE_OPS, IslandRecord, Manifest, SignatureRecord
from refimpl.graph_record import SignatureGraph


@dataclass(frozen=True)
class OpState:
    """What became of one op that computes something: the island that it is in, or why it is in none."""

    type: str
    island: str
    reason: str


@dataclass(frozen=True)
class SignatureSide:
    """One signature on one side.

    Attributes:
        reason: why it was not converted; "" when it was.
        ops: by name.
        islands: records by name; empty of a plan, which builds none.
    """

    reason: str
    ops: Mapping[str, OpState]
    islands: Mapping[str, IslandRecord] = field(default_factory=dict)

    @property
    def converted(self) -> int:
        """How many ops are in islands."""
        return sum(bool(op.island) for op in self.ops.values())

    def members(self) -> dict[str, set[str]]:
        """Island -> its ops."""
        found: dict[str, set[str]] = {}
        for name, op in self.ops.items():
            if op.island:
                found.setdefault(op.island, set()).add(name)
        return found


@dataclass(frozen=True)
class Side:
    """A bundle or a plan.

    Attributes:
        name: as the user gave it.
        is_plan: whether nothing was built: engines, precision, timings and the like are unknown.
        facts: what was decided and with what (judge, precision, versions, choices), by name, as texts.
        signatures: by key.
        notes: of the bundle.
        timings: stage -> seconds.
        sizes: file -> bytes.
    """

    name: str
    is_plan: bool
    facts: Mapping[str, str]
    signatures: Mapping[str, SignatureSide]
    notes: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def side_of_plan(name: str, judge: str, recipe: Mapping[str, Any], graphs: Iterable[SignatureGraph]) -> Side:
    """A plan: which op would be where, and nothing else."""
    facts = {"judge": judge, **_recipe_facts(recipe)}
    return Side(name, True, facts, {graph.key: SignatureSide("", _ops_of(graph)) for graph in graphs})


def side_of_bundle(
    name: str, manifest: Manifest, graphs: Mapping[str, SignatureGraph], sizes: Mapping[str, int]
) -> Side:
    """A bundle.

    Args:
        name: as the user gave it.
        manifest: of the bundle.
        graphs: of its signatures; without one, the manifest's own lists do.
        sizes: file -> bytes.
    """
    facts = {
        "model": manifest.source_sha256,
        "judge": manifest.judge,
        "precision": manifest.precision,
        "verified": str(manifest.verified).lower(),
        "refimpl": manifest.refimpl,
        **{f"version of {package}": version for package, version in manifest.versions.items()},
        **_recipe_facts(manifest.recipe),
    }
    signatures = {}
    for record in manifest.signatures:
        graph = graphs.get(record.signature.key)
        ops = _ops_of(graph) if graph is not None else _ops_in_record(record)
        islands = {island.name: island for island in record.islands}
        signatures[record.signature.key] = SignatureSide(record.reason, ops, islands)
    return Side(name, False, facts, signatures, manifest.notes, manifest.timings, sizes)


def _recipe_facts(recipe: Mapping[str, Any]) -> dict[str, str]:
    return {f"recipe: {key}": json.dumps(value) for key, value in recipe.items()}


def _ops_of(graph: SignatureGraph) -> dict[str, OpState]:
    return {op.name: OpState(op.type, op.island, op.reason) for op in graph.ops if op.type not in IDLE_OPS}


def _ops_in_record(record: SignatureRecord) -> dict[str, OpState]:
    inside = {
        name: OpState(kind, island.name, "")
        for island in record.islands
        for name, kind in island.ops
        if kind not in IDLE_OPS
    }
    return {**inside, **{op.name: OpState(op.type, "", op.reason) for op in record.left}}
