"""Choose: the fastest precision that costs no more than the user allows, measured on the user's samples.

Candidates are all of the model in int8, in float16, in float32; and, where int8 or float16 as a whole costs too much,
the same with the fewest layers lifted, the most costly first. Every candidate is the rewritten islands on the embedded
engine, with TensorFlow between them, so the whole model is measured as it will compute.

Which of those that pass is fastest is estimated: no GPU is needed to choose. A product counts by its multiplications,
and a multiplication by its bits: the peak rates of NVIDIA's GPUs since Turing are as 1 : 2 : 4 for float32 (as TF32),
float16 and int8. What is not a product is left out.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refimpl.artifacts import Array
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.precision.refine import Refined, Refiner
from refimpl.converter.precision.rewrite import LEVELS, Lift
from refimpl.converter.samples import Sample
from refimpl.engines import OpenEngine, onnxruntime
from refimpl.errors import RecipeError
from refimpl.metrics import Metric
from refimpl.numerics import has_nonfinite

Tell = Callable[[str], None]
_BITS = {"fp32": 32, "fp16": 16, "int8": 8}
Form = tuple[Refined | None, ...]  # one per island; None: as it was lowered


@dataclass(frozen=True)
class Option:
    """One island, and how it can be rewritten."""

    ops: tuple[str, ...]
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    engine: OpenEngine  # in float32
    refiners: Mapping[str, Refiner]  # by precision
    work: Mapping[str, float]  # multiplications of each product, by node name


@dataclass(frozen=True)
class Tried:
    """One candidate, as measured."""

    name: str
    metric: float
    drop: float  # below TensorFlow's own metric
    cost: float  # estimated, of float32
    verdict: str  # "chosen", "allowed", or why not
    form: Form = field(repr=False, default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "metric": self.metric,
            "drop": self.drop,
            "cost": self.cost,
            "verdict": self.verdict,
        }


class Chooser:
    """Measures candidates on whole samples.

    Args:
        graph: the signature.
        native: its TensorFlow ops.
        options: its islands.
        samples: reads the user's samples anew.
        metric: what is measured; higher is better.
        max_drop: how much of it may be lost, in the metric's own unit.
        tell: receives a line for every candidate.
    """

    def __init__(
        self,
        graph: OpGraph,
        native: NativeGraph,
        options: Sequence[Option],
        samples: Callable[[], Iterator[Sample]],
        metric: Metric,
        max_drop: float,
        tell: Tell,
    ) -> None:
        self._graph, self._native, self._options = graph, native, tuple(options)
        self._samples, self._metric, self._max_drop, self._tell = samples, metric, max_drop, tell
        self._order = run_order(graph, [option.ops for option in options])
        self._wanted: list[dict[str, Array]] = []
        self._prints: list[int] = []  # of the samples, to notice when others come
        self._base = 0.0
        self.tried: list[Tried] = []

    def choose(self) -> Tried:
        """The fastest candidate whose metric stays within ``max_drop`` of TensorFlow's."""
        self._base = self._measure(None)
        if not math.isfinite(self._base):
            raise RecipeError(
                f"the metric of the model itself, in TensorFlow, is {self._base}, so nothing can be compared with it",
                hint="look at the samples, and at what the metric makes of them",
            )
        plain = self._try("fp32", tuple(None for _ in self._options))
        for precision in ("int8", "fp16"):
            form = self._attempt(precision, {})
            if all(item is None for item in form):
                continue
            first = self._try(precision, form)
            if first.verdict != "allowed":
                self._search(precision)
        allowed = [item for item in self.tried if item.verdict == "allowed"]
        best = min(allowed, key=lambda item: (item.cost, item.drop), default=plain)
        self.tried = [replace(item, verdict="chosen") if item is best else item for item in self.tried]
        return best

    def _search(self, precision: str) -> None:
        """The fewest lifts with which the candidate is allowed."""
        level = LEVELS[precision][0]
        ranked = [
            (cost, index, name, lift)
            for index, option in enumerate(self._options)
            for name, lift in option.refiners[precision].ranked(precision, level)
            for cost in [option.refiners[precision].costs(precision)[name]]
        ]
        ranked.sort(key=lambda item: -item[0])
        low, high = 0, len(ranked)  # with ranked[:low] lifted it is not allowed; all lifted is another precision
        while high - low > 1:
            middle = (low + high) // 2
            lifts: dict[int, dict[str, Lift]] = {}
            for _, index, name, lift in ranked[:middle]:
                lifts.setdefault(index, {})[name] = lift
            name = f"{precision}, {middle} layer{'s' if middle > 1 else ''} in {level}"
            if self._try(name, self._attempt(precision, lifts)).verdict == "allowed":
                high = middle
            else:
                low = middle

    def _attempt(self, precision: str, lifts: Mapping[int, Mapping[str, Lift]]) -> Form:
        return tuple(
            option.refiners[precision].attempt(precision, lifts.get(index, {}))
            for index, option in enumerate(self._options)
        )

    def _try(self, name: str, form: Form) -> Tried:
        self._tell(f"trying {name}")
        problem = next((item.finding.problem for item in form if item is not None and item.finding.problem), "")
        value = self._measure(form)
        drop = self._base - value
        verdict = problem and f"disagrees with TensorFlow: {problem}"
        if not verdict and not drop <= self._max_drop:  # a NaN is not within anything
            verdict = f"loses {drop:.4g}, more than {self._max_drop:g}"
        self.tried.append(Tried(name, value, drop, self._cost(form), verdict or "allowed", form))
        return self.tried[-1]

    def _cost(self, form: Form) -> float:
        done = whole = 0.0
        for option, item in zip(self._options, form, strict=True):
            bits = {layer.name: _BITS[layer.precision] for layer in item.layers} if item is not None else {}
            whole += sum(option.work.values()) * _BITS["fp32"]
            done += sum(work * bits.get(name, _BITS["fp32"]) for name, work in option.work.items())
        return done / whole if whole else 1.0

    def _measure(self, form: Form | None) -> float:
        """The metric of a candidate, or with None that of TensorFlow itself; a mean over rows."""
        engines = (
            None
            if form is None
            else [
                option.engine if item is None else onnxruntime.open(item.file)
                for option, item in zip(self._options, form, strict=True)
            ]
        )
        total, rows, index = 0.0, 0, 0
        for sample in self._samples():
            if any(value.size == 0 for value in sample.values.values()):
                continue
            if engines is None:
                self._prints.append(_fingerprint(sample))
                self._wanted.append(self._run(sample, []))
            elif self._prints[index : index + 1] != [_fingerprint(sample)]:
                raise RecipeError(
                    f"sample {sample.name} is another one than when the samples were first read",
                    hint="candidates can be compared on the same data only: seed what draws it",
                )
            got = self._run(sample, engines) if engines is not None else self._wanted[index]
            count = max((len(value) for value in sample.values.values() if value.ndim), default=1)
            total += count * self._metric(got, self._wanted[index], sample)
            rows, index = rows + count, index + 1
        if index != len(self._wanted):
            raise RecipeError(
                f"{index} samples, where there were {len(self._wanted)} when they were first read",
                hint="candidates can be compared on the same data only",
            )
        return total / rows if rows else float("nan")

    def _run(self, sample: Sample, engines: Sequence[OpenEngine]) -> dict[str, Array]:
        source = self._graph.source
        known = {f"{arg.name}:0": sample.values[arg.key] for arg in source.args if arg.kind == "input"}
        for index in self._order if engines else ():
            option = self._options[index]
            missing = [tensor for tensor in option.entering if tensor not in known]
            known.update(zip(missing, self._native.run(known, missing) if missing else [], strict=True))
            known.update(zip(option.leaving, self._island(option, engines[index], known), strict=True))
        # A signature's result is an Identity of the tensor that holds it, which an island may have made.
        values = self._native.run(known, list(source.results))
        return {spec.name: value for spec, value in zip(source.signature.outputs, values, strict=True)}

    def _island(self, option: Option, engine: OpenEngine, known: Mapping[str, Array]) -> Sequence[Array]:
        """What a bundle's island gives: TensorFlow answers where an engine is not asked, or overflows."""
        inputs = [known[tensor] for tensor in option.entering]
        if all(value.size for value in inputs) and not any(map(has_nonfinite, inputs)):
            outputs = engine.run(inputs)
            if not any(map(has_nonfinite, outputs)):
                return outputs
        return self._native.run(known, list(option.leaving))


def _fingerprint(sample: Sample) -> int:
    """A number that changes with the inputs; strings count by their number only."""
    number = 0
    for name, value in sorted(sample.values.items()):
        content = b"" if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
        number = zlib.crc32(content, zlib.crc32(f"{name} {value.shape}".encode(), number))
    return number


def run_order(graph: OpGraph, islands: Sequence[Sequence[str]]) -> list[int]:
    """Indices of islands in an order in which each follows those whose values it needs."""
    home = {name: index for index, ops in enumerate(islands) for name in ops}
    above: dict[str, int] = {}  # op -> islands at or before it, as bits
    needs = [0] * len(islands)
    for name, op in graph.ops.items():
        bits = 0
        for before in [*(tensor.rsplit(":", 1)[0] for tensor in op.inputs), *op.controls]:
            bits |= above.get(before, 0)
        if name in home:
            needs[home[name]] |= bits
            bits |= 1 << home[name]
        above[name] = bits
    # An island runs as a whole: who reads one of its tensors needs all that any of its ops needs.
    for middle, _ in enumerate(islands):
        needs = [bits | needs[middle] if bits >> middle & 1 else bits for bits in needs]
    return sorted(range(len(islands)), key=lambda index: (needs[index] & ~(1 << index)).bit_count())
