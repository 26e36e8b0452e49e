# ruff: noqa: ARG002  (methods have the arguments of TensorRT)
"""A TensorRT that is none: engines are JSON that names a computation; contexts read and write addresses.

It refuses what the real one forbids: a changed context whose graph is still replayed, addresses that are not set,
working memory that is missing.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

WORK_BYTES = 4096  # of every context
KERNELS = b"compiled for this GPU"

# Name of a computation -> (shapes of the outputs from the inputs' shapes and host values, the outputs).
COMPUTATIONS: dict[str, tuple[Callable, Callable]] = {
    "twice": (lambda shapes, host: list(shapes), lambda x: [x * 2]),
    "sum": (lambda shapes, host: [shapes[0]], lambda x, y: [x + y]),
    "reshape": (lambda shapes, host: [tuple(host["target"])], lambda x, target: [x.reshape(target)]),
    "positive": (lambda shapes, host: [(-1,)], lambda x: [x[x > 0]]),
}


def engine_file(path: Path, computation: str, inputs: dict, outputs: dict, profiles=(), **more) -> Path:
    """Write an engine. ``inputs`` and ``outputs``: name -> (dtype, shape); a profile: name -> (low, opt, high)."""
    data = {"computation": computation, "inputs": inputs, "outputs": outputs, "profiles": list(profiles), **more}
    path.write_text(json.dumps(data))
    return path


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Location(enum.Enum):
    DEVICE = 0
    HOST = 1


class FakeEngine:
    """See :class:`tensorrt.ICudaEngine`."""

    device_memory_size_v2 = WORK_BYTES

    def __init__(self, trt, data) -> None:
        self.trt, self.data = trt, data
        self.tensors = {**data["inputs"], **data["outputs"]}
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = max(len(data["profiles"]), 1)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return Mode.INPUT if name in self.data["inputs"] else Mode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.tensors[name][0]

    def get_tensor_shape(self, name):
        return tuple(self.tensors[name][1])

    def get_tensor_location(self, name):
        return Location.HOST if self.is_shape_inference_io(name) else Location.DEVICE

    def is_shape_inference_io(self, name):
        return name in self.data.get("host", [])

    def get_tensor_profile_shape(self, name, index):
        return self.data["profiles"][index][name]

    def get_tensor_profile_values(self, index, name):
        return self.data.get("values", [])

    def create_runtime_config(self):
        return FakeConfig(self.trt)

    def create_execution_context(self, config):
        if self.trt.contexts_left is not None:
            if self.trt.contexts_left == 0:
                return None
            self.trt.contexts_left -= 1
        return FakeContext(self, config)


class FakeCache:
    """See :class:`tensorrt_rtx.IRuntimeCache`."""

    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, data):
        if not data.startswith(KERNELS[:8]):
            return False
        self.data = bytes(data)
        return True

    def serialize(self):
        return memoryview(self.data or KERNELS)


class FakeConfig:
    """See :class:`tensorrt_rtx.IRuntimeConfig`."""

    def __init__(self, trt) -> None:
        self.trt, self.cache, self.strategy = trt, None, None
        trt.configs.append(self)

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return FakeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache


class FakeContext:
    """See :class:`tensorrt.IExecutionContext`."""

    profiler = None

    def __init__(self, engine, config) -> None:
        self.engine, self.trt, self.config = engine, engine.trt, config
        self.shapes, self.addresses, self.allocators = {}, {}, {}
        self.work, self.active, self.state, self.captured_at = 0, 0, 0, None
        self.trt.made += 1

    def _changed(self):
        self.state += 1

    def set_device_memory(self, address, size):
        assert size >= WORK_BYTES
        self.work = address
        self._changed()

    def set_optimization_profile_async(self, index, stream):
        self.active = index
        self.trt.profiles.append(index)
        self.shapes.clear()
        self._changed()
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        self._changed()
        return True

    def set_tensor_address(self, name, address):
        assert address
        self.addresses[name] = address
        self._changed()
        return True

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def infer_shapes(self):
        return [name for name in self.engine.data["inputs"] if name not in self.shapes]

    def get_tensor_shape(self, name):
        host = {key: self._read(key).reshape(-1).tolist() for key in self.engine.data.get("host", [])}
        shape_of, _ = COMPUTATIONS[self.engine.data["computation"]]
        shapes = shape_of([self.shapes[key] for key in self.engine.data["inputs"]], host)
        return shapes[list(self.engine.data["outputs"]).index(name)]

    def is_stream_capturable(self, stream):
        return self.trt.capturable

    def _read(self, name):
        dtype, shape = np.dtype(self.engine.tensors[name][0]), self.shapes[name]
        return _view(self.addresses[name], shape, dtype)

    def execute_async_v3(self, stream):
        if self.trt.refuse:
            self.trt.say(self.trt.refuse)
            return False
        assert self.work, "no working memory"
        state, addresses, driver = self.state, dict(self.addresses), self.trt.driver
        captured = stream in driver.captures
        if captured and self.trt.refuse_captured:
            self.trt.say("operation not permitted when stream is capturing")
            return False
        _, compute = COMPUTATIONS[self.engine.data["computation"]]
        inputs = [(addresses[n], self.shapes[n], np.dtype(spec[0])) for n, spec in self.engine.data["inputs"].items()]

        def work():
            assert not captured or self.state == state, "a graph is replayed whose context was changed"
            results = compute(*(_view(*item) for item in inputs))
            for (name, spec), result in zip(self.engine.data["outputs"].items(), results, strict=True):
                value = np.ascontiguousarray(result.astype(spec[0]))
                if captured and self.trt.graphs_lie:
                    value = value + value.dtype.type(1)
                self._write(name, value, addresses, stream)

        driver.enqueue(stream, work)
        if self.profiler is not None:
            self.profiler.report_layer_time("the only layer", 0.25)
        return True

    def _write(self, name, value, addresses, stream):
        if (allocator := self.allocators.get(name)) is None:
            address = addresses[name]
        else:
            address = allocator.reallocate_output_async(name, 0, value.nbytes, 256, stream)
            assert ctypes.sizeof(self.trt.driver.blocks[address]) >= value.nbytes
            allocator.notify_shape(name, value.shape)
        ctypes.memmove(address, value.ctypes.data, value.nbytes)


def _view(address, shape, dtype):
    count = int(np.prod(shape, dtype=np.int64))
    raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)


def fake_tensorrt(driver) -> SimpleNamespace:
    """The module. ``refuse``: what it says instead of executing; ``contexts_left``: how many more it makes."""
    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class ILogger:
        Severity = severity

        def __init__(self) -> None: ...

    class Base:
        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, logger) -> None:
            self.logger = trt.logger = logger

        def get_engine_validity(self, data):
            return trt.validity

        def deserialize_cuda_engine(self, data):
            try:
                return FakeEngine(trt, json.loads(data))
            except ValueError:
                trt.say("magic tag does not match")
                return None

    trt = SimpleNamespace(
        __name__="tensorrt_rtx", __version__="9.9.9.9", ILogger=ILogger, IOutputAllocator=Base, IProfiler=Base,
        Runtime=Runtime, TensorIOMode=Mode, TensorLocation=Location, nptype=np.dtype, driver=driver, logger=None,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        EngineValidity=SimpleNamespace(VALID=0, INVALID=2),
        EngineInvalidityDiagnostics=SimpleNamespace(
            __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "MALFORMED_ENGINE": 32}
        ),
        validity=(0, 0), refuse="", contexts_left=None, capturable=True, refuse_captured=False, graphs_lie=False,
        made=0, profiles=[], configs=[],
    )  # fmt: skip
    trt.say = lambda message: trt.logger.log(severity.ERROR, message)
    return trt
