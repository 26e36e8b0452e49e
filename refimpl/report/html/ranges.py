"""INT8 ranges for the page: what calibration saw of each tensor, with its histogram as the path of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refimpl.calibration import CalibrationTable, TensorRange

WIDTH, HEIGHT = 192, 32  # of the picture of a histogram, in its own units


def calibration_data(tables: Sequence[CalibrationTable]) -> list[dict[str, Any]]:
    """One object per signature: how it was calibrated, and its tensors, those that lose most to clipping first."""
    return [
        {
            "signature": table.signature,
            "method": table.method if table.method != "percentile" else f"percentile {table.percentile:g} %",
            "batches": table.batches,
            "created": table.created,
            "warnings": list(table.warnings),
            "tensors": [
                _tensor(name, item) for name, item in sorted(table.ranges.items(), key=lambda row: -row[1].clipped)
            ],
        }
        for table in tables
    ]


def _tensor(name: str, item: TensorRange) -> dict[str, Any]:
    island, _, tensor = name.partition("/")
    cut = WIDTH * item.threshold / item.largest if item.largest else 0.0
    return {
        "island": island,
        "name": tensor,
        "low": item.low,
        "high": item.high,
        "threshold": item.threshold,
        "clipped": item.clipped,
        "seen": item.values,
        "zeros": item.zeros,
        "nonfinite": item.nonfinite,
        "quantiles": dict(item.quantiles),
        "path": histogram_path(item.histogram),
        "cut": round(min(cut, WIDTH), 1),
    }


def histogram_path(counts: Sequence[int]) -> str:
    """The bars of a histogram as one SVG path; heights are the square roots of the counts, so that tails are seen."""
    most = max(counts, default=0)
    if not most:
        return ""
    width = WIDTH / len(counts)
    steps = [f"M0 {HEIGHT}"]
    for number, count in enumerate(counts):
        top = HEIGHT * (1 - (count / most) ** 0.5)
        if count:
            top = min(top, HEIGHT - 1.0)  # one value among millions is still seen
        steps.append(f"V{top:.1f}H{width * (number + 1):.1f}")
    return "".join([*steps, f"V{HEIGHT}Z"])
