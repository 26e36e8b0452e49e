"""Advise: the causes that keep ops in TensorFlow, the costly ones first. Decides from records alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from refimpl.advice import traffic
from refimpl.advice.alternatives import alternative
from refimpl.advice.families import LEFT_OUT, TOO_MANY, TOO_SMALL, UNKNOWN, Family, family_of
from refimpl.advice.int8 import not_built
from refimpl.advice.records import Advice
from refimpl.advice.what_if import Partitioner, WhatIf
from refimpl.advice.whole import slow_islands, whole_signature
from refimpl.bundle import IDLE_OPS, Manifest
from refimpl.graph_record import SignatureGraph
from refimpl.text import counted

_BUDGET = 200_000  # ops that are partitioned again, in all questions together; about two seconds
_LITTLE = 0.05  # share of all ops that may stay at an end of the model without being worth a word
_SHOWN = 3  # op types, or alternatives, that a sentence names


def advise(graph: SignatureGraph, recipe: Mapping[str, Any] | None = None) -> tuple[Advice, ...]:
    """What keeps ops of one signature in TensorFlow, ranked by what it costs.

    The order: what should be done before what need not; then by islands split (or not worth having), by islands kept
    apart together with other causes, by ops that would join islands, by bytes that cross cuts.

    Args:
        graph: what became of each op.
        recipe: the choices that it was made with, by the names of ``refimpl.Recipe``; the defaults where none are
            known.
    """
    causes = _causes(graph)
    computing = sum(op.type not in IDLE_OPS for op in graph.ops)
    answers = _Answers(graph, recipe or {}, causes)
    found = [
        (_advice(graph, family, ops, answers, computing), family, ops)
        for (family, _), ops in causes.items()
        if any(graph.ops[index].type not in IDLE_OPS for index in ops) or answers.splits(family, ops)
    ]
    found.sort(key=lambda row: _rank(row[0]))  # so that what can be afforded is spent on the costly ones
    return tuple(
        replace(item, splitters=tuple(graph.ops[index].name for index in answers.splitters(family, ops)))
        for item, family, ops in found
    )


def advise_all(graphs: Iterable[SignatureGraph], recipe: Mapping[str, Any] | None = None) -> tuple[Advice, ...]:
    """The same for several signatures, ranked together."""
    return tuple(sorted((item for graph in graphs for item in advise(graph, recipe)), key=_rank))


def advise_bundle(
    manifest: Manifest, graphs: Mapping[str, SignatureGraph], int8_here: Callable[[str], str] | None = None
) -> tuple[Advice, ...]:
    """What there is to do about a bundle.

    Args:
        manifest: of the bundle.
        graphs: its graphs (:func:`refimpl.graph_record.read_graphs`); without them little can be said of ops.
        int8_here: see :func:`refimpl.advice.int8.not_built`; asked only of a bundle that lacks such layers.
    """
    found = list(advise_all(graphs.values(), manifest.recipe))
    cut = {
        record.signature.key: Partitioner(graphs[record.signature.key], manifest.recipe)
        if record.signature.key in graphs
        else None
        for record in manifest.signatures
        if record.islands
    }
    for record in manifest.signatures:
        others = [partitioner for key, partitioner in cut.items() if key != record.signature.key]
        found += [*whole_signature(record), *slow_islands(record, cut.get(record.signature.key), others)]
        found += not_built(record, manifest.recipe, int8_here)
    return tuple(sorted(found, key=_rank))


def _rank(item: Advice) -> tuple[object, ...]:
    gained = len(item.ops) if item.gained is None else item.gained
    return (
        not item.needed,
        -max(item.splits, len(item.islands)),
        -(item.splits_alone or 0),
        -gained,
        -item.traffic.size,
        item.family,
        item.title,
    )


Edges = tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]
Causes = dict[tuple[Family, str], list[int]]


def _causes(graph: SignatureGraph) -> Causes:
    """Ops outside of islands by the family of their reason, and by type where each type is a matter of its own."""
    families = {reason: family_of(reason) for reason in {op.reason for op in graph.ops}}
    found: Causes = defaultdict(list)
    for index, op in enumerate(graph.ops):
        if not op.island:
            family = families[op.reason]
            key = op.reason if family.name == UNKNOWN else op.type if family.per_type else ""
            found[family, key].append(index)
    return found


class _Answers:
    """What would become of the graph without each cause, as far as that is known and can be afforded."""

    def __init__(self, graph: SignatureGraph, recipe: Mapping[str, Any], causes: Causes) -> None:
        self._graph, self._partitioner, self.edges = graph, Partitioner(graph, recipe), _edges(graph)
        self._left = _BUDGET // max(len(graph.ops), 1) - 2  # two for what all answers are compared with
        self._reserve = self._left // 4  # for questions about single ops
        self._known: dict[tuple[int, ...], WhatIf | None] = {}
        self._alone: dict[tuple[int, ...], int] = {}
        touched = sorted(causes.items(), key=lambda item: -_islands_near(graph, item[1]))
        for (family, _), ops in touched:
            self._known[tuple(ops)] = self._ask(family, ops)

    def _ask(self, family: Family, ops: Sequence[int]) -> WhatIf | None:
        if self._left < self._reserve + 2 or not self._partitioner.exact:
            return None
        self._left -= 2
        if family.name == TOO_SMALL:
            return self._partitioner.with_limits(min_segment_size=1)
        if family.name == TOO_MANY:
            return self._partitioner.with_limits(max_engines=0)
        self._alone[tuple(ops)] = self._partitioner.splits_alone(ops)
        return self._partitioner.without(ops)

    def of(self, ops: Sequence[int]) -> WhatIf | None:
        return self._known[tuple(ops)]

    def splits(self, family: Family, ops: Sequence[int]) -> int:
        answer = self.of(ops)
        return 0 if answer is None or family.name in LEFT_OUT else answer.splits

    def splits_alone(self, ops: Sequence[int]) -> int | None:
        """None where nothing is known, and of what bars nothing."""
        return self._alone.get(tuple(ops))

    def splitters(self, family: Family, ops: Sequence[int]) -> tuple[int, ...]:
        """Ops that split islands each by itself."""
        if not self.splits(family, ops):
            return ()
        if len(ops) == 1:
            return tuple(ops)
        near = sorted(ops, key=lambda index: -_islands_near(self._graph, [index]))
        limit = min(self._left, len(near), 32)
        self._left -= limit
        return self._partitioner.splitters(near, limit)


def _islands_near(graph: SignatureGraph, ops: Collection[int]) -> int:
    """How many islands these ops read."""
    return len({graph.ops[source].island for index in ops for source in graph.ops[index].inputs} - {""})


def _advice(graph: SignatureGraph, family: Family, ops: Sequence[int], answers: _Answers, computing: int) -> Advice:
    answer = answers.of(ops)
    working = [index for index in ops if graph.ops[index].type not in IDLE_OPS]
    types = dict(Counter(graph.ops[index].type for index in working or ops).most_common())
    place = _place(graph, ops, answers.edges)
    needed = not _harmless(working, place, answer, answers.splits_alone(ops) or 0, computing)
    action = _action(family, types) if needed else f"nothing: at the {place} of the model it splits no island"
    return Advice(
        signature=graph.key,
        family=family.name,
        title=_title(graph, family, ops, types),
        action=action,
        needed=needed,
        reasons=tuple(dict.fromkeys(graph.ops[index].reason for index in ops)),
        ops=tuple(graph.ops[index].name for index in working),
        types=types,
        place=place,
        merged=None if answer is None else answer.merged,
        splits_alone=answers.splits_alone(ops),
        splitters=(),
        gained=None if answer is None else max(0, len(answer.gained) - len(answer.lost)),
        traffic=traffic.between(graph, ops, answers.edges[1]),
    )


def _harmless(working: Sequence[int], place: str, answer: WhatIf | None, alone: int, computing: int) -> bool:
    """Whether so little stays, at one end of the model, that nothing is to be gained."""
    if answer is None or answer.merged or alone or place not in ("start", "end"):
        return False
    return set(answer.gained) <= set(working) and len(working) <= max(1, _LITTLE * computing)


def _title(graph: SignatureGraph, family: Family, ops: Sequence[int], types: Mapping[str, int]) -> str:
    if family.name == TOO_SMALL:
        return f"{counted(len(ops), 'convertible op')} in no island, since what is connected is too small for one"
    if family.name == TOO_MANY:
        return f"{counted(len(ops), 'convertible op')} in no island, since --max-engines allows no more"
    names = ", ".join(kind if count == 1 else f"{kind} x{count}" for kind, count in list(types.items())[:_SHOWN])
    more = f" and {counted(len(types) - _SHOWN, 'other type')}" if len(types) > _SHOWN else ""
    return f"{names}{more}: {graph.ops[ops[0]].reason}"


def _action(family: Family, types: Mapping[str, int]) -> str:
    """The alternatives to these ops where they are a remedy and known, the family's action otherwise."""
    known = {kind: text for kind in types if family.by_op and (text := alternative(kind))}
    texts = list(dict.fromkeys(known.values()))
    if not texts:
        return family.action
    if len(known) == len(types) and len(texts) == 1:
        return texts[0]
    named = [f"{next(kind for kind in known if known[kind] == text)}: {text}" for text in texts[:_SHOWN]]
    return "; ".join(named if len(known) == len(types) else [*named, f"the others: {family.action}"])


def _place(graph: SignatureGraph, ops: Collection[int], edges: Edges) -> str:
    """Where ops stand among the islands: ``between``, ``start``, ``end`` or ``apart``."""
    before, behind = (_meets_island(graph, ops, way) for way in edges)
    return {(True, True): "between", (True, False): "end", (False, True): "start"}.get((before, behind), "apart")


def _edges(graph: SignatureGraph) -> Edges:
    """For every op those right before it and those right behind it, over data and control."""
    before = [(*op.inputs, *op.controls) for op in graph.ops]
    behind: list[list[int]] = [[] for _ in graph.ops]
    for index, sources in enumerate(before):
        for source in sources:
            behind[source].append(index)
    return before, behind


def _meets_island(graph: SignatureGraph, ops: Collection[int], edges: Sequence[Sequence[int]]) -> bool:
    seen, stack = set(ops), list(ops)
    while stack:
        for other in edges[stack.pop()]:
            if graph.ops[other].island:
                return True
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return False
