"""An engine without anything around it: what a call costs at least. One input in float32, fixed shapes, one stream."""

from __future__ import annotations

import ctypes
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.engines.tensorrt import cuda, library
from refimpl.engines.tensorrt.kernels import KernelCache
from refimpl.engines.tensorrt.loading import deserialize
from refimpl.engines.tensorrt.tensors import pick_profile, signature_of
from refimpl.errors import RunError

Array = Any


class Bare:
    """A context with its addresses set.

    Args:
        file: the engine.
        value: its input.

    Raises:
        RunError: it cannot be loaded, or takes something else.
    """

    def __init__(self, file: Path, value: Array) -> None:
        trt = library.require()
        self._log, self._device = library.Log(trt), cuda.device()
        self._device.use()
        self._runtime, self._engine = deserialize(trt, self._log, file)
        # The configuration refers to the cache and does not own it: both live as long as the context.
        self._kernels = KernelCache()
        self._config = self._kernels.configure(trt, self._engine)
        self._context = self._engine.create_execution_context(self._config)
        if self._context is None:
            raise RunError(self._log.said() or "TensorRT makes no context, and says no more")
        signature = signature_of(trt, self._engine)
        if len(signature.inputs) != 1 or signature.inputs[0].dtype != value.dtype:
            raise RunError(f"{file.name} does not take one input of {value.dtype}")
        self._stream = self._device.new_stream()
        work = int(self._engine.device_memory_size_v2)
        self._blocks = [self._device.allocate(max(work, 1))]
        self._context.set_device_memory(self._blocks[0], work)
        (given,) = signature.inputs
        profile = pick_profile(self._engine, signature.inputs, (value.shape,), {})
        self._context.set_optimization_profile_async(profile, self._stream)
        self._context.set_input_shape(given.name, value.shape)
        sizes = {given.name: value.nbytes}
        for tensor in signature.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            sizes[tensor.name] = int(np.prod(shape)) * tensor.dtype.itemsize
        self._pairs = {}
        for name, nbytes in sizes.items():
            pair = self._device.allocate(nbytes), self._device.allocate_pinned(nbytes)
            self._blocks.append(pair[0])
            self._context.set_tensor_address(name, pair[0])
            self._pairs[name] = (*pair, nbytes)
        self._given = given.name
        self._source = np.ascontiguousarray(value)
        self._results = {name: np.empty(size, np.uint8) for name, size in sizes.items() if name != given.name}
        ctypes.memmove(self._pairs[given.name][1], self._source.ctypes.data, value.nbytes)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise RunError(self._log.said() or "TensorRT failed to execute")

    def call(self) -> None:
        """Copy, run, copy, wait."""
        for name, (block, pinned, nbytes) in self._pairs.items():
            if name == self._given:
                self._device.to_device(block, pinned, nbytes, self._stream)
        self._enqueue()
        for name, (block, pinned, nbytes) in self._pairs.items():
            if name != self._given:
                self._device.to_host(pinned, block, nbytes, self._stream)
        self._device.synchronize(self._stream)

    def call_arrays(self) -> None:
        """The same from and to NumPy's arrays, as a program that has arrays does it: CUDA copies any memory."""
        self._device.to_device(self._pairs[self._given][0], self._source.ctypes.data, self._source.nbytes, self._stream)
        self._enqueue()
        for name, result in self._results.items():
            self._device.to_host(result.ctypes.data, self._pairs[name][0], result.nbytes, self._stream)
        self._device.synchronize(self._stream)

    def kernels_ms(self, enqueues: int, repeats: int, *, graph: bool) -> float:
        """Milliseconds of one enqueue by CUDA events: the median of ``repeats`` means over ``enqueues``."""
        device, stream = self._device, self._stream
        self.call()
        captured = self._captured() if graph else 0
        events = device.new_event(), device.new_event()
        times = []
        for _ in range(repeats + 1):
            device.record(events[0], stream)
            for _ in range(enqueues):
                if captured:
                    device.launch(captured, stream)
                else:
                    self._enqueue()
            device.record(events[1], stream)
            times.append(device.elapsed(*events) / enqueues)
        for event in events:
            device.destroy_event(event)
        if captured:
            device.destroy_graph(captured)
        return statistics.median(times[1:])  # the first warms up

    def _captured(self) -> int:
        self._device.begin_capture(self._stream)
        try:
            self._enqueue()
        except BaseException:
            self._device.abandon_capture(self._stream)
            raise
        return self._device.end_capture(self._stream)

    def close(self) -> None:
        """Give everything back."""
        self._device.synchronize(self._stream)
        self._context = None
        for block in self._blocks:
            self._device.free(block)
        for _, pinned, _ in self._pairs.values():
            self._device.free_pinned(pinned)
        self._device.destroy_stream(self._stream)
