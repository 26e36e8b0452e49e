"""The NVIDIA GPUs of this machine, asked of the CUDA driver through ``ctypes``: no vendor package is needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU that the CUDA driver shows."""

    name: str
    compute_capability: str
    memory_bytes: int


def list_gpus() -> tuple[str, tuple[Gpu, ...]]:
    """The CUDA version of the driver and its GPUs, asked of the driver itself; ``("", ())`` without one."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "", ()
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return "", ()
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(number)) != 0:
        return driver, ()
    return driver, tuple(_gpu(cuda, index) for index in range(number.value))


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_COMPUTE_MAJOR, _COMPUTE_MINOR):
        number = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(capability), memory.value)
