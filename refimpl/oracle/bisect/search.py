"""The whole search: case by case until one leaves TensorFlow, then the ranking of layers in a reduced precision."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from refimpl.errors import GoldenError, RecipeError
from refimpl.oracle.bisect.cuts import CaseSearch
from refimpl.oracle.bisect.finding import Finding, Place, Ranking, Report
from refimpl.oracle.bisect.keep import REDUCED
from refimpl.oracle.bisect.opened import Opened
from refimpl.oracle.bisect.rank import rank
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.check import require_same_source
from refimpl.oracle.golden import Golden, GoldenCase, read_golden
from refimpl.oracle.runners import open_bundle

Progress = Callable[[str], None]
_RANKABLE = (CaseKind.USER, CaseKind.ORDINARY)
_IN_DOUBT = ("large", "small", "zeros", "ones")  # generated cases that say little about real inputs


def _require_stored(manifest: Any, engines: Sequence[str]) -> None:
    """Refuse to look at engines of which the bundle has none: nothing could be said of them."""
    stored = {engine.kind for island in manifest.islands for engine in island.engines if engine.file}
    stored |= {"numpy"} if "onnxruntime" in stored else set()
    if engines and manifest.islands and stored.isdisjoint(engines):
        raise RecipeError(
            f"the bundle stores no {' or '.join(engines)} engine",
            hint=f"it stores: {', '.join(sorted(stored)) or 'none'}",
        )


def bisect(
    bundle: str | os.PathLike[str],
    golden: str | os.PathLike[str],
    *,
    engines: Sequence[str] | None = None,
    case: str = "",
    ranking: bool | None = None,
    progress: Progress | None = None,
) -> Report:
    """Find where a bundle leaves TensorFlow, and which layers of a reduced precision cost most.

    Args:
        bundle: the bundle's directory.
        golden: the golden record's.
        engines: kinds of engines to look at, the first that is stored and can execute; the bundle's choice when None.
        case: only this case, ``CASE`` or ``SIGNATURE/CASE``.
        ranking: rank layers; when None, if the bundle has any in a reduced precision.
        progress: called with one line per step.

    Raises:
        GoldenError: the record is missing, damaged, of another SavedModel, or has no such case.
        BundleError: the bundle is missing, damaged, or of a newer format.
        SourceError: TensorFlow cannot load the bundle.
        RecipeError: the bundle stores no engine of these kinds.
        UnsupportedError: TensorFlow or an engine is not installed.
    """
    record = read_golden(golden)
    loaded = open_bundle(bundle, engines)
    require_same_source(record, loaded.manifest.source_sha256)
    _require_stored(loaded.manifest, engines or ())
    opened = Opened(Path(bundle).absolute(), loaded, engines or ())  # type: ignore[arg-type]
    say = progress or (lambda _: None)
    try:
        return _search(opened, record, _wanted(record, case), ranking, say)
    finally:
        opened.close()


def _search(opened: Opened, record: Golden, cases: Sequence[GoldenCase], ranking: bool | None, say: Progress) -> Report:
    finding: Finding | None = None
    seen: list[str] = []
    notes: list[str] = []
    for case in cases:
        signature = opened.signature(case.signature)
        if signature is None or not signature.islands:
            if signature is not None and signature.converted:
                notes.append(f"signature {case.signature!r} has no islands: TensorFlow computes it all")
            continue
        say(f"{case.signature}/{case.name}: searching")
        seen.append(f"{case.signature}/{case.name}")
        if finding := CaseSearch(opened, case).find():
            break
    ranked, remark = _ranked(opened, cases, finding, ranking, say)
    notes += [remark] if remark else []
    return Report(
        bundle=opened.path.name,
        golden=record.path.name,
        precision=str(opened.manifest.precision),
        cases=tuple(seen),
        finding=finding,
        ranking=ranked,
        notes=tuple(dict.fromkeys(notes)),
    )


def _ranked(
    opened: Opened, cases: Sequence[GoldenCase], finding: Finding | None, wanted: bool | None, say: Progress
) -> tuple[Ranking | None, str]:
    """The ranking, on the case that failed or else on the one that is most like real inputs."""
    reduced = {
        item.signature.key
        for item in opened.manifest.signatures
        if any(layer[2] in REDUCED for island in item.islands for layer in island.layers)
    }
    if wanted is False or (finding is not None and finding.place in (Place.ENVIRONMENT, Place.RUNTIME)):
        return None, ""
    if not reduced:
        return None, "no layer computes in a reduced precision: there is nothing to rank" if wanted else ""
    usable = [item for item in cases if item.signature in reduced and item.kind in _RANKABLE]
    if finding is not None:
        failed = [item for item in usable if (item.signature, item.name) == (finding.signature, finding.case)]
        usable = failed or usable
    usable.sort(key=lambda item: (item.kind is not CaseKind.USER, item.name in _IN_DOUBT))
    if not usable:
        return None, "no case of ordinary inputs to rank layers with"
    say(f"{usable[0].signature}/{usable[0].name}: ranking layers")
    return rank(CaseSearch(opened, usable[0])), ""


def _wanted(record: Golden, name: str) -> Sequence[GoldenCase]:
    """The cases to search, ordinary ones first."""
    found = [case for case in record.cases if name in ("", case.name, f"{case.signature}/{case.name}")]
    if not found:
        known = ", ".join(dict.fromkeys(case.name for case in record.cases))
        raise GoldenError(f"{record.path.name} has no case {name!r}", hint=f"it has: {known}")
    return sorted(found, key=lambda case: case.kind not in _RANKABLE)
