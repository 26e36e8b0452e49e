"""What is in a model as TensorRT's parser takes it, and in an engine as its inspector shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.engines.tensorrt.building import new_network, parse_errors
from refimpl.engines.tensorrt.library import Log, require
from refimpl.engines.tensorrt.loading import deserialize
from refimpl.errors import BuildError


def inspected(path: Path) -> Any:
    """The inspector's JSON of an engine that can be loaded here; see :func:`refimpl.engines.tensorrt.engine_layers`.

    Raises:
        RunError: it cannot.
    """
    trt = require()
    log = Log(trt)
    _runtime, engine = deserialize(trt, log, path)
    return json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


@dataclass(frozen=True, slots=True)
class NetworkLayers:
    """A model as TensorRT's parser takes it, before anything is fused; no GPU is needed to ask."""

    layers: tuple[dict[str, Any], ...]  # name, type, inputs, and outputs with dtype and shape
    shape_inputs: frozenset[str]  # inputs whose values are used as shapes


def network_layers(model: Path) -> NetworkLayers:
    """Parse an ONNX file and list the network's layers.

    Raises:
        BuildError: the parser refuses the model.
        UnsupportedError: TensorRT is not installed.
    """
    trt = require()
    log = Log(trt)
    builder = trt.Builder(log.logger)
    network = new_network(trt, builder)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(model)):
        raise BuildError(parse_errors(parser))
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = frozenset(tensor.name for tensor in inputs if tensor.is_shape_tensor)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return NetworkLayers(tuple(map(_layer, layers)), shapes)


def _layer(layer: Any) -> dict[str, Any]:
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    return {
        "name": layer.name,
        "type": layer.type.name,
        "inputs": [tensor.name for tensor in inputs if tensor is not None],
        "outputs": [
            {"name": tensor.name, "dtype": tensor.dtype.name, "shape": _dimensions(tensor)} for tensor in outputs
        ],
    }


def _dimensions(tensor: Any) -> list[int] | None:
    """Unknown dimensions are -1; None when not even their number is known."""
    try:
        return list(tensor.shape)
    except ValueError:  # the bindings' way to say that the rank is unknown
        return None
