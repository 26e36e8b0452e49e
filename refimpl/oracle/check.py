"""Checking: golden -> run -> compare -> verdict. Reads a golden record and a bundle from disk, and writes nothing."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl.errors import GoldenError, InternalError, RecipeError, RefimplError
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.compare import Comparison, compare
from refimpl.oracle.golden import Golden, GoldenCase, read_golden
from refimpl.oracle.runners import Bundle, open_bundle
from refimpl.oracle.verdict import NATIVE, CaseResult, IslandNote, Outcome, Verdict
from refimpl.specs import Signature
from refimpl.tolerance import Tolerance, tolerance_for

Progress = Callable[[str], None]
OpenBundle = Callable[["str | os.PathLike[str]", "Sequence[str] | None"], Bundle]


def check(
    bundle: str | os.PathLike[str],
    golden: str | os.PathLike[str],
    *,
    engines: Sequence[str] | None = None,
    precision: str | None = None,
    allow_fallback: bool = False,
    allow_unaccelerated: bool = False,
    progress: Progress | None = None,
    open_with: OpenBundle = open_bundle,
) -> Verdict:
    """Judge a bundle by golden TensorFlow outputs: every signature and every case of the record.

    Args:
        bundle: the bundle directory.
        golden: the golden directory.
        engines: the engines that may run; those that the bundle prefers when not given.
        precision: the row of the tolerance table; what the bundle says it computes in when not given.
        allow_fallback: an island that unexpectedly ran in TensorFlow is no failure.
        allow_unaccelerated: that no engine ran at all is no failure.
        progress: called with one line per case.
        open_with: loads the bundle.

    Raises:
        GoldenError: the record is missing, damaged, empty, or belongs to another SavedModel.
        BundleError: the bundle is missing, damaged, or of a newer format.
        RecipeError: no tolerance is known for the precision.
    """
    record = read_golden(golden)
    loaded = open_with(bundle, engines)
    _require_same_source(record, loaded.manifest)
    judged_as = precision or str(loaded.manifest.precision)
    say = progress or (lambda _: None)
    results = []
    for case in record.cases:
        result = _judge(case, record.signatures[case.signature], loaded, judged_as, engines)
        say(f"{case.signature}/{case.name}: {result.outcome.value}")
        results.append(result)
    return Verdict(
        bundle=Path(bundle).name,
        golden=Path(golden).name,
        precision=judged_as,
        engines_asked=None if engines is None else tuple(engines),
        cases=tuple(results),
        notes=_verdict_notes(record, results, loaded),
        allow_fallback=allow_fallback,
        allow_unaccelerated=allow_unaccelerated,
    )


def _require_same_source(record: Golden, manifest: Any) -> None:
    converted_from = getattr(manifest, "source_sha256", None)
    if converted_from and converted_from != record.provenance.source_sha256:
        raise GoldenError(
            f"golden was recorded from another SavedModel ({record.provenance.source_name}, "
            f"{record.provenance.source_sha256[:12]}) than the bundle was made from ({converted_from[:12]})",
            hint="record the SavedModel again, or convert it again",
        )


def _judge(
    case: GoldenCase, signature: Signature, bundle: Bundle, precision: str, engines: Sequence[str] | None
) -> CaseResult:
    blank = CaseResult(signature=case.signature, case=case.name, kind=case.kind.value, outcome=Outcome.NOT_RUN)
    fault = _signature_fault(signature, bundle)
    if fault:
        return replace(blank, reason=fault)
    start = time.perf_counter()
    try:
        # Copies: a bundle that writes into its inputs must not reach the golden arrays.
        ran = bundle.run({name: array.copy() for name, array in case.inputs.items()}, case.signature)
    except InternalError:
        raise
    except RefimplError as error:
        return replace(blank, outcome=Outcome.RUN_FAILED, reason=str(error))
    except Exception as error:  # noqa: BLE001  whatever a bundle raises where TensorFlow had an answer is its failure
        return replace(blank, outcome=Outcome.RUN_FAILED, reason=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    comparison = compare(case.outputs, ran.outputs, lambda dtype: _tolerance(precision, dtype), case.unstable)
    # An island in a loop runs many times: what it did is told once.
    islands = tuple(dict.fromkeys(IslandNote(run.island, run.engine, run.reason) for run in ran.islands))
    outcome, reason = _decide(case.kind, comparison, islands, engines)
    return replace(
        blank,
        outcome=outcome,
        reason=reason,
        comparison=comparison,
        islands=islands,
        notes=_notes(comparison, islands),
        seconds=seconds,
    )


def _decide(
    kind: CaseKind, comparison: Comparison, islands: Sequence[IslandNote], engines: Sequence[str] | None
) -> tuple[Outcome, str]:
    """Values first: a wrong answer is a mismatch whoever gave it."""
    if not comparison.ok:
        return Outcome.MISMATCH, comparison.reason
    if not comparison.compared and kind is not CaseKind.EMPTY_BATCH:
        return Outcome.MISMATCH, "nothing was compared: every output is empty or not repeatable"
    surprises = [f"{island.island} ran in TensorFlow: {island.reason}" for island in islands if not island.expected]
    if engines is not None:
        others = [island for island in islands if island.engine not in (NATIVE, *engines)]
        surprises += [f"{island.island} ran in {island.engine}, which was not asked for" for island in others]
    if surprises:
        return Outcome.FALLBACK_USED, "; ".join(surprises)
    if not islands:
        return Outcome.MATCH_NOTHING_ACCELERATED, "no island ran: TensorFlow computed it all"
    return Outcome.MATCH, ""


def _notes(comparison: Comparison, islands: Sequence[IslandNote]) -> tuple[str, ...]:
    silent = [tensor for tensor in comparison.tensors if tensor.ok and tensor.reason]
    empty = [tensor for tensor in silent if 0 in tensor.shape]
    notes = [f"{tensor.name}: {tensor.reason}" for tensor in silent if tensor not in empty]
    if empty:
        notes.append(f"{len(empty)} of {len(comparison.tensors)} outputs are empty: nothing to compare")
    planned = Counter(island.reason for island in islands if island.engine == NATIVE and island.expected)
    whole = len(islands)
    notes += [f"{n} of {whole} islands ran in TensorFlow as documented: {why}" for why, n in planned.items()]
    return tuple(notes)


def _verdict_notes(record: Golden, results: Sequence[CaseResult], bundle: Bundle) -> tuple[str, ...]:
    """What a reader of a pass should still know."""
    notes = [
        f"signature {key!r} was not checked: golden has no case for it"
        for key in sorted(set(bundle.signatures) - set(record.signatures))
    ]
    for key in record.signatures:
        compared = [
            tensor
            for result in results
            if result.signature == key and result.comparison
            for tensor in result.comparison.tensors
            if tensor.compared
        ]
        outputs = {spec.name for spec in record.signatures[key].outputs}
        never = sorted(outputs - {tensor.name for tensor in compared})
        if compared and never:
            notes.append(f"signature {key!r}: never compared in any case: {', '.join(never)}")
        if compared and all(tensor.weak for tensor in compared):
            notes.append(f"signature {key!r}: an answer of zeros would pass every case; record it with better --cases")
    return tuple(notes)


def _signature_fault(signature: Signature, bundle: Bundle) -> str:
    """Why the bundle cannot be asked at all; shapes are left to the run."""
    here = bundle.signatures.get(signature.key)
    if here is None:
        return f"the bundle has no signature {signature.key!r}, only {', '.join(bundle.signatures) or 'none'}"
    for what, want, got in (("inputs", signature.inputs, here.inputs), ("outputs", signature.outputs, here.outputs)):
        wanted, given = ({(spec.name, spec.dtype) for spec in specs} for specs in (want, got))
        if wanted != given:
            odd = ", ".join(sorted(f"{name}: {dtype}" for name, dtype in wanted ^ given))
            return f"the {what} of the bundle's signature differ from golden's: {odd}"
    return ""


def _tolerance(precision: str, dtype: str) -> Tolerance:
    try:
        return tolerance_for(precision, dtype)
    except KeyError:
        raise RecipeError(f"no tolerance is known for {dtype} outputs of precision {precision!r}") from None
