"""The oracle is broken on purpose, each time in one way, and some seeded fault escapes: the suite of faults can fail.

Each mutant has a witness, a fault that the sound oracle catches and the broken one lets pass. Where only our comparison
of values is broken, Polygraphy's second opinion contradicts it, which is no pass either; so it is silenced to see the
fault escape, and heard to see that it does not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import InternalError, RunError
from refimpl.oracle import Outcome, Verdict, compare, judging, second_opinion, verdict
from refimpl.tolerance import Tolerance
from tests.oracle.faulting import Bend, bundle_of, copied, golden_of, judged, one_set_to, then
from tests.oracle.planting import Edit, edit_island, unguard

Patch = pytest.MonkeyPatch
checking = importlib.import_module("refimpl.oracle.check")  # a function has its name in the package
LOOSE = Tolerance(0.1, 0.1, 1e-2, "a mutant")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One way to break the oracle, and the fault that then escapes: planted in the island, or bent on its way out."""

    name: str
    apply: Callable[[Patch], None]
    model: str
    edit: Edit | None = None
    bend: Bend = lambda outputs: outputs
    cases: tuple[str, ...] = ("normal-b3",)
    contradicted: bool = False  # by Polygraphy, if it is heard
    guarded: bool = False  # the probe stays, and the runtime refuses the engine


def patched_diff(change: Callable[[Any, Any], Any]) -> Callable[[Patch], None]:
    """The comparer sees another answer than the one that was given."""

    def apply(patch: Patch) -> None:
        whole = compare.diff
        patch.setattr(compare, "diff", lambda name, want, got, limit: whole(name, want, change(want, got), limit))

    return apply


def patched_compare(change: Callable[..., Any]) -> Callable[[Patch], None]:
    """What the comparison of all outputs of a case says is changed."""

    def apply(patch: Patch) -> None:
        whole = compare.compare
        patch.setattr(judging, "compare", lambda *arguments: change(whole(*arguments)))

    return apply


def tolerance_ignored(patch: Patch) -> None:
    patch.setattr(judging, "tolerance_for", lambda precision, dtype: LOOSE)


def averaged(want: Any, got: Any) -> Any:
    """As a mean error would see it: spread over all elements."""
    return want + np.mean(got - want, dtype=np.float64).astype(want.dtype)


def nan_ignored(want: Any, got: Any) -> Any:
    return np.where(np.isfinite(got), got, want) if got.dtype.kind == "f" else got


def by_cosine(want: Any, got: Any) -> Any:
    """A similarity of directions cannot see a factor."""
    return got * (np.linalg.norm(want) / np.linalg.norm(got)) if got.dtype.kind == "f" else got


def cast(want: Any, got: Any) -> Any:
    return np.asarray(got).astype(want.dtype)


def reshaped(want: Any, got: Any) -> Any:
    return got.reshape(want.shape) if got.size == want.size else got


def shorter(want: Any, got: Any) -> Any:
    """As a loose zip has it: what one side has too few is not looked at."""
    return np.concatenate([got, want[len(got) :]])


def exact_ignored(patch: Patch) -> None:
    patch.setattr(compare, "_diff_exact", lambda want, got, limit: {"compared": want.size, "reason": ""})


def first_case_only(patch: Patch) -> None:
    whole = checking._judged

    def judged_once(judge: Any, record: Any, options: Any, say: Any) -> Any:
        for number, (result, outputs) in enumerate(whole(judge, record, options, say)):
            yield (result if number == 0 else replace(result, outcome=Outcome.MATCH)), outputs

    patch.setattr(checking, "_judged", judged_once)


def fallback_is_fine(patch: Patch) -> None:
    patch.setattr(verdict.IslandNote, "expected", property(lambda self: True))
    islands_unseen_are_fine(patch)


def nothing_ran_is_fine(patch: Patch) -> None:
    patch.setattr(Verdict, "accelerated", property(lambda self: True))
    islands_unseen_are_fine(patch)


def failures_are_skipped(patch: Patch) -> None:
    patch.setattr(Verdict, "tolerates", lambda self, case: True)


def islands_unseen_are_fine(patch: Patch) -> None:
    patch.setattr(Verdict, "unseen", property(lambda self: {}))


def without(part: str) -> Callable[[Any], Any]:
    return lambda found: replace(found, **{part: ()})


def last_row_off(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: np.concatenate([value[:-1], value[-1:] + 1]) for name, value in outputs.items()}


def word_changed(outputs: dict[str, Any]) -> dict[str, Any]:
    outputs["word"][-1] = b"another"
    return outputs


def fails_on_three(outputs: dict[str, Any]) -> dict[str, Any]:
    if len(outputs["probabilities"]) == 3:
        raise RunError("out of memory")
    return outputs


MUTANTS = [
    Mutant(
        name="tolerance ignored", apply=tolerance_ignored, model="convnet", edit=then("Mul", np.float32(1.01))
    ),
    Mutant(
        name="mean for maximum", apply=patched_diff(averaged), model="encoder",
        edit=one_set_to(1e-4, (0, 5), reduction="add"), contradicted=True,
    ),
    Mutant(
        name="cosine decides", apply=patched_diff(by_cosine), model="encoder",
        edit=then("Mul", np.float32(3)), contradicted=True,
    ),
    Mutant(
        name="NaN ignored", apply=patched_diff(nan_ignored), model="half", edit=one_set_to(np.nan, (0, 2), np.float16)
    ),
    Mutant(
        name="infinities ignored", apply=patched_diff(nan_ignored), model="half",
        edit=one_set_to(np.inf, (0, 2), np.float16),
    ),
    Mutant(
        name="first output only", apply=patched_compare(lambda found: replace(found, tensors=found.tensors[:1])),
        model="ranking", edit=then("Mul", np.float32(1.1)),
    ),
    Mutant(
        name="missing outputs ignored", apply=patched_compare(without("missing")), model="lstm",
        bend=lambda outputs: {"state": outputs["state"]},
    ),
    Mutant(
        name="further outputs ignored", apply=patched_compare(without("extra")), model="lstm",
        bend=lambda outputs: {**outputs, "more": outputs["state"]},
    ),
    Mutant(
        name="dtype ignored", apply=patched_diff(cast), model="convnet",
        bend=lambda outputs: {"logits": outputs["logits"].astype(np.float64)},
    ),
    Mutant(
        name="shape ignored", apply=patched_diff(reshaped), model="convnet",
        bend=lambda outputs: {"logits": outputs["logits"][None]}, contradicted=True,
    ),
    Mutant(
        name="length ignored", apply=patched_diff(shorter), model="convnet",
        bend=lambda outputs: {"logits": outputs["logits"][:-1]}, contradicted=True,
    ),
    Mutant(name="strings ignored", apply=exact_ignored, model="words", bend=word_changed),
    Mutant(
        name="integers ignored", apply=exact_ignored, model="ranking", edit=then("Add", np.int32(1), place=1)
    ),
    Mutant(
        name="first case only", apply=first_case_only, model="lstm", cases=("normal-b1", "normal-b3"),
        bend=lambda outputs: last_row_off(outputs) if len(outputs["state"]) > 1 else outputs,
    ),
    Mutant(
        name="fallbacks are fine", apply=fallback_is_fine, model="words", edit=then("Mul", np.float32(2), place=1),
        guarded=True,
    ),
    Mutant(
        name="nothing ran is fine", apply=nothing_ran_is_fine, model="convnet",
        edit=then("Mul", np.float32(np.nan)),
    ),
    Mutant(
        name="islands unseen are fine", apply=islands_unseen_are_fine, model="words",
        edit=then("Mul", np.float32(np.nan), place=1),
    ),
    Mutant(
        name="failed runs are skipped", apply=failures_are_skipped, model="classifier",
        bend=fails_on_three, cases=("normal-b1", "normal-b3"),
    ),
]  # fmt: skip


def planted(mutant: Mutant, folder: Path) -> Path:
    if mutant.edit is None:
        return bundle_of(mutant.model)
    path = copied(mutant.model, folder)
    edit_island(path, mutant.edit)
    if not mutant.guarded:
        unguard(path)
    return path


def verdict_on(mutant: Mutant, path: Path) -> Verdict:
    return judged(path, golden_of(mutant.model, mutant.cases), bend=mutant.bend)[0]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_oracle_lets_a_fault_escape(mutant: Mutant, tmp_path: Path, monkeypatch: Patch) -> None:
    path = planted(mutant, tmp_path)
    assert not verdict_on(mutant, path).passed, "the sound oracle catches it"
    mutant.apply(monkeypatch)
    if mutant.contradicted:
        with pytest.raises(InternalError, match="two comparers contradict each other"):
            verdict_on(mutant, path)
        monkeypatch.setattr(second_opinion, "ask", lambda *_: "")
    assert verdict_on(mutant, path).passed, "the broken oracle does not"


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 10
