"""Arrays as the oracle stores and hashes them: never pickled, strings included.

An array of strings is ``object[...]`` of :class:`bytes`, as TensorFlow itself returns it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import GoldenError
from refimpl.specs import TensorSpec, format_shape

Array = npt.NDArray[Any]


def dtype_name(array: Array) -> str:
    """TensorFlow's name for an array's dtype (``"string"`` for ``object``)."""
    return "string" if array.dtype == object else array.dtype.name


def conform(spec: TensorSpec, value: object) -> Array:
    """The value as an array that fits the spec exactly; only Python values and text are ever converted.

    Returns:
        An array of ``spec.dtype`` whose shape ``spec`` accepts; strings as ``object`` of bytes.

    Raises:
        GoldenError: the dtype or the shape does not fit. An array is never cast: that would hide a mistake.
    """
    if spec.dtype == "string":
        array = _as_bytes(spec, value)
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if dtype_name(array) != spec.dtype:
            raise GoldenError(
                f"input {spec.name!r} is {dtype_name(array)}, the signature wants {spec.dtype}",
                hint=f"convert it to {spec.dtype} first",
            )
        array = array.astype(spec.numpy_dtype(), copy=False)  # only the byte order can differ
    else:
        try:
            array = np.asarray(value, dtype=spec.numpy_dtype())
        except (TypeError, ValueError, OverflowError) as error:
            raise GoldenError(f"input {spec.name!r} cannot be made {spec.dtype}: {error}") from error
    if not spec.accepts(array.shape):
        raise GoldenError(
            f"input {spec.name!r} has shape {format_shape(array.shape)}, the signature wants {format_shape(spec.shape)}"
        )
    return array


def conform_all(specs: tuple[TensorSpec, ...], values: Mapping[str, object]) -> dict[str, Array]:
    """Every input of a signature, in its order (see :func:`conform`).

    Raises:
        GoldenError: a name is missing or unknown, or a value does not fit.
    """
    names = [spec.name for spec in specs]
    if set(names) != set(values):
        raise GoldenError(f"inputs are {sorted(values)}, the signature wants {sorted(names)}")
    return {spec.name: conform(spec, values[spec.name]) for spec in specs}


def _as_bytes(spec: TensorSpec, value: object) -> Array:
    given = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=object)
    if given.dtype.kind not in "SUO":
        raise GoldenError(f"input {spec.name!r} is {given.dtype}, the signature wants strings")
    out = np.empty(given.shape, dtype=object)
    for index in np.ndindex(given.shape):
        item: object = given[index]
        if not isinstance(item, (str, bytes)):
            what = type(item).__name__
            raise GoldenError(f"input {spec.name!r} holds {what} at {index}, the signature wants strings")
        out[index] = item.encode() if isinstance(item, str) else bytes(item)
    return out


def digest(array: Array) -> str:
    """SHA-256 of dtype, shape and content; the same on every machine."""
    name = dtype_name(array)
    sha = hashlib.sha256(f"{name}{list(array.shape)}\0".encode())
    if name == "string":
        for item in array.ravel():
            sha.update(len(item).to_bytes(8, "little") + item)
    else:
        sha.update(_little_endian(array).tobytes())
    return sha.hexdigest()


def encode(group: str, name: str, array: Array) -> dict[str, Array]:
    """The npz members that hold one array: ``GROUP/NAME``, and ``GROUP-lengths/NAME`` beside it for strings.

    Strings are concatenated into uint8; dtypes that NumPy itself lacks (bfloat16) are kept as uint8 too.
    """
    if array.dtype == object:
        items = [bytes(item) for item in array.ravel()]
        return {
            f"{group}/{name}": np.frombuffer(b"".join(items), dtype=np.uint8),
            f"{group}-lengths/{name}": np.array([len(item) for item in items], dtype="<i8"),
        }
    if not _native(array.dtype):
        return {f"{group}/{name}": np.frombuffer(_little_endian(array).tobytes(), dtype=np.uint8)}
    return {f"{group}/{name}": _little_endian(array)}


def decode(members: Mapping[str, Array], group: str, spec: TensorSpec) -> Array:
    """The array that :func:`encode` stored, read-only; the shape of ``spec`` is concrete.

    Raises:
        ValueError: the members do not hold such an array.
        KeyError: a member is missing.
    """
    stored = members[f"{group}/{spec.name}"]
    shape = tuple(size for size in spec.shape or () if size is not None)
    dtype = spec.numpy_dtype()
    array: Array
    if spec.dtype == "string":
        array = _join(stored, members[f"{group}-lengths/{spec.name}"]).reshape(shape)
    elif not _native(dtype):
        array = np.frombuffer(stored.tobytes(), dtype=dtype).reshape(shape)
    else:
        array = stored
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"it holds {array.dtype}{list(array.shape)}, the index says {spec.describe()}")
    array.flags.writeable = False
    return array


def _join(blob: Array, lengths: Array) -> Array:
    """The strings that :func:`encode` took apart."""
    ends = np.cumsum(lengths)
    if len(lengths) and (lengths.min() < 0 or ends[-1] != blob.size):
        raise ValueError("the lengths of the strings do not fit")
    data = blob.tobytes()
    array = np.empty(len(lengths), dtype=object)
    for i, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        array[i] = data[end - length : end]
    return array


def _native(dtype: np.dtype[Any]) -> bool:
    """Whether NumPy itself has this dtype, in whatever byte order; bfloat16 and its like come from elsewhere."""
    return dtype.type.__module__ == "numpy"


def _little_endian(array: Array) -> Array:
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False) if _native(array.dtype) else array
