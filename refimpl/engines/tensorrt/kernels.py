"""Kernels that TensorRT for RTX compiles on the GPU when an engine first runs there, kept for the next start.

A bundle that was converted on a machine with a GPU brings them along; elsewhere the directory of ``REFIMPL_CACHE_DIR``
receives them. TensorRT compares GPU, driver and versions itself and takes nothing that does not fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from refimpl import env, gpus
from refimpl.engines.tensorrt import library

SUFFIX = ".kernels"  # after the name of the engine's file
_DIGEST = hashlib.sha256().digest_size  # bytes in front of what is kept in a directory


class KernelCache:
    """The kernels of one engine.

    Args:
        stored: a file of the bundle, its checksum compared; None without one.
        kept: a file that receives new kernels and may hold some; None keeps nothing.
    """

    def __init__(self, stored: Path | None = None, kept: Path | None = None) -> None:
        self._stored, self._kept = stored, kept
        self._cache: Any = None
        self._last = b""  # digest of what was written or read last
        self.loaded: tuple[str, ...] = ()  # where kernels came from: "bundle", "directory"

    def configure(self, trt: Any, engine: Any) -> Any:
        """What execution contexts of an engine are made with: working memory is the caller's, kernels are kept.

        Returns:
            An IRuntimeConfig, or the strategy alone where this TensorRT has no such thing.
        """
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(engine, "create_runtime_config"):
            return strategy
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # The default swaps kernels in the background: answers would change between calls after they were proven.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if hasattr(config, "create_runtime_cache"):
            self._cache = config.create_runtime_cache()
            self._load()
            config.set_runtime_cache(self._cache)
        return config

    def _load(self) -> None:
        """From the directory, which has seen this GPU, or else from the bundle."""
        for name, data in (("directory", _read_kept(self._kept)), ("bundle", _read(self._stored))):
            if data and not self.loaded and self._cache.deserialize(data):
                self.loaded = (name,)
                self._last = hashlib.sha256(data).digest()

    def serialized(self) -> bytes:
        """All kernels that there are now; empty where this TensorRT compiles none at run time."""
        return bytes(memoryview(self._cache.serialize())) if self._cache is not None else b""

    def save(self) -> None:
        """Write new kernels to the directory; a directory that cannot be written to is none."""
        if self._kept is None or self._cache is None or env.flag("REFIMPL_CACHE_READ_ONLY", default=False):
            return
        data = self.serialized()
        digest = hashlib.sha256(data).digest()
        if digest != self._last:
            self._last = digest
            with contextlib.suppress(OSError):
                _write(self._kept, digest + data)


def kernel_cache(engine: Path, stored: Path | None = None) -> KernelCache:
    """The kernels of an engine's file: those of the bundle, and those kept in the cache directory, if there is one."""
    directory = env.cache_directory()
    if not directory:
        return KernelCache(stored)
    total = hashlib.sha256(f"{library.version()}\0{[gpu.name for gpu in gpus.list_gpus()[1][:1]]}\0".encode())
    with engine.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return KernelCache(stored, Path(directory) / "kernels" / f"{total.hexdigest()}{SUFFIX}")


def _read(file: Path | None) -> bytes:
    try:
        return file.read_bytes() if file is not None else b""
    except OSError:
        return b""


def _read_kept(file: Path | None) -> bytes:
    """A file of the directory without its digest; nothing when it was cut off or changed."""
    data = _read(file)
    return data[_DIGEST:] if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST] else b""


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all: other processes may read and write the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
