"""The command line: exit codes, and what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import refimpl
from refimpl import bundle, calibration, doctor, exporter, oracle, runtime
from refimpl.cache import Cache
from refimpl.cli import group
from refimpl.converter import pipeline
from refimpl.oracle import bisect as bisecting
from refimpl.recipe import Recipe
from tests.bundles import (
    command,
    commands,
    copy_of,
    feeds_of,
    golden_of,
    main,
    make_bundle,
    reseal,
)
from tests.models import saved_model

NAME = "odd_ops"
COMMANDS = (
    "convert", "explain", "inspect", "run", "record", "check", "bisect", "export", "calibration", "cache", "doctor",
)  # fmt: skip
ELSEWHERE = ("report", "picture", "help", "completion")  # they have no --json for all, and tests of their own


@pytest.fixture
def arguments(tmp_path) -> dict[str, list[object]]:
    """A call of every command that succeeds."""
    return commands(NAME, tmp_path)


def test_these_are_all_the_commands():
    assert set(group.commands) == {*COMMANDS, *ELSEWHERE}


# Exit codes.


@pytest.mark.parametrize("name", COMMANDS)
def test_0_and_json_is_all_that_goes_to_stdout(name, arguments, capfd):
    assert main(*arguments[name], "--json") == 0
    out, err = capfd.readouterr()
    data = json.loads(out)
    assert isinstance(data, dict)
    assert data
    assert "Traceback" not in err
    assert "error: " not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_0_and_text_for_people(name, arguments, capfd):
    assert main(*arguments[name]) == 0
    out, _ = capfd.readouterr()
    assert len(out.splitlines()) > 1
    assert not out.lstrip().startswith("{")


def test_1_when_answers_differ(tmp_path, capfd):
    """An unverified bundle whose engine is wrong: nothing but ``check`` can tell."""
    folder = tmp_path / "b"
    manifest = refimpl.convert(saved_model(NAME), folder, Recipe(verify=False))
    file = folder / manifest.islands[-1].engines[0].file
    model = onnx.load(file)
    weight = max(model.graph.initializer, key=lambda item: np.prod(item.dims))
    weight.CopyFrom(numpy_helper.from_array(-2 * numpy_helper.to_array(weight), weight.name))
    onnx.save(model, file)
    reseal(folder)
    assert main("check", folder, golden_of(NAME), "--json") == 1
    assert json.loads(capfd.readouterr().out)["outcome"] == "mismatch"


def test_1_when_an_engine_could_not_run(tmp_path, capfd):
    folder = copy_of(NAME, tmp_path)
    manifest = bundle.read(folder)
    record = manifest.signatures[0]
    bare = tuple(bundle.IslandRecord(**{**vars(item), "engines": ()}) for item in record.islands)
    reseal(folder, signatures=(bundle.SignatureRecord(**{**vars(record), "islands": bare}),))
    assert main("check", folder, golden_of(NAME)) == 1
    assert "stores no engine" in capfd.readouterr().out
    assert main("check", folder, golden_of(NAME), "--allow-fallback", "--allow-unaccelerated") == 0


WRONG = {
    "convert": ["convert", "no/such/model", "b"],
    "explain": ["explain", "no/such/model"],
    "inspect": ["inspect", "no/such/bundle"],
    "run": ["run", "no/such/bundle", "--inputs", "random"],
    "record": ["record", "no/such/model", "g"],
    "check": ["check", "no/such/bundle", "no/such/golden"],
    "cache": ["cache", "show", "no/such/cache"],
    "bisect": ["bisect", "no/such/bundle", "no/such/golden"],
}


@pytest.mark.parametrize("name", WRONG)
def test_2_for_the_users_errors(name, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(*WRONG[name]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: " in err
    assert "no/such/" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["compile"],
        ["--colour"],
        ["convert"],
        ["convert", "a"],
        ["convert", "a", "b", "c"],
        ["convert", "a", "b", "--precision", "fp12"],
        ["convert", "a", "b", "--engine", "openvino"],
        ["convert", "a", "b", "--min-segment-size", "many"],
        ["explain", "a", "--profile", "range"],
        ["run", "a"],
        ["doctor", "a"],
    ],
)
def test_2_for_a_wrong_command_line(args, capfd):
    assert main(*args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Usage: refimpl" in err


BUGS = {
    "convert": (pipeline, "convert"),
    "explain": (pipeline, "explain"),
    "inspect": (bundle, "read"),
    "run": (runtime, "load"),
    "record": (oracle, "record"),
    "check": (oracle, "judge"),
    "bisect": (bisecting, "bisect"),
    "export": (exporter, "export_bundle"),
    "calibration": (calibration, "load"),
    "cache": (Cache, "entries"),
    "doctor": (doctor, "examine"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_3_for_our_bugs(name, arguments, monkeypatch, capfd):
    def bug(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("a broken invariant")

    monkeypatch.setattr(*BUGS[name], bug)
    assert main(*arguments[name], "--json") == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "ZeroDivisionError: a broken invariant" in err
    assert f"this is a bug in refimpl {refimpl.__version__}" in err
    assert "in bug" in err, "the traceback says where"


def test_an_internal_error_is_a_bug(monkeypatch, capfd, arguments):
    def fail(*args: Any, **options: Any) -> Any:
        raise refimpl.errors.InternalError("the islands overlap")

    monkeypatch.setattr(bundle, "read", fail)
    assert main(*arguments["inspect"]) == 3
    assert "the islands overlap" in capfd.readouterr().err


def test_an_interrupt_is_2(monkeypatch, capfd, arguments, tmp_path):
    def stop(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "mutable_state", stop)
    assert main(*arguments["convert"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; nothing is left half-written"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_reach_the_shell(tmp_path):
    good = command("inspect", make_bundle(NAME), "--json")
    assert (good.returncode, json.loads(good.stdout)["source_name"]) == (0, saved_model(NAME).name)
    bad = command("inspect", tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "Traceback" not in bad.stderr


def test_a_reader_that_leaves_is_no_error():
    """``refimpl inspect B --json | head -1``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "refimpl", "inspect", str(make_bundle(NAME)), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert "Traceback" not in err
    assert process.returncode in {0, 1}


# stdout and stderr.

NOISY = {
    "convert": (pipeline, "pick_judge"),
    "explain": (pipeline, "pick_judge"),
    "run": (runtime, "load"),
    "record": (oracle, "record"),
    "check": (oracle, "judge"),
    "bisect": (bisecting, "bisect"),
    "doctor": (doctor, "examine_engine"),
}


@pytest.mark.parametrize("name", NOISY)
def test_libraries_that_print_do_not_reach_stdout(name, arguments, monkeypatch, capfd):
    module, attribute = NOISY[name]
    real = getattr(module, attribute)

    def noisy(*args: Any, **options: Any) -> Any:
        print("[W] library chatter")  # noqa: T201
        return real(*args, **options)

    monkeypatch.setattr(module, attribute, noisy)
    assert main(*arguments[name], "--json") == 0
    out, err = capfd.readouterr()
    json.loads(out)
    assert "library chatter" in err


@pytest.mark.parametrize("name", ["convert", "explain", "record", "check"])
def test_progress_goes_to_stderr_unless_quiet(name, arguments, capsys, tmp_path):
    """What TensorFlow's C++ side says of its own is not ours to silence: Python's streams are looked at."""
    assert main(*arguments[name], "--json") == 0
    assert len(capsys.readouterr().err.splitlines()) >= 2
    again = [
        tmp_path / "again" if item in {tmp_path / "new", tmp_path / "golden"} else item for item in arguments[name]
    ]
    assert main("-q", *again, "--json") == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert err == ""


def test_no_verify_is_loud_even_when_quiet(tmp_path, capfd):
    assert main("-q", "convert", saved_model(NAME), tmp_path / "b", "--no-verify") == 0
    out, err = capfd.readouterr()
    assert "--no-verify" in err
    assert "UNVERIFIED" in out


def test_what_json_holds(arguments, capfd, tmp_path):
    def data(name):
        assert main(*arguments[name], "--json") == 0
        return json.loads(capfd.readouterr().out)

    manifest = data("convert")
    assert {item["family"] for item in manifest.pop("advice")} >= {"no-lowering", "random"}
    assert manifest == json.loads((tmp_path / "new" / bundle.MANIFEST).read_text())
    assert data("inspect")["files"].keys() == manifest["files"].keys()
    assert {item["family"] for item in data("inspect")["advice"]} >= {"no-lowering", "random"}
    explained = data("explain")
    assert [item["family"] for item in explained["advice"]] == ["no-lowering", "random"]
    (plan,) = explained["signatures"]
    assert plan["ops_converted"] == 20
    assert {item["type"] for item in plan["left"]} == {"Svd", "StatelessRandomNormalV2"}
    assert all(item["reason"] for item in plan["left"])
    ran = data("run")
    assert {item["engine"] for item in ran["islands"]} == {"onnxruntime"}
    assert ran["outputs"]["y"]["shape"] == [1, 7]
    assert len(data("record")["cases"]) > 2
    verdict = data("check")
    assert verdict["outcome"] == "match"
    assert {item["kind"] for item in data("doctor")["engines"]} == {"onnxruntime", "tensorrt"}


def test_json_of_outputs_that_json_cannot_hold(tmp_path, capfd):
    """NaN and infinity are no JSON: ranges are of finite values, and strings are text."""
    feeds = feeds_of("many_dtypes")
    feeds["gain"][0] = np.nan
    feeds["text"] = np.array([b"one", b"", b"two", b"\xff"])
    np.savez(tmp_path / "in.npz", **feeds)
    assert main("run", make_bundle("many_dtypes"), "--inputs", tmp_path / "in.npz", "--json") == 0
    data = json.loads(capfd.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["outputs"]["y"]["finite"] < 4 * 27
    assert data["outputs"]["upper"]["values"][0] == "ONE"
