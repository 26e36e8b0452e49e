"""Whether the embedded engine predicts: what a plain ONNX Runtime session makes of the same float16 files instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from refimpl import bundle
from refimpl.engines import onnxruntime
from refimpl.runtime import forget, read_probe
from tools.figures import digits, measure, networks, photos
from tools.figures.measure import Array, Made, Section, Table, Tell, Wanted

ENCODERS = ("bert", "vit")


def honesty(work: Path, tell: Tell) -> Section:
    """Relative errors of both, and how far the numpy engine is from the embedded one."""
    rows: list[tuple[str, ...]] = []
    facts: dict[str, dict[str, float]] = {}
    for name, made in _bundles(work, tell).items():
        tell(f"prediction: {name}")
        plain, ours = errors(made)
        facts[name] = {"plain": plain, "embedded": ours, "factor": ours / plain}
        rows.append((name, f"{plain:.2g}", f"{ours:.2g}", f"{ours / plain:.1f}"))
    head = ("network, fp16", "a plain ONNX Runtime session", "the embedded engine", "times")
    apart = {kind: _digits_apart(work, kind, tell) for kind in ("fp16", "bf16", "int8")}
    numpy_rows = tuple((kind, f"{value:.2g}") for kind, value in apart.items())
    factor = facts[photos.NETWORKS[0]]["factor"]
    wanted = (
        Wanted(f"{photos.NETWORKS[0]}: a plain session shows too small an error", f"{factor:.1f} times", factor > 1.1),
        Wanted(
            "the numpy engine agrees with the embedded one", f"{max(apart.values()):.2g}", max(apart.values()) < 5e-3
        ),
    )
    tables = (
        Table(head, tuple(rows), title="Relative error against TensorFlow, on the stored probe"),
        Table(("digits", "relative difference"), numpy_rows, title="The numpy engine against the embedded one"),
    )
    return Section("What is predicted", _TEXT, tables, wanted, {**facts, "numpy": apart})


_TEXT = (
    "Given the fp16 file as it is, ONNX Runtime's CPU joins chains of float16 ops and computes them in float32. The "
    "embedded engine rounds at every tensor, as the file says. How much that changes depends on the chains: float32 "
    "layers (softmax, normalisation, repairs) part them, and the rounding of weights is the same in both."
)


def _bundles(work: Path, tell: Tell) -> dict[str, Made]:
    name = photos.NETWORKS[0]
    before = work / f"{name}-fp16"  # of the section on networks, when that was measured, too
    made = (
        Made(before, bundle.read(before), 0.0) if before.exists() else networks.image_bundle(name, "fp16", work, tell)
    )
    found = {name: made}
    for encoder in ENCODERS:
        tell(f"prediction: converting {encoder}")
        samples = [measure.inputs_of_the_tests(encoder, seed) for seed in range(4)]
        model = measure.model_of_the_tests(encoder)
        found[encoder] = measure.convert(model, work / f"{encoder}-predicted", samples, precision="fp16")
    return found


def errors(made: Made) -> tuple[float, float]:
    """Relative error of the largest island's outputs on its probe: in a plain session, and in the embedded engine."""
    island = max(made.manifest.islands, key=lambda item: len(item.ops))
    inputs, want = read_probe(made.path / island.probe)
    engine = next(item for item in island.engines if item.kind == "onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(made.path / engine.file), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    plain = session.run(None, dict(zip(names, inputs, strict=True)))
    ours = onnxruntime.open(made.path / engine.file).run(inputs)
    return _worst(plain, want), _worst(ours, want)


def _worst(got: Sequence[Array], want: Sequence[Array]) -> float:
    return max(measure.relative(a, b) for a, b in zip(got, want, strict=True))


def _digits_apart(work: Path, kind: str, tell: Tell) -> float:
    tell(f"prediction: the numpy engine, {kind}")
    if not (work / "digits").exists():
        digits.digits_cnn(work / "digits")
    made = measure.convert(work / "digits", work / f"apart-{kind}", digits.calibration_batches(), precision=kind)
    return engines_apart(made, digits.held_out()[0][:16])


def engines_apart(made: Made, images: Array) -> float:
    """Relative difference of the numpy engine from the embedded one."""
    answers = []
    for engine in ("onnxruntime", "numpy"):
        answers.append(made.run({"image": images}, engine)["output_0"])
        forget(made.path)
    return measure.relative(answers[1], answers[0])
