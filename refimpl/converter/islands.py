"""Make one island: lower it clean and verify it against TensorFlow, later build its engines.

Or say which ops must leave it. In between, its precision may be lowered (:mod:`refimpl.converter.precision.refine`).
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import onnx

from refimpl import bundle, engine_cache, engines, memory
from refimpl.accuracy import Accuracy
from refimpl.artifacts import Array
from refimpl.cache import Cache
from refimpl.converter import fake_quant, lower, verify
from refimpl.converter.drafts import own_precision
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.precision.assigned import Assigned
from refimpl.converter.precision.rewrite import Lift
from refimpl.converter.verify import Evidence, Finding
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from refimpl.errors import BuildError, RefimplError, RunError, first_line
from refimpl.profiles import profiles_for
from refimpl.recipe import Recipe

UNVERIFIED = Finding()
_SHAPES_COMPILED = 4  # combinations of shapes whose kernels a bundle brings along


@dataclass(frozen=True)
class Lowered:
    """An island in the model's own precision, verified against TensorFlow; no engine built yet.

    Attributes:
        ops: its TensorFlow ops.
        entering: cut tensors that enter.
        leaving: cut tensors that leave.
        model: its ONNX file.
        precision: row of the tolerance table: ``"fp32"``, ``"half"`` where the model itself computes in float16, or
            ``"quantized"`` where it rounds to steps of its own.
        whole: what TensorFlow makes of whole-model samples here.
        probes: what TensorFlow makes of values drawn at the cut.
        finding: the outcome of the comparison.
        notes: sentences for the report.
    """

    ops: tuple[str, ...]
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    model: Path
    precision: str
    whole: tuple[Evidence, ...]
    probes: tuple[Evidence, ...]
    finding: Finding
    notes: tuple[str, ...]


class Repair(Protocol):
    """How a form in a lower precision is made anew with more of it in float32."""

    def lifted(self, lifts: Mapping[str, Lift]) -> Shipped | None:
        """The form with more layers, by node name, computing in what they are lifted to, verified as any other form.

        Returns:
            None when nothing would be left in the lower precision, or when it disagrees with TensorFlow then.
        """

    def ranked(self) -> list[tuple[str, Lift]]:
        """The layers that are not in float32, the one that costs most accuracy first, each with a lift to it."""


@dataclass(frozen=True)
class Shipped:
    """The form of an island that engines are built from: the float32 one, or one rewritten for a lower precision."""

    model: Path
    precision: str
    finding: Finding
    notes: tuple[str, ...] = ()
    layers: tuple[Assigned, ...] = ()
    accuracy: Accuracy | None = None
    repair: Repair | None = None  # None where nothing was lowered


@dataclass(frozen=True)
class Built:
    """One engine file of an island."""

    kind: str
    file: Path
    version: str
    precision: str
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...] = ()
    build_seconds: float | None = None  # None when it came from the cache, or nothing had to be built


@dataclass(frozen=True)
class Island:
    """An island that may ship."""

    ops: tuple[str, ...]
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    built: tuple[Built, ...]
    shipped: Shipped


@dataclass(frozen=True)
class Rejection:
    """Ops that must leave an island, with reasons."""

    reasons: Mapping[str, str]


class IslandMaker:
    """Makes islands of one signature.

    Args:
        graph: the signature.
        native: its TensorFlow ops.
        seen: values at every cut tensor, one mapping per whole-model sample.
        profile_seen: like ``seen``, for the shapes that engines must take.
        recipe: the user's choices.
        folder: where files are written.
        drafts: ONNX files of islands that were lowered already; one is used up when its island is made.
        cache: where engines are looked for before they are built.
    """

    def __init__(
        self,
        graph: OpGraph,
        native: NativeGraph,
        seen: Sequence[Mapping[str, Array]],
        profile_seen: Sequence[Mapping[str, Array]],
        recipe: Recipe,
        folder: Path,
        drafts: dict[tuple[str, ...], Path],
        cache: Cache | None = None,
    ) -> None:
        self._graph, self._native, self._recipe = graph, native, recipe
        # A folder of its own: an earlier maker's islands may still be wanted when a part of the graph is cut again.
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._seen, self._profile_seen, self._cache = seen, profile_seen, cache
        self._drafts = drafts
        self._count = 0

    def lower(self, ops: tuple[str, ...]) -> Lowered | Rejection:
        """Lower and verify; every failure ends in a :class:`Rejection` that names ops and reasons."""
        _, entering, leaving = lower.subgraph_nodes(self._graph, ops, marked=False)
        if not leaving:
            return Rejection(dict.fromkeys(ops, "nothing outside its island reads it"))
        whole, probes = self._evidence(entering, leaving)
        model, finding, notes = self._model(ops, leaving, [*whole, *probes])
        if finding.problem:
            return Rejection(self._blame(ops, finding.problem, self._problem_of))
        return Lowered(
            ops,
            tuple(entering),
            tuple(leaving),
            model,
            self._precision(ops),
            tuple(whole),
            tuple(probes),
            finding,
            tuple(notes),
        )

    def build(self, island: Lowered, forms: Iterable[Shipped]) -> Island | Rejection:
        """Build the engines of the first form that can be built; when none can, blame ops of the last, the float32 one.

        Args:
            island: the island.
            forms: what may ship, best first; the last one is the island as it was lowered.
        """
        said: tuple[str, ...] = ()
        for form in forms:
            try:
                built = self.engines(island, form)
            except BuildError as error:
                said = (*said, f"no {form.precision} engine could be built: {error.message}")
                continue
            shipped = replace(form, notes=(*form.notes, *said))
            return Island(island.ops, island.entering, island.leaving, built, shipped)
        return self._blamed_for_build(island)

    def engines(self, island: Lowered, form: Shipped) -> tuple[Built, ...]:
        """One form of an island as every engine that the recipe names, the embedded one first.

        Raises:
            BuildError: one of them cannot be built.
        """
        evidence = [*island.whole, *island.probes]
        kinds = [kind for kind in self._recipe.engines if kind != onnxruntime.NAME]
        others = [self._build(kind, form.model, form.precision, island.entering, evidence) for kind in kinds]
        return (Built(onnxruntime.NAME, form.model, onnxruntime.version(), form.precision, ()), *others)

    def _blamed_for_build(self, island: Lowered) -> Rejection:
        for kind in self._recipe.engines:
            if kind != onnxruntime.NAME and (problem := self._build_problem(kind, island.ops)):
                reasons = self._blame(
                    island.ops,
                    problem,
                    lambda part, kind=kind: self._build_problem(kind, part),  # type: ignore[misc]
                )
                return Rejection({op: f"{kind} cannot build it: {why}" for op, why in reasons.items()})
        return Rejection(dict.fromkeys(island.ops, "its engines could not be built"))

    def quantized(self, ops: Sequence[str]) -> Path:
        """The island's ONNX with the model's own fake quantization as Q/DQ pairs.

        Raises:
            BuildError: it cannot be lowered so.
        """
        try:
            model, weights = lower.to_onnx(self._graph, ops, marked=False, quantized=True)
        except Exception as error:  # tf2onnx raises anything
            raise BuildError(f"its fake quantization cannot be written as Q/DQ: {first_line(error)}") from error
        self._count += 1
        file = self._folder / f"{self._count}.onnx"
        onnxruntime.optimize(model, weights, file)
        model = onnx.load(file)
        fake_quant.tidy_pairs(model)
        onnxruntime.save(model, file)
        return file

    def _evidence(self, entering: Sequence[str], leaving: Sequence[str]) -> tuple[list[Evidence], list[Evidence]]:
        """From whole-model samples, and drawn at the cut."""
        if not self._recipe.verify:
            return [], []
        whole = [
            Evidence(f"whole-model sample {index}", tuple(item[t] for t in entering), tuple(item[t] for t in leaving))
            for index, item in enumerate(self._seen)
        ]
        return whole, verify.cut_probes(self._graph, self._native, entering, leaving, self._seen)

    def _model(
        self, ops: Sequence[str], leaving: Sequence[str], evidence: Sequence[Evidence]
    ) -> tuple[Path, Finding, list[str]]:
        """The island's ONNX file: cleaned up if that agrees with TensorFlow, plain if only the plain one does."""
        self._count += 1
        suffix = onnxruntime.suffix(self._precision(ops))
        file = self._drafts.pop(tuple(ops), None)
        if file is not None:
            clean = self._judged(ops, file, evidence, leaving)
        else:
            file = self._folder / f"{self._count}{suffix}"
            clean = self._try(ops, file, evidence, leaving, onnxruntime.optimize)
        if not clean.problem:
            return file, clean, []
        plain_file = self._folder / f"{self._count}{onnxruntime.PLAIN}{suffix.removeprefix('.')}"
        plain = self._try(ops, plain_file, evidence, leaving, onnxruntime.save_plain)
        if not plain.problem and evidence:
            return plain_file, plain, [f"graph optimizations are off for it: with them, {clean.problem}"]
        return file, clean, []

    def _try(
        self,
        ops: Sequence[str],
        file: Path,
        evidence: Sequence[Evidence],
        leaving: Sequence[str],
        save: Callable[[Any, Mapping[str, Array], Path], None],
    ) -> Finding:
        try:
            model, weights = lower.to_onnx(self._graph, ops, marked=False)
        except Exception as error:  # noqa: BLE001  tf2onnx raises anything
            return Finding(problem=f"tf2onnx fails on it: {type(error).__name__}: {first_line(error)}")
        try:
            save(model, weights, file)
        except RefimplError as error:
            return Finding(problem=error.message)
        return self._judged(ops, file, evidence, leaving)

    def _judged(self, ops: Sequence[str], file: Path, evidence: Sequence[Evidence], leaving: Sequence[str]) -> Finding:
        """Open what was stored, and compare it with TensorFlow."""
        try:
            engine = onnxruntime.open(file)
        except RefimplError as error:
            return Finding(problem=error.message)
        if not self._recipe.verify:
            return UNVERIFIED
        types = [self._graph.ops[name].type for name in ops]
        finding = verify.judge_engine(engine, evidence, leaving, self._precision(ops), types)
        del engine
        memory.give_back()
        return finding

    def _precision(self, ops: Sequence[str]) -> str:
        """What the model itself computes in here; a lower precision is made of that later (:mod:`refine`)."""
        return own_precision(self._graph, ops)

    def _build(
        self, kind: str, model: Path, precision: str, entering: Sequence[str], evidence: Sequence[Evidence]
    ) -> Built:
        module = engines.kind(kind)
        specs = [self._graph.specs[tensor] for tensor in entering]
        seen: Sequence[Mapping[str, Array]] = self._profile_seen
        if not seen or not all(tensor in item for item in seen for tensor in entering):
            # Nothing could be run from end to end, or this is a part of an island: what was drawn at its cut must do.
            seen = [dict(zip(entering, item.inputs, strict=True)) for item in evidence]
        if entering and not seen:
            raise BuildError("no shapes are known for its inputs")
        profiles = profiles_for(self._recipe.profile, specs, seen)
        target = model.with_name(f"{model.name.split('.')[0]}{module.SUFFIX}")
        options = options_for(self._recipe, kind, precision)
        targets = options.targets
        label = {"island": f"reads {', '.join(entering) or 'nothing'}", "precision": precision}
        start = time.perf_counter()
        cached = engine_cache.build(self._cache, kind, model, target, profiles, options, label)
        seconds = None if cached else round(time.perf_counter() - start, 3)
        if kind == tensorrt.NAME and not tensorrt.refusal(module.version(), module.version(), targets):
            _keep_kernels(target, [[item[tensor] for tensor in entering] for item in seen])
        return Built(kind, target, module.version(), precision, profiles, targets, seconds)

    def _problem_of(self, ops: Sequence[str]) -> str:
        _, entering, leaving = lower.subgraph_nodes(self._graph, ops, marked=False)
        if not leaving:
            return ""
        _, finding, _ = self._model(ops, leaving, self._part_evidence(entering, leaving))
        return finding.problem

    def _build_problem(self, kind: str, ops: Sequence[str]) -> str:
        _, entering, leaving = lower.subgraph_nodes(self._graph, ops, marked=False)
        evidence = self._part_evidence(entering, leaving)
        model, finding, _ = self._model(ops, leaving, evidence)
        if finding.problem:
            return finding.problem
        try:
            self._build(kind, model, self._precision(ops), entering, evidence)
        except BuildError as error:
            return error.message
        return ""

    def _part_evidence(self, entering: Sequence[str], leaving: Sequence[str]) -> list[Evidence]:
        """Evidence for a part of an island, whose cuts were not fetched before."""
        return verify.cut_probes(self._graph, self._native, entering, leaving, self._cut_values(entering))

    def _cut_values(self, tensors: Sequence[str]) -> list[dict[str, Array]]:
        inputs = [f"{arg.name}:0" for arg in self._graph.source.args if arg.kind == "input"]
        found = []
        for item in self._seen[:1]:
            feeds = {name: item[name] for name in inputs if name in item}
            fetched = [tensor for tensor in tensors if tensor not in feeds]
            found.append({**dict(zip(fetched, self._native.run(feeds, fetched), strict=True)), **feeds})
        return found

    def _blame(self, ops: Sequence[str], problem: str, problem_of: Callable[[Sequence[str]], str]) -> dict[str, str]:
        """The ops to blame: each that fails alone, or else the one whose joining makes a growing part fail."""
        groups: dict[int, list[str]] = {}
        for name in ops:
            groups.setdefault(self._graph.ops[name].group, []).append(name)
        parts = list(groups.values())
        if len(parts) > 1:
            alone = {name: why for part in parts if (why := problem_of(part)) for name in part}
            if alone:
                return alone
            low, high = 1, len(parts)  # parts[:low] is fine, parts[:high] is not
            while high - low > 1:
                middle = (low + high) // 2
                if problem_of([name for part in parts[:middle] for name in part]):
                    high = middle
                else:
                    low = middle
            return dict.fromkeys(parts[high - 1], f"{problem} (together with the ops before it; alone it is fine)")
        return dict.fromkeys(ops, problem)


def options_for(recipe: Recipe, kind: str, precision: str) -> BuildOptions:
    """What an engine of an island in this precision is built with."""
    tf32 = recipe.tf32 and precision != "fp32"  # not where an island does not stand it
    return BuildOptions(tf32, recipe.workspace_bytes, targets=recipe.targets if kind == tensorrt.NAME else ())


def _keep_kernels(engine: Path, calls: Sequence[Sequence[Array]]) -> None:
    """Where a GPU is at hand, put the kernels that TensorRT compiles for it beside the engine, for its next start.

    An engine that fails here is found out, and told, when the finished bundle runs.
    """
    distinct = {tuple(value.shape for value in inputs): inputs for inputs in calls}
    with contextlib.suppress(RunError):
        if kernels := tensorrt.compiled_kernels(engine, list(distinct.values())[:_SHAPES_COMPILED]):
            engine.with_name(engine.name + bundle.KERNELS_SUFFIX).write_bytes(kernels)
