"""TensorRT engines: NVIDIA TensorRT or TensorRT for RTX, whichever is installed; they share one Python API.

Run with TensorRT-RTX 1.7.1 (parse and build on a machine without a GPU) and 1.6.1 (execution on an H100); NVIDIA
TensorRT 10.12+ and 11 are written for, type-checked against their stubs, and not run.
"""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import gpus
from refimpl.engines import Array, BuildOptions, Profile
from refimpl.errors import BuildError, RunError, UnsupportedError, first_line

NAME = "tensorrt"
SUFFIX = ".engine"


@functools.cache
def _module() -> Any:
    """``tensorrt`` or else ``tensorrt_rtx``; None when neither can be imported."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except Exception:  # noqa: BLE001  a broken installation fails with anything, from ImportError to a missing shared library
            continue
    return None


def _require() -> Any:
    if (module := _module()) is None:
        raise UnsupportedError(
            "neither tensorrt nor tensorrt_rtx can be imported",
            hint="pip install 'refimpl[rtx]' (TensorRT for RTX, no GPU needed to build) or 'refimpl[tensorrt]'",
        )
    return module


def version() -> str:
    module = _module()
    return f"{module.__name__} {module.__version__}" if module else ""


@functools.cache
def why_not_here() -> str:
    if _module() is None:
        return "neither tensorrt nor tensorrt_rtx is installed"
    driver, found = gpus.list_gpus()
    if not found:
        return f"no usable NVIDIA GPU ({driver or 'no driver'})"
    try:
        from polygraphy.cuda import DeviceArray

        with DeviceArray.raw((1,)):
            return ""
    except Exception as error:  # noqa: BLE001  Polygraphy raises its own type, ctypes an OSError, a driver anything
        return f"no usable NVIDIA GPU: {first_line(error)}"


class _Log:
    """Collects what TensorRT says while it builds, so that a failure can be explained."""

    def __init__(self, trt: Any) -> None:
        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(inner, severity: Any, message: str) -> None:  # noqa: N805
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    self.errors.append(message)

            def __init__(inner) -> None:  # noqa: N805
                trt.ILogger.__init__(inner)

        self.errors: list[str] = []
        self.logger = Logger()


def _network(trt: Any, builder: Any) -> Any:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(1 << int(flag) if flag is not None else 0)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that TensorRT's parser does not take."""

    node: str
    reason: str


def parser_refusals(model: bytes, path: str = "") -> tuple[tuple[Refusal, ...], bool]:
    """Ask TensorRT's ONNX parser about a model.

    Args:
        model: a serialized ModelProto.
        path: where it lies, when its weights are in files beside it.

    Returns:
        The nodes it names as the cause of a refusal, and whether it takes the whole model. It stops at the first
        refusal of a region: ask again without the nodes named until it takes everything.
    """
    trt = _require()
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    network = _network(trt, builder)  # the parser does not keep it alive
    parser = trt.OnnxParser(network, log.logger)
    whole = bool(parser.supports_model_v2(model, path or None))
    found: dict[str, Refusal] = {}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        if error.node_name():
            found.setdefault(
                error.node_name(), Refusal(error.node_name(), f"{error.node_operator()}: {_shorten(error.desc())}")
            )
    return tuple(found.values()), whole


def parser_takes(model: Path) -> bool:
    """Whether TensorRT's ONNX parser takes all of a stored model, its weights in it or in a file beside it.

    The model is parsed in earnest, as it is for a build: nothing is predicted.
    """
    trt = _require()
    log = _Log(trt)
    network = _network(trt, trt.Builder(log.logger))
    return bool(trt.OnnxParser(network, log.logger).parse_from_file(str(model)))


def build(model: Path, target: Path, profiles: Sequence[Profile], options: BuildOptions) -> None:
    trt = _require()
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    network = _network(trt, builder)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = [f"{error.node_operator() or 'ONNX'}: {_shorten(error.desc())}" for error in errors]
        raise BuildError("; ".join(said) or "parser failed")
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32") and not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "STRICT_NANS"):
        config.set_flag(trt.BuilderFlag.STRICT_NANS)  # else 0*x may become 0 and hide a NaN that TensorFlow shows
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    for profile in dict.fromkeys(_without_data(network, profile) for profile in profiles):
        config.add_optimization_profile(_trt_profile(builder, network, profile))
    timed = _with_timings(config, options.timings)
    if not _write_engine(trt, builder, network, config, target):
        raise BuildError(
            "; ".join(_shorten(message) for message in log.errors[-3:]) or "TensorRT built nothing and said nothing"
        )
    if timed and options.timings is not None:
        options.timings.write_bytes(memoryview(config.get_timing_cache().serialize()))


def _write_engine(trt: Any, builder: Any, network: Any, config: Any, target: Path) -> bool:
    """Build, and write the engine to a file; whether there is one. Where the library can stream, no copy is held."""
    if not (hasattr(builder, "build_serialized_network_to_stream") and hasattr(trt, "IStreamWriter")):
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            target.write_bytes(memoryview(plan))
        return plan is not None

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def write(self, data: Any) -> int:
            file.write(data)
            return len(data)

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

    with target.open("wb") as file:
        built = bool(builder.build_serialized_network_to_stream(network, config, Writer()))
    if not built:
        target.unlink()
    return built


def _with_timings(config: Any, file: Path | None) -> bool:
    """Let the builder know what it has timed before; whether this library keeps timings at all.

    TensorRT for RTX times nothing when it builds: there it is a DeprecationWarning that says so.
    """
    if file is None or not hasattr(config, "create_timing_cache"):
        return False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DeprecationWarning)
        known = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
        taken = config.set_timing_cache(known or config.create_timing_cache(b""), False)
    return bool(taken) and not any(issubclass(item.category, DeprecationWarning) for item in said)


def _without_data(network: Any, profile: Profile) -> Profile:
    """Only of inputs that TensorRT takes as shapes do values matter; without the others, profiles may be the same."""
    return replace(profile, values=tuple(item for item in profile.values if network.get_input(item[0]).is_shape_tensor))


def _trt_profile(builder: Any, network: Any, profile: Profile) -> Any:
    result = builder.create_optimization_profile()
    values = {index: rest for index, *rest in profile.values}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if index in values:
            result.set_shape_input(tensor.name, *values[index])
        else:
            result.set_shape(tensor.name, profile.min[index], profile.opt[index], profile.max[index])
    return result


def open(path: Path, threads: int = 0) -> TrtEngine:  # noqa: A001  (the Protocol's name)
    return TrtEngine(path)


class TrtEngine:
    """A deserialized engine with one execution context; calls are serialised by a lock."""

    def __init__(self, path: Path) -> None:
        if reason := why_not_here():
            raise RunError(f"TensorRT cannot execute here: {reason}")
        from polygraphy.cuda import Stream

        trt = _require()
        self._trt, self._log, self._lock = trt, _Log(trt), threading.Lock()
        self._runtime = trt.Runtime(self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            said = "; ".join(_shorten(message) for message in self._log.errors[-2:])
            raise RunError(f"{version()} cannot load {path.name}: {said or 'no reason given'}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RunError(f"{version()} cannot create an execution context for {path.name}")
        self._stream = Stream()
        self._buffers: dict[str, Any] = {}
        self._host: dict[str, Array] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        with self._lock:
            try:
                return self._run(inputs)
            except RunError:
                raise
            except Exception as error:  # CUDA and Polygraphy errors; the island falls back to TensorFlow
                raise RunError(f"TensorRT failed: {first_line(error)}") from error

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        self._choose_profile(inputs)
        for name, value in zip(self._inputs, inputs, strict=True):
            if not self._context.set_input_shape(name, value.shape):
                raise RunError(f"no profile of the engine takes {name} of shape {list(value.shape)}")
            if self._engine.is_shape_inference_io(name):
                self._host[name] = np.ascontiguousarray(value)  # read by the host, and kept alive until the next call
                self._context.set_tensor_address(name, self._host[name].ctypes.data)
            else:
                self._device_buffer(name, value.nbytes).copy_from(_as_bytes(np.ascontiguousarray(value)), self._stream)
        if missing := self._context.infer_shapes():
            raise RunError(f"TensorRT cannot infer shapes: {missing}")
        results = [self._empty_output(name) for name in self._outputs]
        for name, result in zip(self._outputs, results, strict=True):
            self._device_buffer(name, result.nbytes)
        if not self._context.execute_async_v3(self._stream.ptr):
            said = "; ".join(_shorten(message) for message in self._log.errors[-2:])
            raise RunError(said or "TensorRT failed to execute")
        for name, result in zip(self._outputs, results, strict=True):
            if result.nbytes:
                self._buffers[name].copy_to(_as_bytes(result), self._stream)
        self._stream.synchronize()
        return results

    def _empty_output(self, name: str) -> Array:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise RunError(f"the shape of output {name} depends on the data")
        return np.empty(shape, np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))))

    def _device_buffer(self, name: str, nbytes: int) -> Any:
        """The tensor's own device memory, grown when needed and reused by every call."""
        from polygraphy.cuda import DeviceArray

        if name not in self._buffers:
            self._buffers[name] = DeviceArray.raw((1,))
        buffer = self._buffers[name].resize((max(nbytes, 1),))
        self._context.set_tensor_address(name, buffer.ptr)
        return buffer

    def __del__(self) -> None:
        for buffer in getattr(self, "_buffers", {}).values():
            buffer.free()  # Polygraphy frees nothing by itself
        if stream := getattr(self, "_stream", None):
            stream.free()

    def _choose_profile(self, inputs: Sequence[Array]) -> None:
        """The first profile that contains every shape, as TF-TRT chooses."""
        for index in range(self._engine.num_optimization_profiles):
            if all(self._fits(name, index, value.shape) for name, value in zip(self._inputs, inputs, strict=True)):
                if self._context.active_optimization_profile != index:
                    self._context.set_optimization_profile_async(index, self._stream.ptr)
                return
        raise RunError(f"no profile of the engine takes shapes {[list(value.shape) for value in inputs]}")

    def _fits(self, name: str, profile: int, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return len(low) == len(shape) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))


def _as_bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _shorten(text: str) -> str:
    text = " ".join(text.split())[:240]
    return "not supported" if text in ("", "false") else text  # the text of the assertion that failed
