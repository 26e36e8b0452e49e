"""Memory of an engine: blocks on the GPU with a bound on what is kept, and page-locked twins on the host."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.engines.tensorrt.cuda import OUT_OF_MEMORY, CudaError, Device

Array = np.ndarray[Any, Any]
FLAGS_BYTES = 8  # two numbers of 32 bits: something is not finite in the inputs, in the outputs
_PIECE = 4 << 20  # bytes that one thread copies at a time: one core copies some 8 GB/s, a GPU takes 50
_ALIGNMENT, _LARGE = 64, 1 << 16  # bytes: what TensorFlow wants, and from where on a copy costs more than asking
_COPIERS = min(8, os.cpu_count() or 1)

# What DLPack may name instead of a stream: none that is known (-1), an ambiguous one (0), one of another thread (2).
_UNKNOWN = (-1, 0, 2)


@dataclass(frozen=True, slots=True)
class _Idle:
    """A block that is kept, and the streams in which others were reading it when it came back."""

    address: int
    readers: frozenset[int]


class Memory:
    """Allocates on one GPU, keeps freed blocks for the next call, and gives them all back when memory runs out.

    Args:
        device: the GPU.
        keep_bytes: how many bytes of freed blocks are kept at most.
    """

    def __init__(self, device: Device, keep_bytes: int) -> None:
        self.device = device
        self._keep, self._kept = keep_bytes, 0
        self._idle: dict[int, list[_Idle]] = {}  # by size
        self._lock = threading.Lock()
        self.used = 0  # bytes that are out or kept

    def take(self, nbytes: int, make_room: Callable[[], None] = lambda: None) -> int:
        """The address of a block of at least so many bytes.

        Args:
            nbytes: may be 0; the block is of one byte then.
            make_room: called before the second and last try when memory runs out.

        Raises:
            CudaError: there is not enough memory, or the GPU fails.
        """
        size = max(nbytes, 1)
        with self._lock:
            found = self._idle[size].pop() if self._idle.get(size) else None
            self._kept -= size if found else 0
        if found is not None and self._settled(found, size):
            return found.address
        try:
            address = self.device.allocate(size)
        except CudaError as error:
            if error.code != OUT_OF_MEMORY:
                raise
            self.trim()
            make_room()
            address = self.device.allocate(size)
        with self._lock:
            self.used += size
        return address

    def _settled(self, block: _Idle, size: int) -> bool:
        """Wait until nobody reads a kept block any more; where that cannot be waited for, it is freed, which waits."""
        try:
            for stream in block.readers:
                if stream in _UNKNOWN:
                    self.device.synchronize_all()
                else:
                    self.device.synchronize(stream)
        except CudaError as error:
            if error.fatal:
                raise
            self._free(block.address, size)
            return False
        return True

    def give(self, address: int, nbytes: int, readers: frozenset[int] = frozenset()) -> None:
        """Take a block back, to keep or to free.

        Args:
            address: from :meth:`take`.
            nbytes: as there.
            readers: streams in which others may still read it, as DLPack names them.
        """
        size = max(nbytes, 1)
        with self._lock:
            if self._kept + size <= self._keep:
                self._kept += size
                self._idle.setdefault(size, []).append(_Idle(address, readers))
                return
        self._free(address, size)

    def drop(self, address: int, nbytes: int) -> None:
        """Free a block at once."""
        self._free(address, max(nbytes, 1))

    def trim(self) -> None:
        """Free every block that is only kept."""
        with self._lock:
            idle, self._idle, self._kept = self._idle, {}, 0
        for size, blocks in idle.items():
            for block in blocks:
                self._free(block.address, size)

    def keep_nothing(self) -> None:
        """From now on every block that comes back is freed, and so are those that are kept."""
        self._keep = 0
        self.trim()

    def _free(self, address: int, size: int) -> None:
        self.device.free(address)
        with self._lock:
            self.used -= size


@functools.cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_COPIERS, "refimpl-copy")


if hasattr(os, "register_at_fork"):  # the threads are not in the child
    os.register_at_fork(after_in_child=_copiers.cache_clear)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array; a large one begins at a multiple of 64 bytes, as TensorFlow wants it: it copies others once more."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if nbytes < _LARGE:
        return np.empty(shape, dtype)
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def copy(target: Array, source: Array) -> None:
    """Copy an array into another of the same shape and dtype; a large one by several threads.

    Args:
        target: contiguous.
        source: of any strides.
    """
    if source.nbytes < 2 * _PIECE or _COPIERS == 1 or not source.flags.c_contiguous:
        np.copyto(target, source)
        return
    size = _PIECE // source.itemsize
    to, of = target.reshape(-1), source.reshape(-1)
    pieces = [slice(start, start + size) for start in range(0, of.size, size)]
    running: list[Future[None]] = []
    try:
        running += [_copiers().submit(np.copyto, to[piece], of[piece]) for piece in pieces]
    except RuntimeError:  # Python is ending, and starts no more work in other threads
        np.copyto(target, source)
    finally:  # also when this thread is interrupted: nobody writes to memory that is given back
        wait(running)
    for done in running:
        done.result()


class Staged:
    """Memory of one tensor: a block on the GPU, and page-locked memory of the host that it is copied from or to.

    Args:
        memory: where the block comes from.
        nbytes: size of the tensor.
        on_host: TensorRT reads or writes this tensor on the host: no block is needed.
        make_room: see :meth:`Memory.take`.
    """

    def __init__(self, memory: Memory, nbytes: int, *, on_host: bool, make_room: Callable[[], None]) -> None:
        self.memory, self.nbytes, self._on_host = memory, nbytes, on_host
        self.device = 0
        self._pinned = memory.device.allocate_pinned(max(nbytes, 1))
        try:
            if not on_host:
                self.device = memory.take(nbytes, make_room)
        except BaseException:
            memory.device.free_pinned(self._pinned)
            raise
        raw: Any = (ctypes.c_uint8 * max(nbytes, 1)).from_address(self._pinned)
        self.bytes: Array = np.frombuffer(raw, np.uint8)[:nbytes]  # the host's side

    @property
    def address(self) -> int:
        """What TensorRT is told."""
        return self._pinned if self._on_host else self.device

    def upload(self, stream: int) -> None:
        """Enqueue the copy to the GPU."""
        if self.nbytes and not self._on_host:
            self.memory.device.to_device(self.device, self._pinned, self.nbytes, stream)

    def download(self, stream: int) -> None:
        """Enqueue the copy from the GPU."""
        if self.nbytes and not self._on_host:
            self.memory.device.to_host(self._pinned, self.device, self.nbytes, stream)

    def close(self) -> None:
        """Free both sides; :attr:`bytes` must not be used any more."""
        self.bytes = np.empty(0, np.uint8)
        try:
            if not self._on_host:
                self.memory.drop(self.device, self.nbytes)
        finally:
            self.memory.device.free_pinned(self._pinned)
