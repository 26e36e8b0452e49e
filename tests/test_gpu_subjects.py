"""Models that travel to a machine with a GPU, and the command that asks everything there."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tools.gpu import __main__ as everything
from tools.gpu import prediction, subjects


def test_a_carried_model_is_the_one_that_was_written(tmp_path: Path) -> None:
    assert subjects.main([str(tmp_path / "there"), "--only", "lstm"]) == 0
    (name,) = found = subjects.carried(tmp_path / "there")
    subject, made = found[name](), subjects.SUBJECTS["lstm"]()
    assert name == "lstm"
    assert (subject.make(tmp_path) / "saved_model.pb").read_bytes() == (
        made.make(tmp_path) / "saved_model.pb"
    ).read_bytes()
    assert len(subject.samples()) == subjects.SAMPLES
    for got, want in zip([*subject.samples(), subject.judged()], [*made.samples(), made.judged()], strict=True):
        assert got.keys() == want.keys()
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])


def test_strings_travel(tmp_path: Path) -> None:
    subjects.carry("decode_and_label", tmp_path)
    judged = subjects.carried(tmp_path)["decode_and_label"]().judged()
    assert any(value.dtype == object for value in judged.values())


def test_both_verdicts_are_told() -> None:
    row = prediction.Row("m", "fp16", "fp16", 1e-3, 2e-3, "", "1 fp16")
    wrong = prediction.Row("n", "fp16", "fp16", 1e-3, 2.0, "", "1 fp16", "", "max 2")
    absent = prediction.Row("o", "fp16", "fp16", 1e-3, None, "no GPU", "1 fp16")
    assert [item.same_verdict for item in (row, wrong, absent)] == [True, False, None]
    text = prediction.markdown(prediction.record([row, wrong, absent]))
    assert "| m | fp16 | fp16 | 1 fp16 | 0.001 | 0.002 | 2.00 | yes | - |" in text
    assert "| n | fp16 | fp16 | 1 fp16 | 0.001 | 2 | 2000.00 | **no** | - |" in text
    assert "| o | fp16 | fp16 | 1 fp16 | 0.001 | - | - | - | - |" in text


def test_what_ought_to_hold_is_said_of_all_models() -> None:
    row = prediction.Row("m", "fp16", "fp16", 1e-3, 1.9e-3, "", "1 fp16", checked="")
    found = prediction.checks(prediction.record([row, replace(row, model="n", measured=0.6e-3)])["rows"])
    assert [(check.holds, check.found) for check in found] == [(True, "2 of 2 models")] * 3
    for spoiled, which in (
        ({"checked": "y: max 2"}, [False, True, True]),
        ({"measured": 2.1e-3}, [True, False, True]),
        ({"measured": 0.4e-3}, [True, False, True]),
        ({"measured": 2.0, "finds": "max 2", "checked": "y: max 2"}, [False, True, False]),
    ):
        found = prediction.checks(prediction.record([row, replace(row, model="n", **spoiled)])["rows"])
        assert [check.holds for check in found] == which
        assert all(check.found == ("2 of 2 models" if check.holds else "1 of 2 models, not n") for check in found[::2])
    nothing = replace(row, measured=None, checked=None)
    assert [check.holds for check in prediction.checks(prediction.record([nothing])["rows"])] == [None] * 3
    old = [{"model": "m", "precision": "fp16", "ratio": 1.5, "same_verdict": True, "finds": ""}]
    assert [check.holds for check in prediction.checks(old)] == [None, True, True], "rows from before it was asked"


def test_a_model_that_cannot_be_made_costs_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the tests skip where a package is missing, and pytest's skip is no Exception."""

    def skips() -> subjects.Subject:
        pytest.skip("pip reaches no index")

    found = {"a": skips, "b": lambda: subjects.Subject(lambda _: tmp_path, list, dict)}
    monkeypatch.setattr(prediction, "SUBJECTS", found)
    row = prediction.Row("b", "fp16", "fp16", 1e-3, 1e-3, "", "1 fp16")
    monkeypatch.setattr(prediction, "compare", lambda *_: row)
    prediction.main(["--out", str(tmp_path / "out"), "--precision", "fp16"])
    rows = json.loads((tmp_path / "out" / "gpu-prediction.json").read_text())["rows"]
    assert [item["model"] for item in rows] == ["a", "b"]
    assert rows[0]["says"] == "not asked: Skipped: pip reaches no index"
    assert (tmp_path / "b-made").exists() is False, "links lie in the scratch folder"


def test_one_that_dies_or_hangs_costs_only_its_own_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {
        "dies": "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
        "fails": "raise ValueError",
        "ends": "print('done')",
        "hangs": "import time; time.sleep(60)",
    }
    package = tmp_path / "tools" / "gpu"
    package.mkdir(parents=True)
    for name, text in scripts.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(everything, "_examine", lambda out: None)
    out = tmp_path / "out"
    assert everything.main(["--only", ",".join(scripts), "--seconds", "4", "--out", str(out)]) == 1
    summary = {item["question"]: item["ended"] for item in json.loads((out / "summary.json").read_text())}
    assert summary == {"dies": "killed by signal 11", "fails": "failed", "ends": "whole", "hangs": "out of time"}
    assert (out / "dies.log").read_text().startswith("so far")
    assert "ValueError" in (out / "fails.log").read_text()


def test_what_a_tool_started_ends_with_it(tmp_path: Path) -> None:
    """A conversion that goes on would spoil the next tool's timings."""
    later = tmp_path / "later"
    child = f"import time; time.sleep(1.5); open({str(later)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with (tmp_path / "log").open("wb") as log:
        assert everything._run([sys.executable, "-c", parent], log, 0.7) is None
    time.sleep(1.5)
    assert not later.exists()


def test_side_by_side_every_model_has_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them costs is not lost with another, and their rows become one record."""
    package = tmp_path / "tools" / "gpu"
    package.mkdir(parents=True)
    (package / "prediction.py").write_text(_WRITES_A_ROW)
    (package / "speed.py").write_text("import sys, pathlib; pathlib.Path(sys.argv[2], 'alone').touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(everything, "_examine", lambda out: None)
    out = tmp_path / "out"
    stale = out / "prediction" / "dies" / "gpu-prediction.json"
    stale.parent.mkdir(parents=True)
    stale.write_text('{"of": "an earlier run"}')
    said = ["--only", "prediction,speed", "--models", "a,b,dies", "--jobs", "2", "--precision", "fp16"]
    assert everything.main([*said, "--out", str(out)]) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert [(item["question"], item.get("model"), item["ended"]) for item in summary] == [
        ("speed", None, "whole"),
        ("prediction", "a", "whole"),
        ("prediction", "b", "whole"),
        ("prediction", "dies", "failed"),
    ]
    rows = json.loads((out / "gpu-prediction.json").read_text())["rows"]
    assert [(row["model"], row["precision"]) for row in rows] == [("a", "fp16"), ("b", "fp16")]


_WRITES_A_ROW = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert given["--only"] != "dies"
row = {"model": given["--only"], "precision": given["--precision"], "built": "", "layers": "", "says": "", "finds": ""}
row |= {"predicted": None, "measured": None, "ratio": None, "same_verdict": None}
common = dict.fromkeys(("date", "cuda", "tensorrt", "code")) | {"gpu": [], "versions": {}}
pathlib.Path(given["--out"], "gpu-prediction.json").write_text(json.dumps(common | {"rows": [row]}))
"""


def test_what_tools_are_told_besides(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    (tmp_path / "README").touch()
    bundles = ("--bundle", str(tmp_path / "a"), "--bundle", str(tmp_path / "b"))
    given = argparse.Namespace(
        carried=tmp_path, bundles=tmp_path, models="a,b", precision="fp16", search="9", jobs=1, out=tmp_path / "out"
    )

    def told(name: str) -> list[tuple[str, ...]]:
        return [task.more for task in everything.tasks(name, given)]

    carried = ("--carried", str(tmp_path), "--precision", "fp16", "--seconds", "9")
    assert told("robustness") == [bundles]
    assert told("prediction") == [(*carried, "--only", "a,b")]
    assert told("speed") == [()]
    given.jobs = 2
    assert told("prediction") == [(*carried, "--only", "a"), (*carried, "--only", "b")]
    given.models = None
    assert [task.model for task in everything.tasks("prediction", given)] == [*subjects.SUBJECTS, "a", "b"]


def test_the_doctor_is_asked(tmp_path: Path) -> None:
    everything._examine(tmp_path)
    assert json.loads((tmp_path / "doctor.json").read_text())


def test_every_question_is_a_tool() -> None:
    folder = Path(everything.__file__).parent
    assert all((folder / f"{name}.py").exists() for name in everything.QUESTIONS)
