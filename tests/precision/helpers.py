"""What the tests of precision share: tiny ONNX graphs, tiny SavedModels, and half precision spelled out in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

import refimpl
from refimpl import runtime
from refimpl.bundle import Manifest
from refimpl.recipe import Recipe
from tests.models_ops import normal, spec
from tests.onnx_models import info, make_model

Array = np.ndarray
DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def rounded(value: Array, precision: str) -> Array:
    """float32 values rounded to half precision: to nearest, ties to even, beyond the largest to infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(value, np.float32).astype(DTYPES[precision]).astype(np.float32)


def graph(nodes: list[Any], inputs: Mapping[str, Any], outputs: str, **constants: Any) -> onnx.ModelProto:
    """A model from the shapes of its float32 inputs, the names of its outputs, and its initializers."""
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    empty = [helper.make_empty_tensor_value_info(name) for name in outputs.split()]
    model = make_model(nodes, [info(name, shape) for name, shape in inputs.items()], empty, stored)
    model = onnx.shape_inference.infer_shapes(model)  # for the outputs only
    del model.graph.value_info[:]
    return model


def in_half(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model with every float32 tensor in half precision, bodies of If too; casts at its inputs and outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    body = copy.graph
    floats = [item for item in body.input if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    results = [item for item in body.output if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    before = [helper.make_node("Cast", [f"{item.name}/32"], [item.name], to=KINDS[precision]) for item in floats]
    after = [helper.make_node("Cast", [item.name], [f"{item.name}/32"], to=TensorProto.FLOAT) for item in results]
    nodes = [*before, *body.node, *after]
    body.ClearField("node")
    body.node.extend(nodes)
    _retype(body, precision)
    for item in [*floats, *results]:
        item.name = f"{item.name}/32"
        item.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def _retype(body: onnx.GraphProto, precision: str) -> None:
    for item in body.initializer:
        if item.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(item).astype(DTYPES[precision])
            item.CopyFrom(numpy_helper.from_array(value, item.name))
    for item in [*body.input, *body.output]:
        if item.type.tensor_type.elem_type == TensorProto.FLOAT:
            item.type.tensor_type.elem_type = KINDS[precision]
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _retype(attribute.g, precision)


def weights_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def images(count: int, size: int = 8, channels: int = 4, seed: int = 0, scale: float = 1.0) -> dict[str, Array]:
    """A batch of inputs ``x``."""
    return {"x": normal(count, size, size, channels, seed=seed, scale=scale)}


class Tiny(tf.Module):
    """A SavedModel of one or several functions of named float32 inputs."""

    def __init__(self, call: Callable[..., Any], *specs: tf.TensorSpec, holds: Any = ()) -> None:
        super().__init__()
        self.holds = list(holds)
        self.call = tf.function(call, input_signature=specs)

    def save(self, target: Path, **more: Any) -> Path:
        tf.saved_model.save(self, str(target), signatures={"serving_default": self.call, **more})
        return target


def small_cnn(target: Path) -> Path:
    """Three convolutions of 16 channels and a dense layer over float32[?,8,8,4]; every product can be int8."""
    kernels = [tf.Variable(normal(3, 3, 4, 16, seed=1, scale=0.2))]
    kernels += [tf.Variable(normal(3, 3, 16, 16, seed=seed, scale=0.1)) for seed in (2, 3)]
    dense, bias = tf.Variable(normal(16, 16, seed=4, scale=0.3)), tf.Variable(normal(16, seed=5))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        for number, kernel in enumerate(kernels):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME", name=f"conv{number}"))
        return {"y": tf.nn.bias_add(tf.matmul(tf.reduce_mean(x, [1, 2]), dense, name="head"), bias)}

    return Tiny(call, spec((None, 8, 8, 4), name="x"), holds=[*kernels, dense, bias]).save(target)


def batches(count: int = 4, rows: int = 8, scale: float = 1.0) -> Callable[[], list[dict[str, Array]]]:
    """Samples for :func:`small_cnn`, as a function that gives the same ones every time."""
    return lambda: [images(rows, seed=seed, scale=scale) for seed in range(count)]


def convert(model: Path, target: Path, samples: Any = None, **choices: Any) -> Manifest:
    return refimpl.convert(model, target, Recipe(**choices), samples=samples)


def layers_of(manifest: Manifest) -> dict[str, tuple[str, str]]:
    """Layer -> (precision, reason), over all islands."""
    return {name: (kind, why) for island in manifest.islands for name, _, kind, why in island.layers}


def outputs_of(bundle: Path, inputs: Mapping[str, Array], *engines: str) -> tuple[dict[str, Array], set[str]]:
    """What a bundle answers, and which engines it ran on."""
    runtime.forget(bundle)
    result = refimpl.load(bundle, engines=engines or None).run(inputs)
    return result.outputs, {run.engine for run in result.islands}


def in_tensorflow(model: Path, inputs: Mapping[str, Array], key: str = "serving_default") -> dict[str, Array]:
    loaded = tf.saved_model.load(str(model))
    found = loaded.signatures[key](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in found.items()}


def error(want: Array, got: Array) -> float:
    """Relative, by Euclidean norms."""
    return float(np.linalg.norm(want.astype(np.float64) - got) / np.linalg.norm(want.astype(np.float64)))
