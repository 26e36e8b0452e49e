"""Which signatures and engines are judged, and which are not: what nobody looked at must not read like a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from refimpl import engines as kinds
from refimpl.bundle import Manifest
from refimpl.errors import RecipeError
from refimpl.oracle.arrays import Array
from refimpl.oracle.golden import Golden
from refimpl.oracle.verdict import MADE_NOT_FINITE, CaseResult, Unchecked
from refimpl.text import counted

LEFT_OUT = "left out by --signature"


def selected(record: Golden, signatures: Sequence[str] | None) -> Golden:
    """The part of a golden record that is about these signatures; all of it when None.

    Raises:
        RecipeError: the record has no such signature, or no case of it.
    """
    if signatures is None:
        return record
    cases = tuple(case for case in record.cases if case.signature in signatures)
    recorded = dict.fromkeys(case.signature for case in record.cases)
    unknown = [key for key in signatures if key not in recorded]
    if unknown:
        raise RecipeError(
            f"golden {record.path.name} has no case of signature {unknown[0]!r}",
            hint=f"it has cases of: {', '.join(recorded)}",
        )
    kept = {key: signature for key, signature in record.signatures.items() if key in signatures}
    return replace(record, signatures=kept, cases=cases)


def unchecked(
    record: Golden, known: Iterable[str], results: Sequence[CaseResult], signatures: Sequence[str] | None
) -> tuple[Unchecked, ...]:
    """Every signature of which no answer was judged, and why.

    Args:
        record: the whole golden record.
        known: the bundle's signatures.
        results: what came of the cases.
        signatures: those that were chosen; None when all were.
    """
    judged = {result.signature for result in results if not result.excused}
    recorded = {case.signature for case in record.cases}

    def why(key: str) -> str:
        if signatures is not None and key not in signatures:
            return LEFT_OUT
        return "all its cases were left out" if key in recorded else "golden has no case for it"

    keys = sorted({*known, *record.signatures} - judged)
    return tuple(Unchecked(key, why(key)) for key in keys)


def idle_engines(manifest: Manifest, results: Sequence[CaseResult]) -> tuple[str, ...]:
    """What to know of a bundle's own choice: kinds of engines that it stores and that ran nothing, and why."""
    ran = {island.engine for result in results for island in result.islands}
    stored = {engine.kind for island in manifest.islands for engine in island.engines}
    idle = [kind for kind in kinds.KINDS if kind in stored - ran]
    whys = {kind: kinds.kind(kind).why_not_here() or "others were preferred: --all-engines judges it" for kind in idle}
    return tuple(
        f"the bundle's {kind} engines ran in no case, and were not judged: {why}" for kind, why in whys.items()
    )


def suspicious_fallbacks(record: Golden, results: Sequence[CaseResult]) -> tuple[str, ...]:
    """Islands whose engines made NaN or infinities in cases whose golden answers have none.

    TensorFlow answers for them, as documented, so these cases match. It may make such values itself, on the way to a
    finite answer; or the engine is wrong, or overflows.
    """
    finite = {(case.signature, case.name) for case in record.cases if all(map(_all_finite, case.outputs.values()))}
    found: Counter[tuple[str, str]] = Counter()
    for result in results:
        if (result.signature, result.case) in finite:
            found.update((result.signature, run.island) for run in result.islands if run.reason == MADE_NOT_FINITE)
    return tuple(
        f"signature {key!r}: the engine of {island} made NaN or infinities in {counted(n, 'case')} whose golden "
        "answers have none, and TensorFlow ran instead: refimpl bisect says whether it should have"
        for (key, island), n in found.items()
    )


def _all_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
