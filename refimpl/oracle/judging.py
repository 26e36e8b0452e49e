"""One case of a golden record, run and judged: the outcome, and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from refimpl.bundle import Manifest
from refimpl.calibration import CalibrationTable
from refimpl.errors import InternalError, RecipeError, RefimplError
from refimpl.oracle import calibrated, second_opinion
from refimpl.oracle.arrays import Array
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.compare import Comparison, compare
from refimpl.oracle.golden import GoldenCase
from refimpl.oracle.precision import precision_of_run
from refimpl.oracle.runners import Bundle, RunResult
from refimpl.oracle.verdict import NATIVE, CaseResult, IslandNote, Outcome
from refimpl.specs import Signature
from refimpl.tolerance import Tolerance, tolerance_for

# Reasons of a bundle's manifest for a signature without islands that nobody needs to worry about.
PLANNED_REASONS = ("not asked for", "no island could be made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What is the same for all cases of one verdict.

    Attributes:
        bundle: what is judged.
        engines: what was asked for; None leaves the choice to the bundle.
        reference: TensorFlow itself is judged: every island runs natively.
        precision: the row of the tolerance table; what the islands that ran compute in when empty.
        tables: ranges of an int8 bundle.
        calibrated_only: leave out the cases beyond these ranges.
    """

    bundle: Bundle
    engines: tuple[str, ...] | None = None
    reference: bool = False
    precision: str = ""
    tables: tuple[CalibrationTable, ...] = ()
    calibrated_only: bool = False

    @property
    def manifest(self) -> Manifest:
        manifest: Manifest = self.bundle.manifest
        return manifest

    def judge(self, case: GoldenCase, signature: Signature) -> tuple[CaseResult, dict[str, Array] | None]:
        """The outcome of one case, and the outputs that it came with; None when there are none to be measured."""
        blank = CaseResult(signature=case.signature, case=case.name, kind=case.kind.value, outcome=Outcome.NOT_RUN)
        if fault := _signature_fault(signature, self.bundle):
            return replace(blank, reason=fault), None
        clipped = calibrated.outside(signature, case.inputs, self.tables)
        if clipped and self.calibrated_only and not self.reference:
            return replace(blank, reason=clipped, excused=True), None
        start = time.perf_counter()
        try:
            ran = self.call(case)
        except InternalError:
            raise
        except RefimplError as error:
            return replace(blank, outcome=Outcome.RUN_FAILED, reason=str(error)), None
        except Exception as error:  # noqa: BLE001  whatever fails where TensorFlow had an answer is the bundle's failure
            return replace(blank, outcome=Outcome.RUN_FAILED, reason=f"{type(error).__name__}: {error}"), None
        done = self._decided(replace(blank, seconds=time.perf_counter() - start), case, ran, clipped)
        comparison = done.comparison
        measurable = (
            comparison is not None and not comparison.missing and all(t.ok or t.compared for t in comparison.tensors)
        )
        return done, dict(ran.outputs) if measurable else None

    def call(self, case: GoldenCase, *, native: bool = False) -> RunResult:
        """One call, on copies: a bundle that writes into its inputs must not reach the golden arrays."""
        run = self.bundle.run_native if native or self.reference else self.bundle.run
        return run({name: array.copy() for name, array in case.inputs.items()}, case.signature)

    def _decided(self, blank: CaseResult, case: GoldenCase, ran: RunResult, clipped: str) -> CaseResult:
        # An island in a loop runs many times: what it did is told once.
        islands = tuple(dict.fromkeys(IslandNote(run.island, run.engine, run.reason) for run in ran.islands))
        precision = self.precision or precision_of_run(self.manifest, case.signature, islands)
        comparison = _compared(case, ran.outputs, precision)
        outcome, reason = self._decide(case, comparison, islands)
        notes = _notes(comparison, islands)
        if not comparison.ok:
            reason, more = self._diagnosis(case, reason, islands)
            notes += (*more, *((clipped,) if clipped else ()))
        return replace(
            blank,
            outcome=outcome,
            reason=reason,
            comparison=comparison,
            precision=precision,
            islands=islands,
            notes=notes,
        )

    def _decide(self, case: GoldenCase, comparison: Comparison, islands: Sequence[IslandNote]) -> tuple[Outcome, str]:
        """Values first: a wrong answer is a mismatch whoever gave it."""
        if not comparison.ok:
            return Outcome.MISMATCH, comparison.reason
        if not comparison.compared and case.kind is not CaseKind.EMPTY_BATCH:
            return Outcome.MISMATCH, "nothing was compared: every output is empty or not repeatable"
        if self.reference:
            return Outcome.MATCH, ""
        surprises = [f"{island.island} ran in TensorFlow: {island.reason}" for island in islands if not island.expected]
        if self.engines is not None:
            others = [island for island in islands if island.engine not in (NATIVE, *self.engines)]
            surprises += [f"{island.island} ran in {island.engine}, which was not asked for" for island in others]
        if surprises:
            return Outcome.FALLBACK_USED, "; ".join(surprises)
        if refused := _refused(self.manifest, case.signature):
            return Outcome.CONVERSION_FAILED, f"the signature was not converted, TensorFlow ran it: {refused}"
        if not islands:
            return Outcome.MATCH_NOTHING_ACCELERATED, "no island ran: TensorFlow computed it all"
        return Outcome.MATCH, ""

    def _diagnosis(self, case: GoldenCase, reason: str, islands: Sequence[IslandNote]) -> tuple[str, tuple[str, ...]]:
        """Who is at fault: TensorFlow here, or what runs instead of it. The mismatch stays one either way."""
        if self.reference:
            return f"TensorFlow itself, without any engine: {reason}", ()
        if not any(island.engine != NATIVE for island in islands):
            return f"{reason}; no engine ran, TensorFlow itself gave this answer", ()
        try:
            outputs = self.call(case, native=True).outputs
        except InternalError:
            raise
        except Exception as error:  # noqa: BLE001  a diagnosis may fail; the verdict stands
            return reason, (f"TensorFlow itself, without engines, could not be asked: {type(error).__name__}",)
        alone = _compared(case, outputs, precision_of_run(self.manifest, case.signature, ()))
        if alone.ok:
            return reason, ("TensorFlow itself, without engines, gives the golden answer here",)
        where = f"TensorFlow itself, without engines, leaves the golden answer here too ({alone.reason})"
        return f"{where}; with engines: {reason}", ()


def _compared(case: GoldenCase, outputs: Mapping[str, Array], precision: str) -> Comparison:
    """Our comparison, each tensor seconded by Polygraphy where that is sound."""
    ours = compare(case.outputs, outputs, lambda dtype: _tolerance(precision, dtype), case.unstable)
    seconded = tuple(
        replace(t, second_opinion=second_opinion.ask(case.outputs[t.name], outputs[t.name], t)) for t in ours.tensors
    )
    return replace(ours, tensors=seconded)


def _refused(manifest: Manifest, signature: str) -> str:
    """Why the converter refused a signature; "" when it did not, or when nobody asked for it."""
    record = next((item for item in manifest.signatures if item.signature.key == signature), None)
    if record is None or record.converted or record.reason.startswith(PLANNED_REASONS):
        return ""
    return record.reason


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
