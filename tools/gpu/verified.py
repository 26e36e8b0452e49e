"""Do networks come out right on the GPU that is here, and how much of them is accelerated?

    python -m tools.gpu.verified                               # docs/benchmarks/gpu-verified.md and .json
    python -m tools.gpu.verified --only MobileNetV2            # some models
    python -m tools.gpu.verified --seconds 60                  # that looking for guilty layers may take, each model

Each model is converted there, so every engine is run on the GPU against TensorFlow before it is stored. What that took
away from it is listed: layers in float32, ops left to TensorFlow, engines that are not stored, each with its reason.
The bundle then answers inputs that it was not made with. The exit code is 1 when an answer is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import refimpl
from refimpl.bundle import Manifest
from refimpl.converter import repair
from refimpl.converter.device import where
from refimpl.errors import RefimplError
from refimpl.numerics import disagreement
from refimpl.recipe import Recipe
from refimpl.tolerance import tolerance_for
from tools.figures import measure
from tools.gpu import record
from tools.gpu.subjects import SUBJECTS

NETWORKS = ("MobileNetV2", "EfficientNetB0", "ResNet50")


@dataclass(frozen=True)
class Row:
    """One model in one precision.

    Attributes:
        model: its name.
        precision: that was asked for.
        engines: what ran its islands, and how many: ``"3 tensorrt"``.
        accelerated: share of its ops that TensorRT ran.
        error: relative error of the bundle's answers against TensorFlow; None when there is no bundle.
        problem: why they are not TensorFlow's, by the tolerance of the precision; "" when they are.
        lifted: layers that compute in float32 for the GPU's sake, with reasons.
        left: ops that TensorFlow runs for the GPU's sake, with reasons.
        notes: what the bundle says of its islands.
        seconds: that the conversion took.
    """

    model: str
    precision: str
    engines: str
    accelerated: float
    error: float | None
    problem: str
    lifted: Mapping[str, str]
    left: Mapping[str, str]
    notes: Sequence[str]
    seconds: float


def verified(name: str, precision: str, folder: Path) -> Row:
    """Convert one model on this machine, and let the bundle answer inputs that it has not seen."""
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{name} {precision}, {time.monotonic() - began:.0f} s: {line}", file=sys.stderr, flush=True)

    subject = SUBJECTS[name]()
    model = subject.make(folder)
    recipe = Recipe(precision=precision, tf32=precision == "fp32", engines=("onnxruntime", "tensorrt"))
    target = folder / f"{name}-{precision}"
    try:
        manifest = refimpl.convert(model, target, recipe, samples=subject.samples(), tell=tell)
    except RefimplError as error:
        problem = f"not converted: {error.message}"
        return Row(name, precision, "none", 0.0, None, problem, {}, {}, (), time.monotonic() - began)
    seconds = time.monotonic() - began
    inputs = subject.judged()
    want, result = measure.tensorflow(model, inputs), refimpl.load(target).run(inputs)
    ran = {run.island: run.engine for run in result.islands}
    problems = (
        disagreement(value, result.outputs[key], tolerance_for(precision, value.dtype.name))
        for key, value in want.items()
    )
    return Row(
        name,
        precision,
        ", ".join(f"{list(ran.values()).count(kind)} {kind}" for kind in dict.fromkeys(ran.values())) or "none",
        _share(manifest, [island for island, engine in ran.items() if engine == "tensorrt"]),
        max(measure.relative(result.outputs[key], value) for key, value in want.items()),
        next(filter(None, problems), ""),
        {layer: why for island in manifest.islands for layer, _, _, why in island.layers if where() in why},
        {op.name: op.reason for item in manifest.signatures for op in item.left if where() in op.reason},
        [note for island in manifest.islands for note in island.notes],
        seconds,
    )


def _share(manifest: Manifest, islands: Sequence[str]) -> float:
    """Of the ops that compute something, how many lie in these islands."""
    from refimpl.bundle import IDLE_OPS

    total = sum(item.ops_total for item in manifest.signatures)
    ops = [kind for island in manifest.islands if island.name in islands for _, kind in island.ops]
    return sum(kind not in IDLE_OPS for kind in ops) / total if total else 0.0


def markdown(data: Mapping[str, Any]) -> str:
    """The record for people."""
    lines = ["# Networks that are verified where they run", "", _ABOUT, "", record.machine_line(data), ""]
    lines += ["| model | asked for | ran on | ops in TensorRT | layers lifted | ops left | relative error | right |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in data["rows"]:
        cells = [row["model"], row["precision"], row["engines"], f"{row['accelerated']:.0%}", str(len(row["lifted"]))]
        cells += [
            str(len(row["left"])),
            "-" if row["error"] is None else f"{row['error']:.2g}",
            row["problem"] or "yes",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for row in data["rows"]:
        lines += ["", f"## {row['model']}, {row['precision']} ({row['seconds']:.0f} s)", ""]
        lines += [f"* {note}" for note in row["notes"]]
        lines += [f"* `{name}`: {why}" for part in ("lifted", "left") for name, why in row[part].items()]
    return "\n".join(lines) + "\n"


_ABOUT = (
    "Written by `python -m tools.gpu.verified`; do not edit. Converted on this machine, so every engine was run on "
    "its GPU against TensorFlow before it was stored; *lifted* and *left* count what that took away. The error is that "
    "of the finished bundle on other inputs."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="models, with commas")
    parser.add_argument("--precision", default="fp16", help="precisions, with commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the search in each model")
    parser.add_argument("--out", type=Path, default=record.OUT)
    given = parser.parse_args(argv)
    repair.SECONDS = given.seconds
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.only.split(","):
            for precision in given.precision.split(","):
                rows.append(verified(name, precision, Path(scratch)))
                print(rows[-1], file=sys.stderr, flush=True)
                data = {**record.machine(), "rows": [asdict(row) for row in rows]}
                record.write(given.out, "gpu-verified", data, markdown(data))  # what there is, should it be cut off
    return int(any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())
