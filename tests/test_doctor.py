"""The command ``doctor``: it believes what engines do, not what they say."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from refimpl import doctor, engines
from refimpl.engines import tensorrt
from refimpl.errors import BuildError, RunError


def _kind(**changes):
    """An engine kind that works, with parts replaced."""
    parts = {
        "NAME": "fake",
        "SUFFIX": ".fake",
        "version": lambda: "fake 1.0",
        "why_not_here": lambda: "",
        "build": lambda model, target, profiles, options: target.write_bytes(b"engine"),
        "open": lambda path: SimpleNamespace(run=lambda inputs: [np.maximum(inputs[0], 0)]),
    }
    return SimpleNamespace(**{**parts, **changes})


def _raises(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("changes", "builds", "executes", "problem"),
    [
        ({}, True, True, ""),
        ({"version": lambda: "", "why_not_here": lambda: "not installed"}, False, False, "not installed"),
        ({"why_not_here": lambda: "no GPU"}, True, False, "no GPU"),
        ({"build": _raises(BuildError("no builder"))}, False, False, "no builder"),
        ({"open": _raises(RunError("wrong version"))}, True, False, "wrong version"),
        ({"open": lambda path: SimpleNamespace(run=lambda inputs: inputs)}, True, False, "came out as [-1.5"),
    ],
)
def test_every_way_an_engine_can_fail(monkeypatch, changes, builds, executes, problem):
    monkeypatch.setattr(engines, "kind", lambda name: _kind(**changes))
    health = doctor.examine_engine("fake")
    assert (health.builds, health.executes) == (builds, executes)
    assert problem in health.problem
    assert bool(health.problem) == bool(problem)


def test_json_is_all_that_goes_to_stdout():
    result = CliRunner().invoke(doctor.doctor, ["--json"])
    assert result.exit_code == 0
    health = json.loads(result.stdout)
    by_kind = {engine["kind"]: engine for engine in health["engines"]}
    assert set(by_kind) == set(engines.KINDS)
    embedded = by_kind["onnxruntime"]
    assert embedded["builds"], embedded["problem"]
    assert embedded["executes"], embedded["problem"]
    assert health["temp_free_bytes"] > 0


def test_tensorrt_builds_wherever_it_is_installed():
    health = doctor.examine_engine("tensorrt")
    if not health.library:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed")
    assert health.builds, health.problem


def test_text_names_engines_and_advice():
    absent = doctor.EngineHealth("tensorrt", "", builds=False, executes=False, problem="not installed", seconds=0.0)
    there = doctor.EngineHealth("onnxruntime", "ort 1", builds=True, executes=True, problem="", seconds=0.1)
    gpu = doctor.Gpu("Some GPU", "8.9", 24 << 30)
    rows = (("builds for", "sm86"),)
    health = doctor.Health({"python": "3.11"}, "", "cpu", (gpu,), "13.0", (absent, there), rows, "tmp", 1 << 30)
    console = Console(width=200, markup=False)
    with console.capture() as printed:
        doctor.show(health, console)
    text = printed.get()
    parts = ("Some GPU, compute capability 8.9", "refimpl[cpu]", "refimpl[rtx]", "2 GiB", "not installed")
    for part in (*parts, "builds for", "sm86"):
        assert part in text


@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
def test_what_tensorrt_can_do(monkeypatch):
    rows = dict(doctor.examine_tensorrt())
    assert rows["output allocator"] == "yes"
    assert "int8 MatMul" in rows
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "")
    monkeypatch.setattr(tensorrt, "graph_problem", lambda: "")
    monkeypatch.setattr(tensorrt, "tf32_problem", lambda: "float32 products are rounded to TF32")
    rows = dict(doctor.examine_tensorrt())
    assert rows["CUDA graphs"] == "replayed with the same answers"
    assert rows["float32 products"] == "float32 products are rounded to TF32"
    monkeypatch.setattr(tensorrt, "version", lambda: "")
    assert doctor.examine_tensorrt() == ()
