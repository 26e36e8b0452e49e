"""The command that makes a bundle again, from the recipe in its manifest."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refimpl.recipe import Recipe

_VALUES = {  # fields with an option of one value
    "precision": "--precision",
    "min_segment_size": "--min-segment-size",
    "max_engines": "--max-engines",
    "profile": "--profile",
    "calibration": "--calibration",
    "calibrator": "--calibrator",
    "percentile": "--percentile",
    "calibration_table": "--calibration-table",
    "max_drop": "--max-drop",
    "metric": "--metric",
}
_REPEATED = {
    "signatures": "--signature",
    "keep_in_tf": "--keep-in-tf",
    "keep_fp32": "--keep-fp32",
    "targets": "--target",
}
_FLAGS = {("tf32", True): "--tf32", ("verify", False): "--no-verify", ("use_calibration", False): "--no-calibration"}
RECIPE_FILE = "recipe.toml"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How a bundle is made again.

    Attributes:
        command: for a shell.
        recipe: what to write into :data:`RECIPE_FILE` first, as TOML, for choices that have no option; "" for none.
    """

    command: str
    recipe: str = ""


def reproduction(source_name: str, recipe: Mapping[str, Any], bundle_name: str) -> Reproduction:
    """The command with every choice that is not the default.

    Args:
        source_name: name of the SavedModel's directory; the manifest has no path.
        recipe: the manifest's.
        bundle_name: name of the bundle to make.
    """
    defaults = Recipe().to_json()
    changed = {name: value for name, value in recipe.items() if _plain(value) != _plain(defaults.get(name))}
    words, rest = ["refimpl", "convert", source_name, bundle_name], dict(changed)
    for name, option in _VALUES.items():
        if name in changed:
            words += [option, str(rest.pop(name))]
    for name, option in _REPEATED.items():
        words += [word for item in rest.pop(name, ()) for word in (option, str(item))]
    if "tags" in changed:
        words += ["--tags", ",".join(rest.pop("tags"))]
    for kind in rest.pop("engines", ()):
        words += ["--engine", kind] if kind != "onnxruntime" else []
    for name, shape in rest.pop("shapes", ()):
        words += ["--shape", f"{name}={'x'.join(map(str, shape))}"]
    for (name, value), option in _FLAGS.items():
        if rest.get(name) == value and name in rest:
            words.append(option)
            del rest[name]
    if rest:
        words += ["--recipe", RECIPE_FILE]
    return Reproduction(" ".join(map(shlex.quote, words)), "".join(f"{name} = {_toml(rest[name])}\n" for name in rest))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _toml(value: Any) -> str:
    """Numbers, booleans, strings and lists of strings are the same in JSON and TOML."""
    return json.dumps(value, ensure_ascii=True)
