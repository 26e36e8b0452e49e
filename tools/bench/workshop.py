"""Where benchmarks keep models and bundles: made once, each in a process of its own, and used again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl import env
from refimpl.bundle import MANIFEST
from tools.bench import processes

ENGINES = ("*.engine", "*.onnx", "*.onnx.data")  # of what in refimpl/islands/ an engine is opened from


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder of models and bundles.

    Attributes:
        folder: may be thrown away at any time.
    """

    folder: Path

    def saved_model(self, spec: str) -> Path:
        """The SavedModel that a spec of ``tools.bench.models`` names."""
        return self.saved_models([spec])[0]

    def saved_models(self, specs: Sequence[str]) -> list[Path]:
        """Several; those that are missing are made by one process."""
        targets = {spec: self.folder / "models" / _file_name(spec) for spec in specs}
        drafts = {spec: _draft(target) for spec, target in targets.items() if not target.exists()}
        if drafts:
            words = [word for spec, draft in drafts.items() for word in (spec, draft)]
            processes.run(processes.python("-m", "tools.bench.models", *words))
            for spec, draft in drafts.items():
                draft.rename(targets[spec])
        return list(targets.values())

    def bundle(self, spec: str, *options: str) -> Path:
        """The bundle of a model, converted with these options by the code of this checkout."""
        target = self.folder / "bundles" / env.code_digest()[:12] / _file_name("_".join([spec, *options]))
        if not target.exists():
            draft = _draft(target)
            processes.run(convert(self.saved_model(spec), draft, *options))
            draft.rename(target)
        return target


def convert(model: Path, bundle: Path, *options: str) -> list[str]:
    """The command."""
    return processes.python("-m", "refimpl", "convert", model, bundle, *options)


def _draft(target: Path) -> Path:
    """Where a directory is made, which gets its name when it is complete; what an earlier try left there is removed."""
    draft = target.with_name(f"{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    return draft


def _file_name(text: str) -> str:
    return re.sub(r"[^\w=]+", "-", text)


def size(path: Path, *patterns: str) -> int:
    """Bytes of all files below a directory, or of those whose names match."""
    wanted = patterns or ("*",)
    files = {file for pattern in wanted for file in path.rglob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)


def manifest(bundle: Path) -> dict[str, Any]:
    """A bundle's manifest, as it lies there: nothing is checked."""
    data: dict[str, Any] = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    return data


def facts(model: Path, bundle: Path) -> dict[str, float]:
    """How large a model is, and how many islands were made of it."""
    converted = [item for item in manifest(bundle)["signatures"] if item["converted"]]
    return {
        "ops": sum(item["ops_total"] for item in converted),
        "islands": sum(len(item["islands"]) for item in converted),
        "weights MiB": round(size(model / "variables") / (1 << 20), 3),
    }


def read_all(path: Path) -> None:
    """Read every file of a directory once, so that the first to be measured does not wait for the disk alone."""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass
