"""Refine: give a verified float32 island its precision, and take back what costs it TensorFlow's answers.

The island is rewritten, run on the embedded engine and compared with TensorFlow by the tolerances of its new precision.
When it disagrees, its layers are ranked by the error they bring, and as few as possible, the worst first, compute in
the next better precision. What no such choice saves stays in float32. So a rewrite is never trusted either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from refimpl.accuracy import LOW_COSINE, Accuracy, accuracy, worst
from refimpl.artifacts import Array
from refimpl.converter import verify
from refimpl.converter.precision.assigned import Assigned, summary
from refimpl.converter.precision.faults import rewrite_fault
from refimpl.converter.precision.quantize import place
from refimpl.converter.precision.rewrite import LEVELS, Lift, Ranges, rewrite
from refimpl.converter.precision.simulate import Simulation, costs
from refimpl.converter.verify import Evidence, Finding
from refimpl.engines import OpenEngine, onnxruntime
from refimpl.numerics import has_nonfinite
from refimpl.progress import Counter, Tell
from refimpl.text import counted

# What these are fed with is rounded already, and they pass it on: in float32 alone they would change nothing.
_IDLE = frozenset("Relu LeakyRelu Clip MaxPool Transpose Reshape Concat Split Slice Squeeze Unsqueeze Identity".split())
# The embedded engine may use up half of a tolerance. The other half is for the GPU, which sums in another order and in
# other widths: an island that only just agrees here was seen to disagree, only just, on an H100.
OURS = 0.5
_SENSITIVE = "{precision} of it alone costs the island a relative error of {error:.2g}"


@dataclass(frozen=True)
class Task:
    """An island to refine.

    Attributes:
        model: its ModelProto in float32, nodes named; with Q/DQ in it when int8 ranges come from the model itself.
        ops: its TensorFlow op types.
        leaving: its output tensors, for messages.
        evidence: what TensorFlow makes of real or made-up inputs; empty when nothing is to be verified.
        ranges: what was seen at its tensors.
        keep: layers that the user keeps in float32.
        repair: whether layers may be lifted when it disagrees; pointless where the evidence is not like real data.
    """

    model: Any
    ops: tuple[str, ...]
    leaving: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    ranges: Ranges
    keep: Mapping[str, Lift] = field(default_factory=dict)
    repair: bool = True


@dataclass(frozen=True)
class Refined:
    """An island in its precision: the file, what the comparison with TensorFlow said, and who can make it otherwise."""

    file: Path
    precision: str  # row of the tolerance table; "fp32" when nothing could be lowered
    layers: tuple[Assigned, ...]
    finding: Finding
    accuracy: Accuracy
    notes: tuple[str, ...] = ()
    lifts: Mapping[str, Lift] = field(default_factory=dict)
    faulty: bool = False  # the rewrite stored other numbers than the model's: nothing is to be saved of it
    asked: str = ""  # the precision that was asked for
    refiner: Refiner | None = None


class Refiner:
    """Rewrites one island, as often as it takes.

    Args:
        task: the island.
        folder: where files are written.
        name: how their names begin.
        suffix: how they end.
        tell: receives a line when something slow begins.
    """

    def __init__(self, task: Task, folder: Path, name: str, suffix: str, tell: Tell) -> None:
        self._task, self._folder, self._name, self._suffix, self._tell = task, folder, name, suffix, tell
        self._tries = 0
        self._costs: dict[str, Mapping[str, float]] = {}
        self._disagreed = 0  # the sample that an attempt failed on last

    def refine(self, precision: str) -> Refined | None:
        """The island in ``precision``, repaired where it must be.

        Returns:
            None when no layer is lowered at all; with a problem in its finding when nothing makes it agree.
        """
        first = self.attempt(precision, {})
        if first is None or first.faulty or not first.finding.problem or not self._task.repair:
            return first
        for level in LEVELS[precision]:
            if better := self._repair(precision, level, first):
                return better
        return first

    def attempt(self, precision: str, lifts: Mapping[str, Lift]) -> Refined | None:
        """Rewrite, write, run, compare; None when no layer is lowered at all. What the user keeps is lifted, too."""
        asked, lifts = precision, {**self._task.keep, **lifts}
        rewritten = rewrite(self._task.model, precision, self._task.ranges, lifts)
        if not rewritten.changed:
            return None
        if not rewritten.lowered:
            precision = "fp16"  # nothing of it is int8; what is left to float16 decides
        file = self._write(rewritten.model)
        finding, found = self._judge(onnxruntime.open(file), precision)
        thresholds = self._task.ranges.thresholds if precision == "int8" else {}
        if fault := rewrite_fault(self._task.model, rewritten.model, thresholds):
            finding = replace(finding, problem=f"its rewrite is wrong: {fault}")
        return Refined(
            file,
            precision,
            rewritten.layers,
            finding,
            found,
            lifts=lifts,
            faulty=bool(fault),
            asked=asked,
            refiner=self,
        )

    def ranked(self, precision: str, level: str) -> list[tuple[str, Lift]]:
        """Layers in ``precision``, the one that costs most first, each with the lift to ``level`` and its reason."""
        found, say = self.costs(precision), _SENSITIVE.format
        return [(name, Lift(level, say(precision=precision, error=cost))) for name, cost in found.items()]

    def costs(self, precision: str) -> Mapping[str, float]:
        """The error that each layer brings on its own, the largest first."""
        if precision not in self._costs:
            found = self._measure(precision)
            self._costs[precision] = {name: found[name] for name in sorted(found, key=lambda name: -found[name])}
        return self._costs[precision]

    def _measure(self, precision: str) -> Mapping[str, float]:
        task = self._task
        idle = {node.name for node in task.model.graph.node if node.op_type in _IDLE}
        names = [n for n in rewrite(task.model, precision, task.ranges, task.keep).lowered if n not in idle]
        quantized = place(task.model, task.ranges.thresholds, {}) if precision == "int8" else None
        file = self._folder / f"{self._name}-switched.onnx"
        simulation = Simulation(task.model, names, precision, quantized, file)
        # A layer may be harmless on one sample and ruin another: the one that disagreed has its say.
        worst_of = dict.fromkeys(names, 0.0)
        chosen = [task.evidence[index] for index in sorted({0, self._disagreed})]
        title = f"ranking {counted(len(names), 'layer')} by the error they bring"
        run = Counter(self._tell, title, len(names) * len(chosen), "run")
        for evidence in chosen:

            def error_of(got: Sequence[Array], want: Evidence = evidence) -> float:
                run.advance()
                return accuracy(want.outputs, got).relative

            found = costs(simulation, names, evidence.inputs, error_of)
            worst_of = {name: max(worst_of[name], found[name]) for name in names}
        return worst_of

    def _repair(self, precision: str, level: str, first: Refined) -> Refined | None:
        """The fewest lifts, the most costly layers first, with which the island agrees; None when all are needed."""
        order = self.ranked(precision, level)
        best: Refined | None = None
        low, high = 0, len(order)  # with order[:low] lifted it disagrees
        if level != "fp32":  # all but one: with all of them lifted it would be judged as what it is then
            high -= 1
            if (best := self._agrees(precision, order[:high])) is None:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            if tried := self._agrees(precision, order[:middle]):
                best, high = tried, middle
            else:
                low = middle
        if best is None:
            return None
        lifted = ", ".join(name for name, _ in order[: min(high, 3)])
        more = f" and {high - 3} more" if high > 3 else ""
        whole = first.accuracy
        note = (
            f"{high} of {len(order)} layers compute in {level}, not {precision}, or it would disagree with TensorFlow "
            f"({first.finding.problem}; relative error {whole.relative:.2g}, cosine {whole.cosine:.4f}): {lifted}{more}"
        )
        if whole.cosine < LOW_COSINE or 2 * high > len(order):
            note = f"WARNING: this network does not stand {precision} as a whole. {note}"
        return replace(best, notes=(note,))

    def _agrees(self, precision: str, lifts: Sequence[tuple[str, Lift]]) -> Refined | None:
        tried = self.attempt(precision, dict(lifts))
        return None if tried is None or tried.finding.problem else tried

    def _write(self, model: Any) -> Path:
        self._tries += 1
        file = self._folder / f"{self._name}-{self._tries}{self._suffix}"
        onnxruntime.save(model, file)
        return file

    def _judge(self, engine: OpenEngine, precision: str) -> tuple[Finding, Accuracy]:
        if not self._task.evidence:
            return Finding(finite_only=True), Accuracy(float("nan"), float("nan"))
        recorder = _Recorder(engine)
        task = self._task
        finding = verify.judge_engine(recorder, task.evidence, task.leaving, precision, task.ops, OURS)
        if finding.problem:
            self._disagreed = max(len(recorder.outputs) - 1, 0)
        pairs = zip(task.evidence, recorder.outputs, strict=False)  # it stops at the first that disagrees
        # Where a value overflows, TensorFlow answers.
        usual = [(item.outputs, outputs) for item, outputs in pairs if _comparable(item.outputs, outputs)]
        return replace(finding, finite_only=True), worst([accuracy(*pair) for pair in usual])


def _comparable(wants: Sequence[Array], outputs: Sequence[Array]) -> bool:
    same = all(want.shape == output.shape for want, output in zip(wants, outputs, strict=True))
    return same and not any(map(has_nonfinite, outputs))


class _Recorder:
    """An engine whose outputs are remembered."""

    def __init__(self, engine: OpenEngine) -> None:
        self._engine = engine
        self.outputs: list[list[Array]] = []

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self.outputs.append(self._engine.run(inputs))
        return self.outputs[-1]


def describe(refined: Refined) -> tuple[str, ...]:
    """Sentences about an island that a user should read: what computes in what, and a warning where INT8 hurts."""
    found = refined.accuracy
    if math.isnan(found.relative):
        return (f"{summary(refined.layers)}; not compared with TensorFlow", *refined.notes)
    lines = [f"{summary(refined.layers)}; relative error {found.relative:.2g}, cosine {found.cosine:.5f}"]
    if found.cosine < LOW_COSINE:
        lines.append(
            f"WARNING: {refined.precision} changes its answers: cosine {found.cosine:.3f} with TensorFlow's; check "
            "the accuracy on your task, keep layers in float32 (--keep-fp32), or train with fake quantization"
        )
    return (*lines, *refined.notes)


def load_model(file: Path) -> Any:
    """An island's ModelProto with its weights in it."""
    return onnx.load(file)
