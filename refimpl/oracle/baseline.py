"""What is compared between two verdicts, read from their JSON: the present one goes the same way as the baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refimpl.errors import GoldenError
from refimpl.oracle.golden import Golden
from refimpl.oracle.verdict import FORMAT, FORMAT_VERSION

_AGAIN = "write it again: refimpl check BUNDLE GOLDEN --json > VERDICT.json"
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The numbers of a verdict that must not get worse.

    Keys begin with the engine of the verdict, then the signature, the case and the output as far as they apply.
    """

    source_sha256: str
    passed: bool
    recorded_on: str  # when its golden answers were recorded
    golden_sha256: str  # of the index of its golden record; "" in verdicts that do not say
    machine: Mapping[str, Any]
    outcomes: Mapping[Key, str]  # engine, signature, case
    precisions: Mapping[Key, str]  # the same -> row of the tolerance table that it was judged by; only where it ran
    errors: Mapping[Key, float]  # engine, signature, case, output -> share of the tolerance that the error takes
    shares: Mapping[Key, float]  # signature -> share of the ops that run in engines
    islands: Mapping[Key, int]  # signature -> islands
    sizes: Mapping[Key, int]  # part of the bundle -> bytes
    latencies: Mapping[Key, float]  # engine, signature -> time over TensorFlow's
    native_seconds: Mapping[Key, float]  # the same -> TensorFlow's time
    drops: Mapping[Key, float]  # engine, metric -> drop
    measured: Mapping[Key, str]  # the same -> signature that the drop is of

    @staticmethod
    def of(data: Mapping[str, Any]) -> Snapshot:
        """From :meth:`refimpl.oracle.verdict_set.VerdictSet.to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form.
        """
        bundle, ran = data["bundle"], [verdict for verdict in data["verdicts"] if not verdict["excused"]]
        cases = [
            ((verdict["engine"], case["signature"], case["case"]), case)
            for verdict in ran
            for case in verdict["cases"]
            if not case["excused"]
        ]
        tasks = {
            (v["engine"], v["task"]["metric"]): v["task"] for v in ran if v["task"] and v["task"]["drop"] is not None
        }
        signatures = bundle["signatures"]
        return Snapshot(
            source_sha256=str(bundle["source_sha256"]),
            passed=bool(data["passed"]),
            recorded_on=str(data["golden"]["recorded_on"]),
            golden_sha256=str(data["golden"].get("sha256", "")),
            machine=dict(data["machine"]),
            outcomes={key: str(case["outcome"]) for key, case in cases},
            precisions={key: str(case["precision"]) for key, case in cases if case["precision"]},
            errors={
                (*key, out["name"]): _number(out["share"])
                for key, case in cases
                for out in case["outputs"]
                if out["share"] is not None
            },
            shares={(item["key"],): _number(item["share"]) for item in signatures},
            islands={(item["key"],): int(item["islands"]) for item in signatures},
            sizes={(part,): int(size) for part, size in bundle["bytes"].items()},
            latencies={
                (v["engine"], item["signature"]): _number(item["ratio"]) for v in ran for item in v["latencies"]
            },
            native_seconds={
                (v["engine"], item["signature"]): _number(item["native_seconds"])
                for v in ran
                for item in v["latencies"]
            },
            drops={key: _number(task["drop"]) for key, task in tasks.items()},
            measured={key: str(task["signature"]) for key, task in tasks.items()},
        )

    def only(self, signatures: Collection[str]) -> Snapshot:
        """Without what was found by running other signatures than these; what is known of the bundle stays."""

        def of(values: Mapping[Key, Any]) -> dict[Key, Any]:
            return {key: value for key, value in values.items() if key[1] in signatures}

        kept = {key: name for key, name in self.measured.items() if name in signatures}
        return replace(
            self,
            outcomes=of(self.outcomes),
            precisions=of(self.precisions),
            errors=of(self.errors),
            latencies=of(self.latencies),
            native_seconds=of(self.native_seconds),
            drops={key: self.drops[key] for key in kept},
            measured=kept,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """An earlier verdict, and how much worse each quantity may be: :func:`refimpl.oracle.drift.allowances`."""

    path: Path
    snapshot: Snapshot
    allowed: Mapping[str, float]


def read_baseline(path: Path) -> Snapshot:
    """Read a verdict that ``refimpl check --json`` printed.

    Raises:
        GoldenError: it is missing, damaged, something else, or of another format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GoldenError(f"baseline {path} cannot be read: {error.strerror}", hint=_AGAIN) from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise GoldenError(f"baseline {path} is damaged: {error}", hint=_AGAIN) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise GoldenError(f"baseline {path} is no verdict of refimpl check", hint=_AGAIN)
    if data.get("format_version") != FORMAT_VERSION:
        raise GoldenError(
            f"baseline {path} has verdict format {data.get('format_version')!r}; this refimpl reads {FORMAT_VERSION}",
            hint=f"with this version, {_AGAIN}",
        )
    try:
        return Snapshot.of(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GoldenError(f"baseline {path} is damaged: {type(error).__name__}: {error}", hint=_AGAIN) from None


def require_comparable(baseline: Baseline, source_sha256: str, golden: Golden) -> None:
    """Make sure that a baseline is of this model and of these golden answers: else unlike things would be compared.

    Args:
        baseline: the earlier verdict.
        source_sha256: of the SavedModel that the bundle at hand was made from.
        golden: what the bundle at hand is to be judged by.

    Raises:
        GoldenError: it is of others.
    """
    was = baseline.snapshot
    if was.source_sha256 != source_sha256:
        raise GoldenError(
            f"baseline {baseline.path} is of another model ({was.source_sha256[:12]}) than this bundle "
            f"({source_sha256[:12]})",
            hint="give the baseline of this model, or make one: refimpl check BUNDLE GOLDEN --json > VERDICT.json",
        )
    recorded_on = golden.provenance.recorded_on
    same = was.golden_sha256 == golden.sha256 if was.golden_sha256 else was.recorded_on == recorded_on
    if not same:
        raise GoldenError(
            f"baseline {baseline.path} was made with another golden record (of {was.recorded_on}) than {golden.path} "
            f"(of {recorded_on})",
            hint="give the record that the baseline was made with, or make a new baseline with this one",
        )


def _number(value: Any) -> float:
    """A number of strict JSON, where the non-finite ones are strings."""
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)
