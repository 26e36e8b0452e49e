"""A signature that is one island, answered by the island's engine alone: TensorFlow takes no part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refimpl.bundle import SignatureRecord
from refimpl.engines.tensorrt.copies import fetch
from refimpl.runtime.opened import BundleRuntime

Array = np.ndarray[Any, Any]
Answer = Callable[[Mapping[str, Any]], "dict[str, Any] | None"]


def direct_answer(record: SignatureRecord, owner: Callable[[], BundleRuntime], *, on_gpu: bool = False) -> Answer:
    """A function from the inputs of a signature to its outputs, or to None when TensorFlow must run.

    Args:
        record: a signature with ``direct``.
        owner: gives the bundle's engines; asked at every call, since they may be closed and opened meanwhile.
        on_gpu: inputs are tensors on a GPU, and so are the outputs, unless they had to go through the host.
    """
    assert record.direct is not None
    (name,) = (item.name for item in record.islands)
    takes, gives = record.direct.inputs, record.direct.outputs
    outputs = [(spec.name, index) for spec, index in zip(record.signature.outputs, gives, strict=True)]

    def answer(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        runtime = owner()
        if runtime.off:
            return None
        arrays = [inputs[key] for key in takes]
        if on_gpu and not runtime.recorded:
            found = runtime.island(name).attempt_device(arrays)
            return None if isinstance(found, str) else {key: found[index] for key, index in outputs}
        if on_gpu:
            arrays = [fetch(item) for item in arrays]
        found = runtime.island(name).attempt(arrays)
        if not isinstance(found, str):
            runtime.keep(name, arrays, found)
        return None if isinstance(found, str) else {key: found[index] for key, index in outputs}

    return answer
