"""Drafts: islands lowered as they will ship, and shown to the judge whole, before any op is looked at by itself.

Most islands are taken whole. Their ONNX is then lowered once: the draft that was judged is what is verified and built.
Only when one is not taken, or a look at its nodes leaves a doubt, is the signature lowered with markers and sorted into
atoms, which say which ops are to blame.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from refimpl.converter import lower, onnxgraphs
from refimpl.converter.atoms import Atoms, lower_atoms
from refimpl.converter.fake_quant_exact import TYPES as FAKE_QUANT
from refimpl.converter.judge import Judge, refused_ops
from refimpl.converter.lower import OpGraph
from refimpl.engines import onnxruntime
from refimpl.progress import Tell, silent


def own_precision(graph: OpGraph, ops: Sequence[str]) -> str:
    """What the model itself computes in here, a row of the tolerance table."""
    inside = [graph.ops[name] for name in ops]
    if any(spec.dtype == "float16" for op in inside for spec in op.outputs):
        return "half"
    return "quantized" if any(op.type in FAKE_QUANT for op in inside) else "fp32"


class Inspection:
    """Asks the judge about islands of one signature, each once.

    Args:
        graph: the signature.
        refused: ops that were refused before anything was lowered, with reasons.
        judge: who decides.
        folder: where drafts are written.
        tell: receives a line when something slow begins.
    """

    def __init__(
        self, graph: OpGraph, refused: Mapping[str, str], judge: Judge, folder: Path, tell: Tell = silent
    ) -> None:
        self._graph, self._refused, self._judge = graph, refused, judge
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._tell = tell
        self._atoms: Atoms | None = None
        self._count = 0
        self._accepted: set[tuple[str, ...]] = set()
        self.drafts: dict[tuple[str, ...], Path] = {}

    def refused_ops(self, ops: tuple[str, ...]) -> dict[str, str]:
        """Ops that must leave an island, with reasons; empty when all of it is taken.

        The parser names one cause per region, so what is left must be asked again.
        """
        if ops in self._accepted:
            return {}
        found: dict[str, str] = {}
        if self._atoms is None and (draft := self._draft(ops)) is not None:
            self.drafts[ops] = draft
        else:
            atoms = self._sorted()
            found = {op: atoms.refused[op] for op in ops if op in atoms.refused}
            found = found or refused_ops(self._graph, atoms, self._judge, ops, self._tell)
        if not found:
            self._accepted.add(ops)
        return found

    def _sorted(self) -> Atoms:
        if self._atoms is None:
            self._atoms = lower_atoms(self._graph, self._refused, self._folder)
        return self._atoms

    def _draft(self, ops: tuple[str, ...]) -> Path | None:
        """The ONNX file of an island that the judge takes; None when it does not, or when there is any doubt."""
        self._count += 1
        file = self._folder / f"{self._count}{onnxruntime.suffix(own_precision(self._graph, ops))}"
        try:
            model, weights = lower.to_onnx(self._graph, ops, marked=False)
            if self._doubtful(model, ops):
                return None
            onnxruntime.optimize(model, weights, file)
        except Exception:  # noqa: BLE001  tf2onnx raises anything; which op made it do so is found with the atoms
            return None
        return file if self._judge.takes(file) else None

    def _doubtful(self, model: onnx.ModelProto, ops: Sequence[str]) -> bool:
        """Whether anything in it needs to be looked at op by op: a node for no engine, an integer that becomes a float.

        A float may be made of an integer by the model's own Cast, or for ops that compute in floats; where only
        integers go in and come out it rounds, and which op that belongs to is seen by atoms only.
        """
        graph = gs.import_onnx(model).cleanup()  # of casts, say, that no comparison reads any more
        if any(onnxgraphs.refusal_of(node) for node in graph.nodes):
            return True
        casts = {op for op in ops if self._graph.ops[op].type == "Cast"}
        return any(onnxgraphs.floats_an_integer(node) and node.name not in casts for node in graph.nodes)
