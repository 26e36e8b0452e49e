"""Frozen graphs of TF1: made of a SavedModel, written as one, and taken back from a bundle under the old names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from refimpl import bundle
from refimpl.bundle import Manifest, SignatureRecord
from refimpl.converter import graphdefs as gd
from refimpl.converter.fake_quant_exact import TYPES as QUANTIZATION
from refimpl.converter.stitch import ASSET_ARG, string_const
from refimpl.errors import SourceError
from refimpl.trt_convert.function import is_engine
from refimpl.trt_convert.inputs import read_meta_graph
from refimpl.trt_convert.view import stitched_function

Names = dict[str, str]  # key in a signature -> tensor "node:index"


def freeze_saved_model(folder: str, tags: Sequence[str], key: str) -> tuple[Any, Names, Names]:
    """A signature's graph with its variables as constants.

    Returns:
        The GraphDef, the inputs and the outputs.

    Raises:
        KeyError: no such signature.
    """
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, list(tags), folder)
        if key not in meta_graph.signature_def:
            raise KeyError(key)
        definition = meta_graph.signature_def[key]
        inputs = {name: info.name for name, info in sorted(definition.inputs.items())}
        outputs = {name: info.name for name, info in sorted(definition.outputs.items())}
        nodes = [name.split(":")[0] for name in outputs.values()]
        graph_def = tf.compat.v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), nodes)
    return graph_def, inputs, outputs


def inputs_and_outputs(graph_def: Any, outputs: Sequence[str]) -> tuple[Names, Names]:
    """The inputs and outputs of a GraphDef: its Placeholders; and the nodes named, or those that nothing reads.

    Raises:
        SourceError: it has no input, or no node of an output's name.
    """
    nodes = {node.name: node for node in graph_def.node}
    inputs = {node.name: f"{node.name}:0" for node in graph_def.node if node.op == "Placeholder"}
    read = {gd.parse_ref(text).node for node in graph_def.node for text in node.input}
    wanted = list(outputs) or [name for name in nodes if name not in read and name not in inputs]
    if missing := [name for name in wanted if name not in nodes]:
        raise SourceError(f"the GraphDef has no node {missing[0]!r}", hint="name its output nodes")
    if not inputs:
        raise SourceError("the GraphDef has no Placeholder", hint="freeze a graph that is fed")
    found = {}
    for name in wanted:
        for index in range(len(gd.output_dtypes(nodes[name]))):
            found[f"{name}:{index}"] = f"{name}:{index}"
    return inputs, found


def quantizes(graph_def: Any) -> bool:
    """Whether a frozen graph has an op that ranges can be taken from."""
    return any(node.op in QUANTIZATION for node in graph_def.node)


def write_saved_model(
    folder: Path, key: str, graph_def: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> None:
    """Write a frozen graph as a SavedModel with one signature."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        sides = [
            {
                name: tf.compat.v1.saved_model.build_tensor_info(graph.get_tensor_by_name(tensor))
                for name, tensor in side
            }
            for side in (inputs.items(), outputs.items())
        ]
        signature = tf.compat.v1.saved_model.build_signature_def(*sides, "tensorflow/serving/predict")
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map={key: signature})
        builder.save()


def flat_graph(
    folder: Path, manifest: Manifest, record: SignatureRecord, graph_def: Any, inputs: Names, outputs: Names
) -> Any:
    """The converted graph: engine nodes on top, inputs and outputs under their names.

    Args:
        folder: the bundle.
        manifest: the bundle's.
        record: the signature's.
        graph_def: the frozen graph that was converted; the answer when nothing became an engine.
        inputs: of the signature.
        outputs: of the signature.
    """
    meta_graph = read_meta_graph(folder, manifest.tags)
    function = stitched_function(meta_graph, manifest, record)
    if function is None:
        return graph_def
    names = {index: inputs[spec.name].split(":")[0] for index, spec in enumerate(record.signature.inputs)}
    last = len(function.signature.input_arg) - 1
    flat, results = gd.function_body(function, {**names, last: ASSET_ARG})
    shapes = {node.name: node.attr["shape"] for node in graph_def.node if node.op == "Placeholder"}
    kept = [node for node in flat.node if node.name != ASSET_ARG]
    for node in kept:
        if node.op == "Placeholder" and node.name in shapes:
            node.attr["shape"].CopyFrom(shapes[node.name])
    body = gd.new_graph_def(node=[string_const(ASSET_ARG, str(folder / bundle.POINTER)), *kept])
    body.versions.CopyFrom(graph_def.versions)
    present = {node.name for node in body.node}
    made: dict[str, dict[int, str]] = {}
    for spec, result in zip(record.signature.outputs, results, strict=True):
        ref = gd.parse_ref(outputs[spec.name])
        if ref.node not in present:
            made.setdefault(ref.node, {})[ref.index] = result
    dtypes = {spec.name: tf.as_dtype(spec.dtype).as_datatype_enum for spec in record.signature.outputs}
    by_tensor = {tensor: dtypes[key] for key, tensor in outputs.items()}
    for name, tensors in made.items():
        filled = [tensors.get(index, next(iter(tensors.values()))) for index in range(max(tensors) + 1)]
        types = [by_tensor.get(f"{name}:{index}", by_tensor[f"{name}:{min(tensors)}"]) for index in range(len(filled))]
        body.node.append(gd.make_node(name, "IdentityN", filled, T=gd.types_attr(types)))
    library = {item.signature.name: item for item in meta_graph.graph_def.library.function}
    body.library.function.extend(gd.functions_of(body.node, library).values())
    return body


def watch(graph_def: Any, feeds: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Run a converted graph once; the values that enter and leave every island, by its name.

    Args:
        graph_def: what :func:`flat_graph` made.
        feeds: arrays by tensor name.

    Raises:
        tensorflow.errors.OpError: TensorFlow fails on them.
    """
    fetches = {}
    for node in graph_def.node:
        if is_engine(node):
            entering = [text if ":" in text else f"{text}:0" for text in node.input[4:] if not text.startswith("^")]
            count = len(node.attr["Tout"].list.type) - 1
            fetches[node.name] = (entering, [f"{node.name}_value:{index}" for index in range(count)])
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        found: dict[str, tuple[list[Any], list[Any]]] = session.run(fetches, dict(feeds))
    return {name: (list(entering), list(leaving)) for name, (entering, leaving) in found.items()}
