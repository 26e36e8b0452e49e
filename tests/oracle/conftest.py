from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refimpl import oracle
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from tests.oracle.fakes import FakeBundle, make_case, write_golden


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    """Two ordinary cases and an empty batch of the little NumPy model."""
    cases = [
        make_case("normal-b1", 1),
        make_case("normal-b3", 3, seed=4),
        make_case("empty-batch", 0, CaseKind.EMPTY_BATCH),
    ]
    return write_golden(tmp_path / "golden", cases)


@pytest.fixture
def bundle(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> FakeBundle:
    """What ``refimpl check`` will find behind any path."""
    fake = FakeBundle(golden)
    real = oracle.judge

    def with_fake(path: Any, record: Any, options: Any, **more: Any) -> Any:
        return real(path, record, options, open_with=fake.opener(), manifest_with=lambda p: fake.manifest, **more)

    monkeypatch.setattr(oracle, "judge", with_fake)
    return fake
