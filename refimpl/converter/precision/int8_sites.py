"""Where pairs of QuantizeLinear and DequantizeLinear belong: at which tensors, for which readers, with shared scales.

A *site* is a tensor with one pair behind it, and the reads that take the pair's output. TensorRT wants pairs on the
inputs of layers ("Q/DQ layer-placement recommendations" of its developer guide); three things follow from how it moves
pairs through a network and fuses:

* *Residual sums.* A convolution fuses with the sum that follows it when the other branch arrives in INT8.
* *Ops that pairs commute with* (:data:`COMMUTING`). A pair goes before them when everything behind them is quantized
  too, so that there are never two pairs with nothing but such ops between.
* *Concat.* TensorRT moves the pair behind a Concat to its inputs. Where an input has a pair of its own, the two
  would requantize unless their scales are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from refimpl.converter.precision.graph_view import Read, View

COMMUTING = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "MaxPool"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

Sites = Mapping[str, tuple[Read, ...]]  # tensor -> the reads that take its quantized value


def _commutes(view: View, tensor: str) -> onnx.NodeProto | None:
    """The node that makes a tensor if a pair may go from behind it to before it."""
    node = view.maker(tensor)
    if node is None or node.op_type not in COMMUTING or len([name for name in node.output if name]) != 1:
        return None
    return None if view.is_constant(node.input[0]) else node


def find_sites(view: View, reads: Iterable[Read]) -> tuple[Sites, Mapping[str, str]]:
    """Move the pairs that some reads want as far up as they go.

    Args:
        view: the graph.
        reads: inputs of nodes that are to be quantized.

    Returns:
        The sites in the order of their first readers, and for each tensor that a pair moved away from the tensor that
        it moved to next.
    """
    wanted = set(reads)
    moved: dict[str, str] = {}
    for index in reversed(range(len(view.nodes))):  # readers come before makers, so one pass is enough
        tensor = view.nodes[index].output[0] if view.nodes[index].output else ""
        readers = set(view.readers.get(tensor, ()))
        exposed = tensor in view.outputs or tensor in view.captured
        if readers and readers <= wanted and not exposed and _commutes(view, tensor):
            wanted = (wanted - readers) | {Read(index, 0)}
            moved[tensor] = view.nodes[index].input[0]
    sites: dict[str, list[Read]] = {}
    for read in sorted(wanted):
        sites.setdefault(view.tensor(read), []).append(read)
    return {tensor: tuple(found) for tensor, found in sites.items()}, moved


def residual_reads(view: View, layers: Iterable[str]) -> Mapping[Read, str]:
    """The inputs of residual sums that are to be quantized, each with the convolution that the sum fuses with.

    A sum is residual when one branch is a convolution's own output, through a bias or a batch normalisation at most
    and read by nothing else, and the other is neither constant nor of another shape. If both branches are (a projection
    shortcut), the one with more nodes behind it is the convolution's own, as in ModelOpt; of equals, the first.

    Args:
        view: the graph.
        layers: names of the nodes that are quantized.
    """
    quantized, found = set(layers), dict[Read, str]()
    depth = _depths(view)
    for index, node in enumerate(view.nodes):
        if (
            node.op_type != "Add"
            or any(view.is_constant(name) for name in node.input)
            or node.input[0] == node.input[1]
        ):
            continue
        first, second = (view.shapes.get(name) for name in node.input)
        if first is not None and second is not None and first != second:
            continue
        own = {number: backbone for number, name in enumerate(node.input) if (backbone := _backbone(view, name))}
        if own:
            main = max(own, key=lambda number: (depth.get(node.input[number], 0), -number))
            if own[main] in quantized:
                found[Read(index, 1 - main)] = own[main]
    return found


def _depths(view: View) -> Mapping[str, int]:
    """Tensor -> how many nodes lie behind it on the longest path."""
    depth: dict[str, int] = {}
    for node in view.nodes:
        depth.update(dict.fromkeys(node.output, 1 + max((depth.get(name, 0) for name in node.input), default=0)))
    return depth


def _backbone(view: View, tensor: str) -> str:
    """Name of the convolution whose own output a tensor is; "" if it is none's."""
    while tensor not in view.outputs and tensor not in view.captured and len(view.readers.get(tensor, ())) == 1:
        node = view.maker(tensor)
        if node is None:
            return ""
        if node.op_type in _CONVOLUTIONS:
            return node.name
        varying = [name for name in node.input if not view.is_constant(name)]
        if node.op_type not in {"Identity", "BatchNormalization", "Add"} or len(varying) != 1:
            return ""
        tensor = varying[0]
    return ""


def shared_scales(view: View, sites: Iterable[str]) -> Mapping[str, str]:
    """Site -> a site that stands for all those whose scales must be equal; itself for one that shares with none.

    Sites share a scale when only Concat and commuting ops lie between them.
    """
    leader = {tensor: tensor for tensor in sites}

    def find(tensor: str) -> str:
        while leader[tensor] != tensor:
            tensor = leader[tensor]
        return tensor

    for tensor in leader:
        above, seen = _before(view, tensor), set[str]()
        while above:
            source = above.pop()
            if source in leader:
                leader[find(source)] = find(tensor)
            elif source not in seen:
                above += _before(view, source)
            seen.add(source)
    return {tensor: find(tensor) for tensor in leader}


def _before(view: View, tensor: str) -> list[str]:
    """The tensors that a pair behind this one would move to: a Concat's inputs, or what a commuting op reads."""
    node = view.maker(tensor)
    if node is not None and node.op_type == "Concat":
        return list(node.input)
    commuting = _commutes(view, tensor)
    return [commuting.input[0]] if commuting else []
