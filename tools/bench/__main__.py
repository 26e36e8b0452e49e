"""Every figure of performance: ``python -m tools.bench PART ...`` measures, ``python -m tools.bench report`` writes.

    python -m tools.bench conversion --repeats 5     # raw samples: docs/benchmarks/performance/conversion.json
    python -m tools.bench report                     # from all of them: docs/benchmarks/performance.md, .json and plots
    python -m tools.bench all --quick --out DIR      # small models, all parts and the report, in under two minutes

Parts are conversion, caching, inference, start, size and scale. Each round is kept as soon as it is there, so a run
that was cut short, or that ``--minutes`` ended, goes on where it stopped when the same command is given again; rounds
of other code, another machine or a busy one are measured anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from refimpl.errors import RefimplError
from tools.bench import caching, conversion, inference, record, report, scale, sizes, start
from tools.bench.parts import Part, Subject
from tools.bench.processes import ROOT, BenchError
from tools.bench.workshop import Workshop

PARTS: dict[str, Part] = {
    module.PART.name: module.PART for module in (conversion, caching, inference, start, sizes, scale)
}
DOCS, WORK = ROOT / "docs" / "benchmarks", ROOT / ".models" / "bench"
_QUICK_REPEATS = 2


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=[*PARTS, "all", "report"], metavar="PART|all|report")
    parser.add_argument("--repeats", type=int, help="rounds a subject; each part has its own default")
    parser.add_argument(
        "--only", default="", metavar="NAME;...", help="subjects whose names begin so; all, if left out"
    )
    parser.add_argument("--quick", action="store_true", help="small models; goes with --out")
    parser.add_argument("--minutes", type=float, default=9.0, help="no round begins later; 9 if left out")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--accept-busy", action="store_true", help="let figures of a busy machine replace others")
    parser.add_argument("--work", type=Path, default=WORK, help="where models and bundles are kept")
    parser.add_argument("--out", type=Path, default=DOCS, help="where figures are written")
    return parser


def chosen(part: Part, quick: bool, only: str) -> list[Subject]:
    """The subjects that were asked for, in the part's order."""
    prefixes = tuple(word.strip() for word in only.split(";") if word.strip())
    subjects = part.quick if quick else part.full
    return [subject for subject in subjects if not prefixes or subject.name.startswith(prefixes)]


def write_report(out: Path) -> None:
    """``performance.md``, ``performance.json`` and the plots, from all samples below a folder."""
    try:
        from tools.bench import plots
    except ModuleNotFoundError as error:
        raise BenchError(f"no plots can be drawn: {error}", hint="pip install -c constraints.txt '.[dev]'") from error
    data = report.figures(tuple(PARTS.values()), {name: record.read(out, name) for name in PARTS})
    names = plots.draw(data, out)
    (out / "performance.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (out / "performance.md").write_text(report.markdown(data, names), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or write the report: 0 when all is there, 1 when something remains to be measured, 2 for an error."""
    parser = arguments()
    given = parser.parse_args(argv)
    if given.quick and given.out == DOCS:
        parser.error("--quick measures small models, which are no figures for docs/: name another folder with --out")
    if given.repeats is not None and given.repeats < 1:
        parser.error("--repeats is a number of rounds, 1 or more")
    parts = list(PARTS) if "all" in given.what else [name for name in given.what if name in PARTS]
    subjects = [(PARTS[name], subject) for name in parts for subject in chosen(PARTS[name], given.quick, given.only)]
    if parts and not subjects:
        parser.error(f"no subject's name begins with {given.only!r}")
    try:
        complete = _measure(given, subjects)
        if {"all", "report"} & set(given.what):
            write_report(given.out)
    except RefimplError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if complete else 1


def _measure(given: argparse.Namespace, subjects: Sequence[tuple[Part, Subject]]) -> bool:
    shop = Workshop(given.work.resolve())
    shop.folder.mkdir(parents=True, exist_ok=True)
    if given.quick:
        shop.saved_models([subject.spec for _, subject in subjects])
    until = time.monotonic() + 60 * given.minutes
    left = []
    for part, subject in subjects:
        repeats = given.repeats or min(part.repeats, _QUICK_REPEATS if given.quick else part.repeats)
        recorder = record.Recorder(
            folder=given.out,
            repeats=repeats,
            until=until,
            tell=_tell,
            again=given.again,
            accept_busy=given.accept_busy,
        )
        if not recorder.measure(part, subject, shop):
            left.append(f"{part.name}: {subject.name}")
    if left:
        _tell(f"time is up; the same command goes on with {', '.join(left)}")
    return not left


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
