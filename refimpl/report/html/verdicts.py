"""What ``refimpl check --json`` says, as rows of the page. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_GOOD = ("match",)
_FAIR = ("match-nothing-accelerated", "fallback-used")


def verdict_data(verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The verdicts on a bundle: for each choice of engines, every output of every case.

    Args:
        verdict: the JSON of a verdict set; None when nothing was checked.
    """
    if verdict is None:
        return None
    return {
        "passed": verdict["passed"],
        "outcome": verdict["outcome"],
        "problems": verdict["problems"],
        "golden": verdict["golden"],
        "machine": verdict["machine"],
        "versions": verdict["versions"],
        "engines": [_engine(item) for item in verdict["verdicts"]],
    }


def _engine(item: Mapping[str, Any]) -> dict[str, Any]:
    names = {"any": "the engines that the bundle prefers", "tensorflow": "TensorFlow itself, no engine"}
    rows = [row for case in item["cases"] for row in _rows(case)]
    return {
        "name": names.get(item["engine"], item["engine"]),
        "passed": item["passed"],
        "excused": item["excused"],
        "problems": item["problems"],
        "notes": item["notes"],
        "rows": rows,
        "outputs": _worst_of_each(rows),
        "latencies": item["latencies"],
        "task": item["task"],
    }


def _rows(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    ran: dict[str, int] = {}
    for island in case["islands"]:
        where = "TensorFlow" if island["engine"] == "native" else island["engine"]
        ran[where] = ran.get(where, 0) + 1
    shared = {
        "signature": case["signature"],
        "case": case["case"],
        "outcome": case["outcome"],
        "tone": tone_of(case["outcome"]),
        "reason": case["reason"],
        "precision": case["precision"],
        "ran": ", ".join(f"{name} {count}" for name, count in ran.items()),
    }
    for output in case["outputs"] or [{}]:
        fields = ("name", "dtype", "shape", "ok", "max_abs", "max_rel", "rmse", "cosine", "psnr_db", "share", "over")
        yield {**shared, **{name: output.get(name) for name in fields}, "why": output.get("reason", "")}


def tone_of(outcome: str) -> str:
    """``good``, ``fair`` or ``bad``."""
    return "good" if outcome in _GOOD else "fair" if outcome in _FAIR else "bad"


def _worst_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every output the case in which it is furthest from TensorFlow's, as a share of its tolerance."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["name"] is None:
            continue
        key = row["signature"], row["name"]
        if key not in worst or _badness(row) > _badness(worst[key]):
            worst[key] = row
    return list(worst.values())


def _badness(row: Mapping[str, Any]) -> tuple[bool, float]:
    share = row["share"]
    return not row["ok"], share if isinstance(share, int | float) else float("inf") if share == "Infinity" else 0.0
