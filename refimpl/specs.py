"""What a tensor and a signature look like: names, dtypes, shapes. Standard library and NumPy only.

A dtype is TensorFlow's name for it (``"float32"``, ``"bool"``, ``"string"``). A shape is a tuple with ``None`` for
an unknown dimension, or ``None`` as a whole when even the rank is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int | None, ...] | None

_NUMPY_NAMES = {"string": "object", "half": "float16", "float": "float32", "double": "float64"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one tensor; ``name`` is the signature's key for it."""

    name: str
    dtype: str
    shape: Shape

    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype that holds such a tensor (``object`` for strings).

        Raises:
            TypeError: NumPy has no such dtype (``bfloat16`` and the like without ml_dtypes).
        """
        if self.dtype == "bfloat16":
            import ml_dtypes  # comes with TensorFlow

            half: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return half
        return np.dtype(_NUMPY_NAMES.get(self.dtype, self.dtype))

    def describe(self) -> str:
        return f"{self.name}: {self.dtype}{format_shape(self.shape)}"

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether an array of this concrete shape fits."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def fit(self, value: Any) -> np.ndarray[Any, Any]:
        """The value as an array of this dtype and shape; nothing is converted but strings into objects.

        Raises:
            ValueError: it does not fit; the message says what it is.
        """
        array = np.asarray(value)
        if self.dtype == "string" and _holds_strings(array):
            array = array.astype(object)
        elif array.dtype != self.numpy_dtype() or self.dtype == "string":
            raise ValueError(f"{self.name!r} is {array.dtype}")
        if not self.accepts(array.shape):
            raise ValueError(f"{self.name!r} has shape {list(array.shape)}")
        return array

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": None if self.shape is None else list(self.shape)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> TensorSpec:
        shape = data["shape"]
        return TensorSpec(data["name"], data["dtype"], None if shape is None else tuple(shape))


@dataclass(frozen=True, slots=True)
class Signature:
    """A serving signature: its key and its named inputs and outputs, in the model's own order."""

    key: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Signature:
        return Signature(
            data["key"],
            tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            tuple(TensorSpec.from_json(item) for item in data["outputs"]),
        )


@dataclass(frozen=True, slots=True)
class DirectCall:
    """How one island answers a whole signature, with nothing between them but Identity ops.

    Attributes:
        inputs: the signature's input that each input of the island is, in the island's order.
        outputs: the island's output that each output of the signature is, in the signature's order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"inputs": list(self.inputs), "outputs": list(self.outputs)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> DirectCall:
        return DirectCall(tuple(data["inputs"]), tuple(data["outputs"]))


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """What TensorFlow hands out, as an array: scalars come out bare, and a string then as bytes."""
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)


def _holds_strings(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "SUT" or (
        array.dtype == object and all(isinstance(item, bytes | str) for item in array.reshape(-1).tolist())
    )


def format_shape(shape: Shape) -> str:
    """``[?,224,224,3]``, or ``[*]`` for an unknown rank."""
    if shape is None:
        return "[*]"
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"


def count_elements(shape: Sequence[int]) -> int:
    """How many elements an array of this shape has."""
    return math.prod(shape)
