"""Does the embedded engine predict the GPU? The error that it shows, and the one that TensorRT makes, side by side.

    python -m tools.gpu.prediction                        # docs/benchmarks/gpu-prediction.md and .json
    python -m tools.gpu.prediction --only digits,bert     # some models
    python -m tools.gpu.prediction --precision fp16,int8  # some precisions

Each model is converted there, with engines of the TensorRT that is installed; both engines answer the same inputs, and
the errors are relative ones against TensorFlow (norm of the error over norm of the answer, the worst output). Without
a GPU it says so for every engine, and writes that down.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import refimpl
from refimpl import env, gpus
from refimpl.engines import tensorrt
from refimpl.errors import RefimplError
from refimpl.numerics import disagreement
from refimpl.tolerance import tolerance_for
from tools.figures import measure
from tools.gpu.subjects import SUBJECTS, Subject, carried

OUT = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
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

    @property
    def same_verdict(self) -> bool | None:
        """Whether both are right, or both are wrong; None when TensorRT ran nothing."""
        return None if self.measured is None else bool(self.expects) == bool(self.finds)

    @property
    def ratio(self) -> float | None:
        return self.measured / self.predicted if self.measured and self.predicted else None


def compare(name: str, subject: Subject, model: Path, precision: str, folder: Path) -> Row:
    """Convert one model in one precision, and run it on both engines."""
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
        return Row(name, precision, "", None, None, f"not converted: {error.message}", "")
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
    shown = measure.counted(made.layers())
    numbers = errors["onnxruntime"], errors["tensorrt"], says, shown
    return Row(name, precision, ", ".join(sorted(built)), *numbers, wrong["onnxruntime"], wrong["tensorrt"])


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
        "versions": dict(env.versions()),
        "rows": [{**asdict(row), "ratio": row.ratio, "same_verdict": row.same_verdict} for row in rows],
    }


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
        "| model | asked for | engine | layers | predicted | measured | times | same verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        numbers = [_number(row["predicted"]), _number(row["measured"]), f"{row['ratio']:.2f}" if row["ratio"] else "-"]
        numbers.append({True: "yes", False: "**no**", None: "-"}[row.get("same_verdict")])
        lines.append(
            f"| {' | '.join([row['model'], row['precision'], row['built'] or '-', row['layers'], *numbers])} |"
        )
    notes = [f"* {row['model']}, {row['precision']}: {row['says']}" for row in data["rows"] if row["says"]]
    if notes:
        lines += ["", "Where no TensorRT engine ran, another one gave the answer, and this is why:", "", *notes]
    return "\n".join(lines) + "\n"


_ABOUT = (
    "Written by `python -m tools.gpu.prediction`; do not edit. Relative errors against TensorFlow; *times* is the "
    "GPU's over the prediction. Everything is converted with `--tf32`: "
    "TensorRT for RTX 1.6 rounds float32 products so whether or not it is allowed to."
)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="models, with commas  [all]")
    parser.add_argument("--carried", type=Path, help="a folder that tools.gpu.subjects wrote")
    parser.add_argument("--precision", default=",".join(PRECISIONS), help="precisions, with commas")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        subjects = {**SUBJECTS, **(carried(given.carried) if given.carried else {})}
        for name in given.only.split(",") if given.only else subjects:
            subject = subjects[name]()
            model = subject.make(Path(scratch))
            for precision in given.precision.split(","):
                rows.append(compare(name, subject, model, precision, Path(scratch)))
                print(rows[-1], file=sys.stderr, flush=True)
                _write(given.out, record(rows))  # what there is, should the rest not come to an end
    return 0


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new record, with rows of an old one that were not measured again on the same GPU by the same TensorRT."""
    if any(old.get(name) != new[name] for name in ("gpu", "tensorrt")):
        return dict(new)
    again = {(row["model"], row["precision"]) for row in new["rows"]}
    return {
        **new,
        "rows": [*(row for row in old["rows"] if (row["model"], row["precision"]) not in again), *new["rows"]],
    }


def _write(folder: Path, data: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    before = folder / "gpu-prediction.json"
    data = merged(json.loads(before.read_text(encoding="utf-8")), data) if before.exists() else data
    (folder / "gpu-prediction.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu-prediction.md").write_text(markdown(data), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
