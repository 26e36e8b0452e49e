"""What the installed TensorRT can do: asked of the library itself, by its attributes and by tiny engines.

``FEATURES`` is the one table of differences between TensorRT for RTX and NVIDIA TensorRT; ``docs/gpu.md`` shows it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.engines import BuildOptions
from refimpl.engines.tensorrt import library
from refimpl.engines.tensorrt.building import build
from refimpl.engines.tensorrt.targets import known_targets
from refimpl.errors import BuildError, RunError

_SIZE = 64  # of the square matrices of the TF32 probe: large enough for tensor cores


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that one TensorRT has and another may not have.

    Attributes:
        name: for people.
        there: whether a module has it.
        without: what refimpl does where it is missing.
        rtx: how far it was tried with TensorRT for RTX: ``"run"``, or ``"not run"``.
        nvidia: with NVIDIA TensorRT.
    """

    name: str
    there: Callable[[Any], bool]
    without: str
    rtx: str
    nvidia: str


def _has(path: str) -> Callable[[Any], bool]:
    """Whether a module has an attribute of an attribute."""

    def there(trt: Any) -> bool:
        for name in path.split("."):
            trt = getattr(trt, name, None)
        return trt is not None

    return there


_RTX, _BOTH = ("run", "not run"), ("not run", "not run")
FEATURES = (
    Feature(
        "strongly typed networks",
        _has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
        "every network is strongly typed",
        *_RTX,
    ),
    Feature("TF32 flag", _has("BuilderFlag.TF32"), "the library chooses", *_RTX),
    Feature("strict NaN flag", _has("BuilderFlag.STRICT_NANS"), "the probe on the device decides alone", *_RTX),
    Feature("streamed engines", _has("IStreamWriter"), "an engine is held in memory before it is written", *_RTX),
    Feature("build targets", lambda trt: bool(known_targets(trt)), "--target is refused", *_RTX),
    Feature("engine validity", _has("Runtime.get_engine_validity"), "loading decides", *_RTX),
    Feature(
        "runtime configuration",
        _has("ICudaEngine.create_runtime_config"),
        "contexts are made with a strategy alone",
        *_RTX,
    ),
    Feature("runtime cache", _has("IRuntimeConfig.create_runtime_cache"), "nothing is compiled at run time", *_RTX),
    Feature(
        "kernel specialization",
        _has("DynamicShapesKernelSpecializationStrategy.EAGER"),
        "kernels never change",
        *_RTX,
    ),
    Feature("output allocator", _has("IOutputAllocator"), "outputs whose size depends on data run elsewhere", *_BOTH),
    Feature("capturability", _has("IExecutionContext.is_stream_capturable"), "capturing decides", *_RTX),
)


def features() -> dict[str, bool]:
    """Which of the features the installed TensorRT has; empty without one."""
    trt = library.module()
    return {feature.name: feature.there(trt) for feature in FEATURES} if trt is not None else {}


@functools.cache
def int8_problem(op: str) -> str:
    """Why the installed TensorRT does not build an int8 layer of this kind; "" when it does. Asked once per process.

    Args:
        op: an ONNX op type, ``"Conv"``, ``"ConvTranspose"``, ``"Gemm"`` or ``"MatMul"``.
    """
    with tempfile.TemporaryDirectory(prefix="refimpl-probe-") as folder:
        model, engine = Path(folder) / "int8.onnx", Path(folder) / "int8.engine"
        model.write_bytes(_quantized(op))
        try:
            build(model, engine, (), BuildOptions(tf32=False, workspace_bytes=0))
        except BuildError as error:
            return f"{library.version()} builds no int8 {op}: {error.message}"
    return ""


def _quantized(op: str) -> bytes:
    """A model of one op whose operands are quantized: per tensor and, of the weight, per output channel."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shape, weight = ((1, 32, 8, 8), (32, 32, 3, 3)) if op.startswith("Conv") else ((32, 32), (32, 32))
    axis = 0 if op == "Conv" else 1  # of the output channels in the weight
    constants: dict[str, Any] = {
        "scale": np.array(0.02, np.float32),
        "zero": np.array(0, np.int8),
        "w": rng.integers(-127, 128, weight).astype(np.int8),
        "scales": np.full(weight[axis], 0.01, np.float32),
        "zeros": np.zeros(weight[axis], np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["dw"], axis=axis),
        helper.make_node(op, ["d", "dw"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "int8", [x], [y], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


UNKNOWN = "unknown: "  # begins the answer of a probe that could not be run


@functools.cache
def tf32_problem() -> str:
    """Whether float32 products are rounded to TF32 without permission; "" when they are not, or nothing runs here.

    The probe multiplies by ``1 + 2**-12``, which TF32 rounds to 1: its 10 bits end at ``2**-10``.
    """
    from refimpl.engines.tensorrt import open as open_engine
    from refimpl.engines.tensorrt import why_not_here

    if why_not_here():
        return ""
    with tempfile.TemporaryDirectory(prefix="refimpl-probe-") as folder:
        model, engine = Path(folder) / "tf32.onnx", Path(folder) / "tf32.engine"
        model.write_bytes(_product())
        try:
            build(model, engine, (), BuildOptions(tf32=False, workspace_bytes=0))
            opened = open_engine(engine)
            (y,) = opened.run([np.eye(_SIZE, dtype=np.float32) * np.float32(1 + 2**-12)])
        except (BuildError, RunError) as error:
            return f"{UNKNOWN}{error.message}"
    opened.close()
    exact = np.array_equal(y, np.full((_SIZE, _SIZE), 1 + 2**-12, np.float32))
    return "" if exact else "float32 products are rounded to TF32, also where that was not allowed"


@functools.cache
def graph_problem() -> str:
    """Why calls are not replayed as CUDA graphs here; "" when they are, or nothing runs here."""
    from refimpl.engines.tensorrt import open as open_engine
    from refimpl.engines.tensorrt import why_not_here
    from refimpl.engines.tensorrt.lanes import NO_GRAPH, REPLAYED

    if why_not_here():
        return ""
    with tempfile.TemporaryDirectory(prefix="refimpl-probe-") as folder:
        model, engine = Path(folder) / "graph.onnx", Path(folder) / "graph.engine"
        model.write_bytes(_product())
        try:
            build(model, engine, (), BuildOptions(tf32=False, workspace_bytes=0))
            opened = open_engine(engine)
            for _ in range(3):
                opened.run([np.ones((_SIZE, _SIZE), np.float32)])
        except (BuildError, RunError) as error:
            return f"{UNKNOWN}{error.message}"
    counts = opened.counts()
    opened.close()
    said = [key.removeprefix(NO_GRAPH) for key in counts if key.startswith(NO_GRAPH)]
    return "" if REPLAYED in counts else "; ".join(said) or "they are not made"


def _product() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIZE, _SIZE]) for name in "xy")
    ones = numpy_helper.from_array(np.ones((_SIZE, _SIZE), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "tf32", [x], [y], [ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
