"""The command line: options, recipe files, help, colours, width."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import numpy as np
import pytest

from refimpl.cli import group
from tests.bundles import (
    answers,
    assert_same,
    commands,
    feeds_of,
    main,
    make_bundle,
)
from tests.models import saved_model

NAME = "odd_ops"
COMMANDS = (
    "convert", "explain", "inspect", "run", "record", "check", "bisect", "export", "calibration", "cache", "doctor",
)  # fmt: skip


@pytest.fixture
def arguments(tmp_path) -> dict[str, list[object]]:
    """A call of every command that succeeds."""
    return commands(NAME, tmp_path)


def test_these_are_all_the_commands():
    assert set(group.commands) == set(COMMANDS)


# Options.


def test_a_recipe_file_and_options_that_win(tmp_path, capfd):
    (tmp_path / "r.toml").write_text('max_engines = 1\nkeep_in_tf = ["Erfc", "Softmax"]\n')
    assert main("explain", saved_model(NAME), "--recipe", tmp_path / "r.toml", "--json") == 0
    (plan,) = json.loads(capfd.readouterr().out)["signatures"]
    assert len(plan["islands"]) == 1
    reasons = {item["type"]: item["reason"] for item in plan["left"]}
    assert {"Erfc", "Softmax"} <= reasons.keys()
    args = ["--max-engines", 5, "--min-segment-size", 1]
    assert main("explain", saved_model(NAME), "--recipe", tmp_path / "r.toml", *args, "--json") == 0
    (plan,) = json.loads(capfd.readouterr().out)["signatures"]
    assert len(plan["islands"]) > 1


@pytest.mark.parametrize(
    ("text", "says"), [("colour = 1", "unknown key 'colour'"), ("max_engines = 'two'", "max_engines is 'two'")]
)
def test_a_wrong_recipe_file(text, says, tmp_path, capfd):
    (tmp_path / "r.toml").write_text(text)
    assert main("convert", saved_model(NAME), tmp_path / "b", "--recipe", tmp_path / "r.toml") == 2
    err = capfd.readouterr().err
    assert says in err
    assert "r.toml" in err
    assert "hint: " in err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["convert", "explain", "run", "record"])
def test_an_unknown_signature_lists_what_there_is(name, tmp_path, capfd):
    source = {
        "run": [make_bundle("several_signatures"), "--inputs", "random"],
        "explain": [saved_model("several_signatures")],
    }.get(name, [saved_model("several_signatures"), tmp_path / "new"])
    assert main(name, *source, "--signature", "embed") == 2
    err = capfd.readouterr().err
    assert "no signature 'embed'" in err
    for key in ("decide", "encode", "serving_default"):
        assert key in err.split("hint: ")[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["convert", "explain", "record"])
def test_unknown_tags_list_what_there_is(name, tmp_path, capfd):
    place = [] if name == "explain" else [tmp_path / "new"]
    assert main(name, saved_model(NAME), *place, "--tags", "serve,gpu") == 2
    _, err = capfd.readouterr()
    assert "gpu" in err.split("hint: ")[0]
    assert "serve" in err.split("hint: ")[1]
    assert "gpu" not in err.split("hint: ")[1]
    assert list(tmp_path.iterdir()) == []


def test_run_writes_its_outputs(tmp_path, capfd):
    feeds = feeds_of(NAME)
    np.savez(tmp_path / "in.npz", **feeds)
    target = tmp_path / "out"  # no suffix: the file is named as asked
    assert main("run", make_bundle(NAME), "--inputs", tmp_path / "in.npz", "--output", target) == 0
    with np.load(target) as data:
        assert_same(dict(data), answers(NAME, feeds))
    before = target.read_bytes()
    assert main("run", make_bundle(NAME), "--inputs", tmp_path / "in.npz", "--output", target) == 2
    assert "exists already" in capfd.readouterr().err
    assert target.read_bytes() == before


def test_run_with_random_inputs_of_a_shape(capfd):
    assert main("run", make_bundle(NAME), "--inputs", "random", "--shape", "x=6x12", "--json") == 0
    assert json.loads(capfd.readouterr().out)["outputs"]["y"]["shape"] == [6, 7]


def test_run_with_another_engine(capfd):
    assert main("run", make_bundle(NAME), "--inputs", "random", "--engine", "numpy", "--json") == 0
    assert {item["engine"] for item in json.loads(capfd.readouterr().out)["islands"]} == {"numpy"}


# Help, colours, width.


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(args, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(*args) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "refimpl" in out
    assert max(map(len, out.splitlines())) <= 80
    if args in (["--help"], ["convert", "--help"]):
        code = f"import sys; from refimpl.cli import main; main({args}); print(*sorted(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        heavy = {"tensorflow", "onnx", "onnxruntime", "tf2onnx", "tensorrt", "tensorrt_rtx", "keras"}
        assert not heavy & set(done.stdout.splitlines()[-1].split())


def test_every_command_and_option_is_explained():
    for name, item in group.commands.items():
        assert item.help, name
        for option in item.params:
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_output_fits_80_columns(name, arguments, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(*arguments[name]) == 0
    out = capfd.readouterr().out
    if name == "record":  # its first line is the path it was given
        out = "\n".join(out.splitlines()[1:])
    assert [line for line in out.splitlines() if len(line) > 80] == []


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")


@pytest.mark.parametrize("name", ["convert", "explain", "inspect", "run", "check", "doctor"])
def test_no_color(name, arguments, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(*arguments[name]) == 0
    out, err = capfd.readouterr()
    assert COLOUR.findall(out) == []
    assert COLOUR.findall(err) == []


def test_plain_text_in_a_pipe(arguments, capfd):
    for name in ("explain", "inspect", "run", "check"):
        assert main(*arguments[name]) == 0
        assert "\x1b" not in capfd.readouterr().out
