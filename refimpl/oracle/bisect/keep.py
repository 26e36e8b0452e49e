"""What to type so that certain layers stay in float32."""

from __future__ import annotations

import fnmatch
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refimpl.bundle import Manifest
from refimpl.recipe import Recipe

REDUCED = ("fp16", "bf16", "int8")
# Fields of a recipe that are options of the same name, with a value each, or with one for each of several values.
_VALUES = (
    "precision",
    "min_segment_size",
    "max_engines",
    "calibrator",
    "percentile",
    "calibration_table",
    "profile",
    "max_drop",
    "metric",
)
_REPEATED = {"signatures": "--signature", "keep_in_tf": "--keep-in-tf", "engines": "--engine"}
_FLAGS = {"tf32": (True, "--tf32"), "use_calibration": (False, "--no-calibration"), "verify": (False, "--no-verify")}


def patterns(manifest: Manifest, layers: Sequence[str]) -> tuple[str, ...]:
    """For each layer, the shortest pattern that ``--keep-fp32`` takes and that names nothing else."""
    names = {name for island in manifest.islands for name, _, _, _ in island.layers}
    names |= {name for island in manifest.islands for name, _ in island.ops}
    return tuple(_shortest(layer, names - {layer}) for layer in dict.fromkeys(layers))


def _shortest(layer: str, others: Iterable[str]) -> str:
    parts = [_literal(part) for part in layer.split("/")]
    for count in range(min(2, len(parts)), len(parts)):
        pattern = "*/" + "/".join(parts[-count:])
        if fnmatch.fnmatchcase(layer, pattern) and not any(fnmatch.fnmatchcase(other, pattern) for other in others):
            return pattern
    return "/".join(parts)


def _literal(text: str) -> str:
    """``text`` with what means something in a pattern made to mean itself."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def command(manifest: Manifest, keep: Sequence[str]) -> str:
    """The command that made the bundle, with more layers kept in float32.

    Samples that were not given by a name that can be typed are called SAMPLES.
    """
    recipe, plain = (json.loads(json.dumps(item)) for item in (manifest.recipe, Recipe().to_json()))
    changed = {key: value for key, value in recipe.items() if value != plain.get(key)}
    words = ["refimpl", "convert", manifest.source_name or "SAVED_MODEL", "NEW_BUNDLE", *_options(changed)]
    if samples := changed.get("calibration"):
        words += ["--calibration", "SAMPLES" if " " in samples else samples]
    for name, shape in changed.get("shapes", ()):
        words += ["--shape", f"{name}={'x'.join(map(str, shape))}"]
    if tags := changed.get("tags"):
        words += ["--tags", ",".join(tags)]
    for name in dict.fromkeys([*recipe.get("keep_fp32", ()), *keep]):
        words += ["--keep-fp32", name]
    return shlex.join(words)


def _options(changed: Mapping[str, Any]) -> Iterable[str]:
    for key in _VALUES:
        if key in changed:
            yield from (f"--{key.replace('_', '-')}", str(changed[key]))
    for key, option in _REPEATED.items():
        for value in changed.get(key, ()):
            yield from (option, value)
    for key, (value, option) in _FLAGS.items():
        if key in changed and changed[key] is value:
            yield option
