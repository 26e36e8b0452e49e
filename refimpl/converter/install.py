"""Install: put stitched signatures into a SavedModel's MetaGraphDef, in place of the old ones.

The path of the bundle's pointer file reaches the engine nodes in two ways, because TensorFlow relocates assets in two
ways: ``tf.saved_model.load`` passes the asset as a captured tensor; sessions (and models without a Python object
graph) run an initializer with the asset fed, so there the initializer stores the path in a string variable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from refimpl import bundle
from refimpl.converter import graphdefs as gd
from refimpl.converter.stitch import Stitched, arg_type, identifier, string_const

_ASSET = "refimpl_bundle_asset"
_PATH = "refimpl_bundle_path"
PATH_READ = f"{_PATH}/read"
INIT = "refimpl_init"
_INIT_KEY = "__saved_model_init_op"
_MAIN_OP, _LEGACY_INIT = "saved_model_main_op", "legacy_init_op"
_STRING = tf.string.as_datatype_enum


def install(meta_graph: Any, stitched: Stitched, bundle_id: str) -> None:
    """Put a stitched signature where the old one was.

    A TF2 signature is one call of a function: its body becomes a call of the stitched function. A TF1 signature is a
    set of nodes: its outputs are named anew.
    """
    _add_path(meta_graph, bundle_id)
    library = meta_graph.graph_def.library
    known = {function.signature.name for function in library.function}
    for function in (stitched.function, *stitched.helpers):
        if function.signature.name not in known:
            library.function.add().CopyFrom(function)
    definition = meta_graph.signature_def[stitched.key]
    caller = _single_caller(meta_graph, definition, stitched)
    if caller is None:
        _repoint(meta_graph, definition, stitched)
        return
    for node in meta_graph.graph_def.node:
        if node.op == caller.op and node.attr["f"].func.name == caller.attr["f"].func.name:
            _append_input(node, PATH_READ)
            node.attr["Tin"].list.type.append(_STRING)
            node.attr.pop("_XlaMustCompile", None)
    _rewrite_wrapper(meta_graph, caller, definition, stitched)


def _append_input(node: Any, name: str) -> None:
    data = [text for text in node.input if not text.startswith("^")]
    control = [text for text in node.input if text.startswith("^")]
    node.ClearField("input")
    node.input.extend([*data, name, *control])


def _single_caller(meta_graph: Any, definition: Any, stitched: Stitched) -> Any:
    names = {gd.parse_ref(info.name).node for info in definition.outputs.values()}
    if len(names) != 1:
        return None
    library = {function.signature.name for function in meta_graph.graph_def.library.function}
    for node in meta_graph.graph_def.node:
        if (
            node.name in names
            and node.op in ("StatefulPartitionedCall", "PartitionedCall")
            and node.attr["f"].func.name in library
        ):
            refs = {ref.tensor for ref in gd.data_inputs(node)}
            complete = len(definition.outputs) == len(node.attr["Tout"].list.type)
            return node if complete and all(arg.tensor in refs for arg in stitched.args) else None
    return None


def _call(stitched: Stitched, name: str, inputs: Sequence[str]) -> gd.NodeDef:
    node = gd.make_node(
        name,
        "StatefulPartitionedCall",
        inputs,
        f=gd.func_attr(stitched.function.signature.name),
        Tin=gd.types_attr([arg_type(arg) for arg in stitched.args] + [_STRING]),
        Tout=gd.types_attr(stitched.result_types),
    )
    for shape in stitched.shapes:  # a call says nothing of its shapes by itself
        node.attr["_output_shapes"].list.shape.add().CopyFrom(tf.TensorShape(shape).as_proto())
    return node


def _rewrite_wrapper(meta_graph: Any, caller: Any, definition: Any, stitched: Stitched) -> None:
    wrapper_name = caller.attr["f"].func.name
    wrapper = next(item for item in meta_graph.graph_def.library.function if item.signature.name == wrapper_name)
    position = {ref.tensor: index for index, ref in enumerate(gd.data_inputs(caller))}
    wrapper.signature.input_arg.add(name="refimpl_bundle", type=_STRING)
    names = [arg.name for arg in wrapper.signature.input_arg]
    call = _call(stitched, "refimpl_call", [names[position[arg.tensor]] for arg in stitched.args] + ["refimpl_bundle"])
    wrapper.ClearField("node_def")
    wrapper.node_def.add().CopyFrom(call)
    wrapper.attr.pop("_XlaMustCompile", None)
    if "_input_shapes" in wrapper.attr:
        wrapper.attr["_input_shapes"].list.shape.add()  # a scalar
    result_of = {
        gd.parse_ref(definition.outputs[key].name).index: number for number, key in enumerate(stitched.outputs)
    }
    for index, out in enumerate(wrapper.signature.output_arg):
        wrapper.ret[out.name] = f"refimpl_call:output:{result_of[index]}"
    wrapper.signature.ClearField("control_output")
    wrapper.ClearField("control_ret")
    wrapper.signature.control_output.append("refimpl_call")
    wrapper.control_ret["refimpl_call"] = "refimpl_call"
    wrapper.signature.is_stateful = True
    graph = meta_graph.object_graph_def
    if wrapper_name in graph.concrete_functions:
        graph.concrete_functions[wrapper_name].bound_inputs.append(_asset_object(meta_graph))


def _repoint(meta_graph: Any, definition: Any, stitched: Stitched) -> None:
    name = f"refimpl_{identifier(stitched.key)}"
    inputs = [arg.tensor.removesuffix(":0") for arg in stitched.args] + [PATH_READ]
    meta_graph.graph_def.node.add().CopyFrom(_call(stitched, name, inputs))
    for index, key in enumerate(stitched.outputs):
        definition.outputs[key].name = f"{name}:{index}"


def _add_path(meta_graph: Any, bundle_id: str) -> None:
    """Add the asset, the variable that an initializer stores its path in, and the initializer."""
    if any(node.name == _ASSET for node in meta_graph.graph_def.node):
        return
    string, scalar = gd.type_attr(_STRING), tf.TensorShape([]).as_proto()
    handle = gd.make_node(_PATH, "VarHandleOp", [], dtype=string, shared_name=f"{_PATH}_{bundle_id}", container="")
    handle.attr["shape"].shape.CopyFrom(scalar)
    meta_graph.graph_def.node.extend(
        [
            string_const(_ASSET, bundle.ASSET),
            handle,
            gd.make_node(f"{_PATH}/assign", "AssignVariableOp", [_PATH, _ASSET], dtype=string),
            gd.make_node(PATH_READ, "ReadVariableOp", [_PATH], dtype=string),
            gd.make_node(INIT, "NoOp", [f"^{_PATH}/assign", *_old_initializer(meta_graph)]),
        ]
    )
    if _INIT_KEY in meta_graph.signature_def:
        meta_graph.signature_def[_INIT_KEY].outputs[_INIT_KEY].name = INIT
    else:
        key = (
            _LEGACY_INIT
            if _LEGACY_INIT in meta_graph.collection_def and _MAIN_OP not in meta_graph.collection_def
            else _MAIN_OP
        )
        meta_graph.collection_def[key].node_list.value[:] = [INIT]
    _add_asset_file(meta_graph)


def _old_initializer(meta_graph: Any) -> list[str]:
    """A control input for what initialized the model before, tables for example."""
    if _INIT_KEY in meta_graph.signature_def:
        return ["^" + gd.parse_ref(meta_graph.signature_def[_INIT_KEY].outputs[_INIT_KEY].name).node]
    for key in (_MAIN_OP, _LEGACY_INIT):
        if key in meta_graph.collection_def:
            return ["^" + gd.parse_ref(name).node for name in meta_graph.collection_def[key].node_list.value]
    return []


def _add_asset_file(meta_graph: Any) -> None:
    legacy: Any = (
        meta_graph.collection_def["saved_model_assets"].any_list.value
        if "saved_model_assets" in meta_graph.collection_def
        else []
    )
    if not meta_graph.asset_file_def:  # TF1 kept assets in a collection; a loader reads one place or the other
        for item in legacy:
            item.Unpack(meta_graph.asset_file_def.add())
    asset = meta_graph.asset_file_def.add(filename=bundle.ASSET)
    asset.tensor_info.name = f"{_ASSET}:0"
    if legacy:
        legacy.add().Pack(asset)


def _asset_object(meta_graph: Any) -> int:
    """The node of the object graph that stands for the asset, made at the first call."""
    graph = meta_graph.object_graph_def
    index = next(i for i, asset in enumerate(meta_graph.asset_file_def) if asset.filename == bundle.ASSET)
    for number, node in enumerate(graph.nodes):
        if node.WhichOneof("kind") == "asset" and node.asset.asset_file_def_index == index:
            return number
    node = graph.nodes.add()
    node.asset.asset_file_def_index = index
    graph.nodes[0].children.add(node_id=len(graph.nodes) - 1, local_name="refimpl_bundle")
    return len(graph.nodes) - 1
