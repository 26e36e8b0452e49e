"""Narrow: the first layer of an island whose result a GPU gets wrong.

Engines of growing parts of the island are compared with the embedded engine on the same inputs, and halving finds the
layer with which a part becomes wrong. The parts are prefixes in graph order with everything that is still needed as
outputs, so what is wrong once stays visible, and what is fused *before* the layer stays fused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from refimpl.accuracy import accuracy
from refimpl.artifacts import Array
from refimpl.converter.device import differs
from refimpl.converter.fusions import PRECISION
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from refimpl.engines.rounding import tensor_types
from refimpl.errors import BuildError, RunError

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
JUMP = 3.0  # times; an error that grows by less from one layer to the next is rounding that adds up


class GaveUp(Exception):  # noqa: N818  (an outcome, and no error of anybody)
    """Narrowing came to no end; the message says why."""


@dataclass
class Budget:
    """What looking for the guilty layers may cost.

    Attributes:
        builds: engines that may still be built.
        seconds: from now on.
    """

    builds: int
    seconds: float
    _start: float = field(default_factory=time.monotonic)

    def take(self) -> None:
        """Pay for one more engine.

        Raises:
            GaveUp: nothing is left.
        """
        if self.builds <= 0:
            raise GaveUp("too many engines would have to be built to find out which layer it is")
        if time.monotonic() - self._start > self.seconds:
            raise GaveUp(f"after {self.seconds:.0f} s it was not known which layer it is")
        self.builds -= 1


@dataclass(frozen=True)
class Place:
    """Where an engine becomes wrong.

    Attributes:
        layer: the name of the node whose result is the first wrong one.
        before: relative error, against the embedded engine, of the part that ends before it.
        after: of the part that ends with it.
    """

    layer: str
    before: float
    after: float

    @property
    def jump(self) -> bool:
        """Whether the error is this layer's doing, not the sum of many small ones."""
        return self.after > JUMP * self.before


class Narrower:
    """Builds and runs parts of one form of an island on the GPU.

    Args:
        model: the form's ModelProto, nodes named.
        file: where it lies; what its name says to the embedded engine holds for its parts too.
        profiles: of the whole engine.
        options: that it was built with.
        precision: row of the table of tolerances.
        budget: what is left to spend.
    """

    def __init__(
        self,
        model: Any,
        file: Path,
        profiles: Sequence[Profile],
        options: BuildOptions,
        precision: str,
        budget: Budget,
    ) -> None:
        self._model, self._file, self._profiles = model, file, profiles
        self._options, self._precision, self._budget = options, precision, budget
        self._types = tensor_types(model)
        self._measured: dict[int, tuple[bool, float]] = {}

    def first_wrong(self, inputs: Sequence[Array], whole: float) -> Place:
        """The layer with which the engine becomes wrong.

        Args:
            inputs: of the island, on which the whole engine disagrees with the embedded one.
            whole: relative error of the whole engine there, for when it is its last layer.

        Raises:
            GaveUp: the budget is spent, or a part cannot be built or run.
        """
        ends = list(self._ends())
        if not ends:
            raise GaveUp("it has no layer that computes floats")
        low, high = -1, len(ends) - 1  # ends[low] is right, ends[high] is wrong
        while high - low > 1:
            middle = (low + high) // 2
            wrong, _ = self._measure(ends[middle], inputs)
            low, high = (low, middle) if wrong else (middle, high)
        before = self._measure(ends[low], inputs)[1] if low >= 0 else 0.0
        after = self._measured[ends[high]][1] if ends[high] in self._measured else whole
        return Place(self._model.graph.node[ends[high]].name, before, after)

    def wrong_up_to(self, layer: str, inputs: Sequence[Array]) -> bool:
        """Whether the part that ends with a layer is wrong.

        Raises:
            GaveUp: as for :meth:`first_wrong`.
        """
        return self._measure(next(index for index in self._ends() if self._node(index).name == layer), inputs)[0]

    def _node(self, index: int) -> Any:
        return self._model.graph.node[index]

    def _ends(self) -> Iterator[int]:
        """Indices of the nodes that a part may end with: layers that make floats."""
        for index, node in enumerate(self._model.graph.node):
            makes = any(self._types.get(name) in _FLOATS for name in node.output)
            if makes and node.op_type not in PRECISION and node.op_type not in ("Constant", "Identity"):
                yield index

    def _measure(self, end: int, inputs: Sequence[Array]) -> tuple[bool, float]:
        if end not in self._measured:
            self._measured[end] = self._compared(end, inputs)
        return self._measured[end]

    def _compared(self, end: int, inputs: Sequence[Array]) -> tuple[bool, float]:
        """Whether the part disagrees with the embedded engine, and its relative error."""
        self._budget.take()
        part, used = prefix(self._model, end + 1, self._types)
        stem, suffixes = self._file.name.split(".", 1)
        file = self._file.with_name(f"{stem}-part{end}.{suffixes}")
        engine_file = file.with_name(f"{stem}-part{end}{tensorrt.SUFFIX}")
        given = [inputs[index] for index in used]
        try:
            onnxruntime.save(part, file)
            want = onnxruntime.open(file).run(given)
            tensorrt.build(file, engine_file, _narrowed(self._profiles, used), self._options)
            with closing(tensorrt.open(engine_file)) as engine:
                got = engine.run(given)
        except (BuildError, RunError) as error:
            raise GaveUp(f"the part of it up to {self._node(end).name} cannot be tried: {error.message}") from error
        finally:
            for leftover in self._file.parent.glob(f"{stem}-part{end}*"):
                leftover.unlink()
        problem = differs(want, got, self._precision)
        same = [a.shape for a in want] == [b.shape for b in got]
        return bool(problem), accuracy(want, got).relative if same else float("inf")


def prefix(model: Any, count: int, types: dict[str, int]) -> tuple[Any, list[int]]:
    """The first nodes of a model, as a model whose outputs are the float tensors that the rest of it reads.

    Args:
        model: a ModelProto, nodes in topological order; it is not changed.
        count: how many nodes.
        types: the ONNX element type of its tensors.

    Returns:
        A ModelProto, and the indices of the inputs that it still has. bfloat16, which NumPy does not know, leaves as
        float32.
    """
    nodes = list(model.graph.node[:count])
    ends = {name for node in model.graph.node[count:] for name in _reads(node)}
    ends |= {item.name for item in model.graph.output}
    made = [name for node in nodes for name in node.output]
    outputs = [name for name in made if name in ends and types.get(name) in _FLOATS]
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(_reads(node))
    result = onnx.ModelProto(ir_version=model.ir_version)
    result.opset_import.extend(model.opset_import)
    graph = result.graph
    graph.name = model.graph.name
    graph.node.extend(reversed(kept))
    graph.initializer.extend(item for item in model.graph.initializer if item.name in needed)
    used = [index for index, item in enumerate(model.graph.input) if item.name in needed]
    graph.input.extend(model.graph.input[index] for index in used)
    for name in outputs:
        wide = types[name] == TensorProto.BFLOAT16
        shown = f"{name}/shown" if wide else name
        if wide:
            graph.node.append(helper.make_node("Cast", [name], [shown], f"cast/{shown}", to=TensorProto.FLOAT))
        graph.output.append(helper.make_tensor_value_info(shown, TensorProto.FLOAT if wide else types[name], None))
    return result, used


def _reads(node: Any) -> Iterator[str]:
    """Tensors that a node reads, those in its bodies included."""
    yield from node.input
    for item in node.attribute:
        for body in [item.g] if item.HasField("g") else item.graphs:
            for inner in body.node:
                yield from _reads(inner)
            yield from (output.name for output in body.output)


def _narrowed(profiles: Sequence[Profile], used: Sequence[int]) -> tuple[Profile, ...]:
    """Profiles for some of the inputs."""
    place = {index: number for number, index in enumerate(used)}
    return tuple(
        Profile(
            min=tuple(profile.min[index] for index in used),
            opt=tuple(profile.opt[index] for index in used),
            max=tuple(profile.max[index] for index in used),
            values=tuple((place[item[0]], *item[1:]) for item in profile.values if item[0] in place),
        )
        for profile in profiles
        if used
    )
