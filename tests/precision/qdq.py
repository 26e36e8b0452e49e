"""Small graphs to quantize, and what a quantized graph looks like from outside."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from refimpl.converter.precision.quantize import candidates, place, tensors_to_observe
from tests.onnx_models import info, make_model, node


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(nodes, inputs, outputs, **constants):
    """A model from the shapes of its float inputs, the names of its outputs, and its initializers."""
    model = make_model(
        nodes,
        [info(name, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = onnx.shape_inference.infer_shapes(model)  # for the outputs only
    del model.graph.value_info[:]
    return model


def conv(inputs, output, **attributes):
    return node("Conv", inputs, output, **attributes)


def quantized(model, keep=(), **thresholds):
    """Placed with a threshold of 1 where none is given."""
    return place(model, {**dict.fromkeys(tensors_to_observe(model), 1.0), **thresholds}, dict.fromkeys(keep, "kept"))


def refusals(model):
    return {layer.node: layer.refused for layer in candidates(model)}


def pairs(model):
    """Activation tensor -> ("node:input" of everything that reads it quantized), each pair checked on the way."""
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    found = {}
    for item in model.graph.node:
        if item.op_type != "QuantizeLinear":
            continue
        tensor, scale, zero = item.input
        (back,) = [other for other in model.graph.node if item.output[0] in other.input]
        assert back.op_type == "DequantizeLinear"
        assert list(back.input[1:]) == [scale, zero]
        assert (stored[scale].dtype, stored[scale].shape) == (np.float32, ())
        assert (stored[zero].dtype, stored[zero].shape, stored[zero]) == (np.int8, (), 0)
        assert not item.attribute
        assert not back.attribute
        assert tensor not in found, "two pairs on one tensor"
        assert tensor not in stored, "an activation's pair on a constant"
        assert back.output[0] not in {output.name for output in model.graph.output}
        found[tensor] = {
            f"{reader.name}:{number}"
            for reader in model.graph.node
            for number, name in enumerate(reader.input)
            if name == back.output[0]
        }
    return found


def scales(model):
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    return {item.input[0]: stored[item.input[1]] for item in model.graph.node if item.op_type == "QuantizeLinear"}


def int8_weights(model):
    """Layer -> (int8 values, scales, axis) of its weight; every DequantizeLinear of a constant has its reader here."""
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    found = {}
    for item in model.graph.node:
        if item.op_type != "DequantizeLinear" or item.input[0] not in stored:
            continue
        values, scale, zero = (stored[name] for name in item.input)
        (axis,) = [attribute.i for attribute in item.attribute if attribute.name == "axis"]
        assert (values.dtype, scale.dtype, zero.dtype) == (np.int8, np.float32, np.int8)
        assert scale.shape == zero.shape == (values.shape[axis],)
        assert not zero.any()
        assert (scale > 0).all()
        for reader in model.graph.node:
            if item.output[0] in reader.input:
                assert list(reader.input).index(item.output[0]) == 1, "not the weight"
                found[reader.name] = (values, scale, axis)
    return found


def structure(model):
    """All that a wrong placement could get wrong, to compare as a whole."""
    return (
        pairs(model),
        {tensor: float(scale) for tensor, scale in scales(model).items()},
        {layer: (axis, len(scale)) for layer, (_, scale, axis) in int8_weights(model).items()},
    )


def run(model, feeds):
    """ONNX Runtime computing Q and DQ as they are written; its fused 8-bit kernels may saturate on some CPUs."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def evaluate(model, feeds):
    """ONNX's own reference evaluator, which has Q and DQ of opset 19, the same for float32, and not of 18."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = 19
    return ReferenceEvaluator(copy).run(None, feeds)


def with_outputs(model, names):
    """The model with more outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {item.name for item in [*copy.graph.output, *copy.graph.input]}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    return copy


def cosine(a, b):
    a, b = (np.asarray(value, np.float64).ravel() for value in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)
