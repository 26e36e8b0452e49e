"""What came of checking a bundle: one outcome per case, one for the whole, and the exit code. Decides; renders nothing.

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

EXPECTED_REASONS = ("empty input", "non-finite ")  # documented: an engine never sees such values
NATIVE = "native"


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
    comparison: Comparison | None = None
    islands: tuple[IslandNote, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def engines(self) -> Counter[str]:
        """How many islands each engine ran (``native`` included)."""
        return Counter(island.engine for island in self.islands)

    @property
    def accelerated(self) -> bool:
        return any(island.engine != NATIVE for island in self.islands)

    def to_json(self) -> dict[str, Any]:
        outputs = [] if self.comparison is None else [asdict(tensor) for tensor in self.comparison.tensors]
        return {
            "signature": self.signature,
            "case": self.case,
            "kind": self.kind,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 4),
            "outputs": outputs,
            "missing": list(self.comparison.missing) if self.comparison else [],
            "extra": list(self.comparison.extra) if self.comparison else [],
            "islands": [{"island": i.island, "engine": i.engine, "reason": i.reason} for i in self.islands],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement on a bundle."""

    bundle: str
    golden: str
    precision: str
    engines_asked: tuple[str, ...] | None
    cases: tuple[CaseResult, ...]
    notes: tuple[str, ...] = ()
    allow_fallback: bool = False
    allow_unaccelerated: bool = False

    def tolerates(self, outcome: Outcome) -> bool:
        """Whether a case with this outcome lets the verdict pass."""
        # A signature may stay in TensorFlow by plan; whether *anything* was accelerated is asked of the whole.
        if outcome in (Outcome.MATCH, Outcome.MATCH_NOTHING_ACCELERATED):
            return True
        return outcome is Outcome.FALLBACK_USED and self.allow_fallback

    @property
    def accelerated(self) -> bool:
        """Whether any island ran in an engine in any case."""
        return any(case.accelerated for case in self.cases)

    @property
    def outcome(self) -> Outcome:
        """The worst case; ``match-nothing-accelerated`` when all match and no engine ran anywhere."""
        worst = max((case.outcome for case in self.cases), key=SEVERITY.index, default=Outcome.NOT_RUN)
        if worst not in (Outcome.MATCH, Outcome.MATCH_NOTHING_ACCELERATED):
            return worst
        return Outcome.MATCH if self.accelerated else Outcome.MATCH_NOTHING_ACCELERATED

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not pass; empty when it does."""
        if not self.cases:
            return ("no case was run",)
        counts = Counter(case.outcome for case in self.cases if not self.tolerates(case.outcome))
        problems = [f"{n} of {len(self.cases)} cases: {outcome.value}" for outcome, n in counts.items()]
        if not self.accelerated and not self.allow_unaccelerated and not problems:
            problems.append("the outputs match, but no engine ran: nothing was accelerated")
        return tuple(problems)

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def exit_code(self) -> int:
        """0 when it passes, 1 when it does not."""
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        """Plain data; a non-finite number becomes the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``."""
        data = {
            "format": "refimpl-verdict",
            "format_version": 1,
            "passed": self.passed,
            "outcome": self.outcome.value,
            "problems": list(self.problems),
            "bundle": self.bundle,
            "golden": self.golden,
            "precision": self.precision,
            "engines_asked": None if self.engines_asked is None else list(self.engines_asked),
            "allow_fallback": self.allow_fallback,
            "allow_unaccelerated": self.allow_unaccelerated,
            "accelerated": self.accelerated,
            "counts": {outcome.value: sum(c.outcome is outcome for c in self.cases) for outcome in Outcome},
            "notes": list(self.notes),
            "cases": [case.to_json() for case in self.cases],
        }
        strict: dict[str, Any] = _strict(data)
        return strict


def conversion_failed(bundle: str, golden: str, names: Sequence[tuple[str, str]], reason: str) -> Verdict:
    """The verdict when there is no bundle to run: every (signature, case) failed at conversion."""
    cases = tuple(
        CaseResult(signature=sig, case=name, kind="", outcome=Outcome.CONVERSION_FAILED, reason=reason)
        for sig, name in names
    )
    return Verdict(bundle=bundle, golden=golden, precision="", engines_asked=None, cases=cases)


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
