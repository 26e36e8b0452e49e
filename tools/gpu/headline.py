"""The headline of the docs: what was predicted without a GPU, and what a GPU then did, for each model and precision.

python -m tools.gpu.headline    # writes it into README.md and docs/index.md, from docs/benchmarks/gpu-prediction.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RECORD = ROOT / "docs" / "benchmarks" / "gpu-prediction.json"
PLACES = (ROOT / "README.md", ROOT / "docs" / "index.md")
_START, _END = "<!-- gpu-prediction: python -m tools.gpu.headline -->", "<!-- end of gpu-prediction -->"


def table(data: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: a row for each model, ``predicted -> measured`` for each precision that was asked for."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in data["rows"]:
        rows.setdefault(row["model"], {})[row["precision"]] = row
    kinds = [kind for kind in ("fp32", "fp16", "bf16", "int8") if any(kind in found for found in rows.values())]
    lines = [
        f"| relative error against TensorFlow | {' | '.join(kind.upper() for kind in kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    old = any(row.get("code") for row in data["rows"])
    notes = ["", "\\* measured on the same GPU with an earlier version."] if old else []
    return [*lines, *_rows(rows, kinds), *notes]


def _rows(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], kinds: Sequence[str]) -> list[str]:
    return [f"| {model} | {' | '.join(_cell(found.get(kind)) for kind in kinds)} |" for model, found in rows.items()]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["measured"] is None:
        return "not on the GPU"
    other = "" if row["built"] == row["precision"] else f" ({row['built']})"
    predicted = "-" if row["predicted"] is None else f"{row['predicted']:.1e}"
    return f"{predicted} → {row['measured']:.1e}{other}{'*' if row.get('code') else ''}"


def written(text: str, data: Mapping[str, Any]) -> str:
    """A page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    if _START not in text or _END not in text:
        raise ValueError(f"there is no {_START} ... {_END}")
    before, rest = text.split(_START, 1)
    return "\n".join([f"{before}{_START}", "", *table(data), "", f"{_END}{rest.split(_END, 1)[1]}"])


def main() -> int:
    """Write the pages."""
    data = json.loads(RECORD.read_text(encoding="utf-8"))
    for place in PLACES:
        place.write_text(written(place.read_text(encoding="utf-8"), data), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
