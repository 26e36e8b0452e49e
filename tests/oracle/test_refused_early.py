"""What is wrong with a ``refimpl check`` is said before a single case runs, and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import RefimplError
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from tests.oracle.commands import invoke
from tests.oracle.fakes import FakeBundle, make_case, write_golden


def refused(bundle: FakeBundle, *args: object) -> str:
    """The message of the one error; the bundle was not asked for anything."""
    result = invoke("b", bundle.golden.path, *args)
    assert isinstance(result.exception, RefimplError), result.output
    assert bundle.asked == bundle.asked_natively == []
    assert result.stdout == ""
    assert result.exception.hint
    return str(result.exception)


@pytest.fixture
def labelled(bundle: FakeBundle, tmp_path: Path) -> FakeBundle:
    """As ``bundle``, with labels in its golden record."""
    case = make_case("user", 8, CaseKind.USER)
    bundle.golden = write_golden(tmp_path / "l", [replace(case, labels={"label": case.outputs["classes"]})])
    return bundle


def test_metrics_that_do_not_exist(labelled: FakeBundle) -> None:
    assert "there is no metric 'top3'" in refused(labelled, "--metric", "top3")
    assert "cannot be imported: ModuleNotFoundError" in refused(labelled, "--metric", "no_such_module:f")
    assert "cannot be imported: AttributeError" in refused(labelled, "--metric", "json:no_such_function")


def test_metrics_without_labels(bundle: FakeBundle) -> None:
    text = "measures mae on labelled cases, and golden has none"
    assert f"--metric {text}" in refused(bundle, "--metric", "mae")
    assert "--max-drop judges top1 on labelled cases, and golden has none" in refused(bundle, "--max-drop", "1%")
    assert "--max-drop judges top1" in refused(bundle, "--max-drop", "1%", "--all-engines")
    assert "there is no metric 'top3'" in refused(bundle, "--metric", "top3")


@pytest.mark.parametrize(
    "label", [np.arange(8, dtype=np.float32).reshape(4, 2), np.full(8, 6), np.arange(5), np.arange(16).reshape(8, 2)]
)
def test_labels_that_do_not_fit_the_outputs(labelled: FakeBundle, tmp_path: Path, label: np.ndarray) -> None:
    """Regression labels for a metric of classes, a class too many, another number of examples, two labels for each."""
    case = replace(labelled.golden.cases[0], labels={"label": label})
    labelled.golden = write_golden(tmp_path / "wrong", [case])
    assert "case=user, signature=serving_default" in refused(labelled)
    assert "case=user" in refused(labelled, "--all-engines")


def test_a_function_that_fails(labelled: FakeBundle) -> None:
    assert "--metric json:loads fails on sample #0" in refused(labelled, "--metric", "json:loads")


# Baselines


def saved(judged: FakeBundle, tmp_path: Path, **changes: Any) -> Path:
    """The JSON of a check, changed in some parts."""
    data = json.loads(invoke("b", judged.golden.path, "--json").stdout)
    judged.asked.clear()
    judged.asked_natively.clear()
    for key, value in changes.items():
        data[key] = {**data[key], **value}
    file = tmp_path / "verdict.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def test_baselines(bundle: FakeBundle, tmp_path: Path) -> None:
    assert "nowhere.json cannot be read" in refused(bundle, "--baseline", tmp_path / "nowhere.json")
    file = saved(bundle, tmp_path)
    file.write_text(file.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert "is damaged" in refused(bundle, "--baseline", file)
    other_model = saved(bundle, tmp_path, bundle={"source_sha256": "6" * 64})
    assert "is of another model" in refused(bundle, "--baseline", other_model)
    other_golden = saved(bundle, tmp_path, golden={"sha256": "6" * 64})
    assert "was made with another golden record" in refused(bundle, "--baseline", other_golden)
    assert "allows nothing without --baseline" in refused(bundle, "--allow-drift", "size=1")


# Where reports go


def a_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    return folder / "notes.txt"


def another_report(folder: Path) -> Path:
    (folder / "r.xml").write_text('<testsuites name="pytest tests">', encoding="utf-8")
    return folder / "r.xml"


def no_folder(folder: Path) -> Path:
    return folder / "no" / "r.xml"


def a_folder(folder: Path) -> Path:
    (folder / "r").mkdir()
    return folder / "r"


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
@pytest.mark.parametrize(
    ("target", "text"),
    [
        (a_file, "exists, and is no such report"),
        (another_report, "exists, and is no such report"),
        (a_folder, "exists, and is no such report"),
        (no_folder, "is no folder"),
    ],
)
def test_targets(bundle: FakeBundle, tmp_path: Path, option: str, target: Callable[[Path], Path], text: str) -> None:
    file = target(tmp_path)
    before = file.read_bytes() if file.is_file() else b""
    assert text in refused(bundle, option, file)
    assert before == (file.read_bytes() if file.is_file() else b"")


def test_a_folder_that_nobody_may_write_to(bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: mode != os.W_OK and real(path, mode, **more))
    assert "cannot be written to" in refused(bundle, "--junit", tmp_path / "r.xml")


def test_nothing_is_written_into_what_is_judged(bundle: FakeBundle, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle.golden.path)
    for target in (bundle.golden.path / "r.xml", link / "cases" / "r.xml"):
        assert "lies in the bundle or in the record" in refused(bundle, "--junit", target)


def test_two_reports_in_one_file(bundle: FakeBundle, tmp_path: Path) -> None:
    file = tmp_path / "r"
    assert "name one file" in refused(bundle, "--junit", file, "--markdown", file)


def test_reports_of_earlier_checks_are_replaced(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    """In CI the same command runs again and again."""
    reports = ("--junit", tmp_path / "r.xml", "--markdown", tmp_path / "r.md")
    assert invoke("b", golden.path, *reports).exit_code == 0
    bundle.fault = lambda outputs: {**outputs, "scores": outputs["scores"] + 1}
    assert invoke("b", golden.path, *reports).exit_code == 1
    assert "FAILED" in (tmp_path / "r.md").read_text()
    assert "mismatch" in (tmp_path / "r.xml").read_text()
    assert invoke("b", golden.path, *reports).exit_code == 1, "a report of a failure is replaced, too"
    assert sorted(path.name for path in tmp_path.glob("*r.*")) == ["r.md", "r.xml"], "and nothing is left beside it"


def test_a_report_may_be_no_file(bundle: FakeBundle, golden: Golden) -> None:
    assert invoke("b", golden.path, "--junit", os.devnull).exit_code == 0


# Engines and signatures


def test_names_that_are_mistyped(bundle: FakeBundle) -> None:
    for more in ((), ("--all-engines",)):
        assert "engine 'tensorrrt' is not known" in refused(bundle, "--engine", "tensorrrt", *more)
        text = refused(bundle, "--signature", "serving_defualt", *more)
        assert "has no case of signature 'serving_defualt'" in text
        assert "it has cases of: serving_default" in text
