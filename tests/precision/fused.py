"""What the tests of fusing share."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from refimpl.converter.precision import fuse as fuse_module
from refimpl.engines import onnxruntime

true_layer_norm = pytest.mark.skipif(
    not fuse_module._runs_true("LayerNormalization"), reason="this ONNX Runtime's LayerNormalization cancels"
)
LN, IN, GELU, RMS = "LayerNormalization", "InstanceNormalization", "Gelu", "RMSNormalization"


def ops_of(model: onnx.ModelProto) -> Counter[str]:
    return Counter(item.op_type for item in model.graph.node)


def opset_of(model: onnx.ModelProto) -> int:
    return next(item.version for item in model.opset_import if item.domain == "")


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    """In ONNX Runtime, nothing optimized: it fuses normalisations of its own."""
    options = onnxruntime.session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)
