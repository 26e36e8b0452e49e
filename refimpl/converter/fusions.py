"""Fusions: which layers of an island TensorRT may compute in one kernel, as far as the graph shows it.

A kernel that is wrong is often wrong in such company only: each of its layers alone is right. So what is taken away
from it is tried in steps: the layer whose result is wrong, then all that may be fused with it, then all places like it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refimpl.converter.precision.half import HEAVY

# One number in, one number out: these are computed on the way from one product to the next.
_ELEMENTWISE = frozenset(
    """Abs Add BatchNormalization Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Max Min Mish Mul Neg PRelu
    Relu Sigmoid Softplus Sqrt Sub Tanh""".split()
)
PRECISION = frozenset(["Cast", "QuantizeLinear", "DequantizeLinear"])  # they belong to the layers around them
_MOST = 12  # layers that are taken for one kernel


class Fusions:
    """The layers of one island, and which of them are neighbours.

    Args:
        model: its ModelProto, nodes named.
    """

    def __init__(self, model: Any) -> None:
        self._nodes = {node.name: node for node in model.graph.node if node.op_type not in PRECISION}
        self._maker = {name: node for node in model.graph.node for name in node.output if name}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def groups(self, layer: str) -> tuple[tuple[str, ...], ...]:
        """The layer alone; with those before it that may be fused with it; with those after it too."""
        node, before = self._nodes[layer], self._with_those_before(layer)
        whole = list(before)
        if node.op_type in HEAVY or node.op_type in _ELEMENTWISE:
            _spread(node, lambda item: (n for n in self._after(item) if n.op_type in _ELEMENTWISE), whole)
        return tuple(dict.fromkeys([(layer,), tuple(before), tuple(whole)]))

    def alike(self, layer: str, step: int) -> tuple[str, ...]:
        """The layers in group number ``step`` of every other place where the same kinds of layers come before it."""
        own = self.groups(layer)[step]
        wanted = self._kinds(layer)
        found: dict[str, None] = {}
        for name, node in self._nodes.items():
            if name != layer and node.op_type == self._nodes[layer].op_type and self._kinds(name) == wanted:
                found.update(dict.fromkeys(self.groups(name)[: step + 1][-1]))
        return tuple(name for name in found if name not in own)

    def _with_those_before(self, layer: str) -> list[str]:
        found = [layer]
        _spread(self._nodes[layer], self._before, found)
        return found

    def _kinds(self, layer: str) -> list[tuple[str, bool, tuple[int, ...]]]:
        own, *before = (_kind(self._nodes[name]) for name in self._with_those_before(layer))
        return [own, *sorted(before)]

    def _before(self, node: Any) -> Iterator[Any]:
        for name in node.input:
            maker = self._maker.get(name)
            if maker is not None and maker.op_type in PRECISION:
                yield from self._before(maker)
            elif maker is not None and (maker.op_type in HEAVY or maker.op_type in _ELEMENTWISE):
                yield maker

    def _after(self, node: Any) -> Iterator[Any]:
        for reader in (item for name in node.output for item in self._readers.get(name, ())):
            if reader.op_type in PRECISION:
                yield from self._after(reader)
            else:
                yield reader


def _spread(node: Any, step: Any, found: list[str]) -> None:
    """Walk from a node through elementwise ones, the nearest first; a product is the last on its way."""
    waiting = [node]
    while waiting and len(found) < _MOST:
        for item in step(waiting.pop(0)):
            if item.name not in found:
                found.append(item.name)
                if item.op_type not in HEAVY:
                    waiting.append(item)


def _kind(node: Any) -> tuple[str, bool, tuple[int, ...]]:
    """Op type, whether a convolution is in groups, and its window; strides and sizes are left out on purpose."""
    numbers = {item.name: tuple(item.ints) or (item.i,) for item in node.attribute}
    return node.op_type, numbers.get("group", (1,))[0] > 1, numbers.get("kernel_shape", ())
