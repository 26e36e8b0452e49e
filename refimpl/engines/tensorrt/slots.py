"""What a lane keeps for one combination of shapes: memory of its tensors, and the CUDA graph over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refimpl.engines import NotFiniteError
from refimpl.engines.tensorrt.finite import looker
from refimpl.engines.tensorrt.memory import Staged, copy, empty
from refimpl.engines.tensorrt.outputs import Growing
from refimpl.engines.tensorrt.tensors import Array, Shapes, Signature
from refimpl.numerics import has_nonfinite


class Slot:
    """Memory of the inputs and outputs of one combination of shapes, and the graph over it.

    Args:
        inputs: memory of each input.
        outputs: memory of each output, added to when shapes are known.
        given: shapes of the inputs.
        flags: memory of two numbers, where a call looks whether inputs and outputs are finite; None where none does.
    """

    def __init__(
        self, inputs: Sequence[Staged], outputs: Sequence[Staged | Growing], given: Shapes, flags: Staged | None
    ) -> None:
        self.inputs, self.outputs, self.given, self.flags = inputs, outputs, given, flags
        self.shapes: Shapes = ()  # of the outputs; -1 where they depend on the data
        self.calls, self.tried = 0, False  # to make a graph
        self.context: Any = None  # of the graph
        self.graph = 0

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in (*self.inputs, *self.outputs))

    def fill(self, values: Sequence[Array]) -> None:
        for staged, value in zip(self.inputs, values, strict=True):
            if value.nbytes:
                copy(staged.bytes.view(value.dtype).reshape(value.shape), value)

    def results(self, signature: Signature, shapes: Shapes) -> list[Array]:
        """Copies of the outputs; the slot's own memory is written to by the next call."""
        found = []
        for staged, tensor, shape in zip(self.outputs, signature.outputs, shapes, strict=True):
            found.append(empty(shape, tensor.dtype))
            if found[-1].nbytes:
                copy(found[-1], staged.bytes.view(tensor.dtype).reshape(shape))
        return found

    def look(self, signature: Signature, stream: int, *, at_outputs: bool) -> None:
        """Enqueue a look whether the inputs, or the outputs, are finite, where this slot looks at all."""
        if self.flags is None:
            return
        memory, kernels = self.flags.memory, looker(self.flags.memory.device)
        if at_outputs:
            tensors, places, shapes, flag = signature.outputs, self.outputs, self.shapes, self.flags.device + 4
        else:
            memory.device.fill(self.flags.device, 0, 2, stream)
            tensors, places, shapes, flag = signature.inputs, self.inputs, self.given, self.flags.device
        for tensor, place, shape in zip(tensors, places, shapes, strict=True):
            if isinstance(place, Staged) and not tensor.on_host:
                kernels.look(place.device, int(np.prod(shape, dtype=np.int64)), tensor.dtype, flag, stream)
        if at_outputs:
            self.flags.download(stream)

    def judge(self, results: Sequence[Array]) -> None:
        """Say what the looks have found; at outputs whose size depends on the data nothing could look before.

        Raises:
            NotFiniteError: something is not finite.
        """
        if self.flags is None:
            return
        given, made = self.flags.bytes.view(np.uint32)
        late = (value for item, value in zip(self.outputs, results, strict=True) if isinstance(item, Growing))
        if given or made or any(map(has_nonfinite, late)):
            raise NotFiniteError(made=not given)

    def close(self) -> None:
        """Give the memory back; the graph is the lane's to destroy."""
        for item in (*self.inputs, *self.outputs, *([self.flags] if self.flags else [])):
            item.close()
