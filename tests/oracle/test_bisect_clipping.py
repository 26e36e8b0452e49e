"""INT8 with ranges too narrow for the inputs at hand: bisect counts what is clipped, where that is the cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import oracle
from refimpl.converter import check_bundle
from refimpl.oracle.bisect import Report, bisect
from tests.bundles import main
from tests.precision.helpers import convert, images, small_cnn

NARROW = 0.05  # of what inputs really are


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that ships what disagrees with TensorFlow."""
    monkeypatch.setattr(check_bundle, "prove", lambda *args, **more: ())


def searched(folder: Path, scale: float) -> Report:
    """A bundle that was calibrated with inputs of this scale, searched on inputs of scale 1."""
    model = small_cnn(folder / "model")
    convert(
        model, folder / "low", [images(4, seed=seed, scale=scale) for seed in range(3)], precision="int8", verify=False
    )
    np.savez(folder / "golden.npz", **images(4, seed=9))  # type: ignore[arg-type]
    oracle.record(model, folder / "golden", cases=str(folder / "golden.npz"))
    return bisect(folder / "low", folder / "golden", ranking=False)


def test_a_range_that_is_too_narrow(tmp_path: Path, careless: None, capfd: pytest.CaptureFixture[str]) -> None:
    found = searched(tmp_path, NARROW).finding
    assert found is not None
    assert found.op[1] == "Conv2D"
    (clipped,) = found.clipped
    assert clipped.tensor == "serving_default_x:0"
    x = images(4, seed=9)["x"]
    step = clipped.limit / 128
    assert clipped.values == x.size
    assert clipped.count == int(((x < -clipped.limit - step / 2) | (x > clipped.limit - step / 2)).sum())
    assert clipped.count > x.size / 2
    assert clipped.limit == pytest.approx(NARROW * clipped.reaches, rel=0.3)
    assert clipped.reaches == pytest.approx(float(np.abs(x).max()))
    assert clipped.share > 1

    assert main("bisect", tmp_path / "low", tmp_path / "golden", "--no-rank") == 1
    text = " ".join(capfd.readouterr().out.split())
    assert f"int8 clips {clipped.count} of 1,024 values of serving_default_x:0: its range goes to" in text
    assert "calibrate with inputs like these" in text
    assert main("bisect", tmp_path / "low", tmp_path / "golden", "--no-rank", "--json") == 1
    data: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert data["finding"]["clipped"][0]["count"] == clipped.count


def test_clipping_that_changes_little_is_not_the_cause(tmp_path: Path, careless: None) -> None:
    """The ranges are right; a wrong weight is to blame, and the few values beyond the range are not mentioned."""
    from onnx import numpy_helper

    from tests.oracle.planting import edit_island, unguard

    assert searched(tmp_path, 0.9).finding is None

    def edit(model: Any) -> None:
        weight = max(model.graph.initializer, key=lambda item: int(np.prod(item.dims)))
        value = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(-value, weight.name))

    edit_island(tmp_path / "low", edit)
    unguard(tmp_path / "low")
    found = bisect(tmp_path / "low", tmp_path / "golden", ranking=False).finding
    assert found is not None
    assert found.clipped == ()
    assert not any("clips" in line for line in found.remarks)
