"""The command that measures performance: what it keeps and refuses, and a small run of all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.sources import ROOT
from tools.bench import __main__ as command
from tools.bench import conversion, machine, processes, record, workshop
from tools.bench.parts import Part, Subject
from tools.bench.processes import BenchError, python
from tools.bench.promises import PROMISES
from tools.bench.samples import BUSY, Round, Row
from tools.bench.workshop import Workshop

SUBJECT = Subject("it", "a spec")


class Counting:
    """A part whose rounds are numbered, and as busy as they are told to be."""

    def __init__(self, beside: float = 0.0) -> None:
        self.beside, self.asked, self.begun = beside, 0, 0
        self.part = Part(
            name="made-up",
            title="",
            about="",
            full=(SUBJECT,),
            quick=(SUBJECT,),
            repeats=3,
            rounds=self.rounds,
            commands=lambda subject: {"a": subject.spec},
        )

    def rounds(self, _subject: Subject, _shop: Workshop, count: int) -> Iterator[Round]:
        self.begun += 1
        for _ in range(count):
            self.asked += 1
            yield Round({"a": {"wall s": float(self.asked)}}, self.beside, 1.0)


def recorder(
    folder: Path, repeats: int = 3, *, again: bool = False, accept_busy: bool = False, minutes: float = 1
) -> record.Recorder:
    until = time.monotonic() + 60 * minutes
    return record.Recorder(
        folder=folder,
        repeats=repeats,
        until=until,
        tell=lambda line: None,
        again=again,
        accept_busy=accept_busy,
    )


def written(folder: Path) -> Row:
    return record.read(folder, "made-up")["it"]


def seconds(folder: Path) -> list[float]:
    return written(folder).values("a", "wall s")


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    made, shop = Counting(), Workshop(tmp_path)
    assert recorder(tmp_path, 2).measure(made.part, SUBJECT, shop)
    assert recorder(tmp_path, 2).measure(made.part, SUBJECT, shop)
    assert (made.asked, made.begun) == (2, 1)
    assert recorder(tmp_path, 5).measure(made.part, SUBJECT, shop)
    assert seconds(tmp_path) == [1, 2, 3, 4, 5]
    assert recorder(tmp_path, 2, again=True).measure(made.part, SUBJECT, shop)
    assert seconds(tmp_path) == [6, 7]


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    made, shop = Counting(), Workshop(tmp_path)
    assert not recorder(tmp_path, minutes=-1).measure(made.part, SUBJECT, shop)
    assert record.read(tmp_path, "made-up") == {}
    first = made.part.rounds

    def cut(subject: Subject, shop: Workshop, count: int) -> Iterator[Round]:
        yield next(first(subject, shop, count))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path).measure(replace(made.part, rounds=cut), SUBJECT, shop)
    assert seconds(tmp_path) == [1]
    assert recorder(tmp_path).measure(made.part, SUBJECT, shop)
    assert seconds(tmp_path) == [1, 2, 3]


def test_busy_rounds_are_marked_and_measured_again(tmp_path: Path) -> None:
    made, shop = Counting(beside=BUSY + 0.1), Workshop(tmp_path)
    assert recorder(tmp_path).measure(made.part, SUBJECT, shop)
    assert written(tmp_path).busy == 3
    made.beside = 0.1
    assert recorder(tmp_path).measure(made.part, SUBJECT, shop)
    assert (written(tmp_path).busy, seconds(tmp_path)) == (0, [4, 5, 6])


def test_a_quiet_record_does_not_give_way_to_a_busy_one(tmp_path: Path) -> None:
    made, shop = Counting(), Workshop(tmp_path)
    recorder(tmp_path).measure(made.part, SUBJECT, shop)
    made.beside = BUSY + 0.5
    with pytest.raises(BenchError, match=r"it: others kept 1\.2 cores busy"):
        recorder(tmp_path, again=True).measure(made.part, SUBJECT, shop)
    assert (written(tmp_path).busy, seconds(tmp_path)) == (0, [1, 2, 3])
    assert recorder(tmp_path, again=True, accept_busy=True).measure(made.part, SUBJECT, shop)
    assert written(tmp_path).busy == 3


@pytest.mark.parametrize("changed", [{"machine": {"code": "other"}}, {"commands": {"a": "another spec"}}])
def test_rounds_of_other_code_do_not_count(tmp_path: Path, changed: dict[str, object]) -> None:
    made, shop = Counting(), Workshop(tmp_path)
    recorder(tmp_path).measure(made.part, SUBJECT, shop)
    record.write(tmp_path, made.part, {"it": replace(written(tmp_path), **changed)})
    assert recorder(tmp_path).measure(made.part, SUBJECT, shop)
    assert seconds(tmp_path) == [4, 5, 6]


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / record.FOLDER).mkdir()
    (tmp_path / record.FOLDER / "made-up.json").write_text('{"rows": [{"subject": 1}]}')
    with pytest.raises(BenchError, match=r"made-up\.json is no record of samples"):
        record.read(tmp_path, "made-up")


def test_other_work_is_all_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, and guests, who are in user already."""
    stat, hertz = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(machine, "_STAT", stat)
    stat.write_text("cpu 0 0 0 0 0 0 0 0 0 0\ncpu0 1 1 1\n")
    monkeypatch.setattr(machine, "_own_busy", lambda: 10.0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    meter = machine.Meter()
    spent = [5 * hertz, 0, 2 * hertz, 900 * hertz, 50 * hertz, 0, 0, 1 * hertz, 5 * hertz, 0]
    stat.write_text("cpu " + " ".join(map(str, spent)) + "\n")
    monkeypatch.setattr(machine, "_own_busy", lambda: 14.0)
    monkeypatch.setattr(time, "monotonic", lambda: 108.0)
    assert meter.read() == (0.5, 8.0)


def test_our_own_children_are_no_other_work() -> None:
    """Of a child that computes, and nothing else of ours: what is counted is the child's time."""
    began = machine._own_busy()
    processes.run(python("-c", "import time\nwhile time.process_time() < 0.5: pass"))
    assert machine._own_busy() - began >= 0.45  # it is counted in ticks of a hundredth


def test_a_process_tells_what_it_took() -> None:
    code = "import time; a = bytearray(300 << 20)\nwhile time.process_time() < 0.3: pass"
    taken = processes.run(python("-c", code))
    assert taken["peak MiB"] > 300
    assert 0.3 <= taken["cpu s"] < 3
    assert taken["wall s"] >= 0.3


def test_a_process_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(BenchError, match="ended with 3: last words") as caught:
        processes.run(python("-c", "import sys; print('last words'); sys.exit(3)"))
    assert sys.executable not in str(caught.value)
    with pytest.raises(BenchError, match="ended with 4: oh"):
        list(processes.lines(python("-c", "import sys; print('a'); sys.stderr.write('oh'); sys.exit(4)")))


def test_commands_are_told_without_this_machine() -> None:
    words = python("-m", "refimpl", "convert", ROOT / "somewhere" / "model", "BUNDLE")
    assert processes.spelled(words) == "python -m refimpl convert model BUNDLE"


def test_what_was_made_is_used_again_and_a_draft_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []

    def run(words: list[str]) -> dict[str, float]:
        made.append(words)
        for place in words[4::2]:
            Path(place).mkdir(parents=True)
        return {}

    monkeypatch.setattr(processes, "run", run)
    (tmp_path / "models" / "relu.draft").mkdir(parents=True)
    shop = Workshop(tmp_path)
    assert [path.name for path in shop.saved_models(["relu", "dense_stack:width=4,depth=1"])] == [
        "relu",
        "dense_stack-width=4-depth=1",
    ]
    assert shop.saved_model("relu").is_dir()
    assert len(made) == 1
    assert not list((tmp_path / "models").glob("*.draft"))


def test_sizes_count_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"12")
    (tmp_path / "a.onnx.data").write_bytes(b"123")
    (tmp_path / "a.npz").write_bytes(b"1")
    assert workshop.size(tmp_path) == 6
    assert workshop.size(tmp_path, *workshop.ENGINES, "*.onnx*") == 5


def test_small_figures_do_not_go_to_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["start", "--quick"], "name another folder with --out"),
        (["start", "--only", "nothing"], "no subject's name begins with 'nothing'"),
        (["start", "--repeats", "0"], "1 or more"),
        (["begin"], "invalid choice: 'begin'"),
    ):
        with pytest.raises(SystemExit) as caught:
            command.main(words)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def test_every_model_of_the_parts_can_be_made() -> None:
    from tools.bench.models import MODELS

    specs = {subject.spec for part in command.PARTS.values() for subject in (*part.full, *part.quick)}
    assert {spec.partition(":")[0] for spec in specs} <= set(MODELS)
    for part in command.PARTS.values():
        subjects = {subject.name: subject for subject in (*part.full, *part.quick)}
        assert all(subjects[subject.name] == subject for subject in part.full), "a record has one row a name"
        assert len({item.name for item in part.full}) == len(part.full)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # two minutes on an idle machine
def test_a_small_run_of_everything(tmp_path: Path) -> None:
    """In a process of its own, since what a process has in memory is the least that its children are said to have."""
    words = ["all", "--quick", "--repeats", "1", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    done = subprocess.run(
        python("-m", "tools.bench", *words, "--minutes", "30"), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {name: record.read(tmp_path, name) for name in command.PARTS}
    for name, part in command.PARTS.items():
        assert list(rows[name]) == [subject.name for subject in part.quick]
    _check_promises(rows)
    scale = [row.values("refimpl", "islands") for row in rows["scale"].values()]
    assert scale == [[1], [2], [4]]
    assert rows["inference"]["one Relu"].facts["islands"] == 1
    data = json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))
    for part in data["parts"]:
        for pair in command.PARTS[part["name"]].pairs:
            assert str(pair) == "refimpl / tf2onnx" or any(str(pair) in row["ratios"] for row in part["rows"]), pair
    assert str(tmp_path) not in (tmp_path / "performance.md").read_text(encoding="utf-8")


def _check_promises(rows: dict[str, dict[str, Row]]) -> None:
    """Each can be read from samples as they really are, and gives a number that can be."""
    for promise in PROMISES:
        if promise.part != "inference":
            (found, *_) = rows[promise.part].values()
        else:
            found = rows["inference"]["one Relu" if promise.unit else "dense, batch 2"]
        if promise.part != "scale" or found.values("refimpl", "weights MiB")[0] > 0:
            values = promise.values(found)
            assert promise.unit or min(values) > 0, promise.what
            assert len(values) == 1


def test_a_peer_that_cannot_build_an_engine_is_no_peer() -> None:
    subjects = {subject.name: subject for subject in conversion.PART.full}
    found = conversion.commands(Path("m"), Path("f"), subjects["bert_base"])
    assert list(found) == [conversion.TF2ONNX, conversion.OURS]
    assert conversion.ENGINE in conversion.commands(Path("m"), Path("f"), subjects["resnet50"])
