"""One guilty island: the ONNX node in it that is to blame, and whether it is one."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.bundle import IslandRecord
from refimpl.errors import RefimplError, RunError
from refimpl.oracle.arrays import Array
from refimpl.oracle.bisect.finding import Finding, Origin, Place
from refimpl.oracle.bisect.inside import Inside, Layer
from refimpl.oracle.bisect.keep import REDUCED
from refimpl.oracle.bisect.layout import named_after
from refimpl.oracle.bisect.measure import ADDED, FINE, is_float, pattern, share, tolerance_of
from refimpl.oracle.bisect.opened import Direct, Opened
from refimpl.oracle.bisect.reference import Segment
from refimpl.oracle.compare import diff
from refimpl.oracle.golden import GoldenCase

_FAILED_NODE = re.compile(r"Name:'([^']+)'")  # in ONNX Runtime's messages
_AMPLIFIED = (
    "fed with TensorFlow's values, it is right ({:.2g} of the tolerance). What it is given is off by {:.2g} of the "
    "tolerance, and it makes {:.3g} of that: the error is only amplified here"
)


@dataclass(frozen=True, slots=True)
class Cut:
    """An island, and TensorFlow's values on both sides of it.

    Attributes:
        island: its record.
        segment: its ops in TensorFlow.
        entering: TensorFlow's values of its inputs.
        leaving: of its outputs.
        refused: why the runtime lets TensorFlow run it; "" when an engine did.
    """

    island: IslandRecord
    segment: Segment
    entering: tuple[Array, ...]
    leaving: tuple[Array, ...]
    refused: str = ""


class IslandSearch:
    """The search inside of one guilty island."""

    def __init__(self, opened: Opened, case: GoldenCase, cut: Cut) -> None:
        self.opened, self.case, self.cut = opened, case, cut
        self.direct: Direct = opened.direct(cut.island)

    def born(self, cut: str, problem: str) -> Finding:
        """The island is wrong, or cannot run, although TensorFlow's own values enter it."""
        inside, failed, said = self._opened(problem)
        problem = problem or said
        if inside is None:
            return self._failed_node(failed, problem)
        wrong = inside.born()
        if wrong:
            layer = inside.narrowed(wrong[0])
            return self._layer(inside, layer, cut, len(inside.born()) - 1)
        if failed:
            changed = inside.misshapen()
            return self._layer(inside, changed, cut, 0) if changed else self._failed_node(failed, problem)
        context = inside.in_context(self.cut.entering)
        if all(context[name] <= FINE for name in inside.inner.outputs if name in context):
            return self._engine(inside, cut)
        return self._grown(inside, context, cut)

    def amplified(self, inputs: Sequence[Array], cut: str) -> Finding:
        """The island is right on TensorFlow's values, and wrong on those that it got, each within its tolerance."""
        inside, failed, said = self._opened("")
        if inside is None:
            return self._failed_node(failed, said)
        return self._grown(inside, inside.in_context(inputs), cut)

    def _opened(self, problem: str) -> tuple[Inside | None, str, str]:
        """The island opened; without a node that cannot run, whose name comes back, and why it cannot."""
        values = self.opened.values(self.case, self.cut.segment, self.cut.entering)
        failed = ""
        for _ in range(2):
            inner = self.opened.inner(self.cut.island, failed)
            try:
                ops = self.opened.reference(self.case.signature).ops
                return Inside(inner, self.cut.segment, ops, values, self.direct.precision), failed, problem
            except RunError as error:
                named = _FAILED_NODE.search(error.message) or _FAILED_NODE.search(problem)
                failed, problem = named[1] if named else failed, problem or error.message
        return None, failed, problem

    def _layer(self, inside: Inside, layer: Layer, cut: str, others: int) -> Finding:
        want = inside.values[layer.match.tf]
        form = pattern(want, layer.got)
        off = f"off by {layer.share:.3g} times the tolerance" if math.isfinite(layer.share) else "wrong altogether"
        remarks = [f"fed with TensorFlow's values, it is {off}: the error is born here"]
        remarks += [form] if form else []
        remarks += filter(None, [self._second_opinion(inside, layer)])
        if others:
            remarks.append(f"{others} later layers are wrong by themselves, too")
        op = layer.main(added=form.startswith(ADDED))
        return self._finding(
            place=Place.ISLAND,
            origin=Origin.BORN,
            cut=cut,
            tensor=layer.match.tf,
            op=(op.name, op.type),
            ops=tuple((item.name, item.type) for item in layer.ops),
            nodes=tuple((node.name, node.op) for node in layer.nodes),
            share=layer.share,
            difference=diff(
                layer.match.tf, want, layer.got.astype(want.dtype), tolerance_of(self.direct.precision, want)
            ),
            remarks=tuple(remarks),
        )

    def _grown(self, inside: Inside, context: Mapping[str, float], cut: str) -> Finding:
        """No layer is wrong by itself: the first that leaves its tolerance while its operands are within theirs."""
        for name in inside.order:
            before = [context[source] for source in inside.sources(name) if source in context]
            if context[name] > FINE and all(item <= FINE for item in before):
                layer = inside.layer(name)
                op = layer.main()
                return self._finding(
                    place=Place.ISLAND,
                    origin=Origin.AMPLIFIED,
                    cut=cut,
                    tensor=layer.match.tf,
                    op=(op.name, op.type),
                    ops=tuple((item.name, item.type) for item in layer.ops),
                    nodes=tuple((node.name, node.op) for node in layer.nodes),
                    share=context[name],
                    remarks=(_AMPLIFIED.format(layer.share, max(before, default=0.0), context[name]),),
                )
        return self._finding(place=Place.ISLAND, cut=cut, remarks=("no layer could be singled out",))

    def _engine(self, inside: Inside, cut: str) -> Finding:
        """The nodes are right one by one, and together, but not in the engine."""
        remarks = [f"every ONNX node is right by itself: the ONNX is right, the {self.direct.kind} engine is not"]
        if self.direct.kind == "onnxruntime":
            plain = inside.inner.plain().run(self.cut.entering)
            right = first_bad(self.cut.leaving, plain, self.direct.precision) is None
            remarks.append(
                "without its graph optimizations it agrees with TensorFlow: one of them is wrong"
                if right
                else "without its graph optimizations it is wrong as well"
            )
        else:
            remarks.append(
                "the ONNX in ONNX Runtime agrees with TensorFlow: --engine onnxruntime; build the engine anew"
            )
        return self._finding(place=Place.ENGINE, cut=cut, remarks=tuple(remarks))

    def _failed_node(self, name: str, problem: str) -> Finding:
        op, _ = named_after(name)
        ops = self.opened.reference(self.case.signature).ops
        blamed = ops.get(op) or next((item for key, item in ops.items() if op.startswith(f"{key}/")), None)
        return self._finding(
            place=Place.ISLAND if name else Place.ENGINE,
            origin=Origin.BORN if name else Origin.UNKNOWN,
            op=(blamed.name, blamed.type) if blamed else ("", ""),
            ops=((blamed.name, blamed.type),) if blamed else (),
            nodes=((name, ""),) if name else (),
            remarks=(f"it cannot run on TensorFlow's values: {problem}",),
        )

    def _second_opinion(self, inside: Inside, layer: Layer) -> str:
        """The same nodes in ONNX's reference evaluator: a wrong graph is wrong there, too; a wrong kernel is not."""
        inner, tensor = inside.inner, layer.match.tensor
        want = inside.values[layer.match.tf]
        operands = [np.ascontiguousarray(inside.golden(name).astype(inner.dtype(name))) for name in layer.reads]
        try:
            with tempfile.TemporaryDirectory(prefix="refimpl-bisect-") as folder:
                (found,) = inner.part(layer.reads, [tensor], Path(folder)).run(operands)
        except (RefimplError, KeyError):
            return ""
        wide = found.astype(np.float32) if is_float(found) else found
        off = share(want, layer.match.to_tf(wide, want.shape), tolerance_of(self.direct.precision, want))
        if off <= FINE:
            return "ONNX's reference evaluator agrees with TensorFlow: the ONNX is right, ONNX Runtime's kernel is not"
        if self.direct.precision in REDUCED:
            return f"ONNX's reference evaluator is off, too: it is what the graph says, in {self.direct.precision}"
        return "ONNX's reference evaluator is off, too: the ONNX itself is wrong"

    def _finding(self, **facts: Any) -> Finding:
        if self.cut.refused:
            said = f"the runtime does not use this engine, TensorFlow runs the island: {self.cut.refused}"[:200]
            facts["remarks"] = (*facts["remarks"], said)
        return Finding(
            signature=self.case.signature,
            case=self.case.name,
            island=self.cut.island.name,
            engine=self.direct.kind,
            **facts,
        )


def first_bad(want: Sequence[Array], got: Sequence[Array], precision: str) -> int | None:
    """The index of the first array that is beyond its tolerance or of another dtype; None when all are right."""
    for index, (a, b) in enumerate(zip(want, got, strict=True)):
        if a.dtype != b.dtype or share(a, b, tolerance_of(precision, a)) > FINE:
            return index
    return None
