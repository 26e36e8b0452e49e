"""The commands ``record`` and ``check``: what is printed where, and the exit codes they own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner, Result

from refimpl import oracle
from refimpl.cli_oracle import check, parse_shapes, record
from refimpl.errors import GoldenError, RecipeError
from refimpl.oracle.golden import Golden
from tests.oracle import saved_models
from tests.oracle.fakes import FakeBundle
from tests.oracle.saved_models import spec, tf


def invoke(command: Any, *args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


@pytest.fixture
def bundle(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> FakeBundle:
    """What ``check`` will find behind any path."""
    fake = FakeBundle(golden)
    real = oracle.check

    def with_fake(path: Any, record: Any, **options: Any) -> Any:
        return real(path, record, open_with=fake.opener(), **options)

    monkeypatch.setattr(oracle, "check", with_fake)
    return fake


def test_record(tmp_path: Path) -> None:
    model = saved_models.from_function(
        tmp_path / "m", lambda x: {"y": x * 2, "r": tf.random.uniform([2])}, spec([None, 4], tf.float32, "x")
    )
    result = invoke(record, model, tmp_path / "g", "--seed", "5", "--shape", "x=?x4")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'g'}: ")
    assert "serving_default/normal-b3  (r: values not repeatable)" in result.stdout
    assert "loading m" in result.stderr
    again = invoke(record, model, tmp_path / "h", "--json")
    data = json.loads(again.stdout)
    assert data["signatures"] == ["serving_default"]
    assert {"signature": "serving_default", "name": "zeros", "kind": "ordinary"}.items() <= data["cases"][2].items()
    assert oracle.read_golden(tmp_path / "g").provenance.seed == 5
    refused = invoke(record, model, tmp_path / "g")
    assert isinstance(refused.exception, GoldenError)


def test_check_passes(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    result = invoke(check, "b", golden.path, "--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "PASSED: 3 of 3 cases match TensorFlow"
    assert "normal-b1: match" in result.stderr
    assert ET.fromstring((tmp_path / "j.xml").read_text()).get("failures") == "0"
    assert (tmp_path / "m.md").read_text().startswith("## PASSED")


def test_check_fails_with_exit_code_1(bundle: FakeBundle, golden: Golden) -> None:
    bundle.fault = lambda outputs: {**outputs, "scores": np.zeros_like(outputs["scores"])}
    result = invoke(check, "b", golden.path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["outcome"] == "mismatch"


@pytest.mark.parametrize(("options", "code"), [((), 1), (("--allow-fallback",), 1), (("--allow-unaccelerated",), 0)])
def test_nothing_accelerated(bundle: FakeBundle, golden: Golden, options: tuple[str, ...], code: int) -> None:
    bundle.islands = lambda case: ()
    assert invoke(check, "b", golden.path, *options).exit_code == code


def test_engines_are_passed_on(bundle: FakeBundle, golden: Golden) -> None:
    assert invoke(check, "b", golden.path, "--engine", "tensorrt").exit_code == 1
    assert invoke(check, "b", golden.path, "--engine", "tensorrt", "--engine", "onnxruntime").exit_code == 0


def test_a_report_that_cannot_be_written(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    result = invoke(check, "b", golden.path, "--junit", tmp_path / "no" / "j.xml")
    assert isinstance(result.exception, GoldenError)


def test_shapes() -> None:
    assert parse_shapes(("x=1x224x224x3", "a=b=?x8", "n=5")) == {"x": (1, 224, 224, 3), "a=b": (None, 8), "n": (5,)}
    for wrong in ("x", "x=", "=1x2", "x=1,2", "x=1xa", "x=-1x2"):
        with pytest.raises(RecipeError, match="is not NAME"):
            parse_shapes((wrong,))
