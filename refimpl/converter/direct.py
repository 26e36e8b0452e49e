"""Direct: whether one island is all of a signature, so that its engine can answer without TensorFlow."""

from __future__ import annotations

from refimpl.bundle import IDLE_OPS
from refimpl.converter import graphdefs as gd
from refimpl.converter.islands import Island
from refimpl.converter.lower import OpGraph
from refimpl.specs import DirectCall


def direct_call(graph: OpGraph, island: Island) -> DirectCall | None:
    """How the inputs and outputs of a signature map to an island's, or None when something else must run, too.

    Args:
        graph: the signature.
        island: the only one of it.
    """
    inside = set(island.ops)
    if any(name not in inside and op.type not in IDLE_OPS for name, op in graph.ops.items()):
        return None
    keys = {f"{arg.name}:0": arg.key for arg in graph.source.args if arg.kind == "input"}
    leaving = {tensor: index for index, tensor in enumerate(island.leaving)}
    entering = [_origin(graph, tensor, stop=frozenset()) for tensor in island.entering]
    results = [_origin(graph, tensor, stop=frozenset(leaving)) for tensor in graph.results]
    if not keys.keys() >= set(entering) or not leaving.keys() >= set(results):
        return None  # it reads state; or an output is a constant, or an input as it came
    return DirectCall(tuple(keys[tensor] for tensor in entering), tuple(leaving[tensor] for tensor in results))


def _origin(graph: OpGraph, tensor: str, *, stop: frozenset[str]) -> str:
    """Where a tensor comes from through ops that compute nothing."""
    while tensor not in stop:
        ref = gd.parse_ref(tensor)
        op = graph.ops.get(ref.node)
        if op is None or op.type not in IDLE_OPS:
            break
        tensor = gd.data_inputs(graph.nodes[ref.node])[ref.index].tensor
    return tensor
