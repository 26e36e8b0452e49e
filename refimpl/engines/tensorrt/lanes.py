"""A lane is what one call at a time runs in: a stream, an execution context, and memory for each combination of shapes.

Calls with shapes that were seen before are replayed as a CUDA graph: one launch for the copies and all kernels.
TensorRT forbids to change a context that a graph was captured from, so each graph has a context of its own; all of a
lane share their working memory, because a lane runs one call at a time. A graph is used only when its replay has given,
bit for bit, what the same inputs gave without it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refimpl.engines.tensorrt.library import Log, shorten
from refimpl.engines.tensorrt.memory import FLAGS_BYTES, Memory, Staged
from refimpl.engines.tensorrt.outputs import Growing, growing
from refimpl.engines.tensorrt.slots import Slot
from refimpl.engines.tensorrt.tensors import Array, Shapes, Signature, check_dtypes, pick_profile
from refimpl.errors import RunError, first_line

REPLAYED, ENQUEUED, NO_GRAPH = "replayed as a CUDA graph", "enqueued", "no CUDA graph: "
FEWER = "fewer contexts than allowed: "
CAPTURE_AT = 2  # the call with the same shapes in which a graph is made: shapes that come once are not worth one


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an open engine.

    Attributes:
        contexts: calls that may run at once; each has working memory of its own.
        shapes: combinations of shapes whose memory a lane keeps.
        lane_bytes: memory on the GPU that those may take together, working memory not counted. The combination that
            runs is kept, however large.
        graphs: whether calls are replayed as CUDA graphs.
    """

    contexts: int = 4
    shapes: int = 16
    lane_bytes: int = 1 << 30
    graphs: bool = True


DEFAULT = Limits()


@dataclass(frozen=True)
class Shared:
    """What all lanes of an engine have in common."""

    trt: Any
    engine: Any
    new_context: Callable[[], Any]
    signature: Signature
    memory: Memory
    log: Log
    limits: Limits
    counts: Counter[str] = field(default_factory=Counter)
    news: threading.Event = field(default_factory=threading.Event)  # something ran that never ran before
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """Count how a call was run, from any thread."""
        with self._lock:
            self.counts[what] += 1


Key = tuple[Shapes, tuple[bytes, ...], bool]  # of the inputs: shapes, values that are shapes; looked at


class Lane:
    """Runs one call at a time; made and kept by the engine's pool.

    Raises:
        RunError: every method may; CUDA's errors are RunErrors.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared, self._device = shared, shared.memory.device
        self._slots: OrderedDict[Key, Slot] = OrderedDict()
        self._configured: Any = None  # the slot, or the addresses, that the context is set for
        self._profiles: dict[int, int] = {}  # of each context, by id
        self._also: list[Callable[[], None]] = []
        self._work, self._work_bytes = 0, int(shared.engine.device_memory_size_v2)
        self.stream = self._device.new_stream()
        try:
            if self._work_bytes:
                self._work = shared.memory.take(self._work_bytes)
            self._context = self.new_context()
        except BaseException:
            self.close()
            raise

    def new_context(self) -> Any:
        """A context that shares the lane's working memory.

        Raises:
            RunError: TensorRT makes none.
        """
        context = self._shared.new_context()
        if context is None:
            raise RunError(self._shared.log.said() or "TensorRT cannot create an execution context")
        if self._work:
            context.set_device_memory(self._work, self._work_bytes)
        self._profiles[id(context)] = 0
        return context

    def run(self, values: Sequence[Array], *, looks: bool = False) -> list[Array]:
        """Run once with arrays of the host.

        Args:
            values: the arrays.
            looks: look, on the GPU, whether inputs and outputs are finite.

        Raises:
            NotFiniteError: ``looks``, and a value is not.
        """
        signature = self._shared.signature
        check_dtypes(signature.inputs, [value.dtype for value in values])
        slot = self._slot(values, looks)
        slot.fill(values)
        slot.calls += 1
        if slot.graph:
            self._device.launch(slot.graph, self.stream)
            self._device.synchronize(self.stream)
            self._shared.count(REPLAYED)
            results = slot.results(signature, slot.shapes)
            slot.judge(results)
            return results
        self._configure(slot)
        self._enqueue(self._context, slot)
        self._device.synchronize(self.stream)
        self._shared.count(ENQUEUED)
        results = self._fetched(slot)
        slot.judge(results)
        if slot.calls >= CAPTURE_AT and not slot.tried and self._shared.limits.graphs:
            self._try_capture(slot, results)
        return results

    def _slot(self, values: Sequence[Array], looks: bool = False) -> Slot:
        """The memory for these shapes, new or kept; the least recently used makes room."""
        signature = self._shared.signature
        shapes = tuple(value.shape for value in values)
        host = tuple(v.tobytes() for v, tensor in zip(values, signature.inputs, strict=True) if tensor.on_host)
        key = (shapes, host, looks)
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        self._configured = None
        inputs: list[Staged] = []
        outputs: list[Staged | Growing] = []
        flags: list[Staged] = []
        try:
            flags += [self._staged(FLAGS_BYTES, on_host=False)] if looks else []
            for tensor, value in zip(signature.inputs, values, strict=True):
                inputs.append(self._staged(value.nbytes, on_host=tensor.on_host))
            slot = Slot(inputs, outputs, shapes, flags[0] if flags else None)
            slot.fill(values)
            slot.shapes = self._prepare(self._context, slot, values)
            for tensor, shape in zip(signature.outputs, slot.shapes, strict=True):
                if any(size < 0 for size in shape):
                    outputs.append(growing(self._shared.trt, self._shared.memory, tensor.name))
                else:
                    nbytes = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize
                    outputs.append(self._staged(nbytes, on_host=tensor.on_host))
        except BaseException:
            for item in (*inputs, *outputs, *flags):
                item.close()
            raise
        self._slots[key] = slot
        self._shared.news.set()
        self._bound()
        return slot

    def _staged(self, nbytes: int, *, on_host: bool) -> Staged:
        return Staged(self._shared.memory, nbytes, on_host=on_host, make_room=self.forget_all)

    def _bound(self) -> None:
        limits = self._shared.limits
        while len(self._slots) > 1 and (
            len(self._slots) > limits.shapes or sum(slot.nbytes for slot in self._slots.values()) > limits.lane_bytes
        ):
            self._close_slot(self._slots.popitem(last=False)[1])

    def forget_all(self) -> None:
        """Memory ran out: nothing that is only kept stays."""
        while self._slots:
            self._close_slot(self._slots.popitem(last=False)[1])
        for close in self._also:
            close()

    def also_close(self, close: Callable[[], None]) -> None:
        """Call this, too, whenever everything that is only kept has to go."""
        self._also.append(close)

    def _prepare(self, context: Any, slot: Slot, values: Sequence[Array]) -> Shapes:
        """Tell a context the shapes of the inputs; the shapes of the outputs, -1 where they depend on the data."""
        shared = self._shared
        tensors = shared.signature.inputs
        host = {t.name: v.reshape(-1).tolist() for t, v in zip(tensors, values, strict=True) if t.on_host}
        self.choose_profile(context, pick_profile(shared.engine, tensors, slot.given, host))
        for tensor, staged, shape in zip(tensors, slot.inputs, slot.given, strict=True):
            if not context.set_input_shape(tensor.name, shape):
                raise RunError(f"no profile of the engine takes {tensor.name} of shape {list(shape)}")
            context.set_tensor_address(tensor.name, staged.address)
        return self.output_shapes(context)

    def choose_profile(self, context: Any, profile: int) -> None:
        """Switch a context to a profile, where it has another one."""
        if self._profiles[id(context)] != profile:
            if not context.set_optimization_profile_async(profile, self.stream):
                raise RunError(self._shared.log.said() or f"TensorRT cannot switch to profile {profile}")
            self._profiles[id(context)] = profile

    def output_shapes(self, context: Any) -> Shapes:
        """Shapes of the outputs for the inputs that a context was told; -1 where they depend on the data."""
        if missing := context.infer_shapes():
            raise RunError(f"TensorRT cannot infer shapes: {', '.join(missing)}")
        return tuple(tuple(context.get_tensor_shape(tensor.name)) for tensor in self._shared.signature.outputs)

    def _configure(self, slot: Slot) -> None:
        """Let the plain context stand for a slot's shapes and memory."""
        if self._configured is slot:
            return
        self._configured = None
        self._tell(self._context, slot)
        self._configured = slot

    def _tell(self, context: Any, slot: Slot) -> None:
        signature = self._shared.signature
        inputs = [staged.bytes.view(tensor.dtype) for tensor, staged in zip(signature.inputs, slot.inputs, strict=True)]
        self._prepare(context, slot, inputs)
        for tensor, item in zip(signature.outputs, slot.outputs, strict=True):
            if isinstance(item, Growing):
                context.set_output_allocator(tensor.name, item.allocator)
            else:
                context.set_tensor_address(tensor.name, item.address)

    def _enqueue(self, context: Any, slot: Slot) -> None:
        for staged in slot.inputs:
            staged.upload(self.stream)
        slot.look(self._shared.signature, self.stream, at_outputs=False)
        self.execute(context)
        slot.look(self._shared.signature, self.stream, at_outputs=True)
        for output in slot.outputs:
            output.download(self.stream)

    def execute(self, context: Any) -> None:
        """Enqueue the engine itself."""
        if not context.execute_async_v3(self.stream):
            raise RunError(self._shared.log.said() or "TensorRT failed to execute")

    def _fetched(self, slot: Slot) -> list[Array]:
        """Results of a plain run; those whose size was not known before are copied now."""
        shapes = list(slot.shapes)
        for index, item in enumerate(slot.outputs):
            if isinstance(item, Growing):
                shapes[index] = item.fetch(self._shared.signature.outputs[index].dtype.itemsize, self.stream)
        return slot.results(self._shared.signature, tuple(shapes))

    def _try_capture(self, slot: Slot, results: Sequence[Array]) -> None:
        """Make a graph of a slot's call; without one the reason is counted, and calls are enqueued as before."""
        slot.tried = True
        if any(isinstance(item, Growing) for item in slot.outputs):
            self._shared.count(f"{NO_GRAPH}the shape of an output depends on the data")
            return
        try:
            self._capture(slot)
            self._device.launch(slot.graph, self.stream)
            self._device.synchronize(self.stream)
            replayed = slot.results(self._shared.signature, slot.shapes)
            same = all(_same_bits(a, b) for a, b in zip(results, replayed, strict=True))
            problem = "" if same else "its replay gave other answers"
        except Exception as error:  # CUDA's errors, and whatever TensorRT raises: the plain way works
            problem = shorten(error.message if isinstance(error, RunError) else first_line(error))
            if getattr(error, "fatal", False):
                raise
        if problem:
            self._close_graph(slot)
            self._shared.count(NO_GRAPH + problem)

    def profiled(self, profiler: Any, values: Sequence[Array]) -> None:
        """Run once, layer by layer, in a context of its own that reports to a profiler."""
        slot = self._slot(values)
        slot.fill(values)
        context = self.new_context()
        try:
            context.profiler = profiler
            self._tell(context, slot)
            self._enqueue(context, slot)
            self._device.synchronize(self.stream)
        finally:
            self.forget_context(context)

    def _capture(self, slot: Slot) -> None:
        slot.context = self.new_context()
        self._tell(slot.context, slot)
        slot.graph = self.captured(slot.context, lambda: self._enqueue(slot.context, slot))

    def captured(self, context: Any, enqueue: Callable[[], None]) -> int:
        """A graph of what a function enqueues with a context of its own."""
        enqueue()  # what TensorRT makes at the first call must not be captured
        self._device.synchronize(self.stream)
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self.stream):
            raise RunError("TensorRT says that this engine cannot be captured")
        self._device.begin_capture(self.stream)
        try:
            enqueue()
        except BaseException:
            self._device.abandon_capture(self.stream)
            raise
        return self._device.end_capture(self.stream)

    @property
    def context(self) -> Any:
        """The plain context, for a caller that sets shapes and addresses itself: slots are set anew after that."""
        self._configured = None
        return self._context

    def settle(self) -> None:
        """After a failure: wait for what is enqueued, so that nothing writes to memory that is used again."""
        self._configured = None
        with contextlib.suppress(RunError):
            self._device.synchronize(self.stream)

    def _close_graph(self, slot: Slot) -> None:
        if slot.graph:
            self._device.destroy_graph(slot.graph)
        self.forget_context(slot.context)
        slot.graph, slot.context = 0, None

    def forget_context(self, context: Any) -> None:
        """A context is about to go: another one may get its identity."""
        self._profiles.pop(id(context), None)

    def _close_slot(self, slot: Slot) -> None:
        if self._configured is slot:
            self._configured = None
        self._close_graph(slot)
        slot.close()

    def close(self) -> None:
        """Give everything back; the lane is of no use afterwards."""
        with contextlib.suppress(RunError):  # a GPU that has failed frees nothing, and says so again
            self.forget_all()
            self._context = None
            if self._work:
                self._shared.memory.drop(self._work, self._work_bytes)
                self._work = 0
            if self.stream:
                self._device.destroy_stream(self.stream)
                self.stream = 0


def _same_bits(left: Array, right: Array) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()
