"""Calls of a lane on tensors that are on the GPU already and belong to somebody else.

Nothing is copied: TensorRT reads the inputs where they are and writes to blocks of the engine's memory, which the
caller then holds. A CUDA graph has addresses written into it, so one is used again only where all of them repeat: those
of the inputs, which libraries with an allocator of their own give out again and again, and those of the outputs, which
come from the same pool every time. A block that somebody still holds is not in the pool, so no graph can write to it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from refimpl.engines import NotFiniteError
from refimpl.engines.tensorrt.dlpack import Borrowed, DeviceTensor, Free
from refimpl.engines.tensorrt.finite import looker
from refimpl.engines.tensorrt.lanes import CAPTURE_AT, ENQUEUED, NO_GRAPH, REPLAYED, Lane, Shared
from refimpl.engines.tensorrt.library import shorten
from refimpl.engines.tensorrt.memory import FLAGS_BYTES, Memory
from refimpl.engines.tensorrt.tensors import Array, Shapes, check_dtypes, pick_profile
from refimpl.errors import RunError, first_line

Addresses = tuple[int, ...]
Key = tuple[Shapes, Addresses, Addresses, bool]  # shapes and addresses of the inputs, addresses of the outputs, watched


class _Repeated:
    """One combination of shapes and addresses: how often it came, and the graph over it."""

    def __init__(self) -> None:
        self.calls, self.tried, self.graph = 0, False, 0
        self.context: Any = None  # of the graph


class LentCalls:
    """Runs calls in a lane, one at a time, as the lane does.

    Args:
        lane: whose stream, context and working memory are used.
        shared: what all lanes of the engine have in common.
    """

    def __init__(self, lane: Lane, shared: Shared) -> None:
        self._lane, self._shared, self._device = lane, shared, shared.memory.device
        self._shapes: OrderedDict[Shapes, Shapes] = OrderedDict()  # of outputs, by those of the inputs
        self._repeated: OrderedDict[Key, _Repeated] = OrderedDict()
        self._flags = 0  # two numbers on the GPU: something is not finite in the inputs, in the outputs
        lane.also_close(self.close)

    def run(self, inputs: Sequence[Borrowed], *, finite_only: bool) -> list[DeviceTensor]:
        """Run once and wait for it.

        Raises:
            NotFiniteError: ``finite_only``, and a value is not.
            RunError: see :meth:`refimpl.engines.tensorrt.execution.TrtEngine.run_device`.
        """
        self._check(inputs, finite_only)
        shapes = tuple(item.shape for item in inputs)
        if shapes not in self._shapes:
            self._keep(self._shapes, shapes, self._tell(self._lane.context, inputs))
            self._shared.news.set()
        self._shapes.move_to_end(shapes)
        outputs = self._taken(self._shapes[shapes])
        where = tuple(item.address for item in inputs), tuple(item.address for item in outputs)
        call = self._known((shapes, *where, finite_only))
        call.calls += 1
        if call.graph:
            self._device.launch(call.graph, self._lane.stream)
        else:
            self._plain(inputs, outputs, finite_only)
        self._device.synchronize(self._lane.stream)
        self._shared.count(REPLAYED if call.graph else ENQUEUED)
        if finite_only:
            self._judge()
        if call.calls >= CAPTURE_AT and not call.tried and self._shared.limits.graphs:
            self._try_capture(call, inputs, outputs, finite_only)
        return outputs

    def _check(self, inputs: Sequence[Borrowed], finite_only: bool) -> None:
        signature = self._shared.signature
        check_dtypes(signature.inputs, [item.dtype for item in inputs])
        if host := [item.name for item in (*signature.inputs, *signature.outputs) if item.on_host]:
            raise RunError(f"TensorRT has {', '.join(host)} on the host, so the engine cannot run on the device alone")
        if any(item.device != self._device.number for item in inputs):
            raise RunError(f"an input is on another GPU than the engine, which is on GPU {self._device.number}")
        if finite_only and (why := looker(self._device).problem):
            raise RunError(f"whether values are finite cannot be seen on this GPU: {why}")

    def _tell(self, context: Any, inputs: Sequence[Borrowed]) -> Shapes:
        """Tell a context the inputs; the shapes of the outputs."""
        tensors = self._shared.signature.inputs
        shapes = tuple(item.shape for item in inputs)
        self._lane.choose_profile(context, pick_profile(self._shared.engine, tensors, shapes, {}))
        for tensor, item in zip(tensors, inputs, strict=True):
            if not context.set_input_shape(tensor.name, item.shape):
                raise RunError(f"no profile of the engine takes {tensor.name} of shape {list(item.shape)}")
            context.set_tensor_address(tensor.name, item.address)
        found = self._lane.output_shapes(context)
        for tensor, shape in zip(self._shared.signature.outputs, found, strict=True):
            if any(size < 0 for size in shape):
                raise RunError(f"the shape of output {tensor.name} depends on the data")
        return found

    def _taken(self, shapes: Shapes) -> list[DeviceTensor]:
        """Memory of the outputs, which lives as long as somebody holds them."""
        memory, outputs = self._shared.memory, []
        for tensor, shape in zip(self._shared.signature.outputs, shapes, strict=True):
            nbytes = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize
            address = memory.take(nbytes, self._lane.forget_all)
            free = _giver(memory, address, nbytes)
            outputs.append(DeviceTensor(address, shape, tensor.dtype, self._device.number, free))
        return outputs

    def _known(self, key: Key) -> _Repeated:
        """What is kept of this combination; the least recently used makes room."""
        if key not in self._repeated:
            self._keep(self._repeated, key, _Repeated())
        self._repeated.move_to_end(key)
        return self._repeated[key]

    def _keep(self, kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
        kept[key] = value
        while len(kept) > self._shared.limits.shapes:
            _, old = kept.popitem(last=False)
            if isinstance(old, _Repeated):
                self._close_graph(old)

    def _configure(self, context: Any, inputs: Sequence[Borrowed], outputs: Sequence[DeviceTensor]) -> None:
        self._tell(context, inputs)
        for tensor, item in zip(self._shared.signature.outputs, outputs, strict=True):
            context.set_tensor_address(tensor.name, item.address)

    def _plain(self, inputs: Sequence[Borrowed], outputs: Sequence[DeviceTensor], finite_only: bool) -> None:
        """Enqueue without a graph."""
        context = self._lane.context
        self._configure(context, inputs, outputs)
        self._enqueue(context, inputs, outputs, finite_only)

    def _enqueue(
        self, context: Any, inputs: Sequence[Borrowed], outputs: Sequence[DeviceTensor], finite_only: bool
    ) -> None:
        """The engine in a context that is told all addresses, between looks at what goes in and what comes out."""
        if finite_only:
            self._flags = self._flags or self._shared.memory.take(FLAGS_BYTES)
            self._device.fill(self._flags, 0, 2, self._lane.stream)
            self._look(inputs, self._flags)
        self._lane.execute(context)
        if finite_only:
            self._look(outputs, self._flags + 4)

    def _look(self, tensors: Sequence[Borrowed | DeviceTensor], flag: int) -> None:
        for item in tensors:
            count = int(np.prod(item.shape, dtype=np.int64))
            looker(self._device).look(item.address, count, item.dtype, flag, self._lane.stream)

    def _judge(self) -> None:
        """Read what the looks have found.

        Raises:
            NotFiniteError: something is not.
        """
        found = self._read(self._flags, FLAGS_BYTES).view(np.uint32)
        if found.any():
            raise NotFiniteError(made=not found[0])

    def _read(self, address: int, nbytes: int) -> Array:
        data = np.empty(nbytes, np.uint8)
        if nbytes:
            self._device.to_host(data.ctypes.data, address, nbytes, self._lane.stream)
            self._device.synchronize(self._lane.stream)
        return data

    def _try_capture(
        self, call: _Repeated, inputs: Sequence[Borrowed], outputs: Sequence[DeviceTensor], finite_only: bool
    ) -> None:
        """Make a graph of a call that has just run; without one the reason is counted, and its answers stand."""
        call.tried = True
        sizes = [int(np.prod(item.shape, dtype=np.int64)) * item.dtype.itemsize for item in outputs]
        places = [(item.address, size) for item, size in zip(outputs, sizes, strict=True)]
        answers = [self._read(*place) for place in places]
        try:
            self._capture(call, inputs, outputs, finite_only)
            self._device.launch(call.graph, self._lane.stream)
            self._device.synchronize(self._lane.stream)
            same = all(np.array_equal(a, self._read(*place)) for a, place in zip(answers, places, strict=True))
            problem = "" if same else "its replay gave other answers"
        except Exception as error:  # CUDA's errors, and whatever TensorRT raises: the plain way works
            problem = shorten(error.message if isinstance(error, RunError) else first_line(error))
            if getattr(error, "fatal", False):
                raise
        if problem:
            self._close_graph(call)
            self._shared.count(NO_GRAPH + problem)
            self._plain(inputs, outputs, finite_only)  # whatever the attempt has written
            self._device.synchronize(self._lane.stream)

    def _capture(
        self, call: _Repeated, inputs: Sequence[Borrowed], outputs: Sequence[DeviceTensor], finite_only: bool
    ) -> None:
        call.context = self._lane.new_context()
        self._configure(call.context, inputs, outputs)
        call.graph = self._lane.captured(
            call.context, lambda: self._enqueue(call.context, inputs, outputs, finite_only)
        )

    def _close_graph(self, call: _Repeated) -> None:
        if call.graph:
            self._device.destroy_graph(call.graph)
        self._lane.forget_context(call.context)
        call.graph, call.context = 0, None

    def close(self) -> None:
        """Give every graph back, and forget what was seen."""
        while self._repeated:
            self._close_graph(self._repeated.popitem(last=False)[1])
        if self._flags:
            self._shared.memory.drop(self._flags, FLAGS_BYTES)
            self._flags = 0


def _giver(memory: Memory, address: int, nbytes: int) -> Free:
    def give(readers: frozenset[int]) -> None:
        with contextlib.suppress(RunError):
            memory.device.use()
            memory.give(address, nbytes, readers)

    return give
