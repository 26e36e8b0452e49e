"""Peers that are called in turn: how often, in which order, and that they compute the same."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refimpl
from tools.bench import calls, first_answer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only those move who are called; sleeping is for nothing."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return now


def test_the_time_of_a_call_is_the_mean_of_its_turn(clock: SimpleNamespace) -> None:
    order: list[str] = []

    def peer(name: str, seconds: float) -> calls.Call:
        def call() -> None:
            order.append(name)
            clock.seconds += seconds

        return call

    peers = {"a": peer("a", 0.1), "b": peer("b", 0.02), "c": peer("c", 3.0)}
    first, second, third, fourth = calls.turns(peers, 4, "ms", lambda seconds: 1e3 * seconds)
    for found in (first, second, third, fourth):
        assert list(found.samples) == ["a", "b", "c"]
        assert found.samples == {name: {"ms": pytest.approx(ms)} for name, ms in (("a", 100), ("b", 20), ("c", 3000))}
    turns = [(name, len(list(group))) for name, group in itertools.groupby(order)]
    assert turns[:3] == [("a", 2), ("b", 2), ("c", 2)], "how often each is to be called"
    a, b, c = ("a", 3 + 2), ("b", 13 + 2), ("c", 2 + 2)
    assert turns[3:] == [a, b, c, b, c, a, c, a, b, a, b, c], "another order each round, two calls before the clock"


def test_a_call_of_nothing_is_not_repeated_for_ever(clock: SimpleNamespace) -> None:
    assert calls.repeats_of(lambda: None) == 2000


def test_peers_that_answer_otherwise_are_no_peers() -> None:
    answer = np.linspace(0, 1, 8, dtype=np.float32)
    calls.same_answers({"a": lambda: [answer], "b": lambda: {"y": answer + 1e-5}})
    for wrong in (answer + 1e-2, answer[:7], np.where(answer > 0.9, np.nan, answer), np.minimum(answer, 0.99)):
        with pytest.raises(ValueError, match="b does not answer what a does"):
            calls.same_answers({"a": lambda: [answer], "b": lambda wrong=wrong: {"y": wrong}})


@pytest.mark.parametrize("engines", [["native"], ["onnxruntime", "onnxruntime"], []])
def test_a_bundle_that_tensorflow_answers_is_not_measured(
    engines: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def load(path: Any) -> Any:
        islands = [SimpleNamespace(island="i", engine=engine) for engine in engines]
        spec = SimpleNamespace(inputs=[SimpleNamespace(name="x")])
        return SimpleNamespace(signature=lambda: spec, run=lambda given: SimpleNamespace(islands=islands))

    monkeypatch.setattr(refimpl, "load", load)
    with pytest.raises(ValueError, match="is to be one island in ONNX Runtime"):
        calls.in_engine(tmp_path, np.zeros(1))


def test_calls_are_shared_by_threads() -> None:
    done: list[int] = []
    calls.in_threads(lambda: done.append(1), 2, 16)()
    assert len(done) == 16


def test_every_way_to_a_first_answer_has_its_imports() -> None:
    assert set(first_answer.WAYS) == set(first_answer._IMPORTS)
