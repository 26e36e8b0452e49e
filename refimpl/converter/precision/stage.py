"""The precision stage: from verified float32 islands to the forms that engines are built from, best form first.

Real samples stream through TensorFlow once, one at a time; every island is watched on the way. Then each island is
refined on its own (:mod:`refine`), or the best combination is chosen for all of them (:mod:`choose`). A form further
back is what ships when the one before it cannot be built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refimpl import calibration
from refimpl.calibration import CalibrationTable, TensorRange
from refimpl.converter import fake_quant
from refimpl.converter.fake_quant_exact import TYPES as FAKE_QUANT
from refimpl.converter.islands import Lowered, Shipped
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.precision import split, tf32
from refimpl.converter.precision.assigned import matching, tf_op_of
from refimpl.converter.precision.calibrate import warnings_of
from refimpl.converter.precision.choose import Chooser, Option, Tried
from refimpl.converter.precision.int8_rules import LAYER_OPS
from refimpl.converter.precision.observe import multiplications
from refimpl.converter.precision.quantize import named, tensors_to_observe
from refimpl.converter.precision.refine import Refined, Refiner, Task, describe, load_model
from refimpl.converter.precision.rewrite import Lift, Ranges
from refimpl.converter.precision.watch import Prepared, prepare, typical, watch
from refimpl.converter.samples import Sample
from refimpl.engines import onnxruntime, tensorrt
from refimpl.engines.rounding import TF32
from refimpl.errors import RecipeError
from refimpl.metrics import metric_of
from refimpl.progress import Tell
from refimpl.recipe import Recipe

Quantize = Callable[[Sequence[str]], Path]  # an island's ONNX with the model's own fake quantization as Q/DQ pairs
_OWN_HALF = "the model computes in float16 here itself, and keeps doing so"
_NEEDS = (
    "give real samples (--calibration FILE.npz, a folder of them, or package.module:function) or a table of an earlier "
    "calibration (--calibration-table)"
)
_PRODUCTS = frozenset("Conv2D Conv3D DepthwiseConv2dNative Conv2DBackpropInput MatMul BatchMatMulV2 Einsum".split())
_DOWN = {"int8": ("int8", "fp16"), "fp16": ("fp16",), "bf16": ("bf16",), "auto": ()}  # what to try, best first


@dataclass
class PrecisionStage:
    """The precision of one signature's islands.

    Attributes:
        graph: the signature.
        native: its TensorFlow ops.
        recipe: the user's choices.
        samples: the user's samples, read anew at every call; None when there are none.
        source_sha256: of the model, for the calibration table.
        folder: where files are written.
        tell: receives a line when something slow begins.
        sample_count: how many samples there are; 0 when nobody knows before they are read.
        used_patterns: those of ``keep_fp32`` that have named a layer so far.
        tried: what ``auto`` measured.
    """

    graph: OpGraph
    native: NativeGraph
    recipe: Recipe
    samples: Callable[[], Iterator[Sample]] | None
    source_sha256: str
    folder: Path
    tell: Tell
    sample_count: int = 0
    used_patterns: set[str] = field(default_factory=set)
    tried: tuple[Tried, ...] = ()
    _ranges: dict[str, TensorRange] = field(default_factory=dict)
    _given: CalibrationTable | None = None  # the table that the ranges come from, when they were not made here
    _batches: int = 0
    _count: int = 0

    def check(self) -> None:
        """Refuse what cannot be done for want of data, before any work is done.

        Raises:
            RecipeError: what is missing, and what to give.
        """
        recipe = self.recipe
        if recipe.precision == "auto" and self.samples is None:
            raise RecipeError(
                "--precision auto measures on real samples, and there are none",
                hint="give some with --calibration FILE.npz, a folder of them, or package.module:function",
            )
        if recipe.precision == "auto" and not recipe.verify:
            raise RecipeError(
                "--precision auto takes what agrees with TensorFlow, and --no-verify compares nothing",
                hint="leave --no-verify away, or choose a precision",
            )
        if recipe.precision == "auto" and not recipe.use_calibration:
            raise RecipeError(
                "--precision auto calibrates what it tries in int8",
                hint="--no-calibration goes with --precision int8",
            )
        if recipe.precision == "auto":
            metric_of(recipe.metric)  # a function that is not there is told before the long work
        if recipe.precision != "int8":
            return
        if recipe.calibration_table and not recipe.use_calibration:
            raise RecipeError(
                "--calibration-table gives ranges, and --no-calibration takes the model's own",
                hint="leave one of the two away",
            )
        own = fake_quant.has_ranges(self.graph)
        if not recipe.use_calibration and not own:
            raise RecipeError(
                "int8 without calibration takes its ranges from the model, and the model has no fake-quantization ops",
                hint=f"train with fake quantization, or {_NEEDS}",
            )
        if recipe.use_calibration and self.samples is None and not recipe.calibration_table:
            instead = (
                "the model has fake quantization of its own: --no-calibration takes its ranges; or " if own else ""
            )
            raise RecipeError("int8 needs ranges, and there is nothing to make them from", hint=f"{instead}{_NEEDS}")

    def forms(self, islands: Sequence[Lowered], quantized: Quantize) -> list[Iterator[Shipped]]:
        """What may ship of each island, best first, made when it is asked for.

        Args:
            islands: as lowered.
            quantized: lowers an island's own fake quantization as Q/DQ.
        """
        if self.recipe.precision == "fp32":
            return [self._as_it_is(island) for island in islands]
        prepared = [None if island.precision == "half" else self._prepare(island) for island in islands]
        ready = [item for item in prepared if item is not None]
        self._batches = watch(ready, self.graph, self.native, self.samples, self.tell, self.sample_count)
        chosen = self._choose(ready) if self.recipe.precision == "auto" and ready else {}
        return [
            self._as_it_is(island, _OWN_HALF) if item is None else self._forms(item, quantized, chosen)
            for island, item in zip(islands, prepared, strict=True)
        ]

    def table(self) -> CalibrationTable | None:
        """The ranges that int8 was made with; None when there was no calibration."""
        if not self._ranges:
            return None
        if self._given is not None:
            return self._given
        recipe = self.recipe
        return calibration.make_table(
            self.source_sha256,
            self.graph.source.signature.key,
            self._ranges,
            method=recipe.calibrator,
            percentile=recipe.percentile,
            batches=self._batches,
            warnings=warnings_of({self._shown(key): seen for key, seen in self._ranges.items()}, recipe.calibrator),
        )

    def _shown(self, key: str) -> str:
        """A tensor as people know it: an input by its name, another one by TensorFlow's."""
        tensor = key.split("/", 1)[1]
        inputs = {self.graph.onnx_name(f"{a.name}:0"): a.key for a in self.graph.source.args if a.kind == "input"}
        return f"input {inputs[tensor]}" if tensor in inputs else tensor.removeprefix("mk/")

    def _prepare(self, island: Lowered) -> Prepared:
        recipe = self.recipe
        plain = onnxruntime.PLAIN if onnxruntime.PLAIN in island.model.name else "."
        wanted = recipe.precision in ("int8", "auto") and recipe.use_calibration and not recipe.calibration_table
        calibrate = wanted and self.samples is not None
        return prepare(self.graph, island, self.folder / f"{self._name()}{plain}onnx", calibrate=calibrate)

    def _name(self) -> str:
        self._count += 1
        return f"precise-{self._count}"

    def _choose(self, islands: Sequence[Prepared]) -> dict[str, Refined | None]:
        """What ``auto`` takes for each island, by the island's key."""
        assert self.samples is not None
        recipe = self.recipe
        options = [self._option(item) for item in islands]
        chooser = Chooser(
            self.graph, self.native, options, self.samples, metric_of(recipe.metric), recipe.max_drop, self.tell
        )
        best = chooser.choose()
        self.tried = tuple(chooser.tried)
        return {item.key: form for item, form in zip(islands, best.form, strict=True)}

    def _option(self, item: Prepared) -> Option:
        task = self._task(item)
        thresholds = {name: seen.threshold for name, seen in self._thresholds(item).items()}
        int8 = replace(task, ranges=replace(task.ranges, thresholds=thresholds))
        return Option(
            ops=item.lowered.ops,
            entering=item.lowered.entering,
            leaving=item.lowered.leaving,
            engine=onnxruntime.open(item.file),
            refiners={"int8": self._refiner(int8, item), "fp16": self._refiner(task, item)},
            work=multiplications(item.model, item.maxima.shapes),
        )

    def _forms(self, item: Prepared, quantized: Quantize, chosen: Mapping[str, Refined | None]) -> Iterator[Shipped]:
        task = self._task(item)
        if (best := chosen.get(item.key)) is not None:
            yield _shipped(best, item)
        for precision in _DOWN[self.recipe.precision]:
            if precision == "int8":
                refined = self._int8(item, task, quantized)
            else:
                refined = self._refiner(task, item).refine(precision)
            if refined is None:
                item.notes = (*item.notes, f"nothing of it computes in {precision}")
            elif refined.finding.problem:
                item.notes = (*item.notes, f"not in {precision}: {refined.finding.problem}")
            else:
                yield _shipped(refined, item)
        yield from self._as_it_is(item.lowered, *item.notes)

    def _as_it_is(self, island: Lowered, *notes: str) -> Iterator[Shipped]:
        """In the model's own precision; with TF32 if the user allows it and the island stands it."""
        if self.recipe.tf32 and island.precision == "fp32":
            file, finding = tf32.attempt(island, [self.graph.ops[name].type for name in island.ops], self._name())
            if not finding.problem:
                yield Shipped(file, "tf32", finding, (*island.notes, *notes))
            else:
                notes = (*notes, f"TF32 is off for it: with it, {finding.problem}")
        if island.precision == "fp32" and self._rounds_here():
            yield from self._taken_apart(island, *notes)
        yield _as_lowered(island, *notes)

    def _rounds_here(self) -> bool:
        """Whether engines will be tried on a GPU that rounds float32 products to TF32 whatever it is told."""
        asked = tensorrt.NAME in self.recipe.engines and not self.recipe.targets
        problem = tensorrt.tf32_problem() if asked else ""
        return bool(problem) and not problem.startswith(tensorrt.UNKNOWN)

    def _taken_apart(self, island: Lowered, *notes: str) -> Iterator[Shipped]:
        """In float32, each product as a sum of products that TF32 holds exactly, where there are any."""
        found = split.attempt(island, [self.graph.ops[name].type for name in island.ops], self._name())
        if found is not None and not found[1].problem:
            yield Shipped(found[0], "fp32", found[1], (*island.notes, *notes, split.NOTE))
            if self.recipe.tf32:  # what is not float32's on the GPU may still be nearer than TF32 was allowed to be
                yield Shipped(found[0], "tf32", found[1], (*island.notes, *notes, split.NOTE))

    def _task(self, item: Prepared) -> Task:
        return Task(
            model=item.model,
            ops=tuple(self.graph.ops[name].type for name in item.lowered.ops),
            leaving=item.lowered.leaving,
            evidence=typical(item.lowered),
            ranges=Ranges(maxima=item.maxima.found),
            keep=self._kept(item.model, item.lowered),
        )

    def _kept(self, model: Any, island: Lowered) -> dict[str, Lift]:
        """Layers that stay in float32: those that the user names, and the model's own fake quantization."""
        ops = {name: self.graph.ops[name].type for name in island.ops}
        added = {
            name: before
            for name in island.ops
            if ops[name] in ("BiasAdd", "Add", "AddV2")
            for before in (tensor.rsplit(":", 1)[0] for tensor in self.graph.ops[name].inputs)
            if ops.get(before) in _PRODUCTS
        }
        kept, used = matching(model, self.recipe.keep_fp32, ops, added)
        self.used_patterns |= used
        for node in model.graph.node if not FAKE_QUANT.isdisjoint(ops.values()) else ():
            if ops.get(tf_op_of(node, ops)) in FAKE_QUANT:
                kept.setdefault(node.name, "fake quantization is exact in float32 only")
        return {name: Lift("fp32", reason) for name, reason in kept.items()}

    def _not_built(self, model: Any) -> dict[str, Lift]:
        """Layers that the TensorRT at hand cannot build in int8: known before a whole island is tried."""
        if tensorrt.NAME not in self.recipe.engines:
            return {}
        kinds = {node.op_type for node in model.graph.node} & LAYER_OPS
        problems = {kind: why for kind in sorted(kinds) if (why := tensorrt.int8_problem(kind))}
        nodes = [node for node in model.graph.node if node.op_type in problems]
        return {node.name: Lift("fp16", problems[node.op_type].partition(": ")[0]) for node in nodes}

    def _refiner(self, task: Task, item: Prepared) -> Refiner:
        plain = onnxruntime.PLAIN if onnxruntime.PLAIN in item.file.name else "."
        marks = f"{plain}{TF32.removeprefix('.')}" if self.recipe.tf32 else plain
        return Refiner(
            task, self.folder, self._name(), f"{marks}{onnxruntime.HALF_SUFFIX.removeprefix('.')}", self.tell
        )

    def _int8(self, item: Prepared, task: Task, quantized: Quantize) -> Refined | None:
        if not self.recipe.use_calibration:
            return self._own_int8(item, task, quantized)
        thresholds = {name: seen.threshold for name, seen in self._thresholds(item).items()}
        # Made-up samples are not like the data that a table was made from: where they disagree they prove nothing.
        ranges, keep = replace(task.ranges, thresholds=thresholds), {**self._not_built(task.model), **task.keep}
        task = replace(task, ranges=ranges, keep=keep, repair=self.samples is not None)
        refined = self._refiner(task, item).refine("int8")
        if refined is not None and refined.finding.problem and self.samples is None:
            raise RecipeError(
                f"int8 cannot be verified without real samples: {refined.finding.problem} with made-up ones",
                hint="give a few samples with --calibration beside the table; they are not calibrated with",
            )
        return refined

    def _own_int8(self, item: Prepared, task: Task, quantized: Quantize) -> Refined | None:
        """Int8 from the model's own ranges."""
        model = named(load_model(quantized(item.lowered.ops)))
        kept = {**self._not_built(model), **self._kept(model, item.lowered)}
        missing = [(layer, tensor) for layer, tensor in fake_quant.missing_ranges(model) if layer not in kept]
        if missing:
            layer, tensor = missing[0]
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise RecipeError(
                f"{tensor}, which {layer} reads, has no range in the model{more}",
                hint=f"fake-quantize it in training, keep the layer in float32 (--keep-fp32 '{layer}'), or calibrate",
            )
        task = replace(task, model=model, ranges=replace(task.ranges, own=True), keep=kept, repair=False)
        return self._refiner(task, item).refine("int8")

    def _thresholds(self, item: Prepared) -> dict[str, TensorRange]:
        recipe = self.recipe
        if recipe.calibration_table:
            key = self.graph.source.signature.key
            table = calibration.table_for(calibration.load(Path(recipe.calibration_table)), key)
            needed = [calibration.range_key(item.key, name) for name in tensors_to_observe(item.model)]
            calibration.check_fits(table, self.source_sha256, key, needed)
            found = calibration.ranges_of(table, item.key)
            self._given = table
        else:
            assert item.observer is not None
            found = item.observer.ranges(recipe.calibrator, recipe.percentile, self.tell)
        self._ranges.update({calibration.range_key(item.key, name): seen for name, seen in found.items()})
        return found


@dataclass(frozen=True)
class _Repair:
    """See :class:`refimpl.converter.islands.Repair`."""

    refined: Refined
    item: Prepared

    def lifted(self, lifts: Mapping[str, Lift]) -> Shipped | None:
        refined = self.refined
        assert refined.refiner is not None
        made = refined.refiner.attempt(refined.asked, {**refined.lifts, **lifts})
        if made is None or made.finding.problem:
            return None
        return _shipped(replace(made, notes=refined.notes), self.item)

    def ranked(self) -> list[tuple[str, Lift]]:
        refined = self.refined
        assert refined.refiner is not None
        exact = {name for name, lift in refined.lifts.items() if lift.precision == "fp32"}
        return [item for item in refined.refiner.ranked(refined.asked, "fp32") if item[0] not in exact]


def _shipped(refined: Refined, item: Prepared) -> Shipped:
    notes = (*item.lowered.notes, *describe(refined), *item.notes)
    found = None if math.isnan(refined.accuracy.relative) else refined.accuracy
    return Shipped(
        refined.file, refined.precision, refined.finding, notes, refined.layers, found, _Repair(refined, item)
    )


def _as_lowered(island: Lowered, *notes: str) -> Shipped:
    return Shipped(island.model, island.precision, island.finding, (*island.notes, *notes))


def check_patterns(recipe: Recipe, used: Iterable[str]) -> None:
    """Make sure that every ``keep_fp32`` pattern named a layer somewhere.

    Args:
        recipe: the user's choices.
        used: the patterns that did.

    Raises:
        RecipeError: one named nothing.
    """
    found = set(used)
    for pattern in recipe.keep_fp32:
        if pattern not in found and recipe.precision != "fp32":
            raise RecipeError(
                f"--keep-fp32 {pattern!r} names no layer of an island",
                hint="give an op type or a node name (patterns such as '*conv1*'); refimpl inspect --json lists them",
            )
