"""float16 and bfloat16 on a CPU, rounded where the graph says: at every tensor.

ONNX Runtime has few CPU kernels for half precision. Around the ops that have none it puts casts to float32 and back,
and then takes out each pair of them that meets: long chains run in float32 and are never rounded, so that an error
measured there is too small. Here every op of a half-precision graph is spelled out instead: its operands
widened to float32 (exact), the op in float32, the result rounded to half (to nearest, ties to even; beyond the
largest finite number to infinity). Casts that stand in a model are kept by ONNX Runtime.

What remains is what a GPU may do otherwise inside one op: the order and the width of its sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Values only move or change their type: nothing is rounded, and ONNX Runtime has these for every dtype.
_MOVES = frozenset(
    """Cast Concat Flatten Gather GatherElements GatherND Identity Reshape Shape Size Slice Split Squeeze Transpose
    Unsqueeze""".split()
)
_LARGE = 4096  # bytes; a larger initializer is no shape, and shape inference need not see its values


def tensor_types(model: Any) -> dict[str, int]:
    """The ONNX element type of every tensor of the main graph, as far as it can be inferred.

    Args:
        model: a ModelProto; it is not changed, and large weights are not copied.
    """
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for item in model.graph.initializer:
        if item.ByteSize() <= _LARGE:
            graph.initializer.append(item)
        else:
            graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    inferred = onnx.shape_inference.infer_shapes(light)
    found = {
        item.name: item.type.tensor_type.elem_type
        for item in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
    found.update({item.name: item.data_type for item in model.graph.initializer})
    return {name: kind for name, kind in found.items() if kind}


def spelled_out(model: Any) -> Any:
    """A model that computes the same in float32 ops, each result rounded to half as ``model`` says.

    Args:
        model: a ModelProto; bodies of If and Loop are left as they are.

    Returns:
        A new ModelProto of the same inputs and outputs, or ``model`` itself when nothing in it is of half precision.
    """
    types = tensor_types(model)
    if not any(kind in HALVES for kind in types.values()):
        return model
    nodes: list[Any] = []
    widened: dict[str, str] = {}
    for node in model.graph.node:
        names = [*node.input, *node.output]
        if node.op_type in _MOVES or _has_body(node) or not any(types.get(name) in HALVES for name in names):
            nodes.append(node)
        else:
            nodes += _spell(node, types, widened)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("node")
    result.graph.node.extend(nodes)
    result.graph.ClearField("value_info")
    return result


def _has_body(node: Any) -> bool:
    return any(item.HasField("g") or item.graphs for item in node.attribute)


def _spell(node: Any, types: Mapping[str, int], widened: dict[str, str]) -> list[Any]:
    """One op, its half operands widened and its half results rounded."""
    before, after = [], []
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for index, name in enumerate(node.input):
        if types.get(name) in HALVES:
            if name not in widened:
                widened[name] = f"{name}/wide"
                before.append(helper.make_node("Cast", [name], [widened[name]], to=TensorProto.FLOAT))
            copy.input[index] = widened[name]
    for index, name in enumerate(node.output):
        if types.get(name) in HALVES:
            copy.output[index] = f"{name}/unrounded"
            after.append(helper.make_node("Cast", [copy.output[index]], [name], to=types[name]))
    return [*before, copy, *after]
