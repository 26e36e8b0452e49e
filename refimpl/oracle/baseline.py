"""What is compared between two verdicts, read from their JSON: the present one goes the same way as the baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.errors import GoldenError
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
    machine: Mapping[str, Any]
    outcomes: Mapping[Key, str]  # engine, signature, case
    errors: Mapping[Key, float]  # engine, signature, case, output -> share of the tolerance that the error takes
    shares: Mapping[Key, float]  # signature -> share of the ops that run in engines
    islands: Mapping[Key, int]  # signature -> islands
    sizes: Mapping[Key, int]  # part of the bundle -> bytes
    latencies: Mapping[Key, float]  # engine, signature -> time over TensorFlow's
    native_seconds: Mapping[Key, float]  # the same -> TensorFlow's time
    drops: Mapping[Key, float]  # engine, metric -> drop

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
        signatures = bundle["signatures"]
        return Snapshot(
            source_sha256=str(bundle["source_sha256"]),
            passed=bool(data["passed"]),
            recorded_on=str(data["golden"]["recorded_on"]),
            machine=dict(data["machine"]),
            outcomes={key: str(case["outcome"]) for key, case in cases},
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
            drops={
                (v["engine"], v["task"]["metric"]): _number(v["task"]["drop"])
                for v in ran
                if v["task"] is not None and v["task"]["drop"] is not None
            },
        )


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


def require_same_model(baseline: Snapshot, now: Snapshot, path: Path) -> None:
    """Make sure that two verdicts are on one model.

    Raises:
        GoldenError: they are not.
    """
    if baseline.source_sha256 != now.source_sha256:
        raise GoldenError(
            f"baseline {path} is of another model ({baseline.source_sha256[:12]}) than this bundle "
            f"({now.source_sha256[:12]})",
            hint="give the baseline of this model, or make one: refimpl check BUNDLE GOLDEN --json > VERDICT.json",
        )


def _number(value: Any) -> float:
    """A number of strict JSON, where the non-finite ones are strings."""
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)
