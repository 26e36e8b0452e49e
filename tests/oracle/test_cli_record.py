"""The command ``record``: what is printed where, its options, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from refimpl import oracle
from refimpl.cli_record import parse_shapes, record
from refimpl.errors import GoldenError, RecipeError
from tests.oracle import saved_models
from tests.oracle.saved_models import spec, tf


def invoke(*args: object) -> Result:
    return CliRunner().invoke(record, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def call(x: Any) -> dict[str, Any]:
        return {"y": x * 2, "n": x / tf.reduce_max(tf.abs(x)), "r": tf.random.uniform([2])}

    return saved_models.from_function(tmp_path_factory.mktemp("m") / "m", call, spec([None, 4], tf.float32, "x"))


def test_record(model: Path, tmp_path: Path) -> None:
    result = invoke(model, tmp_path / "g", "--seed", "5", "--shape", "x=?x4")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'g'}: ")
    assert "serving_default/normal-b3  (r: values not repeatable)" in result.stdout
    assert "serving_default/denormals" in result.stdout
    assert "(n: hangs on what a machine makes of subnormals)" in " ".join(result.stdout.split())
    assert "loading m" in result.stderr
    assert oracle.read_golden(tmp_path / "g").provenance.seed == 5
    refused = invoke(model, tmp_path / "g")
    assert isinstance(refused.exception, GoldenError)


def test_json(model: Path, tmp_path: Path) -> None:
    data = json.loads(invoke(model, tmp_path / "g", "--json").stdout)
    assert data["signatures"] == ["serving_default"]
    kinds = {case["name"]: case["kind"] for case in data["cases"]}
    assert kinds["zeros"] == "ordinary"
    assert kinds["denormals"] == "stress"
    assert all(case["labels"] == [] for case in data["cases"])


def test_labels(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.ones((3, 4), np.float32), truth=np.array([1, 0, 1]), who=np.array(list("abc")))
    options = ("--cases", tmp_path / "mine.npz", "--label", "truth", "--label", "who")
    result = invoke(model, tmp_path / "g", *options, "--json")
    assert result.exit_code == 0, result.output
    assert [case["labels"] for case in json.loads(result.stdout)["cases"]] == [["truth", "who"]]
    (case,) = oracle.read_golden(tmp_path / "g").cases
    assert {name: array.tolist() for name, array in case.labels.items()} == {
        "truth": [1, 0, 1],
        "who": [b"a", b"b", b"c"],
    }
    assert list(case.inputs) == ["x"]
    index = json.loads((tmp_path / "g" / "golden.json").read_text())
    assert [(label["name"], len(label["sha256"])) for label in index["cases"][0]["labels"]] == [
        ("truth", 64),
        ("who", 64),
    ]


def test_labels_without_cases(model: Path, tmp_path: Path) -> None:
    refused = invoke(model, tmp_path / "g", "--label", "truth")
    assert isinstance(refused.exception, GoldenError)
    assert "--cases DATA --label NAME" in refused.exception.hint
    assert not (tmp_path / "g").exists()


def test_shapes() -> None:
    assert parse_shapes(("x=1x224x224x3", "a=b=?x8", "n=5")) == {"x": (1, 224, 224, 3), "a=b": (None, 8), "n": (5,)}
    for wrong in ("x", "x=", "=1x2", "x=1,2", "x=1xa", "x=-1x2"):
        with pytest.raises(RecipeError, match="is not NAME"):
            parse_shapes((wrong,))
