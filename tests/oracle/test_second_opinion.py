"""Polygraphy's comparator beside ours: where it is asked, and that a contradiction is never a pass."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refimpl.errors import InternalError
from refimpl.oracle import second_opinion
from refimpl.oracle.compare import diff
from refimpl.oracle.second_opinion import AGREES, ask
from refimpl.tolerance import EXACT, Tolerance, tolerance_for
from tests.oracle.fakes import strings


def asked(want: Any, got: Any, tolerance: Tolerance) -> str:
    return ask(want, got, diff("y", want, got, tolerance))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (7, 5), (64,)])
def test_it_agrees_at_the_very_limit(dtype: str, shape: tuple[int, ...]) -> None:
    """Errors of nearly, exactly and hardly more than the limit, of values of every size."""
    rng, tolerance = np.random.default_rng(7), tolerance_for("fp32", dtype)
    verdicts = set()
    for _ in range(60):
        want = np.asarray(rng.standard_normal(shape) * 10 ** rng.uniform(-8, 4)).astype(dtype)
        wide = want.astype(np.float64)
        limit = tolerance.rtol * np.abs(wide) + tolerance.of_max * np.abs(wide).max() + tolerance.atol
        share = rng.choice([0.5, 0.99999, 1.0, 1.00001, 1.3])
        got = np.asarray(wide + limit * share * rng.choice([-1, 0, 1], shape)).astype(dtype)
        found = diff("y", want, got, tolerance)
        assert ask(want, got, found) == AGREES
        verdicts.add(found.ok)
    assert verdicts == {True, False}


def test_a_contradiction_is_our_bug() -> None:
    want = np.linspace(1, 2, 8, dtype=np.float32)
    tolerance = tolerance_for("fp32", "float32")
    blind = replace(diff("y", want, want * 2, tolerance), ok=True)  # a comparer that lets everything pass
    with pytest.raises(InternalError, match=r"contradict each other on output 'y'.*Polygraphy says failed"):
        ask(want, want * 2, blind)
    strict = replace(diff("y", want, want, tolerance), ok=False, reason="8 of 8 beyond")
    with pytest.raises(InternalError, match="Polygraphy says passed"):
        ask(want, want, strict)


def test_an_opinion_on_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from polygraphy import comparator

    monkeypatch.setattr(comparator, "SimpleCompareFunc", lambda **_: lambda *_: {}, raising=False)
    with pytest.raises(InternalError, match="Polygraphy compared"):
        asked(np.ones(3, np.float32), np.ones(3, np.float32), tolerance_for("fp32", "float32"))


NAN = np.array([1, np.nan], np.float32)


@pytest.mark.parametrize(
    ("want", "got", "why"),
    [
        (np.arange(3), np.arange(3), "not sound for int64"),
        (np.array([True]), np.array([True]), "not sound for bool"),
        (np.ones(2, np.complex64), np.ones(2, np.complex64), "not sound for complex64"),
        (strings(b"a"), strings(b"a"), "not sound for string"),
        (NAN, NAN, "NaN or infinities"),
        (np.ones(2, np.float32), np.ones(3, np.float32), "nothing was compared"),
        (np.ones(2, np.float32), np.ones(2), "nothing was compared"),
        (np.ones(0, np.float32), np.ones(0, np.float32), "nothing was compared"),
        (np.ones(2, np.float32), [1.0, 1.0], "nothing was compared"),
    ],
)
def test_where_it_is_not_asked(want: Any, got: Any, why: str) -> None:
    tolerance = EXACT if want.dtype.kind in "biO" else tolerance_for("fp32", want.dtype.name)
    answer = asked(want, got, tolerance)
    assert answer.startswith("not asked: ")
    assert why in answer


def test_it_is_not_asked_about_very_large_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "_MOST", 4)
    five = np.ones(5, np.float32)
    assert "more than 4 elements" in asked(five, five, tolerance_for("fp32", "float32"))


def test_the_documented_behaviour_of_polygraphy_is_still_true() -> None:
    """Why it is asked with care: docs/checking.md. When one of these changes, it may be asked more."""
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    judge = SimpleCompareFunc(atol=1e-3, rtol=1e-3)

    def passes(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
            found = judge(IterationResult({"y": a}), IterationResult({"y": b}))
        return bool(found["y"])

    assert not passes(NAN, NAN), "NaN at the same place is a failure"
    assert passes(np.float32([1e-9, 1.0]), np.float32([5e-4, 1.0])), "wrong by far, within the absolute tolerance alone"
    assert passes(np.float32([1.0]), np.float64([1.0])), "another dtype is no failure"
    assert passes(np.array([2**63 - 1]), np.array([-(2**63)])), "the difference of two int64 wraps around"


def test_it_is_quiet_and_imported_late() -> None:
    code = (
        "import sys, refimpl.oracle; assert 'polygraphy' not in sys.modules\n"
        "import numpy as np\n"
        "from refimpl.oracle import second_opinion, compare\n"
        "from refimpl.tolerance import tolerance_for\n"
        "a = np.zeros((4, 5), np.float32); t = tolerance_for('fp32', 'float32')\n"
        "assert second_opinion.ask(a, a + 1, compare.diff('y', a, a + 1, t)) == 'agrees'\n"
        "assert not {'tensorflow', 'onnx', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
