"""Verify: no island ships unless its outputs were compared with the TensorFlow ops that it replaces.

Two kinds of values are compared. *Whole-model* samples run through TensorFlow once and show what really arrives at
every cut. *Cut* probes are drawn at the cut itself: integers of mixed sign, zeros, and NaN and infinities, which a
whole-model sample may never bring there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.artifacts import Array
from refimpl.converter import samples as sampling
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.samples import Sample
from refimpl.engines import OpenEngine
from refimpl.errors import RunError
from refimpl.numerics import disagreement
from refimpl.tolerance import tolerance_for

# What these make of a NaN depends on the order in which values are compared, hence on shapes and on the library's
# kernels: a few probes that agree prove nothing, so NaN and infinities are left to TensorFlow.
_SELECTING = frozenset(
    """MaxPool MaxPoolV2 MaxPool3D Max Min ArgMax ArgMin TopKV2 Maximum Minimum Softmax LogSoftmax UnsortedSegmentMax
    QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
    CombinedNonMaxSuppression NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5""".split()
)


_NOTHING_TO_COMPARE = (
    "it could not be verified: TensorFlow accepts no values that can be made up for it (give real samples with "
    "--calibration)"
)
_ENOUGH, _REDRAWS = 64, 16  # values of the smallest tensor that should be seen, and draws at most


@dataclass(frozen=True)
class Evidence:
    """Values at the cut tensors of one island, as TensorFlow computes them."""

    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


@dataclass(frozen=True)
class Finding:
    """The outcome of verifying one island."""

    problem: str = ""  # why it must not ship; "" when it may
    finite_only: bool = False  # it agrees on finite values only
    compared: int = 0  # samples that agreed
    probe: Evidence | None = None


def evidence_of(
    graph: OpGraph,
    native: NativeGraph,
    cuts: Sequence[str],
    whole: Sequence[Sample],
    known: Mapping[str, Mapping[str, Array]],
) -> list[dict[str, Array]]:
    """The value of every cut tensor for every whole-model sample, one TensorFlow run per sample at most.

    Args:
        graph: the signature.
        native: its TensorFlow ops.
        cuts: the tensors.
        whole: the samples.
        known: sample -> what TensorFlow has computed of it before; nothing is run for a sample of which all is known.
    """
    fed = {arg.key: f"{arg.name}:0" for arg in graph.source.args if arg.kind == "input"}
    found = []
    for sample in whole:
        feeds = {fed[key]: value for key, value in sample.values.items()}
        before = known.get(sample.name, {})
        wanted = [tensor for tensor in cuts if tensor not in feeds]
        if not set(wanted) <= before.keys():
            before = dict(zip(wanted, native.run(feeds, wanted), strict=True))
        found.append({**{tensor: before[tensor] for tensor in wanted}, **feeds})
    return found


def cut_probes(
    graph: OpGraph,
    native: NativeGraph,
    entering: Sequence[str],
    leaving: Sequence[str],
    seen: Sequence[Mapping[str, Array]],
) -> list[Evidence]:
    """Probes drawn at the cut, in the most telling kind that TensorFlow accepts, and what TensorFlow makes of them."""
    if not entering:
        return []
    base = _draw_until_accepted(graph, native, entering, leaving, seen)
    if base is None:
        return []
    sample, first = base
    zeros = [_filled(sample, 0.0), _filled(sample, -0.0)]
    nonfinite = sampling.with_nonfinite(sample, sampling.rng_for(*entering))
    again = _redrawn(graph, sample, entering)
    runs = (_run(native, item, entering, leaving) for item in (*again, *zeros, *nonfinite))
    return [first, *(made for made in runs if made is not None)]


def _filled(base: Sample, number: float) -> Sample:
    """The sample with every float replaced by one number."""
    values = {t: np.full_like(v, number) if v.dtype.kind == "f" else v for t, v in base.values.items()}
    return Sample(f"all {number}", values)


def _redrawn(graph: OpGraph, base: Sample, entering: Sequence[str]) -> list[Sample]:
    """More draws where the tensors are small: a scalar or two may agree by chance."""
    smallest = min(value.size for value in base.values.values())
    kind = base.name.rsplit(" ", 1)[-1]
    return [
        Sample(
            base.name,
            {
                t: sampling.draw(graph.specs[t], base.values[t].shape, kind, sampling.rng_for(t, kind, "again", i))
                for t in entering
            },
        )
        for i in range(min(_REDRAWS, _ENOUGH // max(smallest, 1)))
    ]


def _draw_until_accepted(
    graph: OpGraph,
    native: NativeGraph,
    entering: Sequence[str],
    leaving: Sequence[str],
    seen: Sequence[Mapping[str, Array]],
) -> tuple[Sample, Evidence] | None:
    """The first draw that TensorFlow takes, and what it makes of it."""
    for variant in range(3):
        for kind in sampling.kinds():
            values = {}
            for tensor in entering:
                spec = graph.specs[tensor]
                shape = seen[0][tensor].shape if seen else sampling.guess_shape(spec, variant)
                values[tensor] = sampling.draw(spec, shape, kind, sampling.rng_for(tensor, kind, variant))
            sample = Sample(f"drawn at the cut, integers {kind}", values)
            if (made := _run(native, sample, entering, leaving)) is not None:
                return sample, made
        if seen:
            break
    return None


def _run(native: NativeGraph, sample: Sample, entering: Sequence[str], leaving: Sequence[str]) -> Evidence | None:
    try:
        outputs = native.run(sample.values, leaving)
    except RunError:
        return None
    return Evidence(sample.name, tuple(sample.values[tensor] for tensor in entering), tuple(outputs))


def judge_engine(
    engine: OpenEngine,
    evidence: Iterable[Evidence],
    leaving: Sequence[str],
    precision: str,
    op_types: Iterable[str],
    share: float = 1.0,
) -> Finding:
    """Compare an engine with TensorFlow on everything that is known of one island.

    Args:
        engine: an engine of the island.
        evidence: inputs, and TensorFlow's outputs for them.
        leaving: the island's output tensors, for messages.
        precision: what the engine computes in.
        op_types: of the TensorFlow ops in the island.
        share: of the tolerance that may be used up.
    """
    finite_only, compared = bool(_SELECTING & set(op_types)), 0
    probe: Evidence | None = None
    excused = ""
    for item in evidence:
        special = any(map(_special, item.inputs))
        problem, shows = _compare(engine, item, leaving, precision, share)
        if problem and (special or shows):
            finite_only, excused = True, problem  # the runtime sees the NaN or infinity too, and lets TensorFlow answer
        elif problem:
            return Finding(problem=problem)
        elif any(array.size for array in item.outputs):
            compared += 1
            if not special and not any(map(_special, item.outputs)) and (probe is None or _bytes(item) < _bytes(probe)):
                probe = item
    if probe is None:
        return Finding(problem=excused or _NOTHING_TO_COMPARE)
    return Finding(finite_only=finite_only, compared=compared, probe=probe)


def _compare(
    engine: OpenEngine, item: Evidence, leaving: Sequence[str], precision: str, share: float
) -> tuple[str, bool]:
    """Why the engine disagrees ("" when it does not), and whether its own outputs hold a NaN or an infinity."""
    try:
        outputs = engine.run([np.asarray(array, order="C") for array in item.inputs])
    except RunError as error:
        return error.message, False
    shows = any(map(_special, outputs))
    for tensor, want, got in zip(leaving, item.outputs, outputs, strict=True):
        if why := disagreement(want, got, tolerance_for(precision, _dtype(want)).tightened(share)):
            return f"{why} at {tensor} ({item.name})", shows
    return "", shows


def is_special(item: Evidence) -> bool:
    """Whether a NaN or an infinity goes in or comes out."""
    return any(map(_special, (*item.inputs, *item.outputs)))


def _dtype(array: Any) -> str:
    return str(array.dtype.name)


def _special(array: Array) -> bool:
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())


def _bytes(item: Evidence) -> int:
    return sum(array.nbytes for array in (*item.inputs, *item.outputs))
