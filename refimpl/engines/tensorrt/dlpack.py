"""Tensors on the GPU in and out without a copy, by DLPack: the C structures of its version 0.8, through ``ctypes``.

What comes in is anything with ``__dlpack__`` and ``__dlpack_device__``; what goes out is a :class:`DeviceTensor`, which
has them too. The structures are those of ``dlpack.h`` (github.com/dmlc/dlpack), the capsule's names and who deletes
what are those of the Python array API standard.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.errors import RunError, first_line

CUDA = 2  # kDLCUDA
_LEGACY = 1  # the legacy default stream, which the standard takes when a consumer names none
Free = Callable[[frozenset[int]], None]  # is given the streams in which consumers may still read
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode by NumPy's kind; 6 is kDLBool
_KINDS = {code: kind for kind, code in _CODES.items()}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _DELETER)]
_FREE_CAPSULE = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

_api = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _FREE_CAPSULE)(
    ("PyCapsule_New", _api)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_is_valid_at = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_at = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _api))
_FRESH, _USED = b"dltensor", b"used_dltensor"  # kept alive here: capsules point to them


def is_on_gpu(value: Any) -> bool:
    """Whether a value is a tensor on a CUDA device that can be handed over by DLPack."""
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and hasattr(value, "__dlpack__") and int(device()[0]) == CUDA


def has_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether a tensor of this dtype can be handed over by DLPack."""
    return dtype.kind in _CODES


@dataclass
class Borrowed:
    """A tensor of somebody else's; :meth:`release` tells the owner that it is not read any more."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    release: Callable[[], None]


def borrow(value: Any, stream: int) -> Borrowed:
    """Take a tensor on the GPU; its owner makes its contents ready for work enqueued in ``stream``.

    Raises:
        RunError: it is not contiguous, not on a CUDA device, or of a dtype that NumPy has not; or its owner refuses.
    """
    try:
        capsule = value.__dlpack__(stream=stream)
    except Exception as error:  # whatever its library raises: PyTorch hands no tensor over that gradients flow through
        raise RunError(f"a tensor is not handed over by DLPack: {first_line(error)}") from error
    managed = ctypes.cast(_pointer_of(capsule, _FRESH), ctypes.POINTER(_Managed))
    _rename(capsule, _USED)  # from here on it is ours to delete

    def release() -> None:
        if managed.contents.deleter:
            managed.contents.deleter(managed)

    try:
        return _read(managed.contents.tensor, release)
    except BaseException:
        release()
        raise


def _read(tensor: _Tensor, release: Callable[[], None]) -> Borrowed:
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.device_type != CUDA:
        raise RunError(f"a tensor that was handed over by DLPack is on a device of kind {tensor.device_type}, not CUDA")
    if tensor.code not in _KINDS or tensor.lanes != 1:
        raise RunError(f"a tensor that was handed over by DLPack is of dtype code {tensor.code}, which NumPy has not")
    if tensor.strides and not _contiguous(shape, [tensor.strides[axis] for axis in range(tensor.ndim)]):
        raise RunError(
            f"a tensor of shape {list(shape)} that was handed over by DLPack is not contiguous",
            hint="copy it into a contiguous one first (PyTorch: .contiguous())",
        )
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    return Borrowed((tensor.data or 0) + tensor.byte_offset, shape, dtype, tensor.device_id, release)


def _contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    expected = 1
    if 0 in shape:
        return True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


class DeviceTensor:
    """An output that stays on the GPU. Its memory lives as long as it, or a consumer of its capsules, needs it.

    Its contents are complete: whoever takes it need not wait for a stream. Whoever lets go of it may have work in its
    stream that still reads it, so the streams of all consumers are told to who frees the memory.

    Attributes:
        address: of the first element, on the GPU.
        shape: its sizes.
        dtype: NumPy's.
        device: number of the GPU.
    """

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, free: Free) -> None:
        self.address, self.shape, self.dtype, self.device = address, shape, dtype, device
        self._block = _Block(free)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __repr__(self) -> str:
        return f"DeviceTensor({self.dtype}{list(self.shape)} on GPU {self.device})"

    def __array__(self, *_: Any, **__: Any) -> Any:
        """NumPy would make an array of one object, and nobody would know."""
        raise TypeError(f"{self!r} is not on the host; take it with from_dlpack of PyTorch, CuPy, JAX or TensorFlow")

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        self._block.readers.add(_LEGACY if stream is None else int(stream))
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        kind, bits = _CODES[self.dtype.kind], self.dtype.itemsize * 8
        tensor = _Tensor(self.address, CUDA, self.device, len(self.shape), kind, bits, 1, shape, None, 0)
        managed = _Managed(tensor, None, _delete)
        _lent[ctypes.addressof(managed)] = (managed, shape, self._block)
        return _new_capsule(ctypes.addressof(managed), _FRESH, _free_capsule)


class _Block:
    """Gives memory back when nobody refers to it any more."""

    def __init__(self, free: Free) -> None:
        self._free = free
        self.readers: set[int] = set()

    def __del__(self) -> None:
        self._free(frozenset(self.readers))


_lent: dict[int, tuple[Any, ...]] = {}  # what consumers hold, by address of the structure


def _deleted(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


def _capsule_freed(capsule: int) -> None:
    """A capsule that nobody took deletes what it holds; one that was taken has another name."""
    if _is_valid_at(capsule, _FRESH):
        _lent.pop(_pointer_at(capsule, _FRESH), None)


_delete, _free_capsule = _DELETER(_deleted), _FREE_CAPSULE(_capsule_freed)
