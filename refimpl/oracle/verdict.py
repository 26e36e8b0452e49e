"""What came of checking a bundle with one choice of engines: an outcome per case, one for the whole. Renders nothing.

"Right, but no engine ran" is not a pass, and neither is a fallback to TensorFlow that nobody planned.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refimpl.oracle.compare import Comparison
from refimpl.oracle.latency import Latency
from refimpl.oracle.task_metric import TaskMetric

FORMAT = "refimpl-verdict"  # of the file that `refimpl check --json` prints: docs/checking.md
FORMAT_VERSION = 2
EXPECTED_REASONS = ("empty input", "non-finite ")  # documented: an engine never sees such values
MADE_NOT_FINITE = "non-finite values made by its engine"
NATIVE = "native"
TENSORFLOW = "tensorflow"  # the "engine" of a verdict on TensorFlow itself, all islands native


class Outcome(enum.Enum):
    """What happened; the order is from good to bad, and the verdict's outcome is its worst case."""

    MATCH = "match"
    MATCH_NOTHING_ACCELERATED = "match-nothing-accelerated"
    FALLBACK_USED = "fallback-used"
    NOT_RUN = "not-run"
    MISMATCH = "mismatch"
    RUN_FAILED = "run-failed"
    CONVERSION_FAILED = "conversion-failed"


SEVERITY = tuple(Outcome)
MATCHES = (Outcome.MATCH, Outcome.MATCH_NOTHING_ACCELERATED)


@dataclass(frozen=True, slots=True)
class IslandNote:
    """What one island did in one case: the engine that ran it, or ``native`` and why."""

    island: str
    engine: str
    reason: str = ""

    @property
    def expected(self) -> bool:
        """It ran in an engine, or in TensorFlow for a documented reason."""
        return self.engine != NATIVE or self.reason.startswith(EXPECTED_REASONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """The outcome of one case, and everything that led to it."""

    signature: str
    case: str
    kind: str
    outcome: Outcome
    reason: str = ""  # why it is not a match
    excused: bool = False  # it was not run on purpose; the reason says which
    comparison: Comparison | None = None
    precision: str = ""  # the row of the tolerance table that it was judged by
    islands: tuple[IslandNote, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0  # of the one judged call; the first call of a signature also opens its engines

    @property
    def engines(self) -> Counter[str]:
        """How many islands each engine ran (``native`` included)."""
        return Counter(island.engine for island in self.islands)

    @property
    def accelerated(self) -> bool:
        return any(island.engine != NATIVE for island in self.islands)

    @property
    def right(self) -> bool:
        """Every output was there and within its tolerance, whoever computed it."""
        return self.comparison is not None and self.comparison.ok

    def to_json(self) -> dict[str, Any]:
        outputs = [] if self.comparison is None else [asdict(tensor) for tensor in self.comparison.tensors]
        return {
            "signature": self.signature,
            "case": self.case,
            "kind": self.kind,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "excused": self.excused,
            "notes": list(self.notes),
            "precision": self.precision,
            "seconds": round(self.seconds, 6),
            "outputs": outputs,
            "missing": list(self.comparison.missing) if self.comparison else [],
            "extra": list(self.comparison.extra) if self.comparison else [],
            "islands": [{"island": i.island, "engine": i.engine, "reason": i.reason} for i in self.islands],
        }


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A signature of which no answer was judged."""

    signature: str
    why: str

    def __str__(self) -> str:
        return f"signature {self.signature!r} was not checked: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement on a bundle with one choice of engines."""

    bundle: str
    golden: str
    precision: str  # of the bundle, or the one that was asked for
    engines_asked: tuple[str, ...] | None  # None: the bundle's own choice
    cases: tuple[CaseResult, ...]
    notes: tuple[str, ...] = ()
    allow_fallback: bool = False
    allow_unaccelerated: bool = False
    reference: bool = False  # it is TensorFlow itself that was judged, no engine was to run
    excused: str = ""  # why these engines were not run, where that is no failure
    unavailable: str = ""  # why they were not run, where it is
    latencies: tuple[Latency, ...] = ()
    task: TaskMetric | None = None
    unchecked: tuple[Unchecked, ...] = ()
    islands: tuple[tuple[str, str], ...] = ()  # that the bundle has, as (signature, name), where an engine is to run

    @property
    def engine(self) -> str:
        """``tensorflow``, the engines asked for, or ``any`` for the bundle's own choice."""
        return TENSORFLOW if self.reference else "any" if self.engines_asked is None else "+".join(self.engines_asked)

    def tolerates(self, case: CaseResult) -> bool:
        """Whether this case lets the verdict pass."""
        # A signature may stay in TensorFlow by plan; whether *anything* was accelerated is asked of the whole.
        if case.outcome in MATCHES:
            return True
        if case.outcome is Outcome.CONVERSION_FAILED:
            return self.allow_unaccelerated and case.right
        if case.outcome is Outcome.NOT_RUN:
            return case.excused
        return case.outcome is Outcome.FALLBACK_USED and self.allow_fallback

    @property
    def judged(self) -> tuple[CaseResult, ...]:
        """The cases that count: all that were not left out on purpose."""
        return tuple(case for case in self.cases if not case.excused)

    @property
    def accelerated(self) -> bool:
        """Whether any island ran in an engine in any case."""
        return any(case.accelerated for case in self.cases)

    @property
    def unseen(self) -> dict[tuple[str, str], str]:
        """Islands, by signature and name, that TensorFlow ran for in every case, and why: nobody saw their engines.

        Each time for a documented reason, so that every case is a match; but an engine that gives nothing but NaN, or
        golden inputs that reach an island with nothing else, would hide behind that for good. So would one that the
        graph of the bundle does not even call.
        """
        runs = [(case.signature, island) for case in self.judged for island in case.islands]
        seen = {(signature, island.island) for signature, island in runs if island.engine != NATIVE}
        found: dict[tuple[str, str], str] = {}
        for key, run in runs:
            if run.expected and (key, run.island) not in seen:
                found.setdefault((key, run.island), run.reason)  # why in its first case
        called, ran = {(key, run.island) for key, run in runs}, {case.signature for case in self.judged if case.right}
        return found | {key: "nothing called it" for key in self.islands if key[0] in ran and key not in called}

    @property
    def outcome(self) -> Outcome:
        """The worst case; a fallback when an island ran in no engine; of all matches, whether any engine ran."""
        worst = max((case.outcome for case in self.judged), key=SEVERITY.index, default=Outcome.NOT_RUN)
        if worst not in MATCHES:
            return worst
        if not self.accelerated and not self.reference:
            return Outcome.MATCH_NOTHING_ACCELERATED
        return Outcome.FALLBACK_USED if self.unseen else Outcome.MATCH

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not pass; empty when it does."""
        counts = Counter(case.outcome for case in self.cases if not self.tolerates(case))
        found = [f"{n} of {len(self.cases)} cases: {outcome.value}" for outcome, n in counts.items()]
        found += self.problems_of_the_whole
        if self.task is not None and self.task.problem:
            found.append(self.task.problem)
        return tuple(found)

    @property
    def problems_of_the_whole(self) -> tuple[str, ...]:
        """Why it does not pass although no single case fails; without the task's metric, which has its own problem."""
        if self.unavailable:
            return (f"not run: {self.unavailable}",)
        if not self.judged:
            return ("no case was run",)
        if not all(map(self.tolerates, self.cases)):
            return ()
        if not any(case.comparison is not None and case.comparison.compared for case in self.judged):
            return ("nothing was compared: every output of every case is empty or not repeatable",)
        if not self.accelerated and not self.allow_unaccelerated and not self.reference:
            return ("the outputs match, but no engine ran: nothing was accelerated",)
        if not self.accelerated or self.allow_fallback:
            return ()
        return tuple(
            f"{key}: island {name} ran in no engine in any case ({why}): it was not judged"
            for (key, name), why in self.unseen.items()
        )

    @property
    def passed(self) -> bool:
        """Every case that counts is tolerated, and something ran; never true of engines that were not run."""
        return not self.excused and not self.problems

    @property
    def exit_code(self) -> int:
        """0 when it passes, 1 when it does not."""
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        """Plain data; a non-finite number becomes the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``."""
        data = {
            "engine": self.engine,
            "passed": self.passed,
            "outcome": self.outcome.value,
            "problems": list(self.problems),
            "excused": self.excused,
            "precision": self.precision,
            "engines_asked": None if self.engines_asked is None else list(self.engines_asked),
            "allow_fallback": self.allow_fallback,
            "allow_unaccelerated": self.allow_unaccelerated,
            "accelerated": self.accelerated,
            "counts": {outcome.value: sum(c.outcome is outcome for c in self.cases) for outcome in Outcome},
            "notes": list(self.notes),
            "unchecked": [asdict(item) for item in self.unchecked],
            "task": None if self.task is None else self.task.to_json(),
            "latencies": [latency.to_json() for latency in self.latencies],
            "cases": [case.to_json() for case in self.cases],
        }
        strict: dict[str, Any] = strict_json(data)
        return strict


def conversion_failed(bundle: str, golden: str, names: Sequence[tuple[str, str]], reason: str) -> Verdict:
    """The verdict when there is no bundle to run: every (signature, case) failed at conversion."""
    cases = tuple(
        CaseResult(signature=sig, case=name, kind="", outcome=Outcome.CONVERSION_FAILED, reason=reason)
        for sig, name in names
    )
    return Verdict(bundle=bundle, golden=golden, precision="", engines_asked=None, cases=cases)


def strict_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become strings."""
    if isinstance(value, dict):
        return {key: strict_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
