"""Inputs and outputs of an engine, as its own records name them, and the choice of a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.errors import RunError

Array = np.ndarray[Any, Any]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output."""

    name: str
    dtype: np.dtype[Any]
    on_host: bool  # TensorRT reads or writes it on the host: a shape, or values that shapes are made of


@dataclass(frozen=True, slots=True)
class Signature:
    """All of them, in the engine's order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def signature_of(trt: Any, engine: Any) -> Signature:
    """Read an engine's inputs and outputs.

    Raises:
        RunError: one of them is of a dtype that NumPy has not.
    """
    sides: dict[bool, list[Tensor]] = {True: [], False: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(trt.nptype(kind))
        except TypeError:
            raise RunError(f"{name} is of {kind}, which NumPy has not") from None
        on_host = engine.is_shape_inference_io(name) or engine.get_tensor_location(name) == trt.TensorLocation.HOST
        sides[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(Tensor(name, dtype, on_host))
    return Signature(tuple(sides[True]), tuple(sides[False]))


def check_dtypes(tensors: Sequence[Tensor], dtypes: Sequence[Any]) -> None:
    """Refuse inputs that TensorRT would misread: it is given addresses and believes them.

    Raises:
        RunError: another number of inputs, or another dtype.
    """
    if len(tensors) != len(dtypes):
        raise RunError(f"the engine takes {len(tensors)} inputs, not {len(dtypes)}")
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        if dtype != tensor.dtype:
            raise RunError(f"the engine takes {tensor.name} as {tensor.dtype}, not {dtype}")


def pick_profile(engine: Any, tensors: Sequence[Tensor], shapes: Shapes, values: Mapping[str, Sequence[int]]) -> int:
    """The first profile that contains every shape and every value that shapes are made of, as TF-TRT chooses.

    Args:
        engine: the deserialized engine.
        tensors: its inputs.
        shapes: theirs in this call.
        values: of the inputs that are read on the host, by name.

    Raises:
        RunError: there is none.
    """
    for index in range(max(engine.num_optimization_profiles, 1)):
        limits: list[tuple[Sequence[int], Any]] = [
            (shape, _limits(engine, t.name, index)) for t, shape in zip(tensors, shapes, strict=True)
        ]
        limits += [(value, engine.get_tensor_profile_values(index, name)) for name, value in values.items()]
        if all(not given or _fits(value, given[0], given[2]) for value, given in limits):
            return index
    said = f" with values {dict(values)}" if values else ""
    raise RunError(f"no profile of the engine takes shapes {[list(shape) for shape in shapes]}{said}")


def _fits(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> bool:
    return len(low) == len(shape) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))


def _limits(engine: Any, name: str, profile: int) -> Any:
    """Smallest, typical and largest shape of an input; its own, three times, where nothing of it varies."""
    shape = tuple(engine.get_tensor_shape(name))
    return (shape,) * 3 if all(size >= 0 for size in shape) else engine.get_tensor_profile_shape(name, profile)
