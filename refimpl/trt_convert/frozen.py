"""Frozen graphs of TF1: made of a SavedModel, written as one, and taken back from a bundle under the old names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from refimpl import bundle
from refimpl.bundle import Manifest, SignatureRecord
from refimpl.converter import graphdefs as gd
from refimpl.converter.fake_quant_exact import TYPES as QUANTIZATION
from refimpl.converter.install import INIT, PATH_READ
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


def on_other_devices(graph_def: Any) -> list[str]:
    """Nodes that the model places on a device which is no GPU; TF-TRT left them there."""
    return [node.name for node in graph_def.node if node.device and not _may_be_gpu(node.device)]


def _may_be_gpu(device: str) -> bool:
    try:
        return tf.DeviceSpec.from_string(device).device_type in (None, "GPU")
    except ValueError:
        return False


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


@dataclass(frozen=True)
class Flat:
    """A frozen model that was converted, and how it comes back flat: engine nodes on top, the old names at both ends.

    Attributes:
        folder: the bundle.
        manifest: the bundle's.
        record: the signature's.
        graph_def: the frozen graph that was converted.
        inputs: of the signature.
        outputs: of the signature.
    """

    folder: Path
    manifest: Manifest
    record: SignatureRecord
    graph_def: Any
    inputs: Names
    outputs: Names

    def graph(self) -> Any:
        """A GraphDef for this process; the frozen one when nothing became an engine."""
        meta_graph = read_meta_graph(self.folder, self.manifest.tags)
        function = stitched_function(meta_graph, self.manifest, self.record)
        if function is None:
            return self.graph_def
        path = string_const(ASSET_ARG, str(self.folder / bundle.POINTER))
        found = gd.new_graph_def(node=[path, *self._nodes(function, ASSET_ARG)])
        found.versions.CopyFrom(self.graph_def.versions)
        library = {item.signature.name: item for item in meta_graph.graph_def.library.function}
        found.library.function.extend(gd.functions_of(found.node, library).values())
        return found

    def install(self) -> None:
        """Let the bundle's own graph be flat: TF1 has no functions where a signature is looked for."""
        file = self.folder / "saved_model.pb"
        proto = saved_model_pb2.SavedModel()
        proto.ParseFromString(file.read_bytes())
        (meta_graph,) = proto.meta_graphs
        function = stitched_function(meta_graph, self.manifest, self.record)
        if function is None:
            return
        old = {node.name: node for node in meta_graph.graph_def.node}
        kept = gd.reachable(old, [INIT, PATH_READ])
        nodes = [*(node for name, node in old.items() if name in kept), *self._nodes(function, PATH_READ)]
        del meta_graph.graph_def.node[:]
        meta_graph.graph_def.node.extend(nodes)
        for key, info in meta_graph.signature_def[self.record.signature.key].outputs.items():
            info.name = self.outputs[key]
        file.write_bytes(proto.SerializeToString())
        bundle.seal(self.folder, self.manifest)

    def _nodes(self, function: Any, path: str) -> list[Any]:
        """The stitched function's nodes, fed by Placeholders; ``path`` is the node that gives the bundle's path."""
        names = {index: self.inputs[spec.name].split(":")[0] for index, spec in enumerate(self.record.signature.inputs)}
        last = len(function.signature.input_arg) - 1
        flat, results = gd.function_body(function, {**names, last: path})
        shapes = {node.name: node.attr["shape"] for node in self.graph_def.node if node.op == "Placeholder"}
        relays = {node.name: node.input[0] for node in flat.node if node.name.startswith("result/")}
        results = [relays.get(gd.parse_ref(text).node, text) for text in results]
        kept = [node for node in flat.node if node.name != path and node.name not in relays]
        for node in kept:
            if node.op == "Placeholder" and node.name in shapes:
                node.attr["shape"].CopyFrom(shapes[node.name])
        return [*kept, *self._outputs({node.name for node in kept}, results)]

    def _outputs(self, present: set[str], results: Sequence[str]) -> Iterator[Any]:
        """Nodes that have the names of outputs which went into an engine."""
        made: dict[str, dict[int, tuple[str, int]]] = {}
        for spec, result in zip(self.record.signature.outputs, results, strict=True):
            ref = gd.parse_ref(self.outputs[spec.name])
            if ref.node not in present:
                made.setdefault(ref.node, {})[ref.index] = result, tf.as_dtype(spec.dtype).as_datatype_enum
        for name, tensors in made.items():
            # An output that nobody asked for has the first one's place, so that the others keep theirs.
            filled = [tensors.get(index, next(iter(tensors.values()))) for index in range(max(tensors) + 1)]
            types = gd.types_attr([dtype for _, dtype in filled])
            yield gd.make_node(name, "IdentityN", [tensor for tensor, _ in filled], T=types)


def watch(graph_def: Any, feeds: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Run a converted graph once; the values that enter and leave every island, by its name.

    Args:
        graph_def: what :meth:`Flat.graph` made.
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
    return {  # scalars come out as NumPy's, which are no arrays
        name: ([np.asarray(value) for value in entering], [np.asarray(value) for value in leaving])
        for name, (entering, leaving) in found.items()
    }
