"""An open engine: a bounded pool of lanes, one for each call that runs at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.engines.tensorrt import library
from refimpl.engines.tensorrt.cuda import CudaError, Device
from refimpl.engines.tensorrt.dlpack import Borrowed, DeviceTensor, borrow
from refimpl.engines.tensorrt.kernels import KernelCache
from refimpl.engines.tensorrt.lanes import DEFAULT, ENQUEUED, FEWER, Lane, Limits, Shared
from refimpl.engines.tensorrt.loading import deserialize
from refimpl.engines.tensorrt.memory import Memory
from refimpl.engines.tensorrt.tensors import Array, check_dtypes, pick_profile, signature_of
from refimpl.errors import RunError, first_line

_KEPT_OUTPUTS = 256 << 20  # bytes of outputs on the GPU that nobody holds any more, kept for the next call


class TrtEngine:
    """A deserialized engine that any number of threads may run; more than ``limits.contexts`` of them wait.

    Args:
        path: the engine's file.
        device: the GPU.
        limits: bounds on what it keeps.
        kernels: kernels that TensorRT for RTX has compiled for it before, and where new ones are kept.

    Raises:
        RunError: it cannot be loaded here; the message says why.
    """

    def __init__(
        self, path: Path, device: Device, limits: Limits = DEFAULT, kernels: KernelCache | None = None
    ) -> None:
        trt = library.require()
        log = library.Log(trt)
        device.use()
        self._device, self._limits, self._path = device, limits, path
        self._runtime, engine = deserialize(trt, log, path)
        self._engine = engine
        self._kernels = kernels or KernelCache()
        config = self._kernels.configure(trt, engine)
        self._shared = Shared(
            trt,
            engine,
            lambda: engine.create_execution_context(config),
            signature_of(trt, engine),
            Memory(device, _KEPT_OUTPUTS),
            log,
            limits,
        )
        self._idle: list[Lane] = []
        self._made, self._most = 0, limits.contexts
        self._free = threading.Condition()
        self._closed, self._broken = False, ""
        with self._lane():  # a context that cannot be made is known now
            pass

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once. Inputs and outputs are arrays of the host in the engine's order.

        Raises:
            RunError: the engine cannot run these inputs, or the GPU failed.
        """
        with self._lane() as lane:
            results = lane.run([np.asarray(value) for value in inputs])
        if self._shared.news.is_set():
            self._shared.news.clear()
            self._kernels.save()
        return results

    def run_device(self, inputs: Sequence[Any]) -> list[DeviceTensor]:
        """Run once with tensors on the GPU, by DLPack; nothing is copied, and the outputs stay there.

        Args:
            inputs: have ``__dlpack__`` and ``__dlpack_device__``, are contiguous, in the engine's order.

        Raises:
            RunError: as :meth:`run`; also for an engine that reads or writes shapes on the host, or whose outputs have
                shapes that depend on the data.
        """
        with self._lane() as lane:
            borrowed: list[Borrowed] = []
            try:
                borrowed.extend(borrow(value, lane.stream) for value in inputs)
                return self._run_device(lane, borrowed)
            except BaseException:
                lane.settle()  # before the inputs go back to their owners
                raise
            finally:
                for item in borrowed:
                    item.release()

    def _run_device(self, lane: Lane, inputs: Sequence[Borrowed]) -> list[DeviceTensor]:
        shared = self._shared
        signature, memory = shared.signature, shared.memory
        check_dtypes(signature.inputs, [item.dtype for item in inputs])
        if host := [item.name for item in (*signature.inputs, *signature.outputs) if item.on_host]:
            raise RunError(f"TensorRT has {', '.join(host)} on the host, so the engine cannot run on the device alone")
        if any(item.device != self._device.number for item in inputs):
            raise RunError(f"an input is on another GPU than the engine, which is on GPU {self._device.number}")
        context, shapes = lane.context, tuple(item.shape for item in inputs)
        lane.choose_profile(context, pick_profile(self._engine, signature.inputs, shapes, {}))
        for tensor, item in zip(signature.inputs, inputs, strict=True):
            if not context.set_input_shape(tensor.name, item.shape):
                raise RunError(f"no profile of the engine takes {tensor.name} of shape {list(item.shape)}")
            context.set_tensor_address(tensor.name, item.address)
        outputs = []
        for tensor, shape in zip(signature.outputs, lane.output_shapes(context), strict=True):
            if any(size < 0 for size in shape):
                raise RunError(f"the shape of output {tensor.name} depends on the data")
            nbytes = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize
            address = memory.take(nbytes)
            outputs.append(
                DeviceTensor(address, shape, tensor.dtype, self._device.number, _giver(memory, address, nbytes))
            )
            context.set_tensor_address(tensor.name, address)
        lane.execute(context)
        self._device.synchronize(lane.stream)
        shared.count(ENQUEUED)
        return outputs

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane of one's own; whatever fails in it becomes a RunError."""
        lane = self._taken()
        try:
            self._device.use()
            yield lane
        except BaseException as error:
            lane.settle()
            if isinstance(error, CudaError) and error.fatal:
                self._broken = error.message
            if isinstance(error, RunError) or not isinstance(error, Exception):
                raise
            raise RunError(f"TensorRT failed: {first_line(error)}") from error
        finally:
            self._back(lane)

    def _taken(self) -> Lane:
        with self._free:
            while True:
                if self._closed:
                    raise RunError(f"the engine {self._path.name} was closed")
                if self._broken:
                    raise RunError(f"the GPU failed before: {self._broken}", hint="start the process again")
                if self._idle:
                    return self._idle.pop()
                if self._made < self._most:
                    self._made += 1
                    break
                self._free.wait()
        try:
            self._device.use()
            return Lane(self._shared)
        except Exception as error:  # noqa: BLE001  (CUDA's errors and whatever TensorRT raises)
            return self._instead(error)

    def _instead(self, error: Exception) -> Lane:
        """No further lane can be made, for lack of memory for example: wait for one of those that there are.

        Raises:
            RunError: there is none.
        """
        with self._free:
            self._made -= 1
            self._free.notify()
            if self._made == 0:
                raise error if isinstance(error, RunError) else RunError(f"TensorRT failed: {first_line(error)}")
            self._most = self._made
        self._shared.count(f"{FEWER}{error}")
        return self._taken()

    def _back(self, lane: Lane) -> None:
        with self._free:
            if not self._closed:
                self._idle.append(lane)
                self._free.notify()
                return
        lane.close()

    @property
    def kernels_from(self) -> tuple[str, ...]:
        """Where kernels that had been compiled before came from: ``"directory"``, ``"bundle"``, or nowhere."""
        return self._kernels.loaded

    def counts(self) -> dict[str, int]:
        """How calls were run, and why no CUDA graph was made where none was, since the engine was opened."""
        return dict(self._shared.counts)

    def layer_milliseconds(self, inputs: Sequence[Array]) -> list[tuple[str, float]]:
        """Time of every layer in one run, as TensorRT's profiler reports it; slower than a plain run."""
        trt: Any = self._shared.trt
        found: list[tuple[str, float]] = []

        class Profiler(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                found.append((layer_name, ms))

        with self._lane() as lane:
            values = [np.asarray(value) for value in inputs]
            lane.run(values)  # memory, and kernels that are compiled at the first call
            found.clear()
            lane.profiled(Profiler(), values)
        return found

    def close(self) -> None:
        """Give everything on the GPU back; calls that are running finish first, and further ones are refused."""
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, []
            self._free.notify_all()
        with contextlib.suppress(RunError):
            self._device.use()
            self._kernels.save()
            for lane in idle:
                lane.close()
            self._shared.memory.keep_nothing()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()


def _giver(memory: Memory, address: int, nbytes: int) -> Any:
    def give() -> None:
        with contextlib.suppress(RunError):
            memory.device.use()
            memory.give(address, nbytes)

    return give
