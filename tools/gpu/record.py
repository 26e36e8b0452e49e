"""What the tools for machines with a GPU share: the machine, checks, and the files that they write."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refimpl import env, gpus
from refimpl.engines import tensorrt

OUT = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks"


@dataclass(frozen=True)
class Check:
    """Something that ought to hold.

    Attributes:
        what: a sentence.
        found: numbers and reasons.
        holds: None when it could not be tried here; ``found`` says why.
    """

    what: str
    found: str
    holds: bool | None


def machine() -> dict[str, Any]:
    """The GPU, the driver and the versions that numbers depend on."""
    driver, found = gpus.list_gpus()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "gpu": [asdict(gpu) for gpu in found],
        "cuda": driver,
        "tensorrt": tensorrt.version(),
        "processor": env.processor(),
        "versions": dict(env.versions()),
    }


def machine_line(data: Mapping[str, Any]) -> str:
    """One line of Markdown."""
    gpu = ", ".join(f"{item['name']} (compute capability {item['compute_capability']})" for item in data["gpu"])
    where = f"{gpu or 'no GPU'}, CUDA {data['cuda'] or '-'}, {data['tensorrt'] or 'no TensorRT'}, {data['processor']}"
    return f"* {data['date']}, {where}"


def checks_table(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    said = {True: "yes", False: "**no**", None: "not tried"}
    rows = [f"| {item['what']} | {said[item['holds']]} | {item['found']} |" for item in checks]
    return ["| what | holds | found |", "|---|---|---|", *rows]


def write(folder: Path, name: str, data: Mapping[str, Any], markdown: str) -> None:
    """Write ``name.json`` and ``name.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
