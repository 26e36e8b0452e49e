"""What every test shares: the cached models."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def model() -> Callable[[str], Path]:
    """Directory of a model's SavedModel by its name in ``tests.models.MODELS``; made once, then cached."""
    from tests.models import saved_model

    return saved_model


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A command sends the package's log to the terminal, and keeps it from others who listen: for that test alone."""
    logger = logging.getLogger("refimpl")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lines break depends on how long the paths of this checkout are. Tests about widths set their own."""
    monkeypatch.setenv("COLUMNS", "1000")
