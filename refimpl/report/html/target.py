"""The file that a report is written to: refused before any work when it cannot be, and never there by half."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from refimpl.errors import RecipeError


def check_report_target(file: Path, sealed: Sequence[Path | None] = ()) -> None:
    """Refuse a file (a report, a picture) that exists, or that could not be written, before the work for it.

    Args:
        file: the one to write.
        sealed: folders whose contents have checksums, so that nothing may be added to them.

    Raises:
        RecipeError: with what to do.
    """
    if os.path.lexists(file):
        raise RecipeError(f"{file} exists already", hint="choose another name; nothing is ever overwritten")
    folder = file.absolute().parent
    for other in sealed:
        if other is not None and other.is_dir() and folder.resolve().is_relative_to(other.resolve()):
            raise RecipeError(
                f"{file} would lie inside {other}, whose files have checksums",
                hint="choose a place outside of it",
            )
    if not folder.is_dir():
        raise RecipeError(f"{file} lies in no folder that exists", hint="make the folder first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RecipeError(f"no file can be written into {folder}", hint="choose a folder that you may write to")


def write_report(file: Path, text: str) -> None:
    """Write a report or a picture; it appears whole or not at all.

    Raises:
        RecipeError: the file has come meanwhile, or the disk is full.
    """
    check_report_target(file)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:  # names may be no text
                stream.write(text)
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).rename(file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
    except OSError as error:
        raise RecipeError(
            f"cannot write {file}: {error.strerror or error}",
            hint="free some disk space, or choose another place",
        ) from error
