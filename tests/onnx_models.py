"""Small ONNX models for the tests of engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(7)
X = rng.standard_normal((5, 8)).astype(np.float32)
WEIGHTS = {
    "w": rng.standard_normal((8, 600)).astype(np.float32),
    "b": rng.standard_normal(600).astype(np.float32),
}
WANT = np.maximum(X @ WEIGHTS["w"] + WEIGHTS["b"], 0).T


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def node(op, inputs, outputs, name="", **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), name or outputs, **attributes)


def dense(weights_are_inputs=True):
    """``relu(x @ w + b)``, transposed thrice: BASIC must cancel two transposes and fold what is constant."""
    nodes = [
        node("MatMul", "x w", "product"),
        node("Add", "product b", "sum"),
        node("Relu", "sum", "active"),
        node("Transpose", "active", "t1", perm=[1, 0]),
        node("Transpose", "t1", "t2", perm=[1, 0]),
        node("Transpose", "t2", "y", perm=[1, 0]),
    ]
    given = [info("w", (8, 600)), info("b", (600,))] if weights_are_inputs else []
    stored = [] if weights_are_inputs else [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    return make_model(nodes, [info("x", ("n", 8)), *given], [info("y", (600, "n"))], stored)


def saved(folder: Path, model, name="m.onnx"):
    file = folder / name
    onnx.save(model, file)
    return file


def relu(folder: Path):
    return saved(folder, make_model([node("Relu", "x", "y")], [info("x", ("n", 3))], [info("y", ("n", 3))]))
