"""Repair: what is left of an engine that a GPU computes wrongly, without what it computes wrongly.

In this order: the layer that goes wrong computes in float32; then those with it that may be fused with it; then all
places like it. Where rounding adds up and no layer is to blame, those that cost most do. What float32 does not help
goes back to TensorFlow, and the rest is cut again. Every attempt is verified by the embedded engine, built, and run on
the GPU against TensorFlow; which layers are tried, and which ops leave, decides about speed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from refimpl.accuracy import accuracy
from refimpl.converter.device import Verdict, differs, judged, runs_here, where
from refimpl.converter.fusions import Fusions
from refimpl.converter.islands import Built, Island, IslandMaker, Lowered, Rejection, Shipped, options_for
from refimpl.converter.lower import OpGraph
from refimpl.converter.narrow import Budget, GaveUp, Narrower, Place
from refimpl.converter.precision.assigned import tf_op_of
from refimpl.converter.precision.graph_view import named
from refimpl.converter.precision.half import HEAVY
from refimpl.converter.precision.rewrite import Lift
from refimpl.converter.precision.watch import typical
from refimpl.converter.verify import Evidence
from refimpl.engines import onnxruntime, tensorrt
from refimpl.errors import BuildError
from refimpl.recipe import Recipe

BUILDS, SECONDS = 96, 600.0  # that looking for the guilty layers of one signature may cost
_PLACES = 6  # of one island that are looked for one by one
_ROUNDS = 6  # times that ops of a signature go back to TensorFlow
_SHARES = (8, 4, 2)  # one in so many layers is lifted where rounding adds up
_EXACT = ("fp32", "half", "quantized")  # as lowered: verified on everything, not on what is typical only
_ADDS = ("BiasAdd", "Add", "AddV2")
Lifts = dict[str, Lift]


@dataclass
class Memory:
    """What was found of one signature, for the islands that it is cut into next.

    Attributes:
        budget: what is left to spend.
        lifts: layers whose lifts helped.
        left: ONNX op types of layers whose ops went back to TensorFlow.
        rounds: how often ops did.
    """

    budget: Budget = field(default_factory=lambda: Budget(BUILDS, SECONDS))
    lifts: Lifts = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    rounds: int = 0


@dataclass(frozen=True)
class _Tried:
    """One attempt: an island, and what running its engine showed."""

    island: Island
    verdict: Verdict
    lifts: Lifts

    @property
    def right(self) -> bool:
        return not self.verdict.problem


@dataclass(frozen=True)
class Case:
    """One island on the GPU at hand.

    Attributes:
        graph: the signature.
        recipe: the user's choices.
        maker: builds.
        island: as it was lowered.
        memory: of the signature; added to.
        tell: receives a line when something slow begins.
    """

    graph: OpGraph
    recipe: Recipe
    maker: IslandMaker
    island: Lowered
    memory: Memory
    tell: Callable[[str], None]

    def verdict(self, made: Island) -> Verdict | None:
        """What running its TensorRT engine shows; None when it cannot be tried here, or there is nothing to compare."""
        if not any(runs_here(item) for item in made.built):
            return None
        found = self.judge(made, made.shipped.precision)
        return found if found.problem or found.compared else None

    def judge(self, made: Island, precision: str) -> Verdict:
        """Compare its TensorRT engine with TensorFlow by the row of a precision."""
        exact = made.shipped.precision in _EXACT
        evidence: Sequence[Evidence] = [*self.island.whole, *self.island.probes] if exact else typical(self.island)
        return judged(_engine(made), evidence, precision)

    def saved(self, made: Island, verdict: Verdict, wrong: str) -> Island | Rejection | str:
        """Repair an island whose engine disagreed on some evidence.

        Args:
            made: the island.
            verdict: what running it showed.
            wrong: the same in words.

        Returns:
            The island, right on the GPU; or the ops that must leave it; or why neither is to be had.

        Raises:
            GaveUp: it took too long, or a part of the island cannot be built.
        """
        first = _Tried(made, verdict, {})
        if made.shipped.repair is not None:
            return self._lifted(first, wrong)
        if made.shipped.precision == "tf32" and not tensorrt.tf32_problem():
            return wrong  # without TF32 it may be right, and that form is next
        place = self._place(first)
        return wrong if place is None or not place.jump else self._leaving(first, place, wrong)

    # --- more of it in float32

    def _lifted(self, first: _Tried, wrong: str) -> Island | Rejection | str:
        now = self._attempt(first, self._known(first)) or first
        for _ in range(_PLACES):
            if now.right:
                return self._told(now, first)
            place = self._place(now)
            if place is None or not place.jump:
                ranked = self._by_rank(first, now.lifts)
                return self._told(ranked, first) if ranked else f"{wrong}; no layer of it is to blame alone"
            better = self._at(first, now, place)
            if better is None:
                return self._leaving(now, place, wrong) if self._rest(first, place) else wrong
            now = better
        return self._told(now, first) if now.right else f"{wrong}, in more than {_PLACES} places"

    def _at(self, first: _Tried, now: _Tried, place: Place) -> _Tried | None:
        """With more lifts, so that this place is right; None when none makes it so."""
        fusions = Fusions(model_of(now.island.shipped))
        for number, group in enumerate(fusions.groups(place.layer)):
            reason = f"{where()} may fuse it with {place.layer}, and computes that wrongly"
            own = {name: Lift("fp32", reason) for name in group}
            own[place.layer] = Lift("fp32", self._reason(first, place))
            tried = self._attempt(first, {**now.lifts, **own})
            if tried is None or tried.right:
                if tried is not None:
                    return tried
                continue
            item = tried.verdict.item
            if item is None or self._narrower(tried.island).wrong_up_to(place.layer, item.inputs):
                continue
            self.memory.lifts.update(own)
            like = Lift("fp32", f"it is like {place.layer}, which {where()} computes wrongly")
            alike = dict.fromkeys(fusions.alike(place.layer, number), like)
            return (self._attempt(first, {**alike, **tried.lifts}) if alike else None) or tried
        return None

    def _reason(self, first: _Tried, place: Place) -> str:
        precision = first.island.shipped.precision
        return f"{where()} computes it wrongly in {precision} (relative error {place.after:.2g})"

    def _by_rank(self, first: _Tried, lifts: Lifts) -> _Tried | None:
        """More and more of the layers that cost most in float32, until it is right."""
        assert first.island.shipped.repair is not None
        order = first.island.shipped.repair.ranked()
        for count in dict.fromkeys(len(order) // share for share in _SHARES):
            tried = self._attempt(first, {**dict(order[:count]), **lifts}) if count else None
            if tried is not None and tried.right:
                return tried
        return None

    def _attempt(self, first: _Tried, lifts: Lifts) -> _Tried | None:
        """The island with these lifts, built and run; None when it cannot be had."""
        repair = first.island.shipped.repair
        assert repair is not None
        form = repair.lifted(lifts) if lifts else None
        if form is None:
            return None
        self.tell(f"trying it with {len(lifts)} layers in fp32")
        self.memory.budget.take()
        try:
            made = replace(first.island, built=self.maker.engines(self.island, form), shipped=form)
        except BuildError:
            return None
        return _Tried(made, self.judge(made, form.precision), lifts)

    def _known(self, first: _Tried) -> Lifts:
        """Lifts that helped another cut of the same layers."""
        names = {node.name for node in model_of(first.island.shipped).graph.node}
        return {name: lift for name, lift in self.memory.lifts.items() if name in names}

    def _rest(self, first: _Tried, place: Place) -> bool:
        """Whether anything is left in the lower precision without a place and its neighbours."""
        repair = first.island.shipped.repair
        group = Fusions(model_of(first.island.shipped)).groups(place.layer)[-1]
        return repair is not None and repair.lifted(dict.fromkeys(group, Lift("fp32", "tried"))) is not None

    def _told(self, now: _Tried, first: _Tried) -> Island:
        """A repaired island, with what was done in its notes."""
        self.memory.lifts.update(now.lifts)
        names = list(now.lifts)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        note = (
            f"{len(names)} of its layers compute in fp32, or {where()} would compute it wrongly "
            f"({first.verdict.problem}; relative error {first.verdict.relative:.2g} before, {now.verdict.relative:.2g} "
            f"now; the embedded engine is right on the same file): {shown}"
        )
        form = now.island.shipped
        return standing(replace(now.island, shipped=replace(form, notes=(*form.notes, note))), now.verdict)

    # --- back to TensorFlow

    def _leaving(self, now: _Tried, place: Place, wrong: str) -> Rejection | str:
        """The TensorFlow ops of a layer, and of all layers like it when this is not the first one."""
        form, memory = now.island.shipped, self.memory
        model = model_of(form)
        nodes = {node.name: node for node in model.graph.node}
        kind = nodes[place.layer].op_type
        more = Fusions(model).alike(place.layer, 0) if kind in memory.left else ()
        found = dict.fromkeys(op for name in (place.layer, *more) for op in self._ops_of(nodes[name]))
        if not found:
            return f"{wrong}; no TensorFlow op is known for {place.layer}"
        if memory.rounds == _ROUNDS:
            return f"{wrong}; ops went back to TensorFlow {_ROUNDS} times for that, and no more do"
        memory.rounds += 1
        memory.left.add(kind)
        also = ", in float32 too" if form.repair is not None else ""
        errors = f"relative error {place.before:.2g} before it, {place.after:.2g} after it"
        reason = f"{where()} computes it wrongly{also} ({errors}); the embedded engine is right"
        return Rejection(dict.fromkeys(found, reason))

    def _ops_of(self, node: Any) -> list[str]:
        """The op that a node came from; where that is an addition merged into a product, the product too."""
        ops = {name: self.graph.ops[name].type for name in self.island.ops}
        op = tf_op_of(node, ops)
        if not op or ops[op] not in _ADDS or node.op_type not in HEAVY:
            return [op] if op else []
        operands = [name.rsplit(":", 1)[0] for name in self.graph.ops[op].inputs]
        return [op, *(name for name in operands if ops.get(name, "Const") != "Const")]

    # --- where it goes wrong

    def _place(self, now: _Tried) -> Place | None:
        """Where the engine goes wrong; None when it agrees with the embedded one: both are as far from TensorFlow."""
        item, outputs, form = now.verdict.item, now.verdict.outputs, now.island.shipped
        if item is None:
            raise GaveUp(f"with more of it in float32 it cannot be run: {now.verdict.problem}")
        want = onnxruntime.open(form.model).run(list(item.inputs))
        if not differs(want, outputs, form.precision):
            return None
        same = [a.shape for a in want] == [b.shape for b in outputs]
        whole = accuracy(want, outputs).relative if same else float("inf")
        place = self._narrower(now.island).first_wrong(item.inputs, whole)
        self.tell(f"its error grows from {place.before:.2g} to {place.after:.2g} at {place.layer}")
        return place

    def _narrower(self, made: Island) -> Narrower:
        form = made.shipped
        options = options_for(self.recipe, tensorrt.NAME, form.precision)
        profiles = _engine(made).profiles
        return Narrower(model_of(form), form.model, profiles, options, form.precision, self.memory.budget)


def standing(made: Island, verdict: Verdict) -> Island:
    """An island that agreed on the GPU, with a note that says so."""
    note = f"{where()}: {verdict.compared} samples agree with TensorFlow, relative error {verdict.relative:.2g}"
    form = made.shipped
    finding = replace(form.finding, finite_only=form.finding.finite_only or verdict.finite_only)
    return replace(made, shipped=replace(form, finding=finding, notes=(*form.notes, note)))


def model_of(form: Shipped) -> onnx.ModelProto:
    """A form's ModelProto, nodes named."""
    return named(onnx.load(form.model))


def _engine(made: Island) -> Built:
    return next(item for item in made.built if item.kind == tensorrt.NAME)
