"""Helpers over ONNX graphs held by GraphSurgeon: weights put back, constants folded, parts cut out, oddities found."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from refimpl.artifacts import Array
from refimpl.engines import external, onnxruntime
from refimpl.specs import TensorSpec

_UNSUPPORTED_DTYPES: dict[Any, str] = {
    onnx.TensorProto.DOUBLE: "float64 (TensorRT would compute it in float32)",
    onnx.TensorProto.STRING: "string",
    onnx.TensorProto.COMPLEX64: "complex64",
    onnx.TensorProto.COMPLEX128: "complex128",
}
_TRUTHS = frozenset("And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor".split())  # give bools


def import_with_weights(model: Any, weights: Mapping[str, Array], folder: Path) -> gs.Graph:
    """A GraphSurgeon graph in which every hollow weight is a constant again and constants are folded.

    Args:
        model: ModelProto whose inputs include the names in ``weights``; it is changed.
        weights: values by input name.
        folder: where large weights are written if all together are too much for a protobuf; the graph then refers to
            that file, and nothing is folded that reads them.
    """
    outside = onnxruntime.outside(weights)
    if outside:
        handle, name = tempfile.mkstemp(suffix=".onnx", dir=folder)
        os.close(handle)
        external.store(model, outside, Path(name))
    graph = gs.import_onnx(model)
    kept = []
    for tensor in graph.inputs:
        if tensor.name in weights:
            tensor.to_constant(np.asarray(weights[tensor.name], order="C"))
        else:
            kept.append(tensor)
    graph.inputs = kept
    _fold(graph)
    return graph


def _fold(graph: gs.Graph) -> None:
    """Evaluate nodes that read only constants (weight transposes and the like), once, with ONNX Runtime."""
    foldable: list[gs.Node] = []
    outputs: dict[str, gs.Tensor] = {}
    known: set[int] = set()
    for node in graph.nodes:
        inner = any(isinstance(value, gs.Graph) for value in node.attrs.values())
        if inner or not node.inputs or not onnx.defs.has(node.op) or node.name.startswith("mk/"):
            continue
        if all(id(tensor) in known or _at_hand(tensor) for tensor in node.inputs):
            foldable.append(node)
            known.update(id(tensor) for tensor in node.outputs)
    inside = {id(node) for node in foldable}
    for node in foldable:
        for tensor in node.outputs:
            if any(id(consumer) not in inside for consumer in tensor.outputs) or tensor in graph.outputs:
                outputs[tensor.name] = tensor
    if not outputs:
        return
    part = gs.Graph(nodes=foldable, inputs=[], outputs=list(outputs.values()), opset=graph.opset, name="constants")
    model = gs.export_onnx(part, do_type_check=False)
    model.ir_version = 8
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for name, value in zip(outputs, session.run(list(outputs), {}), strict=True):
        outputs[name].inputs.clear()
        outputs[name].to_constant(np.asarray(value, order="C"))
    for node in foldable:
        node.inputs.clear()
        node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if id(node) not in inside]


def _at_hand(tensor: gs.Tensor) -> bool:
    """Whether it is a constant whose value is in the graph, not in a file."""
    return isinstance(tensor, gs.Constant) and tensor.data_location != onnx.TensorProto.EXTERNAL


def cut_out(
    graph: gs.Graph, nodes: Iterable[gs.Node], inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> Any:
    """A ModelProto of some nodes.

    Args:
        graph: the graph they are in; it stays as it is.
        nodes: the nodes, in any order.
        inputs: names of the tensors that enter, with dtype and shape.
        outputs: names of the tensors that leave, likewise.
    """
    tensors = graph.tensors()
    for tensor_name, spec in [*inputs.items(), *outputs.items()]:
        tensors[tensor_name].dtype = spec.numpy_dtype()
        tensors[tensor_name].shape = (
            None
            if spec.shape is None
            else [f"{tensor_name}/{axis}" if size is None else size for axis, size in enumerate(spec.shape)]
        )
    wanted = {id(node) for node in nodes}
    part = gs.Graph(
        nodes=[node for node in graph.nodes if id(node) in wanted],  # in the graph's own, topological order
        inputs=[tensors[item] for item in inputs],
        outputs=[tensors[item] for item in outputs],
        opset=graph.opset,
        import_domains=graph.import_domains,
        name="part",
    )
    model = gs.export_onnx(part, do_type_check=False)
    model.ir_version = 8
    return model


def refusal_of(node: gs.Node) -> str:
    """Why a node can go into no engine whatever TensorRT says of it; "" when nothing is known against it."""
    if node.domain not in (None, "", "ai.onnx") or not onnx.defs.has(node.op):
        return f"tf2onnx has no lowering for {node.op}"
    for tensor in [*node.inputs, *node.outputs]:
        dtype = tensor.dtype
        kind = (
            onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            if dtype is not None and not isinstance(dtype, int)
            else dtype
        )
        if kind in _UNSUPPORTED_DTYPES and not (isinstance(tensor, gs.Constant) and 0 in tensor.shape):
            return f"its lowering computes in {_UNSUPPORTED_DTYPES[kind]}"
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            for inner in value.nodes:
                if reason := refusal_of(inner):
                    return f"{reason} (inside {node.op})"
    return ""


def floats_an_integer(node: gs.Node) -> bool:
    """Whether a node makes float32, exact only up to 2^24, of integers, or of what may be some."""
    if node.op != "Cast" or node.attrs["to"] != onnx.TensorProto.FLOAT:
        return False
    source = node.inputs[0]
    if source.inputs and source.inputs[0].op in _TRUTHS:
        return False
    return source.dtype is None or isinstance(source.dtype, int) or np.dtype(source.dtype).kind not in "bf"


def outer_tensors(node: gs.Node) -> list[gs.Tensor]:
    """Every tensor of the enclosing graph that a node reads, those used only inside its If or Loop bodies included."""
    found = list(node.inputs)
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            made = {id(tensor) for inner in value.nodes for tensor in inner.outputs} | {id(t) for t in value.inputs}
            for inner in value.nodes:
                found += [tensor for tensor in outer_tensors(inner) if id(tensor) not in made]
            found += [tensor for tensor in value.outputs if id(tensor) not in made]
    return found
