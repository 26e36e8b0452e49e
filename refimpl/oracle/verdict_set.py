"""The verdicts on a bundle, one for each choice of engines, with the facts: what ``refimpl check`` prints."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refimpl import bundle as bundles
from refimpl import engines as kinds
from refimpl.bundle import Manifest
from refimpl.oracle.check import STRICT, CheckOptions, OpenBundle, Progress, check_record, require_same_source
from refimpl.oracle.drift import Drift
from refimpl.oracle.facts import Facts, facts_of
from refimpl.oracle.golden import Golden, read_golden
from refimpl.oracle.runners import open_bundle
from refimpl.oracle.verdict import FORMAT, FORMAT_VERSION, SEVERITY, TENSORFLOW, Outcome, Verdict, strict_json

NUMPY = "numpy"
ALL_ENGINES = (*kinds.KINDS, NUMPY)
NUMPY_TIME_LIMIT = 120.0  # seconds: it is there to be understood, and may need minutes for one image
ManifestOf = Callable[[Path], Manifest]


def manifest_of(path: Path) -> Manifest:
    """The manifest of a bundle; its files are compared with their checksums when it is opened."""
    return bundles.read(path, check_files=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictSet:
    """All verdicts of one check; it passes when every one does that was to run, and an engine ran in one of them."""

    verdicts: tuple[Verdict, ...]
    facts: Facts
    drift: Drift | None = None  # since a baseline

    @property
    def outcome(self) -> Outcome:
        """The worst of those that were to run."""
        found = [verdict.outcome for verdict in self.verdicts if not verdict.excused]
        return max(found, key=SEVERITY.index, default=Outcome.NOT_RUN)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not pass; TensorFlow's own before those of any engine."""
        several = len(self.verdicts) > 1
        found = []
        for verdict in sorted(self.verdicts, key=lambda item: not item.reference):
            if verdict.reference and not verdict.passed:
                found.append(self._environment(verdict))
            elif not verdict.excused:
                found += [f"{verdict.engine}: {text}" if several else text for text in verdict.problems]
        if not found and all(verdict.excused or verdict.reference for verdict in self.verdicts):
            found.append("no engine could be judged: nothing was accelerated")
        if self.drift is not None and not self.drift.passed:
            found.append(self.drift.problem)
        return tuple(found)

    def _environment(self, verdict: Verdict) -> str:
        versions = [self.facts.versions, self.facts.golden["versions"]]
        here, then = (v.get("tensorflow") or v.get("tensorflow-cpu") or "of unknown version" for v in versions)
        return (
            f"TensorFlow {here} itself, without any engine, does not give the golden answers of TensorFlow {then}: "
            f"{'; '.join(verdict.problems)}; no engine is to blame for that"
        )

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def exit_code(self) -> int:
        """0 when it passes, 1 when it does not."""
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        """Plain, strict data: the file that ``--baseline`` reads. ``docs/checking.md`` describes it."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "passed": self.passed,
            "outcome": self.outcome.value,
            "problems": list(self.problems),
            **self.facts.to_json(),
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "drift": None if self.drift is None else self.drift.to_json(),
        }
        strict: dict[str, Any] = strict_json(data)
        return strict


def judge(
    bundle: str | os.PathLike[str],
    golden: str | os.PathLike[str],
    options: CheckOptions = STRICT,
    *,
    all_engines: bool = False,
    progress: Progress | None = None,
    open_with: OpenBundle = open_bundle,
    manifest_with: ManifestOf = manifest_of,
) -> VerdictSet:
    """Judge a bundle as :func:`refimpl.oracle.check` does: once, or once per engine.

    Args:
        bundle: the bundle directory.
        golden: the golden directory.
        options: how strict to be. With ``all_engines``, ``options.engines`` are those that must be able to run.
        all_engines: judge TensorFlow itself, then every kind of engine, each alone. One that the bundle lacks, or that
            cannot run on this machine, is listed with the reason.
        progress: called with one line per case.
        open_with: loads the bundle.
        manifest_with: reads its manifest.

    Raises:
        GoldenError, BundleError, RecipeError: see :func:`refimpl.oracle.check`.
    """
    record, path = read_golden(golden), Path(bundle)
    manifest = manifest_with(path)
    require_same_source(record, manifest.source_sha256)

    def one(own: CheckOptions, say: Progress | None, *, reference: bool = False) -> Verdict:
        return check_record(path, record, own, reference=reference, progress=say, open_with=open_with)

    if not all_engines:
        verdicts = [one(options, progress)]
    else:
        verdicts = [one(replace(options, engines=None, max_drop=None), _prefixed(TENSORFLOW, progress), reference=True)]
        for engine in ALL_ENGINES:
            own = _alone(engine, options)
            if why := _why_not(engine, manifest):
                verdicts.append(_not_run(engine, why, path, record, options))
            else:
                verdicts.append(one(own, _prefixed(engine, progress)))
    return VerdictSet(verdicts=tuple(verdicts), facts=facts_of(path, manifest, record))


def _prefixed(engine: str, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda line: progress(f"{engine}: {line}")


def _alone(engine: str, options: CheckOptions) -> CheckOptions:
    """The options for one engine of several: one that was not asked for by name need not finish in time."""
    wanted = engine in (options.engines or ())
    limit = NUMPY_TIME_LIMIT if engine == NUMPY and options.time_limit is None else options.time_limit
    return replace(options, engines=(engine,), time_limit=limit, excuse_unfinished=not wanted)


def _why_not(engine: str, manifest: Manifest) -> str:
    """Why an engine cannot be judged here; "" when it can."""
    stored = {item.kind for island in manifest.islands for item in island.engines}
    if engine not in stored and not (engine == NUMPY and "onnxruntime" in stored):
        return f"the bundle stores no {engine} engine"
    return kinds.kind(engine).why_not_here()


def _not_run(engine: str, why: str, path: Path, record: Golden, options: CheckOptions) -> Verdict:
    wanted = engine in (options.engines or ())
    return Verdict(
        bundle=path.name,
        golden=record.path.name,
        precision="",
        engines_asked=(engine,),
        cases=(),
        excused="" if wanted else why,
        unavailable=why if wanted else "",
    )
