"""Does the embedded engine predict the GPU? The error that it shows, and the one that TensorRT makes, side by side.

    python -m tools.gpu.prediction                        # docs/benchmarks/gpu-prediction.md and .json
    python -m tools.gpu.prediction --only digits,bert     # some models
    python -m tools.gpu.prediction --precision fp16,int8  # some precisions
    python -m tools.gpu.prediction --seconds 60           # that looking for guilty layers may take, each model

Each model is converted there, with engines of the TensorRT that is installed; both engines answer the same inputs, and
the errors are relative ones against TensorFlow (norm of the error over norm of the answer, the worst output). Then
``refimpl check`` judges the bundle with nothing but TensorRT allowed. Without a GPU it says so for every engine, and
writes that down. The exit code is 1 when something that ought to hold does not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import refimpl
from refimpl import env, gpus
from refimpl.converter import repair
from refimpl.engines import tensorrt
from refimpl.errors import RefimplError, first_line
from refimpl.numerics import disagreement
from refimpl.tolerance import tolerance_for
from tools.figures import measure
from tools.gpu import judged
from tools.gpu.record import Check, checks_table
from tools.gpu.subjects import SUBJECTS, Subject, carried

OUT = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_FACTOR = 2.0  # within which a prediction is to be
Array = Any


@dataclass(frozen=True)
class Row:
    """One model in one precision."""

    model: str
    precision: str  # asked for
    built: str  # what the TensorRT engines compute in
    predicted: float | None  # relative error of the embedded engine
    measured: float | None  # of TensorRT; None when no engine of its ran
    says: str  # why not
    layers: str
    expects: str = (
        ""  # why the embedded engine's answers are not TensorFlow's, by the precision's tolerance; "": they are
    )
    finds: str = ""  # the same of TensorRT's
    checked: str | None = None  # why refimpl check fails on TensorRT; "": it passes; None: TensorRT cannot run here
    seconds: float = 0.0  # that the conversion took
    notes: tuple[str, ...] = ()  # of the bundle's islands

    @property
    def same_verdict(self) -> bool | None:
        """Whether both are right, or both are wrong; None when TensorRT ran nothing."""
        return None if self.measured is None else bool(self.expects) == bool(self.finds)

    @property
    def ratio(self) -> float | None:
        return self.measured / self.predicted if self.measured and self.predicted else None


def compare(name: str, subject: Subject, model: Path, precision: str, folder: Path) -> Row:
    """Convert one model in one precision, and run it on both engines."""
    began = time.monotonic()
    try:
        made = measure.convert(
            model,
            folder / f"{name}-{precision}",
            subject.samples(),
            precision=precision,
            engines=("onnxruntime", "tensorrt"),
            tf32=True,
        )
    except RefimplError as error:
        why = f"not converted: {error.message}"
        checked = None if tensorrt.why_not_here() else why
        return Row(name, precision, "", None, None, why, "", checked=checked, seconds=time.monotonic() - began)
    inputs = subject.judged()
    want = measure.tensorflow(model, inputs)
    errors: dict[str, float | None] = {}
    wrong: dict[str, str] = {}
    says = ""
    for engine in ("onnxruntime", "tensorrt"):
        result = refimpl.load(made.path, engines=(engine,)).run(inputs)
        refused = [run.reason for run in result.islands if run.engine != engine]
        says = says or (refused[0] if refused else "")
        floats = [key for key, value in want.items() if value.dtype.kind == "f"]
        worst = max(measure.relative(result.outputs[key], want[key]) for key in floats)
        errors[engine] = None if refused else worst
        wrong[engine] = _wrong(precision, want, result.outputs)
    built = {e.precision for island in made.manifest.islands for e in island.engines if e.kind == "tensorrt"}
    golden = folder / f"{name}-golden"
    if not golden.exists():
        judged.golden(model, inputs, golden)
    return Row(
        name,
        precision,
        ", ".join(sorted(built)),
        errors["onnxruntime"],
        errors["tensorrt"],
        says,
        measure.counted(made.layers()),
        wrong["onnxruntime"],
        wrong["tensorrt"],
        judged.verdict(made.path, golden),
        made.seconds,
        tuple(made.notes()),
    )


def _wrong(precision: str, want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """What the verifier would say of these answers in this precision; everything here is converted with TF32."""
    kind = "tf32" if precision == "fp32" else precision
    said = (disagreement(value, got[key], tolerance_for(kind, value.dtype.name)) for key, value in want.items())
    return next(filter(None, said), "")


def record(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything measured, as plain data."""
    driver, found = gpus.list_gpus()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "gpu": [asdict(gpu) for gpu in found],
        "cuda": driver,
        "tensorrt": tensorrt.version(),
        "code": env.code_digest(),
        "versions": dict(env.versions()),
        "rows": [{**asdict(row), "ratio": row.ratio, "same_verdict": row.same_verdict} for row in rows],
    }


def checks(rows: Sequence[Mapping[str, Any]]) -> list[Check]:
    """What ought to hold of the rows, which may be those of several runs: three sentences for each precision."""
    found = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        mine = [row for row in rows if row["precision"] == precision]
        judged_ones = {row["model"]: row.get("checked") for row in mine}
        sound = {row["model"]: row["ratio"] for row in mine if row["ratio"] is not None and not row["finds"]}
        verdicts = {row["model"]: row["same_verdict"] for row in mine}
        found += [
            _all_hold(
                f"{precision}: refimpl check passes with TensorRT alone",
                {model: None if said is None else not said for model, said in judged_ones.items()},
            ),
            _all_hold(
                f"{precision}: where the engine is sound, the prediction is within a factor of {_FACTOR:g}",
                {model: 1 / _FACTOR <= ratio <= _FACTOR for model, ratio in sound.items()},
            ),
            _all_hold(f"{precision}: prediction and GPU lead to the same verdict", verdicts),
        ]
    return found


def _all_hold(what: str, found: Mapping[str, bool | None]) -> Check:
    """One sentence about all models; those that could not be tried do not count."""
    tried = {model: holds for model, holds in found.items() if holds is not None}
    failing = [model for model, holds in tried.items() if not holds]
    said = f"{len(tried) - len(failing)} of {len(tried)} models" + (f", not {', '.join(failing)}" if failing else "")
    return Check(what, said, holds=not failing if tried else None)


def markdown(data: Mapping[str, Any]) -> str:
    """The record for people."""
    gpu = ", ".join(f"{item['name']} (compute capability {item['compute_capability']})" for item in data["gpu"])
    lines = [
        "# The embedded engine's prediction, and the GPU",
        "",
        _ABOUT,
        "",
        f"* {data['date']}, {gpu or 'no GPU'}, CUDA {data['cuda'] or '-'}, {data['tensorrt'] or 'no TensorRT'}",
        "",
        *checks_table(data.get("checks", ())),
        "",
        "| model | asked for | engine | layers | predicted | measured | times | same verdict | check |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        numbers = [_number(row["predicted"]), _number(row["measured"]), f"{row['ratio']:.2f}" if row["ratio"] else "-"]
        passes = None if row.get("checked") is None else not row["checked"]
        numbers += [_SAID[row.get("same_verdict")], _SAID[passes]]
        model = f"{row['model']}{'*' if row.get('code') else ''}"
        lines.append(f"| {' | '.join([model, row['precision'], row['built'] or '-', row['layers'], *numbers])} |")
    if any(row.get("code") for row in data["rows"]):
        lines += ["", "\\* measured on the same GPU with an earlier version of refimpl."]
    notes = [
        f"* {row['model']}, {row['precision']}: {'; '.join([row['says'], *row.get('notes', ())])}"
        for row in data["rows"]
        if row["says"]
    ]
    if notes:
        lines += ["", "Where no TensorRT engine ran, another one gave the answer, and this is why:", "", *notes]
    failed = [f"* {row['model']}, {row['precision']}: {row['checked']}" for row in data["rows"] if row.get("checked")]
    if failed:
        lines += ["", "Where `refimpl check` fails, it says:", "", *failed]
    return "\n".join(lines) + "\n"


_SAID = {True: "yes", False: "**no**", None: "-"}
_ABOUT = (
    "Written by `python -m tools.gpu.prediction`; do not edit. Relative errors against TensorFlow; *times* is the "
    "GPU's over the prediction; *check* is the verdict of `refimpl check` with TensorRT alone. Everything is converted "
    "with `--tf32`: TensorRT for RTX 1.6 rounds float32 products so whether or not it is allowed to."
)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="models, with commas  [all]")
    parser.add_argument("--carried", type=Path, help="a folder that tools.gpu.subjects wrote")
    parser.add_argument("--precision", default=",".join(PRECISIONS), help="precisions, with commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the search for guilty layers in each model")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    repair.SECONDS = given.seconds
    rows: list[Row] = []
    written: Mapping[str, Any] = {"checks": ()}
    with tempfile.TemporaryDirectory() as scratch:
        subjects = {**SUBJECTS, **(carried(given.carried) if given.carried else {})}
        for name in given.only.split(",") if given.only else subjects:
            for precision in given.precision.split(","):
                rows.append(_compared(name, subjects[name], precision, Path(scratch)))
                print(rows[-1], file=sys.stderr, flush=True)
                written = _write(given.out, record(rows))  # what there is, should the rest not come to an end
    return int(any(check["holds"] is False for check in written["checks"]))


def _compared(name: str, make: Callable[[], Subject], precision: str, folder: Path) -> Row:
    """A row whatever happens: a model that cannot be made here, or a failure of a library, costs that row alone."""
    try:
        subject = make()
        made = folder / f"{name}-made"
        if not made.exists():
            made.symlink_to(subject.make(folder).resolve())
        return compare(name, subject, made.resolve(), precision, folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  (pytest's own skip, by which models of the tests say so, is no Exception)
        why = f"not asked: {type(error).__name__}: {first_line(error)}"
        return Row(name, precision, "", None, None, why, "", checked=None if tensorrt.why_not_here() else why)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new record, with rows of an old one that were not measured again: of the same GPU and TensorRT.

    Rows of another version of refimpl carry its digest, and are marked where they are shown.
    """
    if any(old.get(name) != new[name] for name in ("gpu", "tensorrt")):
        return dict(new)
    again = {(row["model"], row["precision"]) for row in new["rows"]}
    kept = [row for row in old["rows"] if (row["model"], row["precision"]) not in again]
    if old.get("code") != new["code"]:
        kept = [{"code": old.get("code"), **row} for row in kept]
    kept = [{name: value for name, value in row.items() if (name, value) != ("code", new["code"])} for row in kept]
    return {**new, "rows": sorted([*kept, *new["rows"]], key=_place)}


def _place(row: Mapping[str, Any]) -> tuple[int, str, int]:
    """Models in the order of this module, others behind them, precisions from float32 down."""
    names = list(SUBJECTS)
    known = names.index(row["model"]) if row["model"] in names else len(names)
    return known, row["model"], PRECISIONS.index(row["precision"]) if row["precision"] in PRECISIONS else -1


def join(folders: Sequence[Path], out: Path) -> None:
    """Write what runs about one model each have found, as one record."""
    for file in (folder / "gpu-prediction.json" for folder in folders):
        if file.is_file():
            _write(out, json.loads(file.read_text(encoding="utf-8")))


def _write(folder: Path, data: Mapping[str, Any]) -> Mapping[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    before = folder / "gpu-prediction.json"
    merge = merged(json.loads(before.read_text(encoding="utf-8")), data) if before.exists() else dict(data)
    whole = {**merge, "checks": [asdict(check) for check in checks(merge["rows"])]}
    (folder / "gpu-prediction.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu-prediction.md").write_text(markdown(whole), encoding="utf-8")
    return whole


if __name__ == "__main__":
    sys.exit(main())
