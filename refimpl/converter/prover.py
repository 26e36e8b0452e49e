"""Prove: where the GPU is at hand, no engine is stored that was not run on it, and agreed with TensorFlow there.

An engine that disagrees, though the embedded engine computes the same file right, is TensorRT's mistake on this GPU. It
is saved in the finest way that works (:mod:`refimpl.converter.repair`); else the form after it ships; at last the
island goes without a TensorRT engine. Never with a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from refimpl.converter.device import Verdict, nothing_right, where
from refimpl.converter.islands import Island, IslandMaker, Lowered, Rejection, Shipped
from refimpl.converter.lower import OpGraph
from refimpl.converter.narrow import GaveUp
from refimpl.converter.repair import Case, Memory, standing
from refimpl.engines import tensorrt
from refimpl.progress import Tell
from refimpl.recipe import Recipe


@dataclass
class Prover:
    """Proves the islands of one signature, and remembers between cuts what was found.

    Attributes:
        graph: the signature.
        recipe: the user's choices.
        tell: receives a line when something slow begins.
    """

    graph: OpGraph
    recipe: Recipe
    tell: Tell
    _memory: Memory = field(default_factory=Memory)
    _broken: str | None = None  # why nothing is right on this GPU; None while nobody has asked

    def make(self, maker: IslandMaker, island: Lowered, forms: Iterable[Shipped]) -> Island | Rejection:
        """Build the engines of the first form that stands on the GPU at hand; without one, of the first that builds.

        Args:
            maker: builds.
            island: the island.
            forms: what may ship, best first; the last one is the island as it was lowered.

        Returns:
            The island, without a TensorRT engine when none stands; or the ops that must leave it, with reasons.
        """
        forms = iter(forms)
        said: tuple[str, ...] = ()
        while True:
            made = maker.build(island, forms)
            if isinstance(made, Rejection):
                return made
            made = replace(made, shipped=replace(made.shipped, notes=(*made.shipped.notes, *said)))
            outcome = self._proven(Case(self.graph, self.recipe, maker, island, self._memory, self.tell), made)
            if not isinstance(outcome, str):
                return outcome
            self.tell(outcome)
            if made.shipped.model == island.model:
                notes = (*made.shipped.notes, f"no TensorRT engine is stored for it: {outcome}")
                others = tuple(item for item in made.built if item.kind != tensorrt.NAME)
                return replace(made, built=others, shipped=replace(made.shipped, notes=notes))
            said = (*said, f"not in {made.shipped.precision}: {outcome}")

    def _proven(self, case: Case, made: Island) -> Island | Rejection | str:
        """The island if its engine agrees, or repaired; the ops that must leave; or why it cannot be saved."""
        verdict = case.verdict(made)
        if verdict is None:
            return made
        if not verdict.problem:
            return standing(made, verdict)
        if why := self._hopeless(case, made, verdict):
            return why
        wrong = f"{where()} computes it wrongly ({verdict.problem})"
        self.tell(f"{wrong}; looking for the layers")
        try:
            return case.saved(made, verdict, wrong)
        except GaveUp as error:
            return f"{wrong}; {error}"

    def _hopeless(self, case: Case, made: Island, verdict: Verdict) -> str:
        """Why there is no layer to look for; "" when there may be one."""
        if verdict.item is None:
            return f"{where()} cannot run it: {verdict.problem}"
        if made.shipped.precision == "fp32" and (tensorrt.tf32_problem() or not case.judge(made, "tf32").problem):
            if made.shipped.model != case.island.model:
                return f"{where()} rounds its float32 products to TF32, also taken apart ({verdict.problem})"
            allowed = "which it does not stand" if self.recipe.tf32 else "which is not allowed; --tf32 allows it"
            return f"{where()} rounds its float32 products to TF32, {allowed} ({verdict.problem})"
        if self._broken is None:
            self._broken = nothing_right()
        return f"{where()} does not even multiply two matrices: {self._broken}" if self._broken else ""
