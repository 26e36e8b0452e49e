"""Checking: golden -> run -> compare -> verdict. Reads a golden record and a bundle from disk, and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refimpl.errors import GoldenError, RecipeError
from refimpl.metrics import require_metric
from refimpl.oracle import calibrated, latency, task_metric
from refimpl.oracle.arrays import Array
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden, GoldenCase, read_golden
from refimpl.oracle.judging import Judge
from refimpl.oracle.latency import Latency
from refimpl.oracle.runners import Bundle, open_bundle
from refimpl.oracle.selection import idle_engines, selected, suspicious_fallbacks, unchecked
from refimpl.oracle.task_metric import TaskMetric
from refimpl.oracle.verdict import MATCHES, CaseResult, Outcome, Verdict
from refimpl.progress import Step, Tell

Progress = Tell
OpenBundle = Callable[["str | os.PathLike[str]", "Sequence[str] | None"], Bundle]
METRIC = "top1"  # what labels are taken to be for, unless somebody says otherwise
_NATURAL = (CaseKind.USER, CaseKind.ORDINARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How strict a check is, and what it measures besides.

    Attributes:
        engines: the engines that may run; those that the bundle prefers when None.
        signatures: those to judge; all that golden has cases of when None. The others are told as not checked.
        precision: the row of the tolerance table; what the islands that ran compute in when empty.
        allow_fallback: an island that unexpectedly ran in TensorFlow is no failure.
        allow_unaccelerated: that no engine ran at all, or that a signature could not be converted, is no failure.
        calibrated_only: leave out cases whose inputs an int8 bundle was not calibrated for.
        repeat: calls to measure the latency with, for one case of each signature; 0 measures none.
        time_limit: seconds after which no further case of a verdict is begun; what is left is not run.
        excuse_unfinished: what the time limit left is no failure.
        metric: of labelled cases: see :func:`refimpl.metrics.per_example`; ``top1`` where there are any when "".
        max_drop: what the metric may lose; None only reports it.
    """

    engines: tuple[str, ...] | None = None
    signatures: tuple[str, ...] | None = None
    precision: str = ""
    allow_fallback: bool = False
    allow_unaccelerated: bool = False
    calibrated_only: bool = False
    repeat: int = 0
    time_limit: float | None = None
    excuse_unfinished: bool = False
    metric: str = ""
    max_drop: float | None = None


STRICT = CheckOptions()


def check(
    bundle: str | os.PathLike[str],
    golden: str | os.PathLike[str],
    options: CheckOptions = STRICT,
    *,
    progress: Progress | None = None,
    open_with: OpenBundle = open_bundle,
) -> Verdict:
    """Judge a bundle by golden TensorFlow outputs: every signature and every case of the record.

    Args:
        bundle: the bundle directory.
        golden: the golden directory.
        options: how strict to be.
        progress: called with one line per case.
        open_with: loads the bundle.

    Raises:
        GoldenError: the record is missing, damaged, empty, or belongs to another SavedModel.
        BundleError: the bundle is missing, damaged, or of a newer format.
        RecipeError: no tolerance is known for the precision; golden has no case of a signature that was asked for; the
            metric cannot be taken.
    """
    record = read_golden(golden)
    return check_record(Path(bundle), record, options, progress=progress, open_with=open_with)


def check_record(
    bundle: Path,
    record: Golden,
    options: CheckOptions,
    *,
    reference: bool = False,
    progress: Progress | None = None,
    open_with: OpenBundle = open_bundle,
) -> Verdict:
    """As :func:`check`, with a record that was read already.

    Args:
        bundle: the bundle directory.
        record: what to judge by.
        options: how strict to be.
        reference: judge TensorFlow itself, every island native.
        progress: called with one line per case.
        open_with: loads the bundle.
    """
    chosen = selected(record, options.signatures)
    require_labels(chosen, options)
    golden_metric = task_metric.of_golden(options.metric or METRIC, chosen.cases)
    loaded = open_with(bundle, options.engines)
    require_same_source(record, loaded.manifest.source_sha256)
    judge = Judge(
        bundle=loaded,
        engines=options.engines,
        reference=reference,
        precision=options.precision,
        tables=calibrated.tables_of(bundle),
        calibrated_only=options.calibrated_only,
    )
    judged = list(_judged(judge, chosen, options, progress or (lambda _: None)))
    results = [result for result, _ in judged]
    runs = [(case, outputs) for case, (result, outputs) in zip(chosen.cases, judged, strict=True) if not result.excused]
    latencies, unmeasured = ((), ()) if reference else _latencies(judge, chosen, results, options.repeat)
    missed = unchecked(record, loaded.signatures, results, options.signatures)
    notes = [*map(str, missed), *_verdict_notes(chosen, results), *suspicious_fallbacks(chosen, results), *unmeasured]
    if options.engines is None and not reference:
        notes += idle_engines(loaded.manifest, results)
    return Verdict(
        bundle=bundle.name,
        golden=record.path.name,
        precision=options.precision or str(loaded.manifest.precision),
        engines_asked=options.engines,
        cases=tuple(results),
        notes=tuple(notes),
        allow_fallback=options.allow_fallback,
        allow_unaccelerated=options.allow_unaccelerated,
        reference=reference,
        latencies=latencies,
        task=_task(options, golden_metric, runs),
        unchecked=missed,
        islands=() if reference else _islands(loaded),
    )


def require_same_source(record: Golden, source_sha256: str) -> None:
    """Make sure that a bundle was made from the SavedModel that golden was recorded from.

    Raises:
        GoldenError: it was made from another one.
    """
    if source_sha256 and source_sha256 != record.provenance.source_sha256:
        raise GoldenError(
            f"golden was recorded from another SavedModel ({record.provenance.source_name}, "
            f"{record.provenance.source_sha256[:12]}) than the bundle was made from ({source_sha256[:12]})",
            hint="record the SavedModel again, or convert it again",
        )


def require_labels(record: Golden, options: CheckOptions) -> None:
    """Make sure that there are labelled cases where a metric was asked for.

    Raises:
        RecipeError: there is none, or no such metric.
    """
    require_metric(options.metric or METRIC)
    if any(case.labels for case in record.cases) or not (options.metric or options.max_drop is not None):
        return
    asked = "--max-drop judges" if options.max_drop is not None else "--metric measures"
    raise RecipeError(
        f"{asked} {options.metric or METRIC} on labelled cases, and golden has none",
        hint="record your data with labels: refimpl record SAVED_MODEL GOLDEN --cases DATA --label NAME",
    )


def _task(
    options: CheckOptions,
    golden: task_metric.Values,
    runs: Sequence[tuple[GoldenCase, dict[str, Array] | None]],
) -> TaskMetric | None:
    """The metric of the cases that were judged. A drop that was to be judged does not pass for want of cases."""
    labelled = [run for run in runs if run[0].labels]
    if golden and not labelled and options.max_drop is not None:
        limit = None if options.excuse_unfinished else options.max_drop
        why = "every labelled case was left out"
        return TaskMetric(metric=options.metric or METRIC, examples=0, max_drop=limit, unmeasured=why)
    return task_metric.measure(options.metric or METRIC, labelled, golden, options.max_drop)


def _islands(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    """What an engine is to run, by the bundle's own account."""
    return tuple((item.signature.key, island.name) for item in bundle.manifest.signatures for island in item.islands)


def _judged(
    judge: Judge, record: Golden, options: CheckOptions, say: Progress
) -> Iterator[tuple[CaseResult, dict[str, Array] | None]]:
    spent = 0.0
    for number, case in enumerate(record.cases):
        if options.time_limit is not None and spent >= options.time_limit:
            result = CaseResult(
                signature=case.signature,
                case=case.name,
                kind=case.kind.value,
                outcome=Outcome.NOT_RUN,
                reason=f"the time limit of {options.time_limit:g} s was used up by the cases before it",
                excused=options.excuse_unfinished,
            )
            yield result, None
        else:
            result, outputs = judge.judge(case, record.signatures[case.signature])
            spent += result.seconds
            yield result, outputs
        line = f"{case.signature}/{case.name}: {result.outcome.value}"
        say(Step(line, stage="cases", done=number + 1, total=len(record.cases)))


def _latencies(
    judge: Judge, record: Golden, results: Sequence[CaseResult], repeat: int
) -> tuple[tuple[Latency, ...], tuple[str, ...]]:
    """Of one case of each signature, always the same one, and why there is none where it cannot be measured.

    The choice must not depend on what came of the cases: two checks would measure inputs of different sizes.
    """
    outcomes = {(result.signature, result.case): result for result in results}
    found, notes = [], []
    for key in record.signatures if repeat else ():
        natural = [case for case in record.cases if case.signature == key and case.kind in _NATURAL]
        if not natural:
            continue
        chosen = max(natural, key=lambda case: sum(array.size for array in case.inputs.values()))
        result = outcomes[key, chosen.name]
        if result.outcome in MATCHES and result.accelerated:
            call, native = (lambda c=chosen, n=n: judge.call(c, native=n) for n in (False, True))
            found.append(latency.measure(key, chosen.name, call, native, repeat))
        elif result.outcome is not Outcome.MATCH_NOTHING_ACCELERATED:
            notes.append(f"signature {key!r}: latency was not measured: {chosen.name}: {result.outcome.value}")
    return tuple(found), tuple(notes)


def _verdict_notes(record: Golden, results: Sequence[CaseResult]) -> tuple[str, ...]:
    """What a reader of a pass should still know."""
    notes = []
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
