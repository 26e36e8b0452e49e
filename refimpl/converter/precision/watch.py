"""Prepare islands for a rewrite, and watch their insides while real samples stream through the model once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.converter import verify
from refimpl.converter.islands import Lowered
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.precision.calibrate import InputCheck, Observer
from refimpl.converter.precision.fuse import fuse
from refimpl.converter.precision.observe import Maxima
from refimpl.converter.precision.quantize import named, tensors_to_observe
from refimpl.converter.precision.refine import load_model
from refimpl.converter.samples import Sample
from refimpl.engines import onnxruntime
from refimpl.errors import RecipeError, RunError
from refimpl.progress import Step, Tell


@dataclass
class Prepared:
    """An island, ready to be watched and rewritten.

    Attributes:
        lowered: as it was lowered and verified.
        file: its ONNX file in float32, chains of primitives re-fused.
        model: the same as a ModelProto, nodes named.
        key: of its ranges in a calibration table; changes with the ops in it, and with nothing else.
        maxima: the largest values seen at its tensors.
        observer: histograms of the tensors that int8 needs ranges of; None when nothing is calibrated.
        notes: sentences for the report.
    """

    lowered: Lowered
    file: Path
    model: Any
    key: str
    maxima: Maxima
    observer: Observer | None
    notes: tuple[str, ...] = ()


def prepare(graph: OpGraph, island: Lowered, file: Path, *, calibrate: bool) -> Prepared:
    """Re-fuse what tf2onnx took apart, if the island still agrees with TensorFlow then, and set up the watches.

    Args:
        graph: the signature.
        island: one of its islands.
        file: where its ONNX is written.
        calibrate: whether int8 ranges will be wanted.
    """
    model = named(load_model(island.model))
    fused = fuse(model)
    notes: tuple[str, ...] = ()
    if fused.found:
        onnxruntime.save(fused.model, file)
        if problem := _disagreement(graph, island, file):
            notes = (f"its normalisations stay in parts: fused, {problem}",)
        else:
            model = named(fused.model)
            more = f" and {len(fused.found) - 3} more" if len(fused.found) > 3 else ""
            notes = (f"fused: {', '.join(fused.found[:3])}{more}",)
    onnxruntime.save(model, file)
    key = hashlib.sha256("\n".join(island.ops).encode()).hexdigest()[:12]
    observer = Observer(file, tensors_to_observe(model)) if calibrate else None
    return Prepared(island, file, model, key, Maxima(file), observer, notes)


def _disagreement(graph: OpGraph, island: Lowered, file: Path) -> str:
    evidence = [*island.whole, *island.probes]
    if not evidence:
        return ""
    types = [graph.ops[name].type for name in island.ops]
    return verify.judge_engine(onnxruntime.open(file), evidence, island.leaving, island.precision, types).problem


def typical(island: Lowered) -> tuple[verify.Evidence, ...]:
    """What is most like real data: whole-model samples, or else finite values drawn at the cut."""
    usual = tuple(item for item in island.whole if not verify.is_special(item))
    return usual or tuple(item for item in island.probes if not verify.is_special(item))


def watch(
    islands: Sequence[Prepared],
    graph: OpGraph,
    native: NativeGraph,
    samples: Callable[[], Iterator[Sample]] | None,
    tell: Tell,
    count: int = 0,
) -> int:
    """Show every island what arrives at it: the evidence it was verified with, then the user's samples, one at a time.

    Args:
        islands: all that are to be watched.
        graph: the signature.
        native: its TensorFlow ops.
        samples: reads the user's samples; None when there are none.
        tell: receives a line for every batch.
        count: how many samples there are; 0 when nobody knows.

    Returns:
        How many batches int8 was calibrated with.

    Raises:
        RecipeError: a sample cannot be calibrated with, or TensorFlow fails on it.
    """
    for item in islands:
        for evidence in typical(item.lowered):
            item.maxima.add(evidence.inputs)
    calibrated = any(item.observer is not None for item in islands)
    check = InputCheck(graph.source.signature)
    cuts = list(dict.fromkeys(tensor for item in islands for tensor in item.lowered.entering))
    for number, sample in enumerate(samples() if samples is not None else (), 1):
        if not check.add(sample.name, sample.values):
            continue  # it is empty
        line = f"calibrating: batch {number}" + (f" of {count}" if count else "")
        tell(Step(line, stage="calibrating", done=number - 1, total=count))
        values = _values_at(cuts, sample, graph, native)
        for item in islands:
            inputs = [values[tensor] for tensor in item.lowered.entering]
            item.maxima.add(inputs)
            if item.observer is not None:
                item.observer.add(inputs)
    if calibrated:
        check.check_varied()
    return check.batches


def _values_at(cuts: Sequence[str], sample: Sample, graph: OpGraph, native: NativeGraph) -> dict[str, Any]:
    feeds = {f"{arg.name}:0": sample.values[arg.key] for arg in graph.source.args if arg.kind == "input"}
    fetched = [tensor for tensor in cuts if tensor not in feeds]
    try:
        return {**feeds, **dict(zip(fetched, native.run(feeds, fetched), strict=True))}
    except RunError as error:
        raise RecipeError(
            f"sample {sample.name}: TensorFlow fails on it: {error.message}", hint="give inputs that the model takes"
        ) from error
