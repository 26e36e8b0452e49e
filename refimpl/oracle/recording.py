"""Recording: run the original SavedModel on every case and keep its answers. The only writer of golden records."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

import refimpl
from refimpl import bundle, env
from refimpl.errors import GoldenError, InternalError, RunError, SourceError
from refimpl.oracle import conditioning, golden, runners
from refimpl.oracle.arrays import digest
from refimpl.oracle.cases import Case, CaseKind, CasePlan, narrow, plan_cases
from refimpl.oracle.user_cases import user_cases
from refimpl.specs import Shape, Signature

Progress = Callable[[str], None]

_UNJUDGEABLE = {  # why all that is left of a case is not judged by value
    "values": "TensorFlow itself gives another answer each time",
    "shape": "TensorFlow itself gives another answer each time",
    conditioning.SUBNORMALS: "TensorFlow's answer hangs on what a machine makes of subnormal numbers",
    conditioning.ROUNDING: "TensorFlow's answer hangs on the last bit of the inputs",
}

_HINT = (
    "give sizes with --shape NAME=1x224x224x3, "
    "or inputs that the model accepts with --cases FILE.npz, a folder of them, or package.module:function"
)


def record(  # noqa: PLR0913  (a parameter for each thing that a user may choose)
    saved_model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    signatures: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    cases: str | None = None,
    shapes: Mapping[str, Shape] | None = None,
    seed: int = 0,
    labels: Sequence[str] = (),
    progress: Progress | None = None,
) -> golden.Golden:
    """Record TensorFlow's answers of a SavedModel as a new golden directory.

    Every case runs twice; an output that TensorFlow does not repeat (random ops, state) is marked unstable and will be
    judged by dtype and shape only. So is one that floating point leaves open (:mod:`refimpl.oracle.conditioning`).

    Args:
        saved_model: the SavedModel directory.
        out: the golden directory to make; it must not exist.
        signatures: which signatures; all servable ones when not given.
        tags: the meta graph; ``serve``, or the only one, when not given.
        cases: the user's cases (see :func:`refimpl.oracle.user_cases.user_cases`); they replace the generated ones of
            every signature that they fit.
        shapes: input name -> shape, for unknown dimensions of generated cases; None keeps a dimension open.
        seed: varies the generated values.
        labels: names of arrays in the user's cases that are no inputs; they are kept beside the answers.
        progress: called with one line per step.

    Raises:
        SourceError: the SavedModel cannot be read, is a bundle, or has no such tags or signature.
        GoldenError: ``out`` exists or cannot be written, a case of the user does not fit, or no case survives.
    """
    say = progress or (lambda _: None)
    target = Path(out)
    if labels and cases is None:
        raise GoldenError(
            "labels were named, but no cases", hint="give the data that has them: --cases DATA --label NAME"
        )
    with golden.new_directory(target) as room:
        _refuse_bundle(Path(saved_model))
        say(f"loading {Path(saved_model).name}")
        with closing(runners.SavedModelRunner(saved_model, tags)) as runner:
            chosen = _choose(runner, signatures)
            source_sha256 = runners.tree_sha256(saved_model)
            given = user_cases(cases, chosen, labels) if cases is not None else ()
            plans = _all_cases(chosen, given, shapes or {}, seed)
            kept, dropped = _run_all(runner, plans, say)
            covered = _covered(chosen, signatures, kept, dropped)
            bare = [case for case in kept if case.signature not in covered]
            dropped += [golden.DroppedCase(case.signature, case.name, "no real case beside it") for case in bare]
            kept = [case for case in kept if case.signature in covered]
            entries = [golden.write_case(room, number, case) for number, case in enumerate(kept)]
            golden.write_index(room, _provenance(runner, source_sha256, seed), covered, entries, dropped)
    return golden.read_golden(target)


def _refuse_bundle(saved_model: Path) -> None:
    """A bundle is a SavedModel too, but its answers are what a golden record is to judge."""
    if any((saved_model / name).exists() for name in (bundle.POINTER, bundle.MANIFEST)):
        raise SourceError(
            f"{saved_model} is a bundle",
            hint="golden answers are the original's: record the SavedModel it was made from",
        )


def _choose(runner: runners.SavedModelRunner, wanted: Sequence[str] | None) -> tuple[Signature, ...]:
    if wanted:
        return tuple(runner.signature(key) for key in dict.fromkeys(wanted))
    if not runner.signatures:
        raise SourceError(f"{runner.path.name} has no signature that takes and returns dense tensors")
    return tuple(runner.signatures.values())


def _all_cases(
    signatures: tuple[Signature, ...], given: Sequence[Case], shapes: Mapping[str, Shape], seed: int
) -> Iterator[list[Case] | CasePlan]:
    """User's cases as a list of one (they must work), generated ones as plans (they may be dropped)."""
    inputs = {spec.name for signature in signatures for spec in signature.inputs}
    unknown = sorted(set(shapes) - inputs)
    if unknown:
        raise GoldenError(f"no input is called {', '.join(unknown)}", hint=f"there are: {', '.join(sorted(inputs))}")
    for signature in signatures:
        own = [case for case in given if case.signature == signature.key]
        if own:
            yield from ([case] for case in own)
        else:
            yield from plan_cases(narrow(signature, shapes), seed)


def _run_all(
    runner: runners.SavedModelRunner, plans: Iterator[list[Case] | CasePlan], say: Progress
) -> tuple[list[golden.GoldenCase], list[golden.DroppedCase]]:
    kept: list[golden.GoldenCase] = []
    dropped: list[golden.DroppedCase] = []
    for plan in plans:
        given = isinstance(plan, list)
        result = _first_useful(runner, plan if isinstance(plan, list) else plan.attempts())
        if isinstance(result, golden.GoldenCase):
            say(f"{result.signature}/{result.name}: recorded")
            kept.append(result)
            continue
        if given:
            where = {"case": result.name, "signature": result.signature}
            raise GoldenError(f"your case cannot be recorded: {result.reason}", **where)
        say(f"{result.signature}/{result.name}: dropped: {result.reason}")
        dropped.append(result)
    return kept, dropped


def _first_useful(runner: runners.SavedModelRunner, attempts: Iterable[Case]) -> golden.GoldenCase | golden.DroppedCase:
    """The first attempt whose answer can tell right from wrong, or else why the first one could not."""
    problem = None
    for attempt in attempts:
        try:
            answer = _answer(runner, attempt)
            reason = _expected(answer)
        except RunError as error:
            reason = error.message
        if not reason:
            return answer
        problem = problem or golden.DroppedCase(attempt.signature, attempt.name, reason)
    if problem is None:
        raise InternalError("a case without attempts")
    return problem


def _answer(runner: runners.SavedModelRunner, case: Case) -> golden.GoldenCase:
    """TensorFlow's answer, and which outputs a second run does not repeat."""
    first = runner.run(case.inputs, case.signature)
    second = runner.run(case.inputs, case.signature)
    unstable = {}
    for name, array in first.items():
        if array.shape != second[name].shape:
            unstable[name] = "shape"
        elif digest(array) != digest(second[name]):
            unstable[name] = "values"
    hanging = conditioning.hanging(case, first, lambda inputs: runner.run(inputs, case.signature))
    unstable = hanging | unstable
    return golden.GoldenCase(
        signature=case.signature,
        name=case.name,
        kind=case.kind,
        inputs=case.inputs,
        outputs=first,
        unstable=unstable,
        note=case.note,
        seed=case.seed,
        labels=case.labels,
    )


def _useless(case: golden.GoldenCase) -> str:
    """Why a case could never tell a right answer from a wrong one; empty when it can."""
    stable = [array for name, array in case.outputs.items() if name not in case.unstable]
    if not stable:
        return _UNJUDGEABLE[next(iter(case.unstable.values()))]
    if not any(array.size for array in stable):
        return "TensorFlow's answer is empty"
    if not any(array.dtype == object or np.isfinite(array).any() for array in stable if array.size):
        return "TensorFlow's answer holds no finite number"
    return ""


def _expected(case: golden.GoldenCase) -> str:
    """As :func:`_useless`, but an empty batch may give nothing, and non-finite inputs nothing finite."""
    special = case.kind in (CaseKind.EMPTY_BATCH, CaseKind.NONFINITE)
    return "" if special and len(case.unstable) < len(case.outputs) else _useless(case)


def _covered(
    chosen: tuple[Signature, ...],
    wanted: Sequence[str] | None,
    kept: list[golden.GoldenCase],
    dropped: list[golden.DroppedCase],
) -> dict[str, Signature]:
    """The signatures that have a real case: at least one overall, and every one that was asked for by name."""
    real = {case.signature for case in kept if case.kind is not CaseKind.EMPTY_BATCH and not _useless(case)}
    bare = [signature.key for signature in chosen if signature.key not in real]
    if bare and (wanted or len(bare) == len(chosen)):
        why = next((case.reason for case in dropped if case.signature == bare[0]), "only empty or non-finite answers")
        raise GoldenError(f"no usable case for {', '.join(bare)}; the first reason: {why}", hint=_HINT)
    return {signature.key: signature for signature in chosen if signature.key in real}


def _provenance(runner: runners.SavedModelRunner, source_sha256: str, seed: int) -> golden.Provenance:
    versions = {
        "python": platform.python_version(),
        "tensorflow": runner.tensorflow_version,
        "numpy": np.__version__,
        "refimpl": refimpl.__version__,
    }
    return golden.Provenance(
        recorded_on=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        source_name=runner.path.resolve().name,
        source_sha256=source_sha256,
        tags=runner.tags,
        runner=runners.REFERENCE_RUNNER,
        onednn=runner.onednn,
        seed=seed,
        versions=versions,
        machine=f"{platform.system()} {platform.machine()}",
        threads=1,
        tf32="off: no GPU is used",
        processor=env.processor(),
        instruction_sets=env.instruction_sets(),
        libc=" ".join(platform.libc_ver()),
    )
