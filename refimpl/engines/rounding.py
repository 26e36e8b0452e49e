"""float16 and bfloat16 on a CPU, rounded where the graph says: at every tensor.

ONNX Runtime has few CPU kernels for half precision. Around the ops that have none it puts casts to float32 and back,
and then takes out each pair of them that meets: long chains run in float32 and are never rounded, so that an error
measured there is too small. Here every op of a half-precision graph is spelled out instead: its operands
widened to float32 (exact), the op in float32, the result rounded to half (to nearest, ties to even; beyond the
largest finite number to infinity). Casts that stand in a model are kept by ONNX Runtime.

Inside one op a GPU rounds too: it sums products of float16 numbers in float16, and where TF32 is allowed, it drops bits
of the operands of float32 ones. That is written out as well (:mod:`refimpl.engines.sums`), so that the answer is as far
from TensorFlow as a GPU's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from refimpl.engines import sums

TF32 = ".tf32."  # in the name of an island whose float32 products may be rounded to TF32
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


def spelled_out(model: Any, *, tf32: bool = False) -> Any:
    """A model that computes the same in float32 ops, each result rounded to half as ``model`` says.

    Args:
        model: a ModelProto; bodies of If and Loop are left as they are.
        tf32: round the operands of float32 products, too.

    Returns:
        A new ModelProto of the same inputs and outputs, or ``model`` itself when nothing in it is rounded.
    """
    types = tensor_types(model)
    if not tf32 and not any(kind in HALVES for kind in types.values()):
        return model
    dims = {item.name: tuple(item.dims) for item in model.graph.initializer}
    nodes: list[Any] = []
    constants: list[Any] = []
    widened: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        if node.op_type in _MOVES or _has_body(node):
            nodes.append(node)
            continue
        spelled = [node]
        if any(types.get(name) in HALVES for name in [*node.input, *node.output]):
            spelled = _spell(node, types, widened)
        kind = types.get(node.output[0])
        if node.op_type in sums.PRODUCTS and (kind == TensorProto.FLOAT16 or (kind == TensorProto.FLOAT and tf32)):
            rounds = sums.narrow if kind == TensorProto.FLOAT16 else sums.with_tf32
            place = next(at for at, item in enumerate(spelled) if item.op_type == node.op_type)
            if made := rounds(spelled[place], dims.get(node.input[1]), f"{node.name}/{index}"):
                spelled[place : place + 1] = made.nodes
                constants += made.constants
        nodes += spelled
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("node")
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants)
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
