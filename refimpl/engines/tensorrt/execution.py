"""An open engine: a bounded pool of lanes, one for each call that runs at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.engines import looked_at
from refimpl.engines.tensorrt import library
from refimpl.engines.tensorrt.cuda import CudaError, Device
from refimpl.engines.tensorrt.dlpack import Borrowed, DeviceTensor, borrow
from refimpl.engines.tensorrt.finite import looker
from refimpl.engines.tensorrt.kernels import KernelCache
from refimpl.engines.tensorrt.lanes import DEFAULT, FEWER, Lane, Limits, Shared
from refimpl.engines.tensorrt.lent import LentCalls
from refimpl.engines.tensorrt.loading import deserialize
from refimpl.engines.tensorrt.memory import Memory
from refimpl.engines.tensorrt.tensors import Array, signature_of
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
        self._lent: dict[Lane, LentCalls] = {}
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
        return self._run(inputs, looks=False)

    def run_finite(self, inputs: Sequence[Array]) -> list[Array]:
        """Like :meth:`run`, looking on the GPU, where that costs next to nothing, whether values are finite.

        Raises:
            NotFiniteError: a value is not.
            RunError: as :meth:`run`.
        """
        if looker(self._device).problem:
            return looked_at(self.run, inputs)
        return self._run(inputs, looks=True)

    def _run(self, inputs: Sequence[Array], *, looks: bool) -> list[Array]:
        with self._lane() as lane:
            results = lane.run([np.asarray(value) for value in inputs], looks=looks)
        self._save_news()
        return results

    def _save_news(self) -> None:
        """Kernels that were compiled for what never ran before are kept for the next start."""
        if self._shared.news.is_set():
            self._shared.news.clear()
            self._kernels.save()

    def run_device(self, inputs: Sequence[Any], finite_only: bool = False) -> list[DeviceTensor]:
        """Run once with tensors on the GPU, by DLPack; nothing is copied, and the outputs stay there.

        Args:
            inputs: have ``__dlpack__`` and ``__dlpack_device__``, are contiguous, in the engine's order.
            finite_only: look, on the GPU, whether inputs and outputs are finite.

        Raises:
            NotFiniteError: ``finite_only``, and a value is not.
            RunError: as :meth:`run`; also for an engine that reads or writes shapes on the host, or whose outputs have
                shapes that depend on the data.
        """
        with self._lane() as lane:
            borrowed: list[Borrowed] = []
            try:
                borrowed.extend(borrow(value, lane.stream) for value in inputs)
                if lane not in self._lent:
                    self._lent[lane] = LentCalls(lane, self._shared)
                outputs = self._lent[lane].run(borrowed, finite_only=finite_only)
            except BaseException:
                lane.settle()  # before the inputs go back to their owners
                raise
            finally:
                for item in borrowed:
                    item.release()
        self._save_news()
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
            self._lent.clear()
            for lane in idle:
                lane.close()
            self._shared.memory.keep_nothing()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()
