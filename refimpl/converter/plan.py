"""Plan one signature: load, lower, judge, partition; then make islands until every one of them stands.

The loop ends because each round only ever adds ops that must stay in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from refimpl.artifacts import Array, SignatureGraph
from refimpl.cache import Cache
from refimpl.converter import samples as sampling
from refimpl.converter import verify
from refimpl.converter.constants import assigned_variables, lowering_graph
from refimpl.converter.drafts import Inspection
from refimpl.converter.folding import fold
from refimpl.converter.islands import Island, IslandMaker, Lowered, Rejection
from refimpl.converter.judge import Judge
from refimpl.converter.load import signature_graph, suspect_variables
from refimpl.converter.lower import OpGraph, leaving_tensors, op_graph
from refimpl.converter.native import NativeGraph
from refimpl.converter.precision.stage import PrecisionStage
from refimpl.converter.prover import Prover
from refimpl.converter.refusals import refuse_statically, spread_over_groups
from refimpl.converter.samples import Sample
from refimpl.converter.source import Source
from refimpl.converter.tftrt_ops import batches, refuse_like_tftrt
from refimpl.errors import RecipeError, RunError, SourceError
from refimpl.partition import partition
from refimpl.progress import Counter, Step, Tell
from refimpl.recipe import Recipe
from refimpl.specs import Signature
from refimpl.text import counted

SampleReader = Callable[[], Iterator[Sample]]
_NO_WHOLE_SAMPLE = (
    "no input that can be made up runs through the whole model; islands were verified with values drawn at their cuts "
    "(give real samples with --calibration)"
)
_DRAWN_SIZES = (
    "where sizes are open, TensorRT engines take only those of the drawn values; other sizes run in ONNX Runtime (give "
    "real samples of the sizes you call with, with --calibration)"
)
_PROFILE_BATCH = 8  # the largest batch of an engine when nobody gave shapes


@dataclass(frozen=True)
class Plan:
    """Which ops go into which island, and why every other op stays; nothing built yet."""

    graph: OpGraph
    inspection: Inspection
    islands: tuple[tuple[str, ...], ...]
    refused: Mapping[str, str]  # ops that no island may hold
    left_out: Mapping[str, str]  # convertible ops that are in none all the same (too small, too many)

    @property
    def reasons(self) -> dict[str, str]:
        return {**self.left_out, **self.refused}


def signature_source(source: Source, key: str, mutable: frozenset[str]) -> tuple[SignatureGraph, OpGraph]:
    """A signature's graph and its ops; variables that some signature assigns stay variables.

    Args:
        source: the open model.
        key: the signature's key.
        mutable: tensors (in the model's own graph) of variables that some signature assigns.
    """
    graph = signature_graph(source, key)
    frozen = [arg for arg in graph.args if arg.kind in ("variable", "value") and arg.tensor not in mutable]
    values = source.values(frozen)
    return graph, op_graph(graph, fold(lowering_graph(graph, values, frozenset(values))))


def mutable_state(source: Source) -> frozenset[str]:
    """Tensors of the variables that any signature of the model assigns."""
    found: set[str] = set()
    for key in source.signature_keys:
        try:
            graph = signature_graph(source, key)
        except SourceError:
            found |= suspect_variables(source, key)
            continue
        tensors = {arg.name: arg.tensor for arg in graph.args}
        found |= {tensors[name] for name in assigned_variables(graph)}
    return _every_handle(source, found)


def _every_handle(source: Source, tensors: set[str]) -> frozenset[str]:
    """The tensors, and those of every other handle of the same variables: handles are shared by name."""
    nodes = [node for node in source.meta_graph.graph_def.node if node.op in ("VarHandleOp", "VariableV2", "Variable")]
    identity = {
        f"{node.name}:0": (node.attr["container"].s, node.attr["shared_name"].s or node.name.encode()) for node in nodes
    }
    shared = {identity[tensor] for tensor in tensors if tensor in identity}
    return frozenset(tensors | {tensor for tensor, name in identity.items() if name in shared})


def make_plan(graph: OpGraph, recipe: Recipe, judge: Judge, mutable: frozenset[str], folder: Path, tell: Tell) -> Plan:
    """Decide what every op of a signature does: lower, judge, partition, until the judge takes every island.

    Args:
        graph: the signature.
        recipe: the user's choices.
        judge: what decides which islands an engine takes.
        mutable: tensors of variables that some signature assigns.
        folder: where what is lowered on the way is written.
        tell: receives a line whenever a step begins.
    """
    written = frozenset(arg.name for arg in graph.source.args if arg.tensor in mutable)
    tell("lowering to ONNX")
    refused = refuse_statically(graph, recipe.keep_in_tf, written)
    if recipe.op_set != "tensorrt":
        refused = {**refuse_like_tftrt(graph, recipe.op_set, recipe.precision), **refused}
    inspection = Inspection(graph, dict(refused), judge, folder, tell)
    kinds = _kinds(graph, recipe)
    while True:
        islands, _ = partition(graph.ops, refused, min_segment_size=1, max_engines=0, kinds=kinds)
        judged = Counter(tell, f"asking the {judge.name}", sum(map(len, islands)), "op")
        new: dict[str, str] = {}
        for ops in islands:
            new.update(inspection.refused_ops(ops))
            judged.advance(len(ops))
        if not new:
            return _plan(graph, inspection, refused, recipe)
        refused.update(spread_over_groups(graph, new))


def _kinds(graph: OpGraph, recipe: Recipe) -> dict[str, int]:
    """TF-TRT's segments of different batches stay apart in implicit batch mode; ours have no such rule."""
    return batches(graph) if recipe.op_set == "tf-trt-implicit" else {}


def _plan(graph: OpGraph, inspection: Inspection, refused: Mapping[str, str], recipe: Recipe) -> Plan:
    islands, left_out = partition(
        graph.ops,
        refused,
        min_segment_size=recipe.min_segment_size,
        max_engines=recipe.max_engines,
        kinds=_kinds(graph, recipe),
    )
    return Plan(graph, inspection, islands, dict(refused), left_out)


@dataclass(frozen=True)
class Seen:
    """Samples that the whole model takes, and what TensorFlow made of them when it was asked.

    Attributes:
        samples: to verify islands with.
        profile_samples: to take shapes from.
        notes: sentences for the report.
        outputs: sample -> the signature's output tensors and their values.
    """

    samples: tuple[Sample, ...] = ()
    profile_samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    outputs: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


def look(graph: OpGraph, native: NativeGraph, recipe: Recipe, given: SampleReader | None) -> Seen:
    """Samples of the whole model: the user's, or made up until TensorFlow takes them.

    Args:
        graph: the signature.
        native: its TensorFlow ops.
        recipe: the user's choices.
        given: reads the user's samples; None when there are none.
    """
    signature = graph.source.signature
    fed = {arg.key: f"{arg.name}:0" for arg in graph.source.args if arg.kind == "input"}
    results = list(dict.fromkeys(graph.results))
    outputs: dict[str, Mapping[str, Array]] = {}

    def run(sample: Sample) -> None:
        values = native.run({fed[key]: value for key, value in sample.values.items()}, results)
        outputs[sample.name] = dict(zip(results, values, strict=True))

    def accepts(sample: Sample) -> bool:
        try:
            run(sample)
        except RunError:
            return False
        return True

    shapes: dict[str, list[tuple[int, ...]]] = {}
    known = {spec.name: spec for spec in signature.inputs}
    for name, shape in recipe.shapes:
        if name not in known:
            continue  # an input of another signature; the pipeline has checked that it is one
        if not known[name].accepts(shape):
            raise RecipeError(
                f"--shape {name}={list(shape)} does not fit", hint=f"the input is {known[name].describe()}"
            )
        shapes.setdefault(name, []).append(shape)
    if given is not None:
        samples: list[Sample] = []
        for sample in given():
            try:
                run(sample)
            except RunError as error:
                raise RecipeError(
                    f"sample {sample.name}: TensorFlow fails on it: {error.message}",
                    hint="give inputs that the model takes",
                ) from error
            samples.append(sample)
            if len(samples) == sampling.MAX_USER_SAMPLES:
                break
        more = _shaped(signature, samples, shapes, accepts) if "tensorrt" in recipe.engines else []
        return Seen(tuple(samples), (*samples, *more), (), outputs)
    made = sampling.made_up(signature, shapes, accepts, max([2, *(len(item) for item in shapes.values())]))
    notes = () if made or not signature.inputs else _without_samples(recipe)
    profile = made
    if made and not shapes and "tensorrt" in recipe.engines:
        profile = [*made, *_batched(signature.inputs, made[0], accepts)]
    return Seen(tuple(made), tuple(profile), notes, outputs)


def _shaped(
    signature: Signature,
    samples: Sequence[Sample],
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    accepts: Callable[[Sample], bool],
) -> list[Sample]:
    """Samples in the shapes that the user gave: the first one, its values repeated or cut off, or else made up.

    Raises:
        RecipeError: TensorFlow takes neither.
    """
    found: list[Sample] = []
    for index in range(max(map(len, shapes.values()), default=0) if samples else 0):
        now = {name: given[index % len(given)] for name, given in shapes.items()}
        like = {name: samples[0].values[name] for name in now}
        resized = {name: np.resize(value, now[name]) for name, value in like.items() if value.size}
        sample = Sample(f"{samples[0].name} in shape {index}", {**samples[0].values, **resized})
        if all(sample.values[name].shape == shape for name, shape in now.items()) and accepts(sample):
            found.append(sample)
        elif made := sampling.made_up(signature, {name: [shape] for name, shape in now.items()}, accepts, 1):
            found += made[:1]
        else:
            words = ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in now.items())
            raise RecipeError(
                f"--shape {words}: TensorFlow fails on inputs of these shapes",
                hint="give shapes of all inputs that belong together, or a sample of that shape",
            )
    return found


def _without_samples(recipe: Recipe) -> tuple[str, ...]:
    return (_NO_WHOLE_SAMPLE, _DRAWN_SIZES) if "tensorrt" in recipe.engines else (_NO_WHOLE_SAMPLE,)


def _batched(specs: Sequence[object], sample: Sample, accepts: Callable[[Sample], bool]) -> list[Sample]:
    """The sample at batch 1 and at the largest batch that engines are to take, where the first dimension is open."""
    found = []
    for batch in (1, _PROFILE_BATCH):
        values: dict[str, Array] = {}
        for spec in specs:
            value = sample.values[spec.name]  # type: ignore[attr-defined]
            open_batch = spec.shape is None or (spec.shape and spec.shape[0] is None)  # type: ignore[attr-defined]
            if open_batch and value.ndim and len(value):
                value = value.repeat(batch, axis=0)[:batch] if batch > len(value) else value[:batch]
            values[spec.name] = value  # type: ignore[attr-defined]
        candidate = Sample(f"{sample.name}, batch {batch}", values)
        if accepts(candidate):
            found.append(candidate)
    return found


@dataclass(frozen=True)
class Works:
    """What islands are made with."""

    native: NativeGraph
    seen: Seen
    recipe: Recipe
    judge: Judge
    precision: PrecisionStage
    folder: Path
    tell: Tell
    cache: Cache | None = None


def settle(plan: Plan, works: Works) -> tuple[Plan, tuple[Island, ...]]:
    """Make every island of a plan; ops of those that fail go back to TensorFlow, and the rest is cut again.

    All islands are lowered and verified before the precision of any is lowered, since real samples are streamed through
    the model once for all of them.

    Returns:
        The plan that stands at last, and its islands.
    """
    lowered: dict[tuple[str, ...], Lowered] = {}
    made: dict[tuple[str, ...], Island] = {}
    graph, refused, tell = plan.graph, dict(plan.refused), works.tell
    prover = Prover(graph, works.recipe, tell)
    while True:
        maker = _maker(plan, works)
        new: dict[str, str] = {}
        unknown = [ops for ops in plan.islands if ops not in lowered]
        for number, ops in enumerate(unknown):
            tell(_step("lowering and verifying", number, unknown))
            new.update(_kept(lowered, ops, maker.lower(ops)))
        if not new:
            waiting = [lowered[ops] for ops in plan.islands if ops not in made]
            for number, (island, forms) in enumerate(
                zip(waiting, works.precision.forms(waiting, maker.quantized), strict=True)
            ):
                tell(_step("building", number, [item.ops for item in waiting]))
                new.update(_kept(made, island.ops, prover.make(maker, island, forms)))
        if not new:
            return plan, tuple(made[ops] for ops in plan.islands)
        refused.update(spread_over_groups(graph, new))
        plan = _judged_again(_plan(graph, plan.inspection, refused, works.recipe), works.recipe, refused, lowered)


def _step(what: str, number: int, islands: Sequence[Sequence[str]]) -> Step:
    """A line about an island before it is worked on; how far the work is, is counted in ops."""
    sizes = [len(ops) for ops in islands]
    line = f"island {number + 1} of {len(sizes)}: {what} ({counted(sizes[number], 'op')})"
    return Step(line, stage=what, done=sum(sizes[:number]), total=sum(sizes))


Result = TypeVar("Result", Lowered, Island)


def _kept(found: dict[tuple[str, ...], Result], ops: tuple[str, ...], result: Result | Rejection) -> Mapping[str, str]:
    """Remember what stands; the reasons of what does not."""
    if isinstance(result, Rejection):
        return result.reasons
    found[ops] = result
    return {}


def _maker(plan: Plan, works: Works) -> IslandMaker:
    graph, recipe, seen = plan.graph, works.recipe, works.seen
    entering, leaving = _cut_tensors(graph, plan.islands)
    evidence: list[dict[str, Array]] = []
    if recipe.verify or seen.profile_samples:
        cuts = sorted(entering | leaving)
        evidence = verify.evidence_of(graph, works.native, cuts, seen.samples, seen.outputs)
    shapes: list[dict[str, Array]] = []
    if "tensorrt" in recipe.engines:  # only what enters an engine has a profile
        shapes = verify.evidence_of(graph, works.native, sorted(entering), seen.profile_samples, seen.outputs)
    drafts = plan.inspection.drafts
    return IslandMaker(graph, works.native, evidence, shapes, recipe, works.folder, drafts, works.cache)


def _judged_again(plan: Plan, recipe: Recipe, refused: dict[str, str], made: Mapping[tuple[str, ...], Lowered]) -> Plan:
    """A new cut makes new islands; the judge sees each of them before it is built."""
    while True:
        new: dict[str, str] = {}
        for ops in plan.islands:
            if ops not in made:
                new.update(plan.inspection.refused_ops(ops))
        if not new:
            return plan
        refused.update(spread_over_groups(plan.graph, new))
        plan = _plan(plan.graph, plan.inspection, refused, recipe)


def _cut_tensors(graph: OpGraph, islands: Sequence[Sequence[str]]) -> tuple[set[str], set[str]]:
    """Tensors that enter islands, and tensors that leave them."""
    entering: set[str] = set()
    leaving: set[str] = set()
    for ops in islands:
        inside = set(ops)
        leaving.update(leaving_tensors(graph, inside))
        entering.update(t for name in ops for t in graph.ops[name].inputs if t.rsplit(":", 1)[0] not in inside)
    return entering, leaving
