"""Networks trained with fake quantization, and networks in which one layer is sensitive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.figures import digits, measure
from tools.figures.measure import Section, Table, Tell, Wanted, counted, percent


def quantization_aware(work: Path, tell: Tell) -> Section:
    """A network trained with fake quantization, converted without calibration, against its own fake-quant output."""
    tell("qat: training")
    model = work / "digits-qat"
    images, labels = measure.digits_qat(model)
    tell("qat: converting")
    made = measure.convert(model, work / "qat", None, precision="int8", use_calibration=False)
    (want,) = measure.tensorflow(model, {"image": images}).values()
    (got,) = made.run({"image": images}).values()
    step = float(np.abs(want).max()) / 127
    worst = float(np.abs(got - want).max()) / step
    same = float(np.mean(np.abs(got - want) <= step / 10))
    rows = (
        ("TensorFlow, fake quantization", percent(measure.top1(want, labels)), "", ""),
        ("int8, its own ranges", percent(measure.top1(got, labels)), f"{worst:.2f} steps", counted(made.layers())),
    )
    facts = {
        "tensorflow": measure.top1(want, labels),
        "int8": measure.top1(got, labels),
        "steps": worst,
        "within a tenth of a step": same,
    }
    text = (
        "A CNN trained with `FakeQuantWithMinMaxVars` on every activation and weight, converted with "
        "`--no-calibration`. A step is 1/127 of the largest logit. A sum that falls half way between two levels may be "
        f"rounded either way; {percent(same)} of the logits are within a tenth of a step."
    )
    wanted = (Wanted("equal to TensorFlow's fake-quant output within one step", f"{worst:.2f} steps", worst <= 1.0),)
    head = ("", "top-1", "largest difference", "layers")
    return Section("Quantization-aware training", text, (Table(head, rows),), wanted, facts)


def choosing(work: Path, tell: Tell) -> Section:
    """``auto`` on the digits, with labels, as they are and with a sensitive layer planted."""
    images, labels = digits.held_out()
    tables: list[Table] = []
    facts: dict[str, dict[str, Any]] = {}
    for name, make in (("digits", digits.digits_cnn), ("planted", digits.planted)):
        model = work / name
        if not model.exists():
            tell(f"auto: making {name}")
            make(model)
        tell(f"auto: {name}")
        metric = f"{digits.__name__}:correct"
        samples = digits.calibration_batches(labels=True)
        made = measure.convert(model, work / f"auto-{name}", samples, precision="auto", metric=metric, max_drop=0.005)
        tried = made.tried()
        rows = tuple(
            (
                str(row["name"]),
                percent(row["metric"]),
                f"{100 * row['drop']:.2f}",
                f"{row['cost']:.2f}",
                str(row["verdict"]),
            )
            for row in tried
        )
        head = ("tried", "top-1 on the samples", "drop, points", "estimated cost", "verdict")
        tables.append(Table(head, rows, title=f"{name}: {counted(made.layers())}, in {made.seconds:.0f} s"))
        got = made.run({"image": images})["output_0"]
        rows_of_layers = [row for island in made.manifest.islands for row in island.layers]
        chosen = next(str(row["name"]) for row in tried if row["verdict"] == "chosen")
        products = [row for row in rows_of_layers if row[1] in ("Conv", "MatMul", "Gemm")]
        facts[name] = {
            "chosen": chosen,
            "top1": measure.top1(got, labels),
            "lifted": [row[0] for row in rows_of_layers if measure.REPAIRED in row[3]],
            "int8": [row[0] for row in products if row[2] == "int8"],
            "tried": len(tried),
        }
    lifted = facts["planted"]["lifted"]
    exactly = len(lifted) == 1 and digits.PLANTED in lifted[0] and facts["planted"]["chosen"].startswith("int8")
    wanted = (
        Wanted("the planted layer, and only it, leaves int8", measure.short(lifted), exactly),
        Wanted("plain digits stay in int8", facts["digits"]["chosen"], facts["digits"]["chosen"] == "int8"),
    )
    return Section("Choosing", _TEXT, tuple(tables), wanted, facts)


_TEXT = (
    "`--precision auto --max-drop 0.5%` with a metric of labels, on the calibration images. 'planted' is the same "
    "network in other numbers: of the 64 channels that its last convolution reads, 48 are 256 times smaller, and the "
    "weights that they meet 256 times larger. Float32 and float16 compute the same; one int8 scale for the whole "
    "tensor cannot hold both."
)
