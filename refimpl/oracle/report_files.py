"""Where the reports of a check go: refused before anything runs, and written whole or not at all.

A report of an earlier check is overwritten, as CI systems expect it of a JUnit file. Nothing else is.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from refimpl.errors import GoldenError, RecipeError

JUNIT = '<testsuites name="refimpl check '  # what makes a file known as such a report
MARKDOWN = "## "
_HEAD = 512  # bytes: the marks stand at the beginning


def require_writable(option: str, file: Path, mark: str, spared: Sequence[Path]) -> None:
    """Make sure that a report can be written to a file.

    Args:
        option: that names the file.
        file: where the report is to go.
        mark: :data:`JUNIT` or :data:`MARKDOWN`.
        spared: directories that nothing is written into: a bundle with one file more than it was made with is damaged.

    Raises:
        RecipeError: it is a directory or another sort of file, lies in one of ``spared``, or cannot be written.
    """
    target = file.resolve()
    if any(target.is_relative_to(folder.resolve()) for folder in spared):
        raise RecipeError(
            f"{option} {file} lies in the bundle or in the record that is judged", hint="choose a place beside them"
        )
    if not target.parent.is_dir():
        raise RecipeError(f"{option} {file}: {target.parent} is no folder", hint="create it first, or choose another")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise RecipeError(f"{option} {file} cannot be written to", hint="choose a place that you may write to")
    if target.is_dir() or (target.is_file() and not _is_report(target, mark)):
        raise RecipeError(
            f"{option} {file} exists, and is no such report",
            hint="choose another name: only reports of earlier checks are overwritten",
        )


def write(file: Path, text: str) -> None:
    """Write a report; a file appears whole or stays as it was.

    Raises:
        GoldenError: it cannot be written.
    """
    target = file.resolve()
    try:
        if target.exists() and not target.is_file():  # a pipe, a terminal
            target.write_text(text, encoding="utf-8")
            return
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise GoldenError(f"cannot write {file}: {error.strerror}", hint="choose another place") from error


def _is_report(file: Path, mark: str) -> bool:
    with file.open("rb") as stream:
        head = stream.read(_HEAD).decode("utf-8", errors="replace")
    known = (f"{mark}PASSED: ", f"{mark}FAILED: ") if mark == MARKDOWN else (mark,)
    return not head or any(text in head for text in known)
