"""Models that travel to a machine with a GPU, and the command that asks everything there."""

from __future__ import annotations

import json
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
    assert "| m | fp16 | fp16 | 1 fp16 | 0.001 | 0.002 | 2.00 | yes |" in text
    assert "| n | fp16 | fp16 | 1 fp16 | 0.001 | 2 | 2000.00 | **no** |" in text
    assert "| o | fp16 | fp16 | 1 fp16 | 0.001 | - | - | - |" in text


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
    out = tmp_path / "out"
    assert everything.main(["--only", ",".join(scripts), "--seconds", "4", "--out", str(out)]) == 1
    summary = {item["question"]: item["ended"] for item in json.loads((out / "summary.json").read_text())}
    assert summary == {"dies": "killed by signal 11", "fails": "failed", "ends": "whole", "hangs": "out of time"}
    assert (out / "dies.log").read_text().startswith("so far")
    assert "ValueError" in (out / "fails.log").read_text()


def test_every_question_is_a_tool() -> None:
    folder = Path(everything.__file__).parent
    assert all((folder / f"{name}.py").exists() for name in everything.QUESTIONS)
