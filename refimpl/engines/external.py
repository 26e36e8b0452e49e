"""Large models: weights in a file beside the ONNX, written from where they lie and never copied into a protobuf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from refimpl.engines import Array

SMALL = 1 << 20  # bytes; smaller weights are no burden, and an optimizer may want to see them
_FACTORS = frozenset(["MatMul 0", "MatMul 1", "Gather 0"])  # op and input
_ALIGNED = 4096  # bytes; a page, so that what reads the file may map it


def factors(model: Any, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The large weights that only products and gathers read: no clean-up of a graph has a use for their values."""
    readers: dict[str, set[str]] = {}
    passed: dict[str, str] = {}  # an Identity's output -> the weight that it passes on
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            source = passed.get(name, name)
            if node.op_type == "Identity" and source in weights:
                passed[node.output[0]] = source
            else:
                readers.setdefault(source, set()).add(f"{node.op_type} {place}")
    shown = set(_read(model.graph)) - {
        name for node in model.graph.node for name in node.input
    }  # by bodies, or returned
    kept = {passed.get(name, name) for name in shown}
    return {
        name: value
        for name, value in weights.items()
        if value.nbytes > SMALL and name not in kept and readers.get(name, {""}) <= _FACTORS
    }


def store(model: Any, weights: Mapping[str, Array], target: Path) -> None:
    """Write a model whose inputs include some weights, and the weights to a file ``<target>.data`` beside it.

    A weight that is only read by a Transpose (tf2onnx makes one for every kernel of a convolution) is stored
    transposed. One weight at a time is read, so that weights which are mapped from a file need no memory.

    Args:
        model: ModelProto; what is named in ``weights`` ceases to be an input.
        weights: values by input name.
        target: the ONNX file to write.
    """
    graph = model.graph
    kept = [item for item in graph.input if item.name not in weights]
    used = {name for name in _read(graph) if name in weights}
    turned = _only_transposed(graph, used)
    gone = {name for name, _ in turned.values()}
    nodes = [node for node in graph.node if node.output[0] not in gone]
    with target.with_name(f"{target.name}.data").open("wb") as file:
        for source in (name for name in weights if name in used):
            name, axes = turned.get(source, (source, None))
            value = weights[source] if axes is None else np.ascontiguousarray(weights[source].transpose(axes))
            file.seek(-file.tell() % _ALIGNED, 1)
            graph.initializer.append(_reference(name, value, file.name, file.tell()))
            value.tofile(file)
            forget_pages(weights[source])
    for field, items in (("input", kept), ("node", nodes)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    onnx.save(model, target)


def forget_pages(value: Array) -> None:
    """Tell the system that an array which is mapped from a file is not needed in memory for now; no-op for others."""
    mapped = getattr(value, "_mmap", None)
    if mapped is not None and hasattr(mapped, "madvise"):
        import mmap

        mapped.madvise(mmap.MADV_DONTNEED)


def _reference(name: str, value: Array, location: str, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=value.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", Path(location).name), ("offset", offset), ("length", value.nbytes)):
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def _read(graph: Any) -> list[str]:
    """Every tensor that a node reads, or a body of an If or a Loop, or that the graph returns."""
    names = [item.name for item in graph.output]
    for node in graph.node:
        names += node.input
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                names += _read(body)
    return names


def _only_transposed(graph: Any, weights: set[str]) -> dict[str, tuple[str, list[int]]]:
    """Weight -> the name of its transpose and the axes, where nothing else reads the weight."""
    reads = Counter(_read(graph))
    returned = {item.name for item in graph.output}
    found = {}
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights and reads[node.input[0]] == 1:
            axes = [list(item.ints) for item in node.attribute if item.name == "perm"]
            if axes and node.output[0] not in returned:
                found[node.input[0]] = (node.output[0], axes[0])
    return found
