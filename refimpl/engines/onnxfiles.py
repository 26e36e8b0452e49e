"""ONNX files of islands as files: copied under another name, spelled out for a stock runtime, asked for their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from refimpl.engines import rounding
from refimpl.engines.onnxruntime import move_weights
from refimpl.errors import BundleError, first_line

_QUANTIZING = frozenset(["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"])


def copy(model: Path, target: Path, weights: Path | None) -> None:
    """Copy an ONNX file; weights that lie in a file of their own go to ``TARGET.data``, and the copy says so."""
    shutil.copyfile(model, target)
    if weights is not None:
        beside = target.with_name(f"{target.name}.data")
        shutil.copyfile(weights, beside)
        move_weights(target, beside.name)


def spell_out(model: Path, target: Path) -> bool:
    """Write what the embedded engine runs in the place of a half-precision model, as ordinary ONNX.

    Weights in a file beside ``model`` stay there, so ``target`` must lie in the same folder.

    Returns:
        Whether anything was written: nothing is when no tensor of the model is of half precision.
    """
    proto = onnx.load(model, load_external_data=False)
    spelled = rounding.spelled_out(proto, tf32=rounding.TF32 in model.name)
    if spelled is proto:
        return False
    onnx.save(spelled, target)
    return True


def tensor_names(model: Path) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs of a model, in the order in which engines take and give them.

    Raises:
        BundleError: the file is no ONNX model.
    """
    graph = _load(model).graph
    weights = {item.name for item in graph.initializer}
    return [item.name for item in graph.input if item.name not in weights], [item.name for item in graph.output]


def quantizes(model: Path) -> bool:
    """Whether QuantizeLinear, or its inverse, is in the main graph."""
    return any(node.op_type in _QUANTIZING for node in _load(model).graph.node)


def all_tensors(model: Path) -> set[str]:
    """Names of every tensor of the main graph that is an input or the result of a node."""
    graph = _load(model).graph
    return {item.name for item in graph.input} | {name for node in graph.node for name in node.output}


def _load(model: Path) -> onnx.ModelProto:
    try:
        return onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise BundleError(
            f"{model.name} is no ONNX model: {first_line(error)}", hint="convert the model again"
        ) from error
