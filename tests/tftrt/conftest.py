"""What the tests of TF-TRT's API share: no variable of the user's is set, and one converter that nobody may change."""

from __future__ import annotations

import pytest

from refimpl import tftrt_env
from tests.tftrt.models import converted


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """TF-TRT's variables are unset."""
    for row in tftrt_env.TABLE:
        monkeypatch.delenv(row.name, raising=False)


@pytest.fixture(scope="module")
def ready():
    """A converter that nobody may build or change."""
    return converted()
