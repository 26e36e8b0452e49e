"""What an island's ONNX file says about itself to people who open it in Netron, and its digest without that.

An engine computes the same with and without: only names and sentences are written, and the types and shapes of tensors
that ONNX infers from what is in the file already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from refimpl.engines import rounding
from refimpl.specs import TensorSpec

PREFIX = "refimpl."  # of the keys in ``metadata_props``


def describe(
    file: Path,
    island: str,
    about: str,
    facts: Mapping[str, str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    """Write into a stored ONNX file what it is; weights in a file beside it stay there.

    Args:
        file: the model; what an earlier call has written is replaced.
        island: its name, which becomes the graph's.
        about: a sentence for the model's documentation.
        facts: properties by name; ``refimpl`` is the version that writes them, and the model's producer.
        inputs: TensorFlow's tensors, in the order of the model's inputs.
        outputs: TensorFlow's tensors, in the order of the model's outputs.
    """
    model = onnx.load(file, load_external_data=False)
    model.producer_name, model.producer_version = "refimpl", facts["refimpl"]
    model.doc_string, model.graph.name = about, island
    kept = [(item.key, item.value) for item in model.metadata_props if not item.key.startswith(PREFIX)]
    model.ClearField("metadata_props")
    for key, value in [*kept, *((PREFIX + key, value) for key, value in facts.items())]:
        model.metadata_props.add(key=key, value=value)
    weights = {item.name for item in model.graph.initializer}
    entering = [item for item in model.graph.input if item.name not in weights]
    for side, specs in ((entering, inputs), (model.graph.output, outputs)):
        for item, spec in zip(side, specs, strict=True):
            item.doc_string = f"TensorFlow's {spec.describe()}"
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        if not node.name and node.output[0] not in taken:
            node.name = node.output[0]  # as the converter calls it, where it lowers a precision
    known = {item.name for item in [*model.graph.input, *model.graph.output]} | weights
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(item for item in rounding.inferred_values(model) if item.name not in known)
    onnx.save(model, file)


def digest_without(file: Path) -> str:
    """SHA-256 (hexadecimal) of an ONNX file without what :func:`describe` writes, and the name of its weights' file.

    Of a file that is no ONNX model, all bytes count.
    """
    data = file.read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return hashlib.sha256(data).hexdigest()
    _strip(model)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _strip(model: Any) -> None:
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    graph = model.graph
    graph.name = "island"
    graph.ClearField("value_info")
    for item in [*graph.input, *graph.output]:
        item.ClearField("doc_string")
    for node in graph.node:
        if node.output and node.name == node.output[0]:
            node.ClearField("name")
    for tensor in graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = ""
