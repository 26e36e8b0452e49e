"""Tensors on a GPU that go through the host all the same: because TensorFlow answers, or an engine of the CPU does."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from refimpl.engines.tensorrt import cuda, dlpack
from refimpl.engines.tensorrt.cuda import Device
from refimpl.engines.tensorrt.dlpack import DeviceTensor
from refimpl.engines.tensorrt.tensors import Array
from refimpl.errors import RunError


def fetch(value: Any) -> Array:
    """A copy on the host of a tensor on a GPU, whatever library made it.

    Args:
        value: has ``__dlpack__`` and ``__dlpack_device__``, and is contiguous.

    Raises:
        RunError: the CUDA driver cannot be used, or DLPack has a dtype there that NumPy has not.
    """
    device = cuda.device(int(value.__dlpack_device__()[1]))
    device.use()
    stream = device.new_stream()
    try:
        item = dlpack.borrow(value, stream)
        try:
            result: Array = np.empty(item.shape, item.dtype)
            if result.nbytes:
                device.to_host(result.ctypes.data, item.address, result.nbytes, stream)
            device.synchronize(stream)
        finally:
            item.release()
    finally:
        device.destroy_stream(stream)
    return result


def place(value: Array, number: int) -> Array | DeviceTensor:
    """A copy of an array on a GPU; the array itself where DLPack has no such dtype (strings).

    Args:
        value: the array.
        number: of the GPU.

    Raises:
        RunError: the GPU has not enough memory, or fails.
    """
    if not dlpack.has_dtype(value.dtype):
        return value
    device, source = cuda.device(number), np.ascontiguousarray(value)
    device.use()
    address = device.allocate(max(source.nbytes, 1))
    tensor = DeviceTensor(address, value.shape, value.dtype, number, lambda _: _free(device, address))
    if source.nbytes:
        stream = device.new_stream()
        try:
            device.to_device(address, source.ctypes.data, source.nbytes, stream)
            device.synchronize(stream)
        finally:
            device.destroy_stream(stream)
    return tensor


def _free(device: Device, address: int) -> None:
    """CUDA waits for whoever may still read it."""
    with contextlib.suppress(RunError):
        device.use()
        device.free(address)
