"""The command line as a person meets it: help, verbosity, suggestions, versions, completion, what is no bundle."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from refimpl import cli
from refimpl.cli import group
from refimpl.cli_group import _leaves
from tests.bundles import assert_refused, cache_with_entries, command, copy_of, golden_of, main, make_bundle, reseal
from tests.contract.sources import ROOT
from tests.models import saved_model

NAME = "odd_ops"
HEAVY = {"numpy", "tensorflow", "onnx", "onnxruntime", "tf2onnx", "tensorrt", "tensorrt_rtx", "keras", "rich.progress"}


# -v and -q


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The log of refimpl, put back as it was."""
    logger = logging.getLogger("refimpl")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield logger
    logger.propagate, logger.handlers[:] = before[1:]
    logger.setLevel(before[0])


@pytest.mark.parametrize(
    ("args", "level"),
    [
        (["inspect", "nowhere"], logging.WARNING),
        (["-v", "inspect", "nowhere"], logging.DEBUG),
        (["inspect", "-v", "nowhere"], logging.DEBUG),
        (["inspect", "nowhere", "--verbose"], logging.DEBUG),
        (["-q", "inspect", "nowhere"], logging.ERROR),
        (["inspect", "nowhere", "-q"], logging.ERROR),
        (["-v", "inspect", "nowhere", "-q"], logging.ERROR),
        (["cache", "show", "-v", "nowhere"], logging.DEBUG),
    ],
)
def test_v_and_q_before_and_after_the_command(args, level, log, capfd):
    assert cli.main(args) == 2
    assert log.level == level


def test_every_command_takes_both(capfd):
    for name, item in group.commands.items():
        for leaf in _leaves(item):
            options = {option for parameter in leaf.params for option in parameter.opts}
            assert {"-v", "--verbose", "-q", "--quiet"} <= options, name


def test_q_after_the_command_silences_progress(tmp_path, capsys):
    assert main("explain", saved_model(NAME), "-q") == 0
    out, err = capsys.readouterr()
    assert "TensorFlow ops" in out
    assert err == ""
    assert main("explain", saved_model(NAME)) == 0
    assert "loading the SavedModel" in capsys.readouterr().err


def test_v_after_the_command_tells_what_the_runtime_picks(tmp_path, capsys):
    assert main("run", copy_of(NAME, tmp_path), "--inputs", "random", "-v") == 0
    assert "INFO " in (err := capsys.readouterr().err)
    assert "onnxruntime" in err


def test_v_tells_how_long_each_stage_took(tmp_path, capsys):
    assert main("convert", saved_model(NAME), tmp_path / "b", "-v") == 0
    err = capsys.readouterr().err
    for stage in ("load", "plan", "build", "check"):
        assert re.search(rf"^INFO {stage} took \d+\.\d s; at most \d+ MiB used so far$", err, re.MULTILINE)


# Help, suggestions, versions


def test_alone_it_shows_help_with_an_example(capfd):
    assert main() == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Usage: refimpl" in err
    assert "refimpl convert my_model my_bundle" in err


def test_commands_are_listed_in_the_order_of_use():
    names = group.list_commands(click.Context(group))
    assert names.index("convert") < names.index("inspect") < names.index("check") < names.index("doctor")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["expain"], "No such command 'expain'. Did you mean 'explain'?"),
        (["inspcet", "b"], "Did you mean 'inspect'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
        (["explain", "m", "--josn"], "--json"),
    ],
)
def test_what_is_misspelt_is_suggested(args, says, capfd):
    assert main(*args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert "Traceback" not in err


def test_versions(capfd):
    assert main("--version") == 0
    assert capfd.readouterr().out.splitlines()[0].startswith("refimpl, version ")
    for args in (["-v", "--version"], ["--version", "-v"]):
        assert main(*args) == 0
        out = capfd.readouterr().out
        assert out.startswith("refimpl, version ")
        for library in ("python", "numpy", "onnxruntime", "tf2onnx"):
            assert f"\n{library}, version " in out


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["completion", "bash"], ["convert", "--help"]])
def test_what_must_be_quick_imports_nothing_heavy(args):
    code = f"import sys; from refimpl.cli import main; main({args}); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


# Places that are no bundle


def places(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """What is given instead of a bundle -> (place, what it is, what to use)."""
    (folder / "model.onnx").write_bytes(b"x")
    (folder / "model.keras").write_bytes(b"x")
    inside = copy_of(NAME, folder) / "refimpl"
    return {
        "SavedModel": (saved_model(NAME), "a SavedModel that was not converted", "refimpl convert"),
        "golden": (golden_of(NAME), "a golden record", "refimpl check BUNDLE"),
        "cache": (cache_with_entries(), "a cache", "refimpl cache show"),
        "onnx": (folder / "model.onnx", "a file", "polygraphy run"),
        "keras": (folder / "model.keras", "a file", "model.export"),
        "inside": (inside, "a folder inside a bundle", "name the bundle itself"),
        "empty": (folder, "no SavedModel either", "refimpl convert"),
    }


@pytest.mark.parametrize("name", ["SavedModel", "golden", "cache", "onnx", "keras", "inside", "empty"])
def test_inspect_says_what_it_is_and_what_to_use(name, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, says, hint = places(tmp_path)[name]
    assert_refused(capfd, "inspect", place, says=f"is not a refimpl bundle ({says})", hint=hint)


# TF-TRT's reports


@pytest.fixture(scope="module")
def summary() -> str:
    done = command("inspect", make_bundle(NAME), "--tftrt-summary", "--tftrt-report", "text", "--detailed")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_summary_of_tftrt(summary):
    lines = summary.splitlines()
    assert lines[0] == "signature serving_default"
    assert lines[1].startswith("TRTEngineOP Name ")
    assert lines[2] == "=" * 160
    rows = [line for line in lines if line.startswith("TRTEngineOp_000_00")]
    assert [row.split()[0] for row in rows] == ["TRTEngineOp_000_000", "TRTEngineOp_000_001"]
    assert "\t- MatMul: 3x" in lines
    assert "[*] Total number of TensorRT engines: 2" in lines


def test_the_report_of_what_was_not_converted(summary):
    assert "TensorRT unsupported/non-converted OP Report:" in summary
    assert "\t- Svd -> 1x\n\t\t- [Count: 1x] tf2onnx has no lowering for Svd" in summary
    assert "\t- Total nonconverted OPs: 2" in summary


def test_the_report_as_csv(capfd):
    assert main("inspect", make_bundle(NAME), "--tftrt-report", "csv") == 0
    rows = list(csv.reader(io.StringIO(capfd.readouterr().out), delimiter="|"))
    assert rows[0] == ["OP Name", "Reason", "Count"]
    assert [row[0] for row in rows[1:]] == ["StatelessRandomNormalV2", "Svd"]
    assert {len(row) for row in rows} == {3}


def test_without_detailed_the_summary_counts_only(capfd):
    assert main("inspect", make_bundle(NAME), "--tftrt-summary") == 0
    assert "\t- " not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [(["--detailed"], "--detailed is for --tftrt-summary"), (["--tftrt-summary", "--json"], "are no JSON")],
)
def test_what_does_not_go_together(args, says, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert_refused(capfd, "inspect", make_bundle(NAME), *args, says=says)


# Width and letters


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", ["explain", "inspect", "cache", "doctor"])
def test_commands_at_any_width(name, width, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", str(width))
    given = {
        "explain": ["explain", saved_model("detector")],
        "inspect": ["inspect", make_bundle(NAME)],
        "cache": ["cache", "show", cache_with_entries()],
        "doctor": ["doctor"],
    }[name]
    assert main(*given, "-q") == 0
    out = capfd.readouterr().out
    lines = out.splitlines()
    assert [line for line in lines if len(line) > width] == []
    assert [line for line in lines if line != line.rstrip()] == []
    assert "\x1b" not in out


def test_a_terminal_that_knows_only_ascii_gets_escapes(tmp_path):
    folder = copy_of(NAME, tmp_path)
    reseal(folder, notes=("gr\u00f6\u00dfe \u6a21\u578b",))
    done = command("inspect", folder, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert "note: gr\\xf6\\xdfe \\u6a21\\u578b" in done.stdout


# Completion


def completed(*words: str, cursor: int | None = None) -> list[tuple[str, str]]:
    """(type, value) of everything that click offers for the last word, asked as bash asks."""
    environment = {
        **os.environ,
        "_REFIMPL_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("refimpl", *words)),
        "COMP_CWORD": str(len(words) if cursor is None else cursor),
    }
    done = subprocess.run(
        [sys.executable, "-m", "refimpl"], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr == ""
    return [tuple(line.split(",", 1)) for line in done.stdout.splitlines()]  # type: ignore[misc]


def test_commands_are_completed():
    assert completed("in") == [("plain", "inspect")]
    assert {value for _, value in completed("", cursor=1)} == set(group.commands)


def test_commands_of_groups_are_completed():
    assert completed("cache", "sh") == [("plain", "show")]


def test_options_are_completed():
    found = {value for _, value in completed("convert", "--ca")}
    assert {"--calibration", "--calibrator", "--calibration-table", "--cache", "--cache-limit"} <= found
    assert ("plain", "--tftrt-summary") in completed("inspect", "--tf")


def test_choices_are_completed():
    assert {value for _, value in completed("convert", "--precision", "", cursor=3)} >= {"fp32", "int8", "auto"}
    assert completed("completion", "z") == [("plain", "zsh")]


def test_paths_are_completed():
    assert completed("inspect", "my_b") == [("file", "my_b")]
    assert completed("convert", "--calibration", "dat") == [("file", "dat")]
    assert completed("run", "b", "--inputs", "x") == [("file", "x")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell, capfd):
    assert main("completion", shell) == 0
    out = capfd.readouterr().out
    assert f"_REFIMPL_COMPLETE={shell}_complete" in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_for_real(tmp_path):
    """The script is sourced, and the function that it installs is asked as bash asks it."""
    tool = tmp_path / "refimpl"
    tool.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m refimpl "$@"\n', encoding="utf-8")
    tool.chmod(0o755)
    program = (
        "source <(refimpl completion bash)\nCOMP_WORDS=(refimpl expl)\nCOMP_CWORD=1\n"
        '_refimpl_completion refimpl expl refimpl\necho "${COMPREPLY[@]}"\ncomplete -p refimpl\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "explain"
    assert "_refimpl_completion refimpl" in done.stdout


def test_an_unknown_shell_is_refused(capfd):
    assert main("completion", "tcsh") == 2
    assert "'bash', 'zsh', 'fish'" in capfd.readouterr().err
