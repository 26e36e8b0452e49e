"""Outputs whose shapes are known only after a run: TensorRT asks for their memory while it runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.engines.tensorrt.memory import Memory
from refimpl.errors import RunError

Array = np.ndarray[Any, Any]


class Growing:
    """Memory of one such output, grown when TensorRT asks for more and kept for the next call.

    Args:
        memory: where blocks come from.
        name: of the output, for messages.
    """

    def __init__(self, memory: Memory, name: str) -> None:
        self._memory, self._name = memory, name
        self.address, self.nbytes = 0, 0
        self.shape: tuple[int, ...] | None = None  # of the last run
        self.bytes: Array = np.empty(0, np.uint8)  # on the host, after fetch
        self.allocator: Any = None  # what TensorRT is given

    def reallocate(self, nbytes: int) -> int:
        """The address of at least so many bytes; 0 when there is not enough memory, which TensorRT reports."""
        if nbytes > self.nbytes or not self.address:
            self.close()
            try:
                self.address = self._memory.take(nbytes)
            except RunError:
                return 0
            self.nbytes = nbytes
        return self.address

    def upload(self, stream: int) -> None:
        """Nothing: this is an output."""

    def download(self, stream: int) -> None:
        """Nothing yet: see :meth:`fetch`."""

    def fetch(self, itemsize: int, stream: int) -> tuple[int, ...]:
        """Copy the last run's output to the host.

        Returns:
            Its shape.

        Raises:
            RunError: TensorRT has not said a shape.
        """
        if self.shape is None or any(size < 0 for size in self.shape):
            raise RunError(f"TensorRT did not say the shape of output {self._name}, which depends on the data")
        nbytes = int(np.prod(self.shape, dtype=np.int64)) * itemsize
        self.bytes = np.empty(nbytes, np.uint8)
        if nbytes:
            device = self._memory.device
            device.to_host(self.bytes.ctypes.data, self.address, nbytes, stream)
            device.synchronize(stream)
        shape, self.shape = self.shape, None
        return shape

    def close(self) -> None:
        """Free it."""
        if self.address:
            self._memory.drop(self.address, self.nbytes)
        self.address, self.nbytes = 0, 0


def growing(trt: Any, memory: Memory, name: str) -> Growing:
    """Such an output, with the object by which TensorRT asks for its memory.

    Raises:
        RunError: this TensorRT cannot ask.
    """
    if not hasattr(trt, "IOutputAllocator"):
        raise RunError(f"the shape of output {name} depends on the data")
    output = Growing(memory, name)

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output_async(self, _name: str, _memory: Any, size: int, _alignment: int, _stream: int) -> int:
            return output.reallocate(size)

        def reallocate_output(self, _name: str, _memory: Any, size: int, _alignment: int) -> int:
            return output.reallocate(size)

        def notify_shape(self, _name: str, shape: Any) -> None:
            output.shape = tuple(shape)

    output.allocator = Allocator()
    return output
