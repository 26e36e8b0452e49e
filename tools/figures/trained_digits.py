"""Digits: every precision and calibrator, on images that were held out; then with a damaged calibration batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refimpl import calibration
from refimpl.bundle import CALIBRATION
from tools.figures import digits, measure
from tools.figures.measure import Made, Section, Table, Tell, Wanted, counted, percent

CALIBRATORS = ("entropy", "minmax", "percentile")
# Pixels in one image, and how bright they are; white is 1.
DOSES = ((1, 100.0), (4, 100.0))
BATCH = 17  # the damaged one: calibration sees all 20, verification the first 16


def precisions(work: Path, tell: Tell) -> Section:
    """Top-1 of TensorFlow and of every precision, through a loaded bundle."""
    model = work / "digits"
    if not model.exists():
        tell("digits: training")
        digits.digits_cnn(model)
    images, labels = digits.held_out()
    want = measure.tensorflow(model, {"image": images})["output_0"]
    rows = [("TensorFlow", percent(measure.top1(want, labels)), "", "", "", "")]
    found: dict[str, float] = {"tensorflow": measure.top1(want, labels)}
    choices = [(name, {"precision": name}) for name in ("fp32", "fp16", "bf16")]
    choices += [(f"int8 {name}", {"precision": "int8", "calibrator": name}) for name in CALIBRATORS]
    for name, choice in choices:
        tell(f"digits: {name}")
        made = measure.convert(model, work / f"digits-{name}", digits.calibration_batches(), **choice)
        got = made.run({"image": images})["output_0"]
        found[name] = measure.top1(got, labels)
        errors = f"{measure.relative(got, want):.2g}", f"{measure.cosine(got, want):.5f}"
        rows.append((name, percent(found[name]), *errors, counted(made.layers()), f"{made.seconds:.1f} s"))
    worst = max(found["fp32"] - found[f"int8 {name}"] for name in CALIBRATORS)
    half = abs(found["fp32"] - found["fp16"])
    return Section(
        "Digits",
        (
            f"A CNN trained on {digits.TRAINED_ON} of scikit-learn's 1797 handwritten digits, judged by the other "
            f"{len(labels)}: one image is {100 / len(labels):.2f} points. Calibrated with the {digits.TRAINED_ON} "
            "images, in 20 batches."
        ),
        (Table(("precision", "top-1", "relative error", "cosine", "layers", "converted in"), tuple(rows)),),
        (
            Wanted("FP16 top-1 within 0.1 points of FP32", f"{100 * half:.2f} points", half <= 0.001),
            Wanted("INT8 top-1 within 1.0 points of FP32 with every calibrator", f"{100 * worst:.2f}", worst <= 0.01),
        ),
        {"top1": found},
    )


def outliers(work: Path, tell: Tell) -> Section:
    """The same network, calibrated with one batch in which a few pixels are absurdly bright."""
    model = work / "digits"
    if not model.exists():
        digits.digits_cnn(model)
    images, labels = digits.held_out()
    rows: list[tuple[str, ...]] = []
    facts: list[dict[str, Any]] = []
    for pixels, brightness in DOSES:
        good = digits.calibration_batches(labels=True)
        batches = digits.with_outliers(good, batch=BATCH, pixels=pixels, brightness=brightness)
        for name, percentile in (("entropy", 99.99), ("percentile", 99.99), ("percentile", 99.9), ("minmax", 99.99)):
            tell(f"outliers: {pixels} of {brightness:g}, {name} {percentile:g}")
            label = f"{name} {percentile:g}" if name == "percentile" else name
            choice = {"calibrator": name, "percentile": percentile}
            folder = work / f"outliers-{pixels}-{brightness:g}-{label}"
            made = measure.convert(model, folder, batches, precision="int8", **choice)
            bare = _unrepaired(model, work / f"{folder.name}-auto", batches, choice)
            got = made.run({"image": images})["output_0"]
            fact: dict[str, Any] = {
                "pixels": pixels,
                "brightness": brightness,
                "calibrator": label,
                "bare": bare,
                "int8": made.layers()["int8"],
                "top1": measure.top1(got, labels),
                "warnings": len(made.warnings()),
                "shown": sum(note.startswith("calibration: ") for note in made.notes()),
                "input_range": _input_range(made),
            }
            facts.append(fact)
            rows.append(
                (
                    f"{pixels} of {brightness:g}",
                    label,
                    f"{fact['input_range']:.3g}",
                    percent(bare),
                    counted(made.layers()),
                    percent(fact["top1"]),
                    str(fact["warnings"]),
                )
            )
    return Section("A damaged calibration batch", _TEXT, (Table(_HEAD, tuple(rows)),), _wanted(facts), {"rows": facts})


_TEXT = (
    "One image of the 1000 gets a few pixels far brighter than white (1.0). 'All int8' is the top-1 on the "
    "calibration images if every layer that can compute in int8 does, as `--precision auto` tries it first. What "
    "ships is verified: layers that cost TensorFlow's answers leave int8. The damaged batch is not among the first 16, "
    "which verify.\n\n"
    "The 99.99th percentile of a tensor survives as long as outliers are less than 0.01 % of its values. One pixel is "
    "0.0016 % of the input; but behind three convolutions it has spread over the image, 0.1 % of all values."
)
_HEAD = ("pixels", "calibrator", "range of the input", "all int8", "layers that ship", "top-1 held out", "warnings")


def _unrepaired(model: Path, folder: Path, batches: measure.Samples, choice: dict[str, object]) -> float:
    """Top-1 on the calibration images with all of it in int8, whether TensorFlow agrees or not."""
    metric = f"{digits.__name__}:correct"
    made = measure.convert(model, folder, batches, precision="auto", metric=metric, max_drop=0.01, **choice)
    return next(float(row["metric"]) for row in made.tried() if row["name"] == "int8")


def _input_range(made: Made) -> float:
    (table,) = calibration.load(made.path / CALIBRATION)
    return next(seen.threshold for name, seen in table.ranges.items() if "/arg/" in name)


def _wanted(facts: list[dict[str, Any]]) -> tuple[Wanted, ...]:
    first = {str(row["calibrator"]): row for row in facts if (row["pixels"], row["brightness"]) == DOSES[0]}
    whole = max(row["int8"] for row in facts)
    kept = {name: row["int8"] for name, row in first.items()}
    lost = first["entropy"]["bare"] - first["minmax"]["bare"]
    shown = ", ".join(f"{name} {count} of {whole}" for name, count in kept.items())
    return (
        Wanted(
            "percentile and entropy keep every layer in int8",
            shown,
            kept["entropy"] == kept["percentile 99.99"] == whole,
        ),
        Wanted(
            "min-max visibly suffers",
            f"all int8 it loses {100 * lost:.1f} points; {kept['minmax']} of {whole} layers are left in int8",
            lost > 0.01 and kept["minmax"] < whole,
        ),
        Wanted(
            "the report of min-max says so",
            f"{first['minmax']['warnings']} warnings in the table, {first['minmax']['shown']} of them shown by convert",
            bool(first["minmax"]["warnings"] and first["minmax"]["shown"]),
        ),
    )
