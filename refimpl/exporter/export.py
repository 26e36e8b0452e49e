"""An export as a whole: a folder for each island, a README, a script that runs all, and a manifest."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refimpl import __version__, bundle, env
from refimpl.bundle import IslandRecord, Manifest
from refimpl.engines import tensorrt
from refimpl.errors import BundleError, RecipeError, stage
from refimpl.exporter import readme, script
from refimpl.exporter.island import Extras, StoredIsland, write_island

FORMAT = "refimpl export"
FORMAT_VERSION = 1
INDEX = "manifest.json"
_PORTABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def export_bundle(
    source: Path,
    target: Path,
    *,
    islands: Sequence[str] = (),
    extras: Mapping[str, Extras] | None = None,
    notes: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the islands of a bundle into a new folder.

    Args:
        source: the bundle; every file is compared with its checksum.
        target: directory to make; it must not exist.
        islands: names of those to export; empty means all.
        extras: by island, more forms and samples than the bundle holds.
        notes: sentences for the README.
        tell: receives a line for each island.

    Returns:
        The export's manifest.

    Raises:
        BundleError: not a bundle, damaged, or the disk is full.
        RecipeError: ``target`` exists or cannot be made, an island is unknown, or there is none.
    """
    manifest = bundle.read(source)
    chosen = pick_islands(source, manifest, islands)
    with bundle.atomic_directory(target) as folder:
        stored = []
        for record, signature in chosen:
            tell(f"exporting {record.name}")
            with stage("export", island=record.name):
                tf32 = bool(manifest.recipe.get("tf32", False)) and record.precision != "fp32"
                place = folder / record.name
                place.mkdir()
                extra = (extras or {}).get(record.name, Extras())
                found = write_island(source, manifest, record, signature, extra, place)
                (place / script.CONFIG).write_text(script.config_text(tf32=tf32), encoding="utf-8")
                _write_script(place / script.NAME, script.script_of(found, rtx=_is_rtx(found), tf32=tf32))
            stored.append(found)
        _write_script(folder / script.NAME, script.MAIN)
        if bundle.CALIBRATION in manifest.files:
            (folder / "calibration.json").write_bytes((source / bundle.CALIBRATION).read_bytes())
        (folder / "README.txt").write_text(readme.text(manifest, stored, notes), encoding="utf-8")
        return _write_index(folder, manifest, stored, notes)


def pick_islands(source: Path, manifest: Manifest, names: Sequence[str]) -> list[tuple[IslandRecord, str]]:
    """The islands of these names, or all, each with the key of its signature.

    Raises:
        RecipeError: an island is unknown, or the bundle has none.
        BundleError: a name would not be the name of one folder.
    """
    known = {island.name: (island, item.signature.key) for item in manifest.signatures for island in item.islands}
    if not known:
        raise RecipeError(f"{source} has no islands, so there is nothing to export", hint="refimpl explain says why")
    for name in names:
        if name not in known:
            raise RecipeError(f"no island {name!r} in {source}", hint=f"islands: {', '.join(known)}")
    for name in known:
        if not _PORTABLE.fullmatch(name):
            raise BundleError(f"{name!r} is no name of an island", hint="convert the model again")
    return [known[name] for name in (dict.fromkeys(names) or known)]


def is_export(folder: Path) -> bool:
    """Whether a folder was written by :func:`export_bundle`."""
    try:
        return bool(json.loads((folder / INDEX).read_text(encoding="utf-8"))["format"] == FORMAT)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _write_script(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


def _is_rtx(island: StoredIsland) -> bool:
    """Whether the island's engines are TensorRT for RTX's, or, without engines, whether that is installed here."""
    versions = [item.version for item in island.engines if item.kind == tensorrt.NAME] or [tensorrt.version()]
    return "rtx" in versions[0]


def _write_index(
    folder: Path, manifest: Manifest, islands: Sequence[StoredIsland], notes: Sequence[str]
) -> dict[str, Any]:
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "refimpl": __version__,
        "versions": dict(env.versions()),
        "bundle": {
            "bundle_id": manifest.bundle_id,
            "created": manifest.created,
            "refimpl": manifest.refimpl,
            "source_name": manifest.source_name,
            "source_sha256": manifest.source_sha256,
            "precision": manifest.precision,
            "verified": manifest.verified,
        },
        "islands": [_island_row(island) for island in islands],
        "notes": list(notes),
        "files": {name: bundle.file_sha256(folder / name) for name in files},
    }
    (folder / INDEX).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return data


def _island_row(island: StoredIsland) -> dict[str, Any]:
    return {
        "name": island.record.name,
        "signature": island.signature,
        "finite_only": island.record.finite_only,
        "inputs": list(island.inputs),
        "outputs": list(island.outputs),
        "forms": [dataclasses.asdict(form) for form in island.forms],
        "engines": [dataclasses.asdict(engine) for engine in island.engines],
        "samples": [
            {"name": item.sample.name, "arrays": item.arrays, "inputs": item.inputs, "outputs": item.outputs}
            | {"unfit": item.unfit}
            for item in island.samples
        ],
        "limits": script.limits_of(island),
        "missing": list(island.missing),
    }
