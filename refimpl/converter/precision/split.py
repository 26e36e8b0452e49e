"""Float32 products that stay exact on a GPU that rounds their operands to TF32, whatever it is told.

Each operand is taken apart into a high part that TF32 holds exactly and the rest, and three products of parts are
added: ``high * high + high * rest + rest * whole``. What a GPU then rounds is of the order of the rest, and the sum is
as far from the product as float32 itself is. NVIDIA's CUTLASS calls this 3xTF32; S. Markidis et al. ("NVIDIA Tensor
Core Programmability, Performance & Precision", 2018) describe it for float16. It costs three products for one, and is
only tried where a GPU is at hand that rounds so.

Weights are taken apart once, to 11 significant bits and 13; what flows in the network by a cast to bfloat16 (8
significant bits, the range of float32) and back, and a subtraction, which is exact. What is beyond bfloat16's largest
number is brought to that before the cast: an infinity is all in the rest then, with its sign. Where both operands flow,
one that is infinite can still make a NaN, so such an island is for finite values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refimpl import bundle
from refimpl.converter import verify
from refimpl.converter.islands import Lowered
from refimpl.converter.precision.refine import load_model
from refimpl.converter.verify import Finding
from refimpl.engines import onnxruntime
from refimpl.engines.rounding import TF32, tensor_types
from refimpl.engines.sums import PRODUCTS

NOTE = "its float32 products are sums of three, each of parts that TF32 holds: the GPU here rounds operands to TF32"
_TAKEN_APART = PRODUCTS | {"ConvTranspose"}
_HIGH_BITS = 11  # significant ones that TF32 keeps
_LARGEST = np.array(0x7F7F0000, np.uint32).view(np.float32)  # of bfloat16
_OPSET = 13  # the first with casts to bfloat16
Array = Any
Parts = tuple[str, str]  # names of the high part and of the rest


def attempt(island: Lowered, ops: Sequence[str], name: str) -> tuple[Path, Finding] | None:
    """Take the products of an island apart, and compare it with TensorFlow as a GPU that rounds to TF32 computes it.

    Args:
        island: as lowered, in float32.
        ops: its TensorFlow op types.
        name: of the file to write, without its suffixes.

    Returns:
        The file, and what the comparison said by the row of float32; None when there is no product in it, or the
        parts of its weights would be too large for one file.
    """
    if island.model.stat().st_size > onnxruntime.EXTERNAL_BYTES // 2 or _weights_of(island.model).exists():
        return None
    model = taken_apart(load_model(island.model))
    if model is None:
        return None
    plain = onnxruntime.PLAIN if onnxruntime.PLAIN in island.model.name else "."
    file = island.model.with_name(f"{name}{plain}{TF32.removeprefix('.')}onnx")
    onnxruntime.save(model, file)
    evidence = [*island.whole, *island.probes]
    if not evidence:
        return file, replace(island.finding, finite_only=True)
    finding = verify.judge_engine(onnxruntime.open(file), evidence, island.leaving, island.precision, ops)
    return file, replace(finding, finite_only=True)


def _weights_of(model: Path) -> Path:
    """Where the weights of a model lie that are too large to lie in it."""
    return model.with_name(model.name + bundle.WEIGHTS_SUFFIX)


def taken_apart(model: Any) -> Any:
    """A model whose float32 products are sums of three products of parts; bodies of If and Loop are left as they are.

    Args:
        model: a ModelProto; it is not changed.

    Returns:
        A new ModelProto of the same inputs and outputs; None when nothing in it is such a product.
    """
    if next((item.version for item in model.opset_import if not item.domain), 0) < _OPSET:
        return None
    types = tensor_types(model)
    weights = {item.name: item for item in model.graph.initializer}
    splitter = _Splitter(weights)
    found = False
    for index, node in enumerate(model.graph.node):
        if (
            node.op_type in _TAKEN_APART
            and types.get(node.output[0]) == TensorProto.FLOAT
            and not _depthwise(node, weights)
            and all(_is_finite(weights.get(name)) for name in node.input[:2])
        ):
            splitter.product(node, f"{node.name or node.op_type}/{index}")
            found = True
        else:
            splitter.nodes.append(node)
    if not found:
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    graph.ClearField("node")
    graph.node.extend(splitter.nodes)
    read = {name for node in _all_nodes(graph.node) for name in node.input} | {item.name for item in graph.output}
    kept = [item for item in graph.initializer if item.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend([*kept, *splitter.constants])
    graph.ClearField("value_info")
    return result


class _Splitter:
    """Writes nodes in order; a tensor that several products read is taken apart once."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self._weights = weights
        self._parts: dict[str, Parts] = {}
        self._limits: tuple[str, ...] = ()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def product(self, node: Any, name: str) -> None:
        """Three products and two sums for one product; a bias goes with the largest."""
        left, right = (self._of(operand) for operand in node.input[:2])
        # A weight's high part is as good as the weight where TF32 is all that is kept of it, and is stored anyway.
        whole = right[0] if node.input[1] in self._weights else f"{node.input[1]}/within"
        pairs = {"rest of right": (left[0], right[1]), "rest of left": (left[1], whole)}
        small = [self._like(node, pair, f"{name}/{part}") for part, pair in pairs.items()]
        rest = self._node("Add", small, f"{name}/rest")
        large = self._like(node, (left[0], right[0], *node.input[2:]), f"{name}/large")
        self.nodes.append(helper.make_node("Add", [large, rest], [node.output[0]], name=f"{name}/sum"))

    def _like(self, node: Any, inputs: Sequence[str], name: str) -> str:
        result = self._node(node.op_type, inputs, name)
        self.nodes[-1].attribute.extend(node.attribute)
        return result

    def _of(self, tensor: str) -> Parts:
        if tensor not in self._parts:
            weight = self._weights.get(tensor)
            self._parts[tensor] = self._flowing(tensor) if weight is None else self._constant(tensor, weight)
        return self._parts[tensor]

    def _constant(self, tensor: str, weight: Any) -> Parts:
        high, rest = parts_of(numpy_helper.to_array(weight))
        names = f"{tensor}/high", f"{tensor}/rest"
        self.constants += [
            numpy_helper.from_array(value, name) for value, name in zip((high, rest), names, strict=True)
        ]
        return names

    def _flowing(self, tensor: str) -> Parts:
        if not self._limits:
            self._limits = ("bfloat16/smallest", "bfloat16/largest")
            values = zip((-_LARGEST, _LARGEST), self._limits, strict=True)
            self.constants += [numpy_helper.from_array(np.asarray(value), name) for value, name in values]
        within = self._node("Clip", [tensor, *self._limits], f"{tensor}/within")
        coarse = self._node("Cast", [within], f"{tensor}/coarse", to=TensorProto.BFLOAT16)
        high = self._node("Cast", [coarse], f"{tensor}/high", to=TensorProto.FLOAT)
        return high, self._node("Sub", [tensor, high], f"{tensor}/rest")

    def _node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name


def parts_of(values: Array) -> tuple[Array, Array]:
    """A float32 array as the sum of one of 11 significant bits, rounded to nearest, and the rest; both finite arrays.

    Where values are not finite, or so large that rounding would make them infinite, they are their own high part.
    """
    mantissa, exponent = np.frexp(values)
    scale = np.float32(2**_HIGH_BITS)
    with np.errstate(over="ignore", invalid="ignore"):
        high = np.ldexp(np.rint(mantissa * scale) / scale, exponent).astype(np.float32)
        fine = np.isfinite(values) & np.isfinite(high)
        high = np.where(fine, high, values)
        return high, np.where(fine, values - high, np.float32(0)).astype(np.float32)


def _is_finite(weight: Any) -> bool:
    """The rest of an infinite weight would be zero, and zero times what flows is not what infinity makes of it."""
    return weight is None or bool(np.isfinite(numpy_helper.to_array(weight)).all())


def _depthwise(node: Any, weights: dict[str, Any]) -> bool:
    """Convolutions of one channel each are not computed by tensor cores, and stay float32."""
    weight = weights.get(node.input[1])
    group = next((item.i for item in node.attribute if item.name == "group"), 1)
    return node.op_type == "Conv" and weight is not None and group > 1 and weight.dims[1] == 1


def _all_nodes(nodes: Any) -> Any:
    for node in nodes:
        yield node
        for item in node.attribute:
            if item.HasField("g"):
                yield from _all_nodes(item.g.node)
