"""Inside one island: which ONNX node makes another value than TensorFlow's op, from TensorFlow's own inputs.

All nodes are tried at once: every tensor that stands for a TensorFlow tensor is replaced by TensorFlow's value, so each
node works on right operands, and an error cannot travel. That a tensor stands for another is never believed by name: a
tensor that differs counts as wrong only if TensorFlow's value in its place brings what is computed from it closer to
TensorFlow's. If it does not, the name lied, and the tensor is no longer looked at.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from refimpl.bundle import IDLE_OPS
from refimpl.engines.inner import Inner, Node
from refimpl.errors import RunError
from refimpl.oracle.arrays import Array
from refimpl.oracle.bisect.layout import Match, any_axes, guesses, named_after
from refimpl.oracle.bisect.measure import FINE, share, tolerance_of
from refimpl.oracle.bisect.reference import Segment, TfOp

_BETTER = 0.5  # how much of an error must go for a replacement to count as a repair
_TRIES = 200  # of pairs, when the inside of one layer is searched
# Ops that are blamed first when one ONNX node does the work of several.
_HEAVY = ("While", "StatelessWhile", "If", "StatelessIf", "Conv", "Depthwise", "MatMul", "BatchMatMul", "Einsum")
_ADDING = ("BiasAdd", "AddV2", "Add", "Sub")


@dataclass(frozen=True, slots=True)
class Layer:
    """ONNX nodes between tensors that are known, and the TensorFlow ops that they stand for."""

    match: Match
    nodes: tuple[Node, ...]  # the last one makes the tensor
    reads: tuple[str, ...]  # ONNX tensors that it is computed from
    ops: tuple[TfOp, ...]
    share: float  # of its tolerance that the error is, computed from TensorFlow's values
    got: Array  # what it made of them, as it would lie in TensorFlow

    def main(self, *, added: bool = False) -> TfOp:
        """The op to name: what does the work, or the last one; one that adds, when something was added."""
        if added and (found := [op for op in self.ops if op.type in _ADDING]):
            return found[-1]
        heavy = [op for op in self.ops if op.type.startswith(_HEAVY)]
        return heavy[0] if heavy else self.ops[-1]


class Inside:
    """One island on one case.

    Args:
        inner: its ONNX.
        segment: its ops in TensorFlow.
        ops: every op of the signature, by name.
        values: TensorFlow's values: what enters the island, and every tensor of its ops that can be fetched.
        precision: the row of the tolerance table.

    Attributes:
        matches: ONNX tensor -> what it stands for, all of them proven.
        shares: ONNX tensor -> the error that is born there, as a share of its tolerance.
    """

    def __init__(
        self, inner: Inner, segment: Segment, ops: Mapping[str, TfOp], values: Mapping[str, Array], precision: str
    ) -> None:
        self.inner, self.segment, self.values, self.precision = inner, segment, values, precision
        self._ops = {name: op for name, op in ops.items() if name in segment.ops}
        self._maker = {tensor: op for op in self._ops.values() for tensor in op.outputs}
        self.inputs = [values[name] for name in segment.entering]
        self.seen = inner.run(self.inputs)
        cuts = {
            tensor: Match(tensor, tf, tuple(range(values[tf].ndim)))
            for tensor, tf in zip(inner.outputs, segment.leaving, strict=True)
            if tensor in self.seen
        }
        self.matches: dict[str, Match] = {match.tensor: match for match in guesses(inner, self.seen, values)} | cuts
        self._cuts = set(cuts)
        self._isolated: dict[str, Array] = {}
        self._prove()

    @property
    def order(self) -> list[str]:
        """Matched tensors in topological order."""
        return [name for name in self.inner.tensors if name in self.matches]

    def born(self) -> list[str]:
        """Tensors that are wrong although everything that they are computed from is TensorFlow's."""
        return [name for name in self.order if self.shares[name] > FINE]

    def layer(self, tensor: str) -> Layer:
        """What makes a matched tensor from others that are matched."""
        match = self.matches[tensor]
        nodes, reads = self._between(tensor)
        got = match.to_tf(self._isolated[tensor], self.values[match.tf].shape)
        return Layer(match, nodes, reads, self._slice(match.tf), self.shares[tensor], got)

    def narrowed(self, tensor: str) -> Layer:
        """The part of a wrong layer that is wrong, where the layer has several nodes.

        A tensor within it stands for one of TensorFlow's if that one, in its place, repairs the layer.
        """
        nodes, _ = self._between(tensor)
        inner = [name for node in nodes for name in node.outputs if name != tensor and name in self.seen]
        for name in inner:
            if found := self._repairing(name, tensor):
                self.matches[name] = found
                self._look()
                return self.layer(name)
        return self.layer(tensor)

    def misshapen(self) -> Layer | None:
        """The first layer whose result is of a shape that TensorFlow's cannot take in any order of its axes."""
        for name in self.inner.tensors:
            op, index = named_after(name)
            want = self.values.get(f"{op}:{index}")
            if name in self.matches or want is None or name.removesuffix(f":{index}") != op:
                continue
            got = self._isolated[name]
            if got.ndim == want.ndim and sorted(got.shape) != sorted(want.shape):
                nodes, reads = self._between(name)
                match = Match(name, f"{op}:{index}", tuple(range(got.ndim)))
                return Layer(match, nodes, reads, self._slice(match.tf), math.inf, got)
        return None

    def in_context(self, inputs: Sequence[Array]) -> dict[str, float]:
        """How wrong every matched tensor is when the island runs on these inputs as a whole."""
        return self._shares_of(self.inner.run(inputs))

    def sources(self, tensor: str) -> tuple[str, ...]:
        """Matched tensors, and inputs of the island, that a matched tensor is computed from."""
        return self._between(tensor)[1]

    def golden(self, tensor: str) -> Array:
        """TensorFlow's value in the place of a matched tensor or of an input of the island, in its ONNX layout."""
        if tensor in self.inner.inputs:
            return self.inputs[self.inner.inputs.index(tensor)]
        match = self.matches[tensor]
        return match.to_onnx(self.values[match.tf], self.seen[tensor].shape)

    def run(self, replaced: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor, from TensorFlow's inputs, with some replaced."""
        return self.inner.run(self.inputs, replaced)

    def _prove(self) -> None:
        """Drop matches that values contradict, the last one first: what an error meets next must be right to judge."""
        self._look()
        for tensor in reversed(self.order):
            if self.shares[tensor] > FINE and tensor not in self._cuts:
                self._drop_unless_it_stands(tensor)

    def _look(self) -> None:
        self._isolated = self.run({name: self.golden(name) for name in self.matches})
        self.shares = self._shares_of(self._isolated)

    def _drop_unless_it_stands(self, tensor: str) -> None:
        """Keep a tensor that differs if TensorFlow's value repairs something that is computed from it."""
        try:
            found = self.run({name: self.golden(name) for name in self.matches if name != tensor})
        except RunError:
            return  # with its own value nothing runs at all
        without = self._shares_of(found)
        if not any(self.shares[name] < _BETTER * without[name] for name in self._readers(tensor)):
            del self.matches[tensor], without[tensor]
            self._isolated, self.shares = found, without

    def _shares_of(self, found: Mapping[str, Array]) -> dict[str, float]:
        return {name: self._share(match, found[name]) for name, match in self.matches.items()}

    def _share(self, match: Match, got: Array) -> float:
        want = self.values[match.tf]
        if want.size != got.size or (match.tensor in self._cuts and want.shape != got.shape):
            return float("inf")
        return share(want, match.to_tf(got, want.shape), tolerance_of(self.precision, want))

    def _repairing(self, name: str, tensor: str) -> Match | None:
        """The TensorFlow tensor that, in the place of one inside a layer, repairs the layer."""
        others = {item: self.golden(item) for item in self.matches if item != tensor}
        match = self.matches[tensor]
        for found in itertools.islice(self._candidates(name, match.tf), _TRIES):
            value = found.to_onnx(self.values[found.tf], self.seen[name].shape)
            with contextlib.suppress(RunError):  # an index, or a shape, of something else
                result = self.run({**others, name: value})
                if self._share(match, result[tensor]) <= FINE:
                    return found
        return None

    def _readers(self, tensor: str) -> set[str]:
        """Matched tensors that are computed from one, no other matched one between."""
        found: set[str] = set()
        seen = {tensor}
        waiting = [tensor]
        while waiting:
            for name in self.inner.readers.get(waiting.pop(), ()):
                if name in self.matches:
                    found.add(name)
                elif name not in seen:
                    waiting.append(name)
                seen.add(name)
        return found

    def _candidates(self, name: str, tf: str) -> Iterator[Match]:
        """What an ONNX tensor inside a layer may stand for: what it is named after, or what has its size."""
        op, index = named_after(name)
        named = f"{op}:{index}"
        if named in self.values:
            yield Match(name, named, tuple(range(self.values[named].ndim)))
        for item in [item for op_ in self._slice(tf) for item in op_.outputs if item in self.values]:
            if self.values[item].dtype != object and self.values[item].size == self.seen[name].size:
                yield from (Match(name, item, axes) for axes in any_axes(self.values[item], self.seen[name].shape))

    def _between(self, tensor: str) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        """Nodes that make a tensor from matched ones, and those; in topological order."""
        nodes: set[str] = set()
        reads: dict[str, None] = {}
        waiting = [tensor]
        while waiting:
            node = self.inner.maker[waiting.pop()]
            if node.outputs[0] in nodes:
                continue
            nodes.add(node.outputs[0])
            for name in node.inputs:
                if name in self.matches or name in self.inner.inputs:
                    reads[name] = None
                elif name in self.inner.maker:
                    waiting.append(name)
        return tuple(node for node in self.inner.nodes if node.outputs[0] in nodes), tuple(reads)

    def _slice(self, tf: str) -> tuple[TfOp, ...]:
        """TensorFlow's ops from what a layer reads to what it makes."""
        stop = {match.tf for name, match in self.matches.items() if match.tf != tf} | set(self.segment.entering)
        found: set[str] = set()
        waiting = [tf]
        while waiting:
            op = self._maker_of(waiting.pop())
            if op is not None and op.name not in found:
                found.add(op.name)
                waiting += [name for name in op.inputs if name not in stop]
        ops = [op for name, op in self._ops.items() if name in found]
        return tuple(op for op in ops if op.type not in IDLE_OPS) or tuple(ops)

    def _maker_of(self, tensor: str) -> TfOp | None:
        """The op behind a tensor; resources and variants have no values, and are not among outputs."""
        return self._maker.get(tensor) or self._ops.get(tensor.rsplit(":", 1)[0])
