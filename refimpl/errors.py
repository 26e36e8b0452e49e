"""The error tree, and the one way to say where an error happened.

    RefimplError          what the user can act on: printed without a traceback, exit code 2
      RecipeError         the recipe or the command line asks for something impossible
      SourceError         the SavedModel cannot be read, or has no such tag or signature
      UnsupportedError    something is missing on this machine (TensorFlow, TensorRT, an engine)
      BuildError          an engine could not be built
      RunError            an engine or a TensorFlow step failed while running
      BundleError         the bundle on disk is damaged, foreign or of a newer format
      GoldenError         a golden record is missing, damaged or does not fit
    InternalError         our bug: full traceback, exit code 3

Stages add *where* an error happened on its way up (:func:`stage`); the message says *what*, the hint *what to do*.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class RefimplError(Exception):
    """Base of every error that a user can act on.

    Args:
        message: what is wrong, naming the thing.
        hint: what to do about it; printed on its own line.
        where: names of places (``signature="serving_default"``), outermost first.
    """

    def __init__(self, message: str, *, hint: str = "", **where: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where: dict[str, object] = where

    def __str__(self) -> str:
        at = ", ".join(f"{key}={value}" for key, value in self.where.items())
        text = self.message + (f" [{at}]" if at else "")
        return f"{text}\nhint: {self.hint}" if self.hint else text


class RecipeError(RefimplError):
    """The recipe or the command line asks for something impossible."""


class SourceError(RefimplError):
    """The SavedModel cannot be read, or has no such tag or signature."""


class UnsupportedError(RefimplError):
    """Something that was asked for is missing on this machine."""


class BuildError(RefimplError):
    """An engine could not be built."""


class RunError(RefimplError):
    """An engine or a TensorFlow step failed while running."""


class BundleError(RefimplError):
    """The bundle on disk is damaged, foreign, or of a newer format."""


class GoldenError(RefimplError):
    """A golden record is missing, damaged, or does not fit what it is compared with."""


class InternalError(Exception):
    """A broken invariant of refimpl itself; never the user's fault."""


@contextlib.contextmanager
def stage(name: str, **where: object) -> Iterator[None]:
    """Add the name of a stage, and where it was, to any :class:`RefimplError` that passes through."""
    try:
        yield
    except RefimplError as error:
        error.where = {"stage": name, **where, **error.where}
        raise


def first_line(error: BaseException) -> str:
    """The line of a library's error that says what happened, 300 characters at most.

    TensorFlow puts headings and Python stacks before it, and nodes after it.
    """
    lines = str(getattr(error, "message", "") or error).splitlines()
    at_nodes = [number for number, line in enumerate(lines) if line.startswith("Node: ")]
    lines = lines[at_nodes[-1] + 1 if at_nodes else 0 :]
    headings = ("Graph execution error:", "Detected at node", "<stack traces unavailable>")
    said = (line.strip() for line in lines if line.strip() and not line.strip().startswith(headings))
    return next(said, type(error).__name__)[:300]
