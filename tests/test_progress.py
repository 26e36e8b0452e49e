"""Progress: real counters, the time left that follows from them, and where each kind of line is shown."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

import refimpl
from refimpl import progress, progress_bar
from refimpl.converter import samples
from refimpl.progress import Counter, Step, prefixed
from refimpl.progress_bar import Lines, Stages, duration, reporter
from refimpl.recipe import Recipe
from tests.contract.sources import ROOT
from tests.models import saved_model

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only ``clock.now += seconds`` moves."""

    class Clock:
        now = 1000.0

    found = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: found.now)
    return found


def step(done: int, total: int = 10, stage: str = "building") -> Step:
    return Step(f"{stage} {done}", stage=stage, done=done, total=total)


# What is told


def test_a_step_is_a_line():
    told = []
    prefixed("numpy: ", told.append)(step(3))
    prefixed("numpy: ", told.append)("plain")
    assert told == ["numpy: building 3", "numpy: plain"]
    assert (told[0].stage, told[0].done, told[0].total, told[0].minor) == ("numpy: building", 3, 10, False)
    assert type(told[1]) is str


def test_a_counter_tells_at_most_once_a_second(clock):
    told: list[Step] = []
    counter = Counter(told.append, "asking the parser", 40, "op")
    for _ in range(30):
        clock.now += 0.1
        counter.advance()
    assert told[0] == "asking the parser"
    assert [(item, item.done) for item in told[1:3]] == [
        ("asking the parser: 10 of 40 ops", 10),
        ("asking the parser: 20 of 40 ops", 20),
    ]
    assert len(told) <= 4
    assert [item.minor for item in told] == [False] + [True] * (len(told) - 1)


def test_a_counter_without_a_total_only_counts(clock):
    told: list[Step] = []
    counter = Counter(told.append, "measuring", 0, "sample")
    clock.now += 2
    counter.advance()
    assert told[1:] == ["measuring: 1 sample"]
    assert told[1].total == 0


# How long it takes


def test_time_left_is_at_the_speed_so_far():
    stages = Stages()
    assert stages.left(step(0), 100.0) is None, "nothing is known before something is done"
    assert stages.left(step(2), 106.0) == pytest.approx(24.0)  # 3 s each, 8 to do
    assert stages.left(step(10), 130.0) == 0


def test_what_comes_between_two_steps_counts_as_their_stage():
    stages = Stages()
    stages.left(step(0), 0.0)
    stages.left(step(0, stage="ranking"), 1.0)
    assert stages.left(step(5), 50.0) == pytest.approx(50.0)
    assert stages.begun(step(5)) == 0.0


@pytest.mark.parametrize("again", [step(0), step(1, total=5)])
def test_a_stage_that_is_done_again_is_measured_again(again):
    stages = Stages()
    stages.left(step(0), 0.0)
    stages.left(step(9), 90.0)
    assert stages.left(again, 100.0) is None
    assert stages.left(step(again.done + 1, again.total), 101.0) == pytest.approx(again.total - again.done - 1)


def test_an_unknown_length_has_no_end():
    stages = Stages()
    stages.left(step(0, total=0), 0.0)
    assert stages.left(step(7, total=0), 10.0) is None


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.9, "1 min 00 s"), (185, "3 min 05 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds, says):
    assert duration(seconds) == says


# Lines: files, pipes, logs


def test_lines_of_counts_come_every_ten_seconds_with_the_time_left(clock, capsys):
    show = Lines()
    show("loading the SavedModel")
    counter = Counter(show, "asking the parser", 100, "op")
    for _ in range(25):
        clock.now += 1.0
        counter.advance()
    assert capsys.readouterr().err.splitlines() == [
        "loading the SavedModel",
        "asking the parser",
        "asking the parser: 10 of 100 ops, about 1 min 30 s left",
        "asking the parser: 20 of 100 ops, about 1 min 20 s left",
    ]


def test_lines_hold_no_control_characters(capsys):
    Lines()("signature \x1b[31mred\r\nx")
    assert capsys.readouterr().err == "signature \\x1b[31mred\\r\\nx\n"


def test_quiet_shows_nothing(capsys):
    with reporter(quiet=True) as show:
        show("loading")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}])
def test_a_pipe_gets_lines_whatever_is_said_of_colours(variables, monkeypatch, capfd):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with reporter(quiet=False) as show:
        show(step(1))
    assert capfd.readouterr().err == "building 1\n"


# A bar: terminals

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from refimpl.progress import Step
from refimpl.progress_bar import reporter
with reporter(quiet=False) as show:
    show("loading the SavedModel")
    time.sleep(0.3)
    for done in range(4):
        show(Step(f"island {{done + 1}} of 4: building", stage="building", done=done, total=4))
        time.sleep(0.35)
        if done == 2:
            print("WARNING a log line", file=sys.stderr)
print("the end", file=sys.stderr)
"""


def on_terminal(program: str, **variables: str) -> str:
    """What a program writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    found = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([ours], [], [], 1.0)
        try:
            data = os.read(ours, 65536) if ready else b""
        except OSError:  # the program ended
            break
        if ready and not data:
            break
        found += data
    os.close(ours)
    assert process.wait(timeout=60) == 0, found
    return found.decode()


def test_a_terminal_gets_a_bar_with_the_time_left_and_no_rest_of_it():
    shown = on_terminal(PROGRAM.format(root=str(ROOT)))
    plain = ANSI.sub("", shown)
    assert "loading the SavedModel" in plain
    assert re.search(r"island 3 of 4: building.* 50 % +[01] s left", plain)
    lines = [line for part in plain.split("\n") for line in part.split("\r")]
    assert max(map(len, lines)) <= 80
    assert "WARNING a log line" in [line.strip() for line in lines], "a log line stands alone"
    assert plain.rstrip().endswith("the end")
    assert "\x1b[2K" in shown[shown.rindex("island 4 of 4") : shown.rindex("the end")], "the bar is wiped away"


def test_a_terminal_without_a_cursor_gets_lines():
    shown = on_terminal(PROGRAM.format(root=str(ROOT)), TERM="dumb")
    assert "\x1b" not in shown
    assert shown.replace("\r", "").splitlines()[:2] == ["loading the SavedModel", "island 1 of 4: building"]


def test_no_color_keeps_the_bar_and_drops_its_colours():
    shown = on_terminal(PROGRAM.format(root=str(ROOT)), NO_COLOR="1")
    assert "s left" in ANSI.sub("", shown)
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m", shown)


# What a conversion tells


def test_a_conversion_counts_ops(tmp_path):
    told: list[str] = []
    refimpl.convert(saved_model("odd_ops"), tmp_path / "b", tell=told.append)
    steps = [item for item in told if isinstance(item, Step)]
    stages = {item.stage for item in steps}
    assert {"lowering and verifying", "building"} <= stages
    assert any(stage.startswith("asking the ") for stage in stages)
    for stage in ("lowering and verifying", "building"):
        mine = [item for item in steps if item.stage == stage]
        assert [item.done for item in mine] == [0, 9]
        assert {item.total for item in mine} == {20}
    assert "island 2 of 2: building (11 ops)" in told


def test_calibration_counts_the_files_that_are_there(tmp_path):
    for number in range(3):
        values = np.random.default_rng(number).standard_normal((4, 12)).astype(np.float32)
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{number}.npz", x=values)
    told: list[str] = []
    recipe = Recipe(precision="int8", calibration=str(tmp_path / "data"))
    refimpl.convert(saved_model("odd_ops"), tmp_path / "b", recipe, tell=told.append)
    mine = [item for item in told if isinstance(item, Step) and item.stage == "calibrating"]
    assert mine[:2] == ["calibrating: batch 1 of 3", "calibrating: batch 2 of 3"]
    assert [(item.done, item.total) for item in mine] == [(0, 3), (1, 3), (2, 3)]


def test_any_function_of_a_line_will_do(tmp_path):
    told: list[str] = []
    refimpl.explain(saved_model("odd_ops"), tell=lambda line: told.append(f"{line}!"))
    assert "loading the SavedModel!" in told
    assert all(type(item) is str for item in told)


def test_progress_is_monotonic_within_a_stage(tmp_path):
    told: list[str] = []
    refimpl.convert(saved_model("detector"), tmp_path / "b", tell=told.append)
    for before, now in pairwise(item for item in told if isinstance(item, Step)):
        assert 0 <= now.done <= now.total
        if before.stage == now.stage and before.total == now.total:
            assert before.done <= now.done


def test_progress_knows_no_terminal():
    assert "rich" not in vars(progress)
    assert progress_bar.Bar.__doc__


def test_how_many_samples_there_are_before_they_are_read(tmp_path):
    one = {"x": np.zeros(1, np.float32)}
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", **one)
    assert samples.how_many(None) == 0
    assert samples.how_many(str(tmp_path)) == 3
    assert samples.how_many(str(tmp_path / "0.npz")) == 1
    assert samples.how_many([one, one]) == 2
    assert samples.how_many(samples.WatchedSamples([one, one])) == 2
    assert samples.how_many("my_code:batches") == 0
    assert samples.how_many(lambda: iter([one])) == 0
