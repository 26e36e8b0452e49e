"""A GPU with TensorRT, played by the embedded engine, that gets planted things wrong: for machines without one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refimpl import gpus
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from refimpl.engines.rounding import TF32, tensor_types
from refimpl.errors import BuildError, RunError

Array = np.ndarray
NAME, VERSION = "Fake GPU", "tensorrt_rtx 9.9"
WHERE = f"{VERSION} on {NAME}"
_NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


class Nodes:
    """A graph as the planted faults look at it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.types = model, tensor_types(model)
        self.maker = {name: node for node in model.graph.node for name in node.output}

    def of(self, *ops: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type in ops]

    def is_half(self, node: onnx.NodeProto) -> bool:
        return self.types.get(node.output[0]) == TensorProto.FLOAT16

    def before(self, node: onnx.NodeProto, *skipped: str) -> onnx.NodeProto | None:
        maker = self.maker.get(node.input[0])
        while maker is not None and maker.op_type in skipped:
            maker = self.maker.get(maker.input[0])
        return maker


def depthwise(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)


Fault = Callable[[Nodes], Iterable[onnx.NodeProto]]  # the nodes whose results come out wrong


class FakeGpu:
    """Builds, and runs, what the embedded engine computes, the results of faulty nodes times a factor.

    Attributes:
        built: the model of every engine that was built.
        asked: its profiles and options.
        ran: how many engines were opened.
    """

    def __init__(self, fault: Fault = lambda nodes: (), factor: float = 1.5) -> None:
        self.fault, self.factor = fault, factor
        self.built: list[onnx.ModelProto] = []
        self.asked: list[tuple[Sequence[Profile], BuildOptions]] = []
        self.ran = 0
        self.rounds = ""  # why float32 products are never exact
        self.rounds_to_tf32 = False  # and so they come out
        self.refuses: Callable[[onnx.ModelProto], bool] = lambda model: False  # to build
        self.fails: Callable[[onnx.ModelProto], bool] = lambda model: False  # to run

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
        """Let the ``tensorrt`` kind be this one."""
        monkeypatch.setattr(tensorrt, "why_not_here", lambda: "")
        monkeypatch.setattr(tensorrt, "version", lambda: VERSION)
        monkeypatch.setattr(tensorrt, "int8_problem", lambda op: "")
        monkeypatch.setattr(tensorrt, "tf32_problem", lambda: self.rounds)
        monkeypatch.setattr(tensorrt, "compiled_kernels", lambda path, calls: b"")
        monkeypatch.setattr(tensorrt, "build", self.build)
        monkeypatch.setattr(tensorrt, "open", self.open)
        monkeypatch.setattr(gpus, "list_gpus", lambda: ("13.0", (gpus.Gpu(NAME, "9.0", 1 << 36),)))
        return self

    def build(self, model: Path, target: Path, profiles: Sequence[Profile], options: BuildOptions) -> None:
        proto = onnx.load(model)
        self.built.append(proto)
        self.asked.append((profiles, options))
        if self.refuses(proto):
            raise BuildError("out of memory")
        spoiled = self._spoiled(proto)
        entry = spoiled.metadata_props.add()
        entry.key, entry.value = "file", model.name  # what its name says must not be lost
        if self.rounds_to_tf32 and TF32 not in model.name:
            entry.value = f"m{TF32}onnx"
        target.write_bytes(spoiled.SerializeToString())

    def open(self, path: Path) -> _Engine:
        self.ran += 1
        model = onnx.load(path)
        if self.fails(model):
            raise RunError("out of memory on the GPU")
        return _Engine(path, model)

    def _spoiled(self, model: onnx.ModelProto) -> onnx.ModelProto:
        nodes = Nodes(model)
        faulty = {node.name for node in self.fault(nodes)}
        result = onnx.ModelProto()
        result.CopyFrom(model)
        result.graph.ClearField("node")
        for node in model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            made = [copy]
            if node.name in faulty:
                kind = nodes.types[node.output[0]]
                copy.output[0] = f"{node.output[0]}/right"
                factor = numpy_helper.from_array(np.asarray(self.factor, _NUMPY[kind]), f"{node.output[0]}/factor")
                result.graph.initializer.append(factor)
                made.append(helper.make_node("Mul", [copy.output[0], factor.name], [node.output[0]]))
            result.graph.node.extend(made)
        return result


class _Engine:
    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        name = next(item.value for item in model.metadata_props if item.key == "file")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(path.read_bytes())
            self._engine = onnxruntime.open(file)
        self.closed = False

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        assert not self.closed
        return self._engine.run(inputs)

    def close(self) -> None:
        self.closed = True
