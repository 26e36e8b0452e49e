from __future__ import annotations

from pathlib import Path

import pytest

from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from tests.oracle.fakes import make_case, write_golden


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    """Two ordinary cases and an empty batch of the little NumPy model."""
    cases = [
        make_case("normal-b1", 1),
        make_case("normal-b3", 3, seed=4),
        make_case("empty-batch", 0, CaseKind.EMPTY_BATCH),
    ]
    return write_golden(tmp_path / "golden", cases)
