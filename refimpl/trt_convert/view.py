"""The converted graph as TF-TRT's users look at it: engine nodes and what is left, flat, by the model's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from refimpl import tf_private
from refimpl.bundle import Manifest, SignatureRecord
from refimpl.converter import graphdefs as gd
from refimpl.converter.stitch import ASSET_ARG, identifier
from refimpl.report.tftrt import DotNode, EngineRow
from refimpl.trt_convert.function import is_engine
from refimpl.trt_convert.inputs import read_meta_graph

BUNDLE_INPUTS = 4  # an engine node's first inputs say where its bundle is, and which island it stands for
_HELPERS = ("_name", "_bundle", "_dtypes", "_value")  # nodes around an engine node, by the end of their names


def converted_graph(folder: Path, manifest: Manifest, record: SignatureRecord, concrete: Any) -> Any:
    """The GraphDef of a signature: engine nodes on top, native segments in the library.

    Args:
        folder: the bundle.
        manifest: the bundle's.
        record: the signature's.
        concrete: its function in this process, for signatures that were not converted.
    """
    meta_graph = read_meta_graph(folder, manifest.tags)
    function = stitched_function(meta_graph, manifest, record)
    if function is None:
        graph_def = concrete.graph.as_graph_def()
        fetches = [tensor.name for tensor in concrete.outputs]
        return tf_private.inline_functions(graph_def, [tensor.name for tensor in concrete.inputs], fetches)
    inputs = {index: spec.name for index, spec in enumerate(record.signature.inputs)}  # they come first
    last = len(function.signature.input_arg) - 1
    graph_def, _ = gd.function_body(function, {**inputs, last: ASSET_ARG})
    graph_def.library.CopyFrom(meta_graph.graph_def.library)
    return graph_def


def stitched_function(meta_graph: Any, manifest: Manifest, record: SignatureRecord) -> Any:
    """The FunctionDef of a converted signature, or None when nothing of it was converted."""
    name = f"refimpl_{manifest.bundle_id}_{identifier(record.signature.key)}"
    return next((item for item in meta_graph.graph_def.library.function if item.signature.name == name), None)


def set_attributes(graph_def: Any, **values: str | int | bool | None) -> None:
    """Put private attributes on every engine node of a GraphDef, its functions included; ``mode=1`` is ``_mode``.

    None takes an attribute away. ``_segment_func`` names the function of its native segment; ``_InT`` and ``_OutT``
    are the dtypes of the island's own inputs and outputs.
    """
    for nodes in [graph_def.node, *(function.node_def for function in graph_def.library.function)]:
        for node in nodes:
            if is_engine(node):
                node.attr["_segment_func"].func.name = f"{node.name}_native_segment"
                node.attr["_InT"].list.type[:] = node.attr["Tin"].list.type[BUNDLE_INPUTS:]
                node.attr["_OutT"].list.type[:] = node.attr["Tout"].list.type[1:]  # the first says whether one ran
                for key, value in values.items():
                    if value is None:
                        node.attr.pop(f"_{key}", None)
                    else:
                        _set(node.attr[f"_{key}"], value)


def _set(attr: Any, value: str | int | bool) -> None:
    if isinstance(value, bool):
        attr.b = value
    elif isinstance(value, int):
        attr.i = value
    else:
        attr.s = value.encode()


def rows(graph_def: Any, record: SignatureRecord) -> list[EngineRow]:
    """What the summary says of each engine."""
    segments = {item.signature.name: Counter(node.op for node in item.node_def) for item in graph_def.library.function}
    devices = {node.name: node.device.rsplit("/", 1)[-1] for node in graph_def.node if is_engine(node)}
    return [
        EngineRow(
            name=island.name,
            device=devices.get(island.name, ""),
            ops=segments[f"{island.name}_native_segment"],
            in_dtypes=[spec.dtype for spec in island.inputs],
            out_dtypes=[spec.dtype for spec in island.outputs],
            in_shapes=[_sizes(spec.shape) for spec in island.inputs],
            out_shapes=[_sizes(spec.shape) for spec in island.outputs],
        )
        for island in record.islands
    ]


def _sizes(shape: Sequence[int | None] | None) -> list[int]:
    return [-1 if size is None else size for size in shape or ()]


def other_nodes(graph_def: Any, record: SignatureRecord) -> list[Any]:
    """The nodes that are neither engines nor what surrounds them, nor the handles of variables."""
    helpers = {ASSET_ARG} | {f"{island.name}{suffix}" for island in record.islands for suffix in _HELPERS}
    return [
        node for node in graph_def.node if node.name not in helpers and not is_engine(node) and not _is_handle(node)
    ]


def _is_handle(node: Any) -> bool:
    return bool(node.op == "Placeholder" and node.attr["dtype"].type == tf.resource.as_datatype_enum)


def dot_nodes(graph_def: Any, record: SignatureRecord) -> list[DotNode]:
    """The converted graph for Graphviz: an engine and its conditional are one node."""
    values = {f"{island.name}_value": island.name for island in record.islands}
    counts = {row.name: sum(row.ops.values()) for row in rows(graph_def, record)}
    kept = {node.name: node for node in other_nodes(graph_def, record)}
    kept.update({node.name: node for node in graph_def.node if is_engine(node)})
    found = []
    for name, node in kept.items():
        sources = [text.removeprefix("^").split(":")[0] for text in node.input]
        inputs = dict.fromkeys(values.get(source, source) for source in sources)
        found.append(
            DotNode(
                name=name,
                op=node.op,
                device=node.device,
                dtype=_compute_dtype(node),
                inputs=[source for source in inputs if source in kept],
                engine_nodes=counts.get(name),
            )
        )
    return found


def _compute_dtype(node: Any) -> str:
    if is_engine(node):
        mode = node.attr["_precision_mode"].s.decode()
        return {"FP32": "float32", "FP16": "float16", "INT8": "int8"}.get(mode, "unknown")
    for key in ("DstT", "dtype", "T"):
        if key in node.attr and node.attr[key].type:
            return str(tf.as_dtype(node.attr[key].type).name)
    return "unknown"
