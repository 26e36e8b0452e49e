"""How often does the oracle cry wolf? Convert every model of the tests, check the bundles, and count.

    python tools/false_alarms.py                        # all of it: docs/benchmarks/false-alarms.json and .md
    python tools/false_alarms.py --only lstm,vit        # some models; the others stay as they were
    python tools/false_alarms.py --precisions fp32      # not the others

Nothing is wrong with these bundles, so whatever a check says against one is a false alarm, or a finding.

One *comparison* is one output tensor of one golden case, whose values were judged, in a call in which at least one
island ran in an engine (ONNX Runtime). Outputs that are empty, or that the record marks as not to be judged by value,
are no comparison; nor is a call that TensorFlow answered alone. An *alarm* is everything that keeps a case from being a
match: an output beyond its tolerance, a wrong form, an unplanned fallback, a run that failed or was not made.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the refimpl of this checkout, installed or not
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # noqa: TID251  (before TensorFlow is imported)

import numpy as np  # noqa: E402

import refimpl  # noqa: E402
from refimpl import env, oracle  # noqa: E402
from refimpl.errors import GoldenError  # noqa: E402
from refimpl.oracle.runners import require_reference_tf  # noqa: E402
from refimpl.oracle.verdict import CaseResult, Outcome  # noqa: E402
from refimpl.recipe import Recipe  # noqa: E402
from refimpl.text import counted  # noqa: E402

OUT = ROOT / "docs" / "benchmarks"
COMMAND = "python tools/false_alarms.py"
PRECISIONS = ("fp32", "fp16", "int8")
SEEDS = 3  # generated cases of so many seeds, one for slow models; float32 only, see `goldens`
DRAWS = 8  # fresh draws of a model's own sample inputs, two for slow models
SLOW = ("resnet50", "mobilenetv2")  # beside those that the tests call slow: seven images of any size take a while
# Alarms that were looked into and are no mistake of the check, by model and case. They are counted all the same.
EXPLAINED = {
    ("detector", "seed 2/serving_default/normal-b7"): (
        "two anchors of the seventh image have the same score in ONNX Runtime, and scores one float32 step apart in "
        "TensorFlow, so non-maximum suppression keeps the one box here and its neighbour there: `refimpl bisect` says "
        "that the error is amplified by CombinedNonMaxSuppression. The two answers do differ"
    ),
}
# What is right although not a match: the verdict says so, and nothing was accelerated that could be wrong.
_QUIET = (Outcome.MATCH, Outcome.MATCH_NOTHING_ACCELERATED, Outcome.CONVERSION_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the checks of one bundle came to."""

    model: str
    precision: str  # asked for
    cases: int = 0
    comparisons: int = 0  # as counted: see the module docstring
    in_tensorflow: int = 0  # output tensors judged in calls that TensorFlow answered alone
    elements: int = 0  # of the comparisons
    worst: float = 0.0  # the largest error, as a share of what its tolerance allows
    worst_at: str = ""
    alarms: tuple[str, ...] = ()

    def plus(self, case: CaseResult, label: str) -> Row:
        """The row with one more case."""
        tensors = case.comparison.tensors if case.comparison else ()
        judged = [tensor for tensor in tensors if tensor.compared]
        weighed = judged if case.accelerated else []
        worst, at = max(
            [(self.worst, self.worst_at), *((t.share or 0.0, f"{label}: {t.name}") for t in weighed)],
            key=lambda item: item[0],
        )
        alarm = () if case.outcome in _QUIET else (f"{label}: {case.outcome.value}: {case.reason}",)
        return replace(
            self,
            cases=self.cases + 1,
            comparisons=self.comparisons + len(weighed),
            in_tensorflow=self.in_tensorflow + len(judged) - len(weighed),
            elements=self.elements + sum(tensor.compared for tensor in weighed),
            worst=worst,
            worst_at=at,
            alarms=self.alarms + alarm,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to ask of each model."""

    seeds: int = SEEDS
    draws: int = DRAWS

    def of(self, slow: bool) -> Budget:
        return Budget(min(self.seeds, 1), min(self.draws, 2)) if slow else self


def names() -> tuple[str, ...]:
    """Every model of the tests."""
    return tuple(_zoo().MODELS)


def measure(name: str, precision: str, budget: Budget, folder: Path) -> Row:
    """Convert one model, record golden answers, check, and count.

    Args:
        name: a key of ``tests.models.MODELS``.
        precision: one of :data:`PRECISIONS`.
        budget: how much to ask; slow models are asked less.
        folder: where to write; nothing of that name may be in it.
    """
    require_reference_tf()
    zoo = _zoo()
    model, budget = zoo.saved_model(name), budget.of(name in SLOW or zoo.MODELS[name].expect.slow)
    bundle = folder / f"{name}-{precision}"
    samples = None if precision == "fp32" else _draws(name, "calibration", 8)
    signatures = ("*",) if zoo.MODELS[name].expect.others and precision == "fp32" else ()
    refimpl.convert(model, bundle, Recipe(precision=precision, signatures=signatures), samples=samples)
    row = Row(model=name, precision=precision)
    for label, golden in goldens(name, precision, budget, folder):
        verdict = oracle.check(bundle, golden, oracle.CheckOptions(engines=("onnxruntime",)))
        for case in verdict.cases:
            row = row.plus(case, f"{label}/{case.signature}/{case.case}")
    return row


def goldens(name: str, precision: str, budget: Budget, folder: Path) -> Iterator[tuple[str, Path]]:
    """Golden records of one model, each with a label: of generated cases for float32, and of its own inputs for all.

    A lowered precision is a promise about inputs such as it was calibrated with, and generated cases are others: what
    it loses on them is a loss, and no false alarm.
    """
    model = _zoo().saved_model(name)
    for seed in range(budget.seeds if precision == "fp32" else 0):
        made = folder / f"{name}-seed{seed}"
        try:
            if not made.exists():
                oracle.record(model, made, seed=seed)
        except GoldenError:  # a model that takes nothing that can be made up, such as images in a file's format
            break
        yield f"seed {seed}", made
    draws = _draws(name, "check", budget.draws)
    if not draws[0]:  # a model without inputs
        return
    made, data = folder / f"{name}-draws", folder / f"{name}-data"
    if not made.exists():
        data.mkdir()
        for number, inputs in enumerate(draws):
            plain = {key: value.astype("S") if value.dtype == object else value for key, value in inputs.items()}
            np.savez(data / f"draw{number}.npz", **plain)
        oracle.record(model, made, cases=str(data), signatures=["serving_default"])
    yield "own inputs", made


def _zoo() -> Any:
    return importlib.import_module("tests.models")


def _draws(name: str, purpose: str, count: int) -> list[Mapping[str, Any]]:
    """Sample inputs of a model; another purpose, other values."""
    expect = _zoo().MODELS[name].expect
    seeds = [[*f"{name}/{purpose}".encode(), number] for number in range(count)]
    return [expect.inputs(np.random.default_rng(seed)) for seed in seeds]


def total(rows: Sequence[Row]) -> Row:
    """All rows in one."""
    worst = max(rows, key=lambda row: row.worst)
    return Row(
        model="all",
        precision="",
        cases=sum(row.cases for row in rows),
        comparisons=sum(row.comparisons for row in rows),
        in_tensorflow=sum(row.in_tensorflow for row in rows),
        elements=sum(row.elements for row in rows),
        worst=worst.worst,
        worst_at=f"{worst.model} {worst.worst_at}",
        alarms=tuple(f"{row.model} {row.precision}: {alarm}" for row in rows for alarm in row.alarms),
    )


def markdown(record: Mapping[str, Any]) -> str:
    """The record for people."""
    rows = [Row(**{**item, "alarms": tuple(item["alarms"])}) for item in record["rows"]]
    lines = ["# False alarms", "", f"Written by `{record['command']}`; do not edit.", ""]
    lines += [f"* {record['processor']}"]
    lines += [f"* {', '.join(f'{name} {version}' for name, version in record['versions'].items())}", ""]
    lines += [f"Measured {record['date']}. Every bundle is as it was converted, so nothing is wrong with it.", ""]
    for precision in PRECISIONS:
        found = [row for row in rows if row.precision == precision]
        if found:
            whole = total(found)
            asked = f"{whole.cases} cases of {len(found)} models, {whole.elements} elements"
            lines.append(
                f"* **{precision}**: {counted(len(whole.alarms), 'alarm')} in {whole.comparisons} comparisons "
                f"({asked}); the largest error was {whole.worst:.1%} of its tolerance"
            )
    left = [name for name in names() if name not in {row.model for row in rows}]
    lines += [f"* not measured: {', '.join(left)}"] * bool(left)
    text = (__doc__ or "").split("\n\n")[-1]
    lines += ["", " ".join(text.split()), ""]
    lines += ["| model | precision | cases | comparisons | in TensorFlow alone | worst use of the tolerance | where |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row.model} | {row.precision} | {row.cases} | {row.comparisons} | {row.in_tensorflow} | {row.worst:.1%} | "
        f"{row.worst_at} |"
        for row in rows
    ]
    alarms = [(row, alarm) for row in rows for alarm in row.alarms]
    lines += ["", "## Alarms", ""]
    lines += [
        f"* {row.model} {row.precision}: {' '.join(alarm.split())}{_explained(row, alarm)}" for row, alarm in alarms
    ]
    lines += ["None."] * (not alarms)
    return "\n".join(lines) + "\n"


def _explained(row: Row, alarm: str) -> str:
    found = [why for (model, case), why in EXPLAINED.items() if row.model == model and alarm.startswith(f"{case}: ")]
    return f". Explained: {found[0]}." if found else ""


def merged(old: Mapping[str, Any], head: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """A record with these rows; those of an old one that were not measured again stay where versions are the same."""
    same = all(old.get(key) == head[key] for key in ("versions", "processor"))
    kept = {(item["model"], item["precision"]): item for item in old.get("rows", []) if same}
    kept |= {(row.model, row.precision): asdict(row) for row in rows}
    order = [(model, precision) for precision in PRECISIONS for model in names()]
    return {**head, "rows": [kept[key] for key in order if key in kept]}


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "false-alarms.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(markdown(record), encoding="utf-8")


def _told(row: Row, seconds: float) -> str:
    text = f"{row.model} {row.precision}: {row.comparisons} comparisons, worst {row.worst:.1%} of the tolerance, "
    return "\n  ".join([f"{text}{len(row.alarms)} alarms, {seconds:.0f} s", *row.alarms])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="MODEL,...", help="these models; all of them when left out")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), metavar="PRECISION,...")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="sets of generated cases a model, in float32")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of a model's own inputs")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for false-alarms.md and false-alarms.json")
    given = parser.parse_args(arguments)
    require_reference_tf()  # before the models import TensorFlow: golden answers are made without oneDNN
    chosen = [name for name in given.only.split(",") if name] or list(names())
    for name, known in [*((m, names()) for m in chosen), *((p, PRECISIONS) for p in given.precisions.split(","))]:
        if name not in known:
            parser.error(f"{name!r} is not known; there are {', '.join(known)}")
    head = {
        "command": COMMAND,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": env.processor(),
        "versions": {name: version for name, version in env.versions().items() if version},
    }
    rows = []
    file = given.out / "false-alarms.json"
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="refimpl-false-alarms-") as folder:
            for precision in given.precisions.split(","):
                began = time.monotonic()
                row = measure(name, precision, Budget(given.seeds, given.draws), Path(folder))
                rows.append(row)
                old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
                write(merged(old, head, rows), given.out)
                print(_told(row, time.monotonic() - began), flush=True)
    return int(any(not _explained(row, alarm) for row in rows for alarm in row.alarms))


if __name__ == "__main__":
    sys.exit(main())
