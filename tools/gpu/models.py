"""Small ONNX models for the tools that ask what engines stand."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

WIDTH = 128  # of the inputs of the network
_LAYERS = 4
Array = Any


def network() -> bytes:
    """A few dense layers over float32[batch, WIDTH]."""
    rng = np.random.default_rng(0)
    weights, nodes, name = [], [], "x"
    for layer in range(_LAYERS):
        kernel = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / np.float32(WIDTH**0.5)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [f"m{layer}"]))
        name = "y" if layer == _LAYERS - 1 else f"a{layer}"
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [name]))
    x, y = (helper.make_tensor_value_info(key, TensorProto.FLOAT, ["batch", WIDTH]) for key in "xy")
    return _model(nodes, [x], y, weights)


def suppression() -> bytes:
    """Boxes that overlap less: of float32[1, n, 4] with scores float32[1, 1, n], int64[?, 3] (image, class, box)."""
    limits: dict[str, Any] = {
        "most": np.array([50], np.int64),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.3], np.float32),
    }
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *limits], ["kept"])
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "n", 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, "n"])
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, ["found", 3])
    constants = [numpy_helper.from_array(value, name) for name, value in limits.items()]
    return _model([node], [boxes, scores], kept, constants)


def boxes_of(count: int, seed: int) -> list[Array]:
    """Inputs of the suppression: boxes that overlap, scores without ties."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.6, (count, 2))], 1)
    return [boxes[None].astype(np.float32), rng.permutation(count)[None, None].astype(np.float32) / np.float32(count)]


def inputs_of(rows: int, seed: int) -> Array:
    """Inputs of the network: float32[rows, WIDTH]."""
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def _model(nodes: list[Any], inputs: list[Any], output: Any, constants: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "small", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
