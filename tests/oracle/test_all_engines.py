"""One verdict for each engine: which of them ran, which could not, and whose fault a difference is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from refimpl.oracle import CheckOptions, Outcome, VerdictSet, judge, verdict_set
from refimpl.oracle.golden import Golden
from tests.oracle.fakes import ISLANDS, FakeBundle, FakeIsland, Outputs, fake_manifest, island


@dataclass
class Engines(FakeBundle):
    """A bundle in which each engine has a fault of its own."""

    faults: dict[str, Callable[[Outputs], Outputs]] = field(default_factory=dict)

    def opener(self) -> Any:
        def open_with(path: Any, engines: Any) -> FakeBundle:
            engine = engines[0] if engines else "onnxruntime"
            ran = tuple(FakeIsland(name, engine) for name in ISLANDS)
            return replace(self, islands=lambda case: ran, fault=self.faults.get(engine, lambda outputs: outputs))

        return open_with


def judged(bundle: FakeBundle, **options: Any) -> VerdictSet:
    return judge(
        "b",
        bundle.golden.path,
        CheckOptions(**options),
        all_engines=True,
        open_with=bundle.opener(),
        manifest_with=lambda path: bundle.manifest,
    )


def wrong(outputs: Outputs) -> Outputs:
    return {**outputs, "scores": outputs["scores"] + np.float32(1)}


def by_engine(verdicts: VerdictSet) -> dict[str, Any]:
    return {verdict.engine: verdict for verdict in verdicts.verdicts}


def test_each_engine_is_judged_alone(golden: Golden) -> None:
    verdicts = judged(Engines(golden))
    found = by_engine(verdicts)
    assert list(found) == ["tensorflow", "tensorrt", "onnxruntime", "numpy"]
    assert found["tensorflow"].outcome is Outcome.MATCH
    assert found["tensorflow"].passed
    assert not found["tensorflow"].accelerated
    for engine in ("onnxruntime", "numpy"):
        assert found[engine].outcome is Outcome.MATCH
        assert {note.engine for case in found[engine].cases for note in case.islands} == {engine}
    assert found["tensorrt"].excused == "the bundle stores no tensorrt engine"
    assert found["tensorrt"].outcome is Outcome.NOT_RUN
    assert not found["tensorrt"].passed
    assert verdicts.passed
    assert verdicts.exit_code == 0


def test_the_worst_engine_decides(golden: Golden) -> None:
    bundle = Engines(golden)
    bundle.faults = {"numpy": wrong}
    verdicts = judged(bundle)
    assert verdicts.outcome is Outcome.MISMATCH
    assert verdicts.exit_code == 1
    assert [verdict.engine for verdict in verdicts.verdicts if verdict.passed] == ["tensorflow", "onnxruntime"]
    assert verdicts.problems == ("numpy: 2 of 3 cases: mismatch",)


def test_tensorflow_itself_is_named_first(golden: Golden) -> None:
    bundle = Engines(golden, native_fault=wrong)
    bundle.faults = {"onnxruntime": wrong}
    verdicts = judged(bundle)
    assert not verdicts.passed
    first = verdicts.problems[0]
    assert first.startswith("TensorFlow ")
    assert "itself, without any engine, does not give the golden answers" in first
    assert first.endswith("no engine is to blame for that")
    assert by_engine(verdicts)["tensorflow"].cases[0].reason.startswith("TensorFlow itself, without any engine: scores")


def test_drifted_tensorflow_alone_is_no_pass(golden: Golden) -> None:
    assert not judged(Engines(golden, native_fault=wrong)).passed


def test_an_engine_that_cannot_run_here_fails_when_asked_for(golden: Golden) -> None:
    verdicts = judged(Engines(golden), engines=("tensorrt",))
    assert by_engine(verdicts)["tensorrt"].unavailable == "the bundle stores no tensorrt engine"
    assert verdicts.problems == ("tensorrt: not run: the bundle stores no tensorrt engine",)
    assert judged(Engines(golden), engines=("onnxruntime",)).passed


def test_the_reason_of_the_engine_itself_is_told(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("refimpl.engines.onnxruntime")
    monkeypatch.setattr(module, "why_not_here", lambda: "no such library")
    verdicts = judged(Engines(golden))
    assert by_engine(verdicts)["onnxruntime"].excused == "no such library"
    assert verdicts.passed, "numpy ran"
    monkeypatch.setattr(importlib.import_module("refimpl.engines.numpy"), "why_not_here", lambda: "nor that")
    verdicts = judged(Engines(golden))
    assert verdicts.problems == ("no engine could be judged: nothing was accelerated",)
    assert verdicts.exit_code == 1


def test_a_bundle_without_engines_is_no_pass(golden: Golden) -> None:
    verdicts = judged(Engines(golden, manifest=fake_manifest()))
    assert [verdict.excused for verdict in verdicts.verdicts[1:]] == [
        f"the bundle stores no {engine} engine" for engine in ("tensorrt", "onnxruntime", "numpy")
    ]
    assert not verdicts.passed


def test_numpy_need_not_finish(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict_set, "NUMPY_TIME_LIMIT", 1e-9)
    verdicts = judged(Engines(golden))
    numpy = by_engine(verdicts)["numpy"]
    assert [case.excused for case in numpy.cases] == [False, True, True]
    assert verdicts.passed
    assert not judged(Engines(golden), engines=("numpy",)).passed, "it was asked for by name"
    assert len(by_engine(verdicts)["onnxruntime"].judged) == 3, "the limit is numpy's alone"


def test_engines_do_not_see_each_other(golden: Golden) -> None:
    """The same verdict whatever was judged before."""
    bundle = Engines(golden, manifest=fake_manifest(*map(island, ISLANDS)))
    bundle.faults = {"onnxruntime": wrong}
    together = by_engine(judged(bundle))["numpy"]
    alone = judge(
        "b",
        golden.path,
        CheckOptions(engines=("numpy",)),
        open_with=bundle.opener(),
        manifest_with=lambda p: bundle.manifest,
    )
    assert [case.outcome for case in together.cases] == [case.outcome for case in alone.verdicts[0].cases]
