"""Are the numbers that a rewrite stored those of the model, rounded? Tolerances for outputs are too wide to tell.

A weight that is 2 % off passes where int8 may cost 10 %. What a rewrite stores, however, is known to half a step, so it
is compared with the float32 model element by element, by code that shares nothing with the rewrite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from refimpl.artifacts import Array

_ULP = {TensorProto.FLOAT16: (2.0**-11, 2.0**-25), TensorProto.BFLOAT16: (2.0**-8, 2.0**-134)}  # of the value; at least
_NOTHING = 2e-36  # weights of a channel that has no larger ones may become zero
_SLACK = 1.0 + 1e-4  # scales and steps are themselves rounded to float32


def rewrite_fault(before: Any, after: Any, thresholds: Mapping[str, float]) -> str:
    """The first stored number of a rewrite that is not the model's own, rounded; "" when all are.

    Args:
        before: the float32 island's ModelProto.
        after: the rewritten one; nodes that it kept have the same names.
        thresholds: ranges by tensor; empty when the model brings its own.
    """
    stored = {item.name: item for item in before.graph.initializer if item.data_type == TensorProto.FLOAT}
    graph = _Graph(after)
    nodes = {node.name: node for node in after.graph.node}
    seen: set[tuple[str, str, int]] = set()
    for node in before.graph.node:
        for place, name in enumerate(node.input):
            if name not in stored or node.name not in nodes:
                continue
            now = nodes[node.name].input[place]
            axis = _channels(node) if place == 1 else -1
            if (name, now, axis) not in seen:
                seen.add((name, now, axis))
                if why := graph.differs(numpy_helper.to_array(stored[name]), now, axis):
                    return f"weight {name} of {node.name} {why}"
    return next(graph.wrong_scales(thresholds), "") if thresholds else ""


def _channels(node: Any) -> int:
    """The axis of a product's weight that holds its output channels; -1 for no product, whose constants stay float."""
    transposed = any(item.name == "transB" and item.i for item in node.attribute)
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0 if transposed else 1}.get(node.op_type, -1)


class _Graph:
    """A rewritten graph, to look stored numbers up in."""

    def __init__(self, model: Any) -> None:
        self._nodes = list(model.graph.node)
        self._stored = {item.name: item for item in model.graph.initializer}
        self._maker = {name: node for node in self._nodes for name in node.output}

    def differs(self, want: Array, name: str, axis: int) -> str:
        """How a stored tensor differs from a float32 weight by more than its rounding; "" when it does not."""
        maker = self._maker.get(name)
        if maker is not None and maker.op_type == "Cast":
            return self.differs(want, maker.input[0], axis)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return self._differs_in_steps(want, maker, axis)
        if name not in self._stored:
            return "is read from elsewhere"
        got, kind = numpy_helper.to_array(self._stored[name]).astype(np.float32), self._stored[name].data_type
        share, least = _ULP.get(kind, (0.0, 0.0))
        return _beyond(want, got, np.maximum(share * np.abs(want), least) if share else np.zeros_like(want))

    def _differs_in_steps(self, want: Array, maker: Any, axis: int) -> str:
        if axis < 0 or not all(name in self._stored for name in maker.input):
            return "is quantized, and no int8 layer reads it"
        steps, scales = (numpy_helper.to_array(self._stored[name]) for name in maker.input[:2])
        given = {item.name: helper.get_attribute_value(item) for item in maker.attribute}.get("axis", 1)
        if scales.ndim:
            scales = scales.reshape([-1 if number == given else 1 for number in range(steps.ndim)])
        others = tuple(number for number in range(want.ndim) if number != axis)
        half_step = np.maximum(np.abs(want).max(axis=others, keepdims=True) / 254.0, _NOTHING)
        return _beyond(want, steps.astype(np.float32) * scales, np.broadcast_to(half_step, want.shape))

    def wrong_scales(self, thresholds: Mapping[str, float]) -> Iterator[str]:
        """Activations whose two scales differ, or are not 1/127 of a range, or cut off their own."""
        known = np.array([value for value in thresholds.values() if value > 0])
        for node in self._nodes:
            if node.op_type != "DequantizeLinear" or (maker := self._maker.get(node.input[0])) is None:
                continue
            tensor = maker.input[0].removesuffix("/half").removesuffix("/float")
            there, back = (numpy_helper.to_array(self._stored[item.input[1]]) for item in (maker, node))
            if there != back:
                yield f"{tensor} is quantized with scale {float(there):.6g} and dequantized with {float(back):.6g}"
            elif not np.isclose(127.0 * float(there), known, rtol=1e-5, atol=0).any():
                yield f"the scale of {tensor}, {float(there):.6g}, is 1/127 of no range"
            elif 127.0 * float(there) < thresholds.get(tensor, 0.0) / _SLACK:
                yield f"the scale of {tensor}, {float(there):.6g}, cuts off its range of {thresholds[tensor]:.6g}"


def _beyond(want: Array, got: Array, allowed: Array) -> str:
    if got.shape != want.shape:
        return f"has shape {list(got.shape)}, not {list(want.shape)}"
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    over = ~same & ~(np.abs(want.astype(np.float64) - got) <= allowed * _SLACK)
    if not over.any():
        return ""
    worst = int(np.argmax(over))
    return f"is {got.flat[worst]:.6g} where the model has {want.flat[worst]:.6g} ({int(over.sum())} such elements)"
