"""Inputs that lie on a GPU: where all of them are, and whether they are what a signature takes, without copying any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.engines.tensorrt.dlpack import is_on_gpu
from refimpl.errors import SourceError
from refimpl.specs import Signature, TensorSpec


def gpu_of(inputs: Mapping[str, Any], signature: Signature) -> int | None:
    """The number of the GPU that all inputs are on; None when all are on the host.

    Raises:
        SourceError: some are here and some there: what should be copied where is for the caller to say.
    """
    places = {name: _place(value) for name, value in inputs.items()}
    found = set(places.values())
    if len(found) > 1:
        said = ", ".join(f"{name} on {_words(place)}" for name, place in places.items())
        hint = "bring them all to one GPU, or all to the host"
        raise SourceError(f"inputs are in different places: {said}", hint=hint, signature=signature.key)
    return next(iter(found), None)


def _place(value: Any) -> int | None:
    if isinstance(value, np.ndarray) or not is_on_gpu(value):
        return None
    return int(value.__dlpack_device__()[1])


def _words(place: int | None) -> str:
    return "the host" if place is None else f"GPU {place}"


def misfit(spec: TensorSpec, value: Any) -> str:
    """Why a tensor on a GPU is not what a signature takes, in the words that are used of arrays; "" when it is.

    Args:
        spec: an input.
        value: has ``dtype`` and ``shape``, as the tensors of all libraries have; the engine asks DLPack once more.
    """
    if (dtype := _dtype_name(value)) != spec.dtype:
        return f"{spec.name!r} is {dtype}"
    shape = tuple(int(size) for size in value.shape)
    return "" if spec.accepts(shape) else f"{spec.name!r} has shape {list(shape)}"


def _dtype_name(value: Any) -> str:
    """TensorFlow's name: dtypes of NumPy and TensorFlow have it, others are printed as ``torch.float32``."""
    name = getattr(value.dtype, "name", None) or str(value.dtype).rpartition(".")[2]
    return str(name)
