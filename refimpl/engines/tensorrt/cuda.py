"""CUDA as far as engines need it: memory, streams, graphs, events and kernels, through ``ctypes`` over the CUDA driver.

The driver's own library is there wherever a GPU can be used, so nothing has to be installed or found: NVIDIA's
``cuda-bindings`` would be one more package to carry to machines without a network, and the CUDA runtime
(``libcudart``), which Polygraphy looks for, is not there when TensorRT came as a wheel. Driver and runtime share a
device's primary context, so that memory and streams made here are valid in TensorRT and TensorFlow alike.

Names and numbers are those of ``cuda.h``, CUDA 11.4 and later.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any

from refimpl.errors import RunError

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
# After these the device's context is lost for this process: every later call returns the same error.
_FATAL = frozenset({214, 700, 702, 709, 713, 714, 715, 716, 717, 718, 719, 721})
_CAPTURE_THREAD_LOCAL = 1  # other threads may go on allocating memory meanwhile
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy default stream
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CUdevice_attribute

_INT, _POINTER, _SIZE, _UNSIGNED = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
_ADDRESS = ctypes.c_uint64  # CUdeviceptr
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UNSIGNED,),
    "cuGetErrorName": (_INT, _POINTER),
    "cuDeviceGet": (_POINTER, _INT),
    "cuDeviceGetAttribute": (_POINTER, _INT, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuCtxSetCurrent": (_POINTER,),
    "cuCtxGetDevice": (_POINTER,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (_POINTER, _POINTER),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_POINTER, _SIZE, _UNSIGNED),
    "cuMemFreeHost": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _POINTER),
    "cuMemcpyDtoDAsync_v2": (_ADDRESS, _ADDRESS, _SIZE, _POINTER),
    "cuMemsetD32Async": (_ADDRESS, _UNSIGNED, _SIZE, _POINTER),
    "cuModuleLoadData": (_POINTER, _POINTER),
    "cuModuleGetFunction": (_POINTER, _POINTER, ctypes.c_char_p),
    "cuLaunchKernel": (_POINTER, *[_UNSIGNED] * 7, _POINTER, _POINTER, _POINTER),
    "cuStreamCreate": (_POINTER, _UNSIGNED),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamBeginCapture_v2": (_POINTER, _INT),
    "cuStreamEndCapture": (_POINTER, _POINTER),
    "cuGraphInstantiateWithFlags": (_POINTER, _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGraphDestroy": (_POINTER,),
    "cuEventCreate": (_POINTER, _UNSIGNED),
    "cuEventDestroy_v2": (_POINTER,),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventSynchronize": (_POINTER,),
    "cuEventElapsedTime": (_POINTER, _POINTER, _POINTER),
}


class CudaError(RunError):
    """A call of the CUDA driver failed.

    Args:
        code: its CUresult.
        name: that number's name, such as ``CUDA_ERROR_OUT_OF_MEMORY``.
        call: the function.
    """

    def __init__(self, code: int, name: str, call: str) -> None:
        super().__init__(f"{call} failed: {name}")
        self.code = code
        self.fatal = code in _FATAL


@functools.cache
def _library() -> Any:
    """The driver's library with the types of its functions declared.

    Raises:
        OSError: there is none.
        AttributeError: it is older than CUDA 11.4.
    """
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _INT
    return library


class Device:
    """One GPU, through its primary context. Addresses, streams and graphs are plain integers.

    Args:
        driver: the library; another one in tests.
        index: which GPU.

    Raises:
        CudaError: every method may; the message names the call and CUDA's error.
    """

    def __init__(self, driver: Any, index: int = 0) -> None:
        self._driver = driver
        self._call("cuInit", 0)
        number, self._context = _INT(), _POINTER()
        self._call("cuDeviceGet", ctypes.byref(number), index)
        self.number = number.value
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self.number)
        self.use()

    def _call(self, name: str, *arguments: Any) -> None:
        if (code := getattr(self._driver, name)(*arguments)) != 0:
            raise CudaError(code, self._error_name(code), name)

    def _error_name(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._driver.cuGetErrorName(code, ctypes.byref(text)) != 0 or text.value is None:
            return f"CUDA error {code}"
        return text.value.decode(errors="replace")

    def _made(self, name: str, kind: Any, *arguments: Any) -> Any:
        """What a function writes to its first argument."""
        value = kind()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def use(self) -> None:
        """Make this GPU the calling thread's; every thread that calls other methods does so first."""
        self._call("cuCtxSetCurrent", self._context)

    def compute_capability(self) -> tuple[int, int]:
        """Such as (9, 0)."""
        major = self._made("cuDeviceGetAttribute", _INT, _COMPUTE_MAJOR, self.number)
        return major, self._made("cuDeviceGetAttribute", _INT, _COMPUTE_MINOR, self.number)

    def memory(self) -> tuple[int, int]:
        """Bytes that are free and bytes in all, of every process."""
        free, total = _SIZE(), _SIZE()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, nbytes: int) -> int:
        """The address of new memory on the GPU, aligned to 256 bytes."""
        return int(self._made("cuMemAlloc_v2", _ADDRESS, nbytes))

    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` gave."""
        self._call("cuMemFree_v2", address)

    def allocate_pinned(self, nbytes: int) -> int:
        """The address of new page-locked memory of the host, which the GPU reads and writes by itself."""
        return int(self._made("cuMemHostAlloc", _POINTER, nbytes, 0))

    def free_pinned(self, address: int) -> None:
        """Give back what :meth:`allocate_pinned` gave."""
        self._call("cuMemFreeHost", address)

    def to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy host memory to the GPU, in the order of a stream."""
        self._call("cuMemcpyHtoDAsync_v2", target, source, nbytes, stream)

    def to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy memory of the GPU to the host, in the order of a stream."""
        self._call("cuMemcpyDtoHAsync_v2", target, source, nbytes, stream)

    def on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy memory on the GPU, in the order of a stream."""
        self._call("cuMemcpyDtoDAsync_v2", target, source, nbytes, stream)

    def fill(self, address: int, value: int, count: int, stream: int) -> None:
        """Set ``count`` numbers of 32 bits, in the order of a stream."""
        self._call("cuMemsetD32Async", address, value, count, stream)

    def load_kernels(self, ptx: bytes) -> int:
        """A module of kernels, which the driver compiles for this GPU; it stays as long as the process."""
        return int(self._made("cuModuleLoadData", _POINTER, ptx))

    def kernel(self, module: int, name: str) -> int:
        """A kernel of a module."""
        return int(self._made("cuModuleGetFunction", _POINTER, module, name.encode()))

    def launch_kernel(self, kernel: int, grid: tuple[int, int], arguments: Sequence[Any], stream: int) -> None:
        """Run a kernel in the order of a stream.

        Args:
            kernel: from :meth:`kernel`.
            grid: how many blocks, and of how many threads.
            arguments: values of ``ctypes``, of exactly the kernel's types; they are read before this returns.
            stream: its order.
        """
        pointers = (_POINTER * len(arguments))(*(ctypes.addressof(item) for item in arguments))
        blocks, threads = grid
        self._call("cuLaunchKernel", kernel, blocks, 1, 1, threads, 1, 1, 0, stream, pointers, None)

    def new_stream(self) -> int:
        """A stream of its own, not ordered with the default stream."""
        return int(self._made("cuStreamCreate", _POINTER, _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back; what is enqueued in it still runs."""
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until a stream has done everything; errors of what ran in it come up here."""
        self._call("cuStreamSynchronize", stream)

    def synchronize_all(self) -> None:
        """Wait until every stream of this process has done everything on this GPU."""
        self._call("cuCtxSynchronize")

    def begin_capture(self, stream: int) -> None:
        """From here to :meth:`end_capture` what is enqueued is noted and not run."""
        self._call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """An executable graph of what was enqueued."""
        graph = _POINTER()
        self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return int(self._made("cuGraphInstantiateWithFlags", _POINTER, graph.value, 0))
        finally:
            self._call("cuGraphDestroy", graph.value)

    def abandon_capture(self, stream: int) -> None:
        """End a capture that failed; the stream can be used again."""
        graph = _POINTER()
        self._driver.cuStreamEndCapture(stream, ctypes.byref(graph))  # reports the failure that is known already
        if graph.value:
            self._call("cuGraphDestroy", graph.value)

    def launch(self, graph: int, stream: int) -> None:
        """Run an executable graph in the order of a stream."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Give an executable graph back."""
        self._call("cuGraphExecDestroy", graph)

    def new_event(self) -> int:
        """An event that notes times."""
        return int(self._made("cuEventCreate", _POINTER, 0))

    def destroy_event(self, event: int) -> None:
        """Give an event back."""
        self._call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        """Let the event note when a stream has come this far."""
        self._call("cuEventRecord", event, stream)

    def elapsed(self, start: int, end: int) -> float:
        """Milliseconds between two events, the second one waited for."""
        self._call("cuEventSynchronize", end)
        return float(self._made("cuEventElapsedTime", ctypes.c_float, start, end))


@functools.cache
def device(index: int = 0) -> Device:
    """A GPU by its number, made once.

    Raises:
        RunError: there is no driver, or it cannot use that GPU; the message says why.
    """
    try:
        return Device(_library(), index)
    except (OSError, AttributeError) as error:
        raise RunError(f"the CUDA driver cannot be used: {error}") from error
