"""What every test shares: the cached models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Where lines break depends on how long the paths of this checkout are. Tests that are about widths set their own.
os.environ["COLUMNS"] = "1000"


@pytest.fixture(scope="session")
def model() -> Callable[[str], Path]:
    """Directory of a model's SavedModel by its name in ``tests.models.MODELS``; made once, then cached."""
    from tests.models import saved_model

    return saved_model
