"""Seeded faults around the islands: engines at work, and files of the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refimpl import bundle, engines, runtime
from refimpl.errors import BundleError, GoldenError, RunError
from refimpl.oracle import CheckOptions, Outcome
from refimpl.runtime.probes import read_probe, write_probe
from tests.bundles import reseal
from tests.oracle.faulting import (
    BLAMES_ENGINES,
    DISAGREES,
    case_of,
    copied,
    golden_of,
    judged,
    then,
    wrong_outputs,
)
from tests.oracle.planting import edit_island, unguard

Arrays = list[np.ndarray]
Run = Callable[[Sequence[np.ndarray]], Arrays]
Wrap = Callable[[Run], Run]
FIRST = "TRTEngineOp_000_000"


# Faults of an engine at work: nothing is wrong with any file.


def stale(run: Run) -> Run:
    """Answers of the call before; the first call is answered right."""
    kept: list[Arrays] = []

    def wrong(inputs: Sequence[np.ndarray]) -> Arrays:
        kept.append(run(inputs))
        return kept[max(len(kept) - 2, 0)]

    return wrong


def stuck(run: Run) -> Run:
    """The first row of every batch, for all of its rows."""
    return lambda inputs: [np.repeat(value[:1], len(value), 0) for value in run(inputs)]


def reversed_rows(run: Run) -> Run:
    return lambda inputs: [value[::-1].copy() for value in run(inputs)]


def swapped(run: Run) -> Run:
    return lambda inputs: run(inputs)[::-1]


def noisy(run: Run) -> Run:
    """Right when it is proven, and never again: the probe alone is no judge of what comes later."""
    calls: list[int] = []

    def wrong(inputs: Sequence[np.ndarray]) -> Arrays:
        calls.append(1)
        return [value + 0.01 * (len(calls) > 1) for value in run(inputs)]

    return wrong


def refusing(run: Run) -> Run:
    calls: list[int] = []

    def wrong(inputs: Sequence[np.ndarray]) -> Arrays:
        calls.append(1)
        if len(calls) > 1:
            raise RunError("out of memory")
        return run(inputs)

    return wrong


def one_too_few(run: Run) -> Run:
    return lambda inputs: run(inputs)[:-1]


def never_finite(run: Run) -> Run:
    """NaN, always; the runtime then asks TensorFlow, as it is to do for NaN."""
    return lambda inputs: [np.full_like(value, np.nan) for value in run(inputs)]


def wrapped(monkeypatch: pytest.MonkeyPatch, wrap: Wrap) -> None:
    """Every engine that is opened from now on is a wrapped one; convert first, or the converter meets it too."""
    module = engines.kind("onnxruntime")
    opens = module.open

    class Wrapped:
        def __init__(self, *arguments: object) -> None:
            self.run = wrap(opens(*arguments).run)

    monkeypatch.setattr(module, "open", Wrapped)


AT_WORK = {  # name: (wrap, model, (case, wrong outputs, words of the reason), case that is right nevertheless)
    "stale": (stale, "convnet", ("normal-b3", {"logits"}, "logits: shape [1,10], want [3,10]"), "normal-b1"),
    "stuck": (stuck, "classifier", ("normal-b3", {"probabilities"}, "of 15 beyond the tolerance"), "normal-b1"),
    "rows": (reversed_rows, "lstm", ("normal-b3", {"state", "scores"}, "beyond the tolerance"), "normal-b1"),
    "noisy": (noisy, "encoder", ("normal-b3", {"sentence"}, "48 of 48 beyond the tolerance"), ""),
}


@pytest.mark.parametrize("fault", AT_WORK)
def test_an_engine_that_errs_at_work(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrap, model, (name, outputs, says), right = AT_WORK[fault]
    path = copied(model, tmp_path)
    wrapped(monkeypatch, wrap)
    if fault != "noisy":
        unguard(path)
    verdict, _ = judged(path, golden_of(model))
    assert (verdict.outcome, verdict.exit_code) == (Outcome.MISMATCH, 1)
    case = case_of(verdict, name)
    assert wrong_outputs(case) == outputs
    assert says in case.reason
    assert BLAMES_ENGINES in case.notes
    if right:
        assert case_of(verdict, right).outcome is Outcome.MATCH, "it takes more than one row, or call, to see it"


def test_stale_answers_of_the_right_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = copied("convnet", tmp_path)
    wrapped(monkeypatch, stale)
    unguard(path)
    golden = golden_of("convnet", ("normal-b1", "unit"))
    verdict, answers = judged(path, golden)
    assert [case.outcome for case in verdict.cases] == [Outcome.MATCH, Outcome.MISMATCH]
    assert "logits: 10 of 10 beyond the tolerance" in verdict.cases[1].reason
    np.testing.assert_allclose(answers["unit"]["logits"], golden.cases[0].outputs["logits"], rtol=1e-4)


@pytest.mark.parametrize(
    ("wrap", "model", "outcome", "says"),
    [
        (refusing, "convnet", Outcome.FALLBACK_USED, "onnxruntime: out of memory"),
        (swapped, "ranking", Outcome.FALLBACK_USED, DISAGREES),
        (one_too_few, "lstm", Outcome.FALLBACK_USED, "onnxruntime: ValueError: zip()"),
    ],
)
def test_an_engine_that_cannot_be_used(
    wrap: Wrap, model: str, outcome: Outcome, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = copied(model, tmp_path)
    wrapped(monkeypatch, wrap)
    verdict, _ = judged(path, golden_of(model))
    case = case_of(verdict, "normal-b3")
    assert (case.outcome, case.right, verdict.passed) == (outcome, True, False)
    assert case.reason.startswith(f"{FIRST} ran in TensorFlow: ")
    assert says in case.reason


@pytest.mark.parametrize(("model", "island"), [("convnet", 0), ("words", 0), ("words", 1)])
def test_an_island_that_never_gave_an_answer(model: str, island: int, tmp_path: Path) -> None:
    """TensorFlow answers for an engine that gives nothing but NaN, which is documented; nobody has seen it at work."""
    path = copied(model, tmp_path)
    edit_island(path, then("Mul", np.float32(np.nan), place=1 if (model, island) == ("words", 0) else 0), island=island)
    unguard(path)
    verdict, _ = judged(path, golden_of(model))
    assert {case.outcome for case in verdict.cases} <= {Outcome.MATCH}
    assert (verdict.passed, verdict.exit_code) == (False, 1)
    if model == "words":
        name = f"TRTEngineOp_000_{island:03}"
        assert verdict.outcome is Outcome.FALLBACK_USED
        why = "non-finite values made by its engine"
        assert verdict.problems == (
            f"serving_default: island {name} ran in no engine in any case ({why}): it was not judged",
        )
        lenient, _ = judged(path, golden_of(model), CheckOptions(allow_fallback=True))
        assert lenient.passed
    else:
        assert verdict.outcome is Outcome.MATCH_NOTHING_ACCELERATED
        assert "no engine ran" in verdict.problems[0]


# Faults in the files of a bundle.


def without_engines(path: Path) -> None:
    manifest = bundle.read(path, check_files=False)
    signatures = tuple(
        replace(item, islands=tuple(replace(island, engines=()) for island in item.islands))
        for item in manifest.signatures
    )
    reseal(path, signatures=signatures)


def without_islands(path: Path) -> None:
    manifest = bundle.read(path, check_files=False)
    reseal(path, signatures=tuple(replace(item, islands=()) for item in manifest.signatures))


def of_another_island(path: Path) -> None:
    files = [island.engines[0].file for island in bundle.read(path, check_files=False).islands]
    shutil.copyfile(path / files[0], path / files[1])
    reseal(path)


def lying_probe(path: Path) -> None:
    """The engine is right, and the answers that it is proven by are not."""
    file = path / bundle.read(path, check_files=False).islands[0].probe
    inputs, outputs = read_probe(file)
    write_probe(file, inputs, [value * 1.5 for value in outputs])
    reseal(path)


FILES = {
    "no engine": (without_engines, "convnet", f"{FIRST} ran in TensorFlow: the bundle stores no engine for it"),
    "unknown island": (without_islands, "words", f"{FIRST} ran in TensorFlow: the manifest knows no island {FIRST}"),
    "engine of another island": (of_another_island, "words", "TRTEngineOp_000_001 ran in TensorFlow: onnxruntime: "),
    "probe that lies": (lying_probe, "encoder", f"{FIRST} ran in TensorFlow: onnxruntime: {DISAGREES}"),
}


@pytest.mark.parametrize("fault", FILES)
def test_an_island_that_cannot_run(fault: str, tmp_path: Path) -> None:
    plant, model, says = FILES[fault]
    path = copied(model, tmp_path)
    plant(path)
    verdict, _ = judged(path, golden_of(model, ("normal-b3",)))
    (case,) = verdict.cases
    assert (verdict.outcome, verdict.exit_code) == (Outcome.FALLBACK_USED, 1)
    assert case.right
    assert says in case.reason


def test_an_engine_of_another_island_that_fits(tmp_path: Path) -> None:
    """Same inputs, same outputs, other weights: nothing but the answers can tell."""
    path = copied("convnet", tmp_path)
    other = copied("convnet", tmp_path / "other")
    edit_island(other, then("Mul", np.float32([1, 1, 1, 1, 1, 1, 1, 1, 1, -1])))
    file = bundle.read(path, check_files=False).islands[0].engines[0].file
    shutil.copyfile(other / file, path / file)
    reseal(path)
    unguard(path)
    case = case_of(judged(path, golden_of("convnet"))[0], "normal-b3")
    assert (case.outcome, wrong_outputs(case)) == (Outcome.MISMATCH, {"logits"})
    assert "3 of 30 beyond the tolerance" in case.reason


@pytest.mark.parametrize("what", ["engine", "weights"])
def test_a_damaged_file_is_never_opened(what: str, tmp_path: Path) -> None:
    path = copied("convnet", tmp_path)
    file = path / bundle.read(path, check_files=False).islands[0].engines[0].file
    file = next((path / "variables").glob("*.data-*")) if what == "weights" else file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=file.name):
        judged(path, golden_of("convnet"))


def tampered(path: Path, old: bytes, new: bytes) -> None:
    file = path / "saved_model.pb"
    data = file.read_bytes()
    assert len(old) == len(new)
    assert old in data
    file.write_bytes(data.replace(old, new))
    reseal(path)
    runtime.forget(path)


def test_a_string_that_tensorflow_itself_gets_wrong(tmp_path: Path) -> None:
    path = copied("words", tmp_path)
    tampered(path, b"\x03dog", b"\x03fog")
    case = case_of(judged(path, golden_of("words"))[0], "normal-b3")
    assert case.outcome is Outcome.MISMATCH
    assert "word" in wrong_outputs(case)
    assert case.reason.startswith("TensorFlow itself, without engines, leaves the golden answer here too (")
    assert "word: 1 of 3 differ" in case.reason
    assert BLAMES_ENGINES not in case.notes


def test_a_bundle_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="golden was recorded from another SavedModel"):
        judged(copied("classifier", tmp_path), golden_of("convnet"))
