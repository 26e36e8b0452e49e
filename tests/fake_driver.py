# ruff: noqa: ARG002, N802, N815  (functions have the names and arguments of the CUDA driver)
"""A CUDA driver that is none: memory of the host, streams that do at once what they are told, graphs that replay it."""

from __future__ import annotations

import ctypes
import itertools
import threading

import numpy as np

ERRORS = {1: b"CUDA_ERROR_INVALID_VALUE", 2: b"CUDA_ERROR_OUT_OF_MEMORY", 700: b"CUDA_ERROR_ILLEGAL_ADDRESS"}


class FakeDriver:
    """Has the functions of ``refimpl.engines.tensorrt.cuda``.

    Attributes:
        total: bytes of the GPU.
        fail: error codes that the next calls of a function return, by its name.
        calls: names of all functions called.
        blind: kernels that look for what is not finite see nothing.
    """

    def __init__(self, total: int = 1 << 30) -> None:
        self.total = total
        self.fail: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self.blocks: dict[int, object] = {}
        self.pinned: dict[int, object] = {}
        self.captures: dict[int, list] = {}  # of streams that capture
        self.streams: set[int] = set()
        self.graphs: dict[int, list] = {}
        self.templates: dict[int, list] = {}
        self.waited: list[int] = []  # streams, in the order in which they were waited for
        self.kernels: dict[int, str] = {}  # names of functions
        self.blind = False
        self._handles = itertools.count(0x1000)
        self._lock = threading.RLock()

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            with self._lock:
                self.calls.append(name)
                if self.fail.get(name):
                    return self.fail[name].pop(0)
                return getattr(self, "_" + name.removesuffix("_v2"))(*arguments) or 0

        return call

    @property
    def used(self) -> int:
        return sum(ctypes.sizeof(block) for block in self.blocks.values())

    def enqueue(self, stream, work) -> None:
        """Do it now, or note it while the stream captures."""
        if stream not in self.streams:
            raise AssertionError(f"{stream} is no stream")
        if stream in self.captures:
            self.captures[stream].append(work)
        else:
            work()

    def _new(self, pointer, table, value):
        handle = next(self._handles)
        table[handle] = value
        pointer._obj.value = handle

    def _cuInit(self, flags): ...

    def _cuGetErrorName(self, code, pointer):
        pointer._obj.value = ERRORS.get(code)

    def _cuDeviceGet(self, pointer, index):
        pointer._obj.value = index

    def _cuDeviceGetAttribute(self, pointer, attribute, device):
        pointer._obj.value = {75: 9, 76: 0}[attribute]

    def _cuDevicePrimaryCtxRetain(self, pointer, device):
        pointer._obj.value = 7

    def _cuCtxSetCurrent(self, context): ...

    def _cuCtxSynchronize(self): ...

    def _cuMemGetInfo(self, free, total):
        free._obj.value, total._obj.value = self.total - self.used, self.total

    def _cuMemAlloc(self, pointer, size):
        if size < 1:
            return 1
        if self.used + size > self.total:
            return 2
        block = (ctypes.c_uint8 * size)()
        pointer._obj.value = ctypes.addressof(block)
        self.blocks[pointer._obj.value] = block
        return 0

    def _cuMemFree(self, address):
        return 0 if self.blocks.pop(address, None) is not None else 1

    def _cuMemHostAlloc(self, pointer, size, flags):
        block = (ctypes.c_uint8 * size)()
        pointer._obj.value = ctypes.addressof(block)
        self.pinned[pointer._obj.value] = block

    def _cuMemFreeHost(self, address):
        return 0 if self.pinned.pop(address, None) is not None else 1

    def _copy(self, target, source, nbytes, stream):
        self.enqueue(stream, lambda: ctypes.memmove(target, source, nbytes) and None)

    _cuMemcpyHtoDAsync = _cuMemcpyDtoHAsync = _cuMemcpyDtoDAsync = _copy

    def _cuMemsetD32Async(self, address, value, count, stream):
        words = (ctypes.c_uint32 * count).from_address(address)
        self.enqueue(stream, lambda: words.__setitem__(slice(None), [value] * count))

    def _cuModuleLoadData(self, pointer, image):
        pointer._obj.value = next(self._handles)

    def _cuModuleGetFunction(self, pointer, module, name):
        self._new(pointer, self.kernels, name.decode())

    def _cuLaunchKernel(self, kernel, *given):
        """Those of ``refimpl.engines.tensorrt.finite``; what their text computes is for tests.fake_ptx to say."""
        stream, pointers = given[-3:-1]
        kinds = ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64
        data, count, mask, flag = (k.from_address(at).value for k, at in zip(kinds, pointers, strict=True))
        word = ctypes.c_uint32 if self.kernels[kernel].endswith("32") else ctypes.c_uint16

        def work():
            values = np.frombuffer((word * count).from_address(data), word)
            if bool((values & mask == mask).any()) and not self.blind:
                ctypes.c_uint32.from_address(flag).value = 1

        self.enqueue(stream, work)

    def _cuStreamCreate(self, pointer, flags):
        pointer._obj.value = next(self._handles)
        self.streams.add(pointer._obj.value)

    def _cuStreamDestroy(self, stream):
        self.streams.remove(stream)

    def _cuStreamSynchronize(self, stream):
        self.waited.append(stream)
        return 1 if stream in self.captures else 0

    def _cuStreamBeginCapture(self, stream, mode):
        self.captures[stream] = []

    def _cuStreamEndCapture(self, stream, pointer):
        self._new(pointer, self.templates, self.captures.pop(stream))

    def _cuGraphInstantiateWithFlags(self, pointer, graph, flags):
        self._new(pointer, self.graphs, self.templates[graph])

    def _cuGraphDestroy(self, graph):
        del self.templates[graph]

    def _cuGraphExecDestroy(self, graph):
        del self.graphs[graph]

    def _cuGraphLaunch(self, graph, stream):
        for work in self.graphs[graph]:
            self.enqueue(stream, work)

    def _cuEventCreate(self, pointer, flags):
        pointer._obj.value = next(self._handles)

    def _cuEventDestroy(self, event): ...

    def _cuEventRecord(self, event, stream): ...

    def _cuEventSynchronize(self, event): ...

    def _cuEventElapsedTime(self, pointer, start, end):
        pointer._obj.value = 1.5

    def leaks(self) -> dict[str, int]:
        """What was not given back."""
        tables = {
            "blocks": self.blocks, "pinned": self.pinned, "streams": self.streams, "graphs": self.graphs,
            "templates": self.templates, "captures": self.captures,
        }  # fmt: skip
        return {name: len(table) for name, table in tables.items() if table}
