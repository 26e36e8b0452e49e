"""Cytoscape.js, which draws the graph of the HTML report: fetched once, when the package is built, by npm.

It is not committed. The version and the checksum of npm's archive are pinned here, so what ends up in a report is known
to the byte. ``setup.py`` runs this file by itself, without the rest of the package: it uses the standard library only.
Run ``python -m refimpl.vendoring`` to fetch it into a checkout.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAME = "cytoscape"
VERSION = "3.34.4"
# Subresource integrity, as `npm view cytoscape@VERSION dist.integrity` prints it.
INTEGRITY = "sha512-msY99tMY8iWTg+sIPGfSqDcPNOt4xcj+v/K/7qUFaCUxxlqnMkUYLBjRUzn9W5CU/R2hrmtJa5+UtovrEM2ctg=="
FOLDER = Path(__file__).resolve().parent / "vendor"
LIBRARY, LICENCE, STAMP = "cytoscape.min.js", "cytoscape.LICENSE.txt", "cytoscape.version.txt"
HOW_TO_GET_IT = "with npm at hand, run python -m refimpl.vendoring, or install refimpl from source again"
_MEMBERS = {"package/dist/cytoscape.min.js": LIBRARY, "package/LICENSE": LICENCE}
_TIME_LIMIT = 120  # seconds for npm


class VendoringError(Exception):
    """The library could not be fetched; the message says why."""


def library(folder: Path = FOLDER) -> str | None:
    """The library's source text; None when it was not fetched, or is of another version than the pinned one."""
    try:
        stamp = (folder / STAMP).read_text(encoding="utf-8").strip()
        return (folder / LIBRARY).read_text(encoding="utf-8") if stamp == VERSION else None
    except OSError:
        return None


def licence(folder: Path = FOLDER) -> str:
    """The library's licence, "" when the library is not there."""
    try:
        return (folder / LICENCE).read_text(encoding="utf-8")
    except OSError:
        return ""


def fetch(folder: Path = FOLDER) -> None:
    """Put the pinned library and its licence into a folder, unless they are there.

    Args:
        folder: where to; it is made when it is missing.

    Raises:
        VendoringError: npm is missing, cannot reach a registry, or gave something else than the pinned archive.
    """
    if library(folder) is not None:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise VendoringError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="refimpl-vendor-") as place:
        archive = _packed(npm, Path(place))
        _require_pinned(archive.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as files:
            for member, name in _MEMBERS.items():
                stream = files.extractfile(member)
                if stream is None:
                    raise VendoringError(f"{member} is not in the archive of {NAME} {VERSION}")
                (folder / name).write_bytes(stream.read())
    (folder / STAMP).write_text(f"{VERSION}\n", encoding="utf-8")  # last: without it nothing counts


def _packed(npm: str, place: Path) -> Path:
    """The archive as npm downloads it."""
    command = [npm, "pack", f"{NAME}@{VERSION}", "--silent", "--ignore-scripts"]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=_TIME_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VendoringError(f"npm pack failed: {error}") from error
    found = sorted(place.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise VendoringError(f"npm pack failed: {said[-1] if said else 'it says nothing'}")
    return found[0]


def _require_pinned(content: bytes) -> None:
    got = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if got != INTEGRITY:
        raise VendoringError(f"the archive of {NAME} {VERSION} has integrity {got}, not the pinned {INTEGRITY}")


def main() -> int:
    """Fetch the library for a person, and say what came of it; 0 when it is there."""
    try:
        fetch()
    except VendoringError as error:
        sys.stderr.write(f"{NAME} {VERSION} was not fetched: {error}\n")
        return 1
    sys.stderr.write(f"{NAME} {VERSION} is in {FOLDER.name}/\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
