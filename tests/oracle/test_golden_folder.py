"""``golden/``: its recipes still give it, bundles of its models pass it, and a change of a recipe is noticed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl.oracle import read_golden, record
from refimpl.oracle.runners import require_reference_tf
from tests.contract.sources import ROOT
from tools import golden as tool

require_reference_tf()

from golden import recipes  # noqa: E402  (it imports TensorFlow, which must come without oneDNN)

NAMES = sorted(recipes.RECIPES)
ISLANDS = {"convnet": 1, "classifier": 1, "lstm": 1, "words": 2, "encoder": 1, "ranking": 1, "half": 1}


def test_every_recipe_has_its_record_and_they_are_small() -> None:
    folders = {file.parent.name for file in tool.FOLDER.glob("*/golden")}
    assert folders == set(NAMES) == set(ISLANDS)
    files = [file for file in tool.FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) < 1_500_000


def in_a_fresh_process(*command: object) -> str:
    """What a command prints where oneDNN is off: with it, a convolution refuses an empty batch, and sums differ."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_regenerating_gives_the_same() -> None:
    lines = in_a_fresh_process(ROOT / "tools" / "golden.py").splitlines()
    assert sorted(line.split(":")[0] for line in lines) == NAMES
    for line in lines:
        cases = len(read_golden(tool.FOLDER / line.split(":")[0] / "golden").cases)
        assert cases >= 6
        assert f"weights and inputs of {cases} cases are equal bit for bit" in line


CONVERT_AND_CHECK = """
import contextlib, io, json, sys, refimpl
from refimpl import cli
out, *folders = sys.argv[1:]
for folder in folders:
    bundle = f"{out}/{folder.split('/')[-1]}"
    refimpl.convert(f"{folder}/saved_model", bundle)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main(["check", bundle, f"{folder}/golden", "--json"])
    print(json.dumps([code, json.loads(printed.getvalue())]))
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def checks(bundles: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Exit code and verdict of ``refimpl check`` on a bundle of each model, by name."""
    folders = [tool.FOLDER / name for name in NAMES]
    lines = in_a_fresh_process("-c", CONVERT_AND_CHECK, bundles, *folders).splitlines()
    return dict(zip(NAMES, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_it_passes(name: str, bundles: Path, checks: dict[str, tuple[int, dict[str, Any]]]) -> None:
    """Structure first: as many islands as planned, and each ran in an engine in some case."""
    code, verdict = checks[name]
    (judged,) = verdict["verdicts"]
    ran = {run["island"] for case in judged["cases"] for run in case["islands"] if run["engine"] == "onnxruntime"}
    assert len(ran) == len(refimpl.load(bundles / name).manifest.islands) == ISLANDS[name]
    record = read_golden(tool.FOLDER / name / "golden")
    assert [case["case"] for case in judged["cases"]] == [case.name for case in record.cases]
    assert (code, judged["problems"]) == (0, [])


# Faults in a recipe, each caught for what it is.


def one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of one layer, by the smallest step that float32 has there: no output would tell."""
    planted: list[int] = []

    def faulty(values: np.ndarray) -> np.ndarray:
        if not planted:
            values = values.astype(np.float32)
            values.flat[3] = np.nextafter(values.flat[3], np.float32(9))
            planted.append(3)
        return values

    monkeypatch.setattr(recipes, "drawn", faulty)


def another_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes.tf.nn, "softmax", recipes.tf.sigmoid)


def another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "record", lambda model, out: record(model, out, seed=1))


def fewer_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    real = recipes.Weights._keep
    monkeypatch.setattr(
        recipes.Weights, "_keep", lambda self, v, dtype: real(self, v, dtype) if v.ndim > 1 else v.astype(dtype)
    )


def another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recipes, "spec", lambda name, dtype, *shape: recipes.tf.TensorSpec((3, *shape[1:]), dtype, name)
    )


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (one_weight, r"^weight .* is another one$"),
        (another_op, "^normal-b1: output probabilities: max"),
        (another_seed, "^the seeds differ$"),
        (fewer_weights, "^the weights are"),
        (another_signature, "^the signatures differ$"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_changed_recipe_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = tool.regenerate("classifier")
    assert found.faults
    assert re.search(says, found.faults[0]), found.faults
    assert str(found).startswith("classifier: DIFFERS\n")


def test_another_input_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed, and yet another question: as when the drawing of values changes."""
    from refimpl.oracle import cases

    real = cases._draw
    monkeypatch.setattr(cases, "_draw", lambda *args: real(*args) * 1.0000001)
    found = tool.regenerate("classifier")
    assert "normal-b1: input x is not equal bit for bit" in found.faults


def test_a_record_of_another_model_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(tool.FOLDER / "ranking", tmp_path / "ranking")
    (tmp_path / "ranking" / "saved_model" / "fingerprint.pb").unlink()
    assert tool.regenerate("ranking", tmp_path).faults == ("the record was not made from the SavedModel beside it",)


def test_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--only", "half,ranking"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["half", "ranking"]
    one_weight(monkeypatch)
    assert tool.main(["--only", "ranking", "--check"]) == 1
    assert "ranking: DIFFERS" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.main(["--only", "absent"])
    assert "no recipe for absent" in capsys.readouterr().err


def test_writing_replaces_a_record(tmp_path: Path) -> None:
    stale = tmp_path / "half" / "golden" / "stale"
    stale.parent.mkdir(parents=True)
    stale.write_text("x")
    tool.write("half", tmp_path)
    assert not stale.exists()
    assert tool.regenerate("half", tmp_path).faults == ()


def test_writing_keeps_the_record_when_making_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half").mkdir()

    def fail(*_: Any) -> None:
        raise RuntimeError("no model")

    monkeypatch.setattr(recipes, "build", fail)
    with pytest.raises(RuntimeError, match="no model"):
        tool.write("half", tmp_path)
    assert (tmp_path / "half").is_dir()
