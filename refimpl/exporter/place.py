"""``TF_TRT_EXPORT_TRT_ENGINES_PATH``: TF-TRT's folder of plans, and an export of the bundle beside them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from refimpl import bundle, tftrt_env
from refimpl.bundle import EngineRecord, Manifest
from refimpl.errors import RecipeError
from refimpl.exporter.export import export_bundle, is_export
from refimpl.specs import TensorSpec

VARIABLE = "TF_TRT_EXPORT_TRT_ENGINES_PATH"
_log = logging.getLogger("refimpl.exporter")


def check_place() -> Path | None:
    """The folder that the variable names, made if it is not there; None when the variable is not set.

    Ask before a conversion: it takes long, and what it is for must not fail at its end.

    Raises:
        RecipeError: the folder cannot be made or written to.
    """
    if not (text := tftrt_env.read().engines_path):
        return None
    place = Path(text).absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"{VARIABLE} names {place}, which cannot be made: {error.strerror}", hint="name a folder, or unset it"
        ) from None
    if not os.access(place, os.W_OK):
        raise RecipeError(f"{VARIABLE} names {place}, which cannot be written to", hint="name another, or unset it")
    return place


def check_room(place: Path, folder: Path) -> None:
    """Refuse what an export of the bundle ``folder`` would have to replace in ``place``, unless it is an export itself.

    Raises:
        RecipeError: something else is there, or the bundle itself.
    """
    target = place / folder.name
    if target == folder.absolute():
        raise RecipeError(f"{VARIABLE} names the folder that {folder} lies in", hint="name another folder")
    if os.path.lexists(target) and not is_export(target):
        raise RecipeError(
            f"{target} is there and is no export, so {VARIABLE} cannot put one there", hint="remove or rename it first"
        )


def export_to_place(folder: Path, place: Path) -> None:
    """Write TF-TRT's plan files into ``place``, and the export to ``place/FOLDER``; an earlier export makes room.

    Args:
        folder: the finished bundle, whose name the export gets.
        place: what :func:`check_place` gave.

    Raises:
        BundleError: the bundle is damaged, or the disk is full.
        RecipeError: ``place/FOLDER`` is something else.
    """
    manifest = bundle.read(folder)
    export_plans(folder, manifest, place)
    check_room(place, folder)
    if not manifest.islands:
        _log.warning("%s: the bundle has no islands, so there is nothing to export", VARIABLE)
        return
    target = place / folder.name
    if is_export(target):
        shutil.rmtree(target)
    export_bundle(folder, target)


def export_plans(folder: Path, manifest: Manifest, place: Path) -> None:
    """Write every TensorRT engine as ``PLACE/<island>``, a plan file, and its shapes as ``PLACE/dims-<island>``.

    These are TF-TRT's names; as there, engines of one name overwrite each other.
    """
    place.mkdir(parents=True, exist_ok=True)
    for island in manifest.islands:
        for engine in island.engines:
            if engine.kind == "tensorrt" and engine.file:
                shutil.copyfile(folder / engine.file, place / island.name)
                (place / f"dims-{island.name}").write_text(_dims(island.inputs, engine), encoding="utf-8")


def _dims(inputs: Sequence[TensorSpec], engine: EngineRecord) -> str:
    lines = [spec.describe() for spec in inputs]
    for index, profile in enumerate(engine.profiles):
        low, opt, high = (tuple(map(tuple, profile[key])) for key in ("min", "opt", "max"))
        lines.append(f"profile {index}: min {low} opt {opt} max {high}")
    return "\n".join([*lines, ""])
