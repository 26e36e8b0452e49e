"""Rewrite an island so that it computes in float16 or bfloat16 where that is safe, and in float32 elsewhere.

TensorRT 11 and TensorRT for RTX are strongly typed: a tensor's dtype in the ONNX decides what computes it. So the
choice is written into the graph. Cut tensors keep the model's dtypes; a Cast stands where the precision changes.

An op stays in float32 when one of these holds, in this order:

* the user said so (``--keep-fp32``);
* ONNX has no half-precision form of it, or it runs a body of its own (If, Loop);
* it is known to lose too much: softmax, normalisation, reductions, exponentials, recurrent cells;
* float16 only: a weight overflows, or so many of its values underflow that the tensor as a whole loses more than
  rounding would;
* float16 only: calibration saw |x| >= 512 at one of its tensors, where neighbouring float16 numbers are half a unit
  apart (the rule, and the number, of NVIDIA Model Optimizer's AutoCast);
* float16 only: it leads to indices and truth values alone. An overflow shows in a float result, and TensorFlow answers
  then; an index that was made from infinities looks like any other.

Heavy ops (products) go first; light ones follow whoever feeds them, so that no Cast is spent on an addition.

Ready-made converters exist (``onnxruntime.transformers.float16``, ``onnxconverter_common``). They are not used: both
clamp weights that overflow or underflow silently, know no bfloat16 and no observed ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refimpl.artifacts import Array
from refimpl.engines.rounding import tensor_types

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
HEAVY = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"])
FEW = 512.0  # |x| from which float16 is too coarse for an activation
_LARGEST = 65504.0
_ROUNDING = 2.0**-10  # relative; twice what rounding to float16 can cost a tensor of normal numbers

_SUMS = "it sums many values"
_GROWS = "it grows or shrinks values beyond what half precision holds"
_NORM = "normalisation subtracts nearly equal numbers"
_CELL = "a recurrent cell adds its own rounding up over time"
UNSAFE: Mapping[str, str] = {
    **dict.fromkeys("Softmax LogSoftmax Hardmax".split(), "softmax sums exponentials"),
    **dict.fromkeys(
        """ReduceSum ReduceMean ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare
        CumSum""".split(),
        _SUMS,
    ),
    **dict.fromkeys("Exp Log Pow Reciprocal Sqrt Softplus Sinh Cosh Tan".split(), _GROWS),
    **dict.fromkeys("BatchNormalization InstanceNormalization GroupNormalization LpNormalization LRN".split(), _NORM),
    **dict.fromkeys("LSTM GRU RNN".split(), _CELL),
}
# Their results are indices, counts or truth values, or jump where the input hardly moves: rounding could only hurt.
_DISCRETE = frozenset(
    """ArgMax ArgMin TopK NonMaxSuppression Equal Greater GreaterOrEqual Less LessOrEqual Floor Ceil Round Sign Mod
    IsNaN IsInf NonZero Unique OneHot Range QuantizeLinear DequantizeLinear DynamicQuantizeLinear""".split()
)
# Results of these are finite whatever they are made of. QuantizeLinear is not among them: what it clips is as large.
_HIDING = frozenset(
    """ArgMax ArgMin NonMaxSuppression Equal Greater GreaterOrEqual Less LessOrEqual Sign IsNaN IsInf NonZero Unique
    OneHot Shape Size""".split()
)
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_UNSEEN = "it leads to indices or truth values only, which would not show that it overflowed"
_FOLLOWS = "it follows the float32 values it reads"
_DISCRETE_TAIL, _NO_FORM = "makes discrete values of its input", "has no half-precision form"


@dataclass(frozen=True)
class Half:
    """A rewritten island."""

    model: Any  # ModelProto
    layers: Mapping[str, str]  # node name -> why it computes in float32; "" for half precision. Float nodes only

    def decided(self, node: str) -> bool:
        """Whether a node's precision was decided for its own sake: it does not just follow what feeds it."""
        return self.layers[node] not in ("", _FOLLOWS) and not self.layers[node].endswith((_DISCRETE_TAIL, _NO_FORM))


def to_half(
    model: Any,
    precision: str,
    maxima: Mapping[str, float],
    keep: Mapping[str, str],
    only: Container[str] | None = None,
) -> Half:
    """Rewrite a model.

    Args:
        model: an island's ModelProto, its nodes named, in float32; it is not changed.
        precision: ``"fp16"`` or ``"bf16"``.
        maxima: largest |x| seen at each float tensor, by name.
        keep: nodes that must stay in float32, with reasons.
        only: when given, heavy nodes outside of it stay as they are.
    """
    view = _View(model, KINDS[precision])
    layers: dict[str, str] = {}
    for node in model.graph.node:
        if view.is_float(node):
            reason = keep.get(node.name) or _why_not(view, node, maxima, precision)
            if not reason and only is not None and node.op_type in HEAVY and node.name not in only:
                reason = "it is not among the layers chosen"
            if not reason and node.op_type not in HEAVY and not view.fed_by_half(node, layers):
                reason = _FOLLOWS
            if not reason and precision == "fp16" and view.makes_floats(node) and not view.shows(node):
                reason = _UNSEEN
            layers[node.name] = reason
    if all(layers.values()):
        return Half(model, layers)
    return Half(_Writer(view, layers).write(), layers)


class _View:
    """What must be known of a graph to decide about its nodes."""

    def __init__(self, model: Any, kind: int) -> None:
        self.model, self.kind = model, kind
        self.types = tensor_types(model)
        self.weights = {item.name: item for item in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self._shown: set[str] | None = None
        self.opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))

    def is_float(self, node: Any) -> bool:
        return any(self.types.get(name) == TensorProto.FLOAT for name in [*node.input, *node.output])

    def floats(self, node: Any) -> list[tuple[str, str]]:
        """The float32 tensors of a node whose dtype its op leaves open: ("input" or "output", name)."""
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        found = []
        for side, formal, names in (("input", schema.inputs, node.input), ("output", schema.outputs, node.output)):
            for index, name in enumerate(names):
                declared = formal[min(index, len(formal) - 1)]  # the last one may stand for many
                if name and self.types.get(name) == TensorProto.FLOAT and _takes_half(schema, declared.type_str):
                    found.append((side, name))
        return found

    def makes_floats(self, node: Any) -> bool:
        return any(self.types.get(name) == TensorProto.FLOAT for name in node.output)

    def shows(self, node: Any) -> bool:
        """Whether an infinity that a node makes may reach a float result, or is clipped like any large value."""
        if self._shown is None:
            self._shown = {item.name for item in self.model.graph.output if self.types.get(item.name) in _FLOATS}
            for item in reversed(self.model.graph.node):
                if not self._shown.isdisjoint(_telling(item)):
                    self._shown.update(item.input, *(_names_read(body) for body in _bodies(item)))
        return not self._shown.isdisjoint(node.output)

    def fed_by_half(self, node: Any, layers: Mapping[str, str]) -> bool:
        makers = [self.maker[name] for side, name in self.floats(node) if side == "input" and name in self.maker]
        return any(layers.get(maker.name) == "" for maker in makers)


def _takes_half(schema: Any, type_str: str) -> bool:
    # bfloat16 came to some ops (Conv, in opset 22) after TensorRT had it: what takes float16 is taken to have both.
    return any(
        item.type_param_str == type_str and "tensor(float16)" in item.allowed_type_strs
        for item in schema.type_constraints
    )


def _telling(node: Any) -> Sequence[str]:
    """Those results of a node that are not finite when its operands are not."""
    if node.op_type == "TopK":
        return list(node.output[:1])
    hides = node.op_type in _HIDING or (node.op_type == "Cast" and _cast_target(node) not in _FLOATS)
    return () if hides else list(node.output)


def _bodies(node: Any) -> list[Any]:
    return [body for item in node.attribute for body in ([item.g] if item.HasField("g") else item.graphs)]


def _why_not(view: _View, node: Any, maxima: Mapping[str, float], precision: str) -> str:
    if _bodies(node):
        return f"{node.op_type} runs a body of its own"
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return f"{node.op_type} is no standard op"
    if node.op_type in _DISCRETE or (node.op_type == "Cast" and _cast_target(node) != TensorProto.FLOAT):
        return f"{node.op_type} {_DISCRETE_TAIL}"
    if not (floats := view.floats(node)):
        return f"{node.op_type} {_NO_FORM}"
    if node.op_type in UNSAFE:
        return UNSAFE[node.op_type]
    return _why_not_in_float16(view, floats, maxima) if precision == "fp16" else ""


def _why_not_in_float16(view: _View, floats: list[tuple[str, str]], maxima: Mapping[str, float]) -> str:
    for _, name in floats:
        if name in view.weights:
            if problem := weight_problem(numpy_helper.to_array(view.weights[name])):
                return f"weight {name} {problem}"
        elif (seen := maxima.get(name, 0.0)) >= FEW:
            return f"|x| up to {seen:.4g} was seen at {name}, and float16 is too coarse from {FEW:g}"
    return ""


def weight_problem(value: Array) -> str:
    """Why a weight does not survive in float16; "" when it does.

    Args:
        value: float32 array of any shape.
    """
    if not value.size:
        return ""
    largest = float(np.max(np.abs(value)))
    if not largest <= _LARGEST:
        return f"overflows float16 (|w| up to {largest:.4g}, at most {_LARGEST:g} fit)"
    with np.errstate(under="ignore"):
        lost = value - value.astype(np.float16).astype(np.float32)
    whole = float(np.linalg.norm(value.astype(np.float64)))
    share = float(np.linalg.norm(lost.astype(np.float64))) / whole if whole else 0.0
    if share > _ROUNDING:
        return f"underflows float16 (the tensor loses {share:.2g} of its norm, {_ROUNDING:.2g} is rounding)"
    return ""


def _cast_target(node: Any) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "to"), 0)


class _Writer:
    """Writes the graph with each node in the precision decided for it."""

    def __init__(self, view: _View, layers: Mapping[str, str]) -> None:
        self._view, self._layers = view, layers
        self._results = {item.name for item in view.model.graph.output}
        self._half_made = {
            name
            for node in view.model.graph.node
            if layers.get(node.name) == ""
            for side, name in view.floats(node)
            if side == "output"
        }
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._cast: dict[tuple[str, int], str] = {}

    def write(self) -> Any:
        for node in self._view.model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if self._layers.get(node.name) == "":
                self._write_half(node, copy)
            else:
                _rename(copy, self._in_float32)
                self._nodes.append(copy)
        result = onnx.ModelProto()
        result.CopyFrom(self._view.model)
        graph = result.graph
        for field in ("node", "value_info", "initializer"):
            graph.ClearField(field)
        graph.node.extend(self._nodes)
        used = _names_read(graph)
        graph.initializer.extend(item for name, item in self._view.weights.items() if name in used)
        graph.initializer.extend(self._weights.values())
        return result

    def _write_half(self, node: Any, copy: Any) -> None:
        floats = set(self._view.floats(node))
        for index, name in enumerate(node.input):
            copy.input[index] = self._in_half(name) if ("input", name) in floats else self._in_float32(name)
        if node.op_type == "Cast":
            next(item for item in copy.attribute if item.name == "to").i = self._view.kind
        finished = []
        for index, name in enumerate(node.output):
            if ("output", name) in floats and name in self._results:  # a cut tensor keeps its name and dtype
                copy.output[index] = self._half_name(name)
                finished.append(_cast(copy.output[index], name, TensorProto.FLOAT))
        self._nodes += [copy, *finished]

    def _half_name(self, name: str) -> str:
        return f"{name}/half" if name in self._results else name

    def _in_half(self, name: str) -> str:
        if name in self._half_made:
            return self._half_name(name)
        if name in self._view.weights:
            return self._weight(name)
        return self._casted(name, f"{name}/half", self._view.kind)

    def _in_float32(self, name: str) -> str:
        if name not in self._half_made or name in self._results:
            return name
        return self._casted(name, f"{name}/float", TensorProto.FLOAT)

    def _casted(self, name: str, target: str, kind: int) -> str:
        if (name, kind) not in self._cast:
            self._cast[name, kind] = target
            self._nodes.append(_cast(name, target, kind))
        return self._cast[name, kind]

    def _weight(self, name: str) -> str:
        target = f"{name}/half"
        if target not in self._weights:
            value = numpy_helper.to_array(self._view.weights[name])
            dtype = helper.tensor_dtype_to_np_dtype(self._view.kind)
            with np.errstate(under="ignore"):
                self._weights[target] = numpy_helper.from_array(value.astype(dtype), target)
        return target


def _cast(source: str, target: str, kind: int) -> Any:
    return helper.make_node("Cast", [source], [target], name=f"cast/{target}", to=kind)


def _rename(node: Any, name_of: Callable[[str], str]) -> None:
    """Let a float32 node, and the bodies it runs, read the float32 form of every tensor."""
    for index, name in enumerate(node.input):
        node.input[index] = name_of(name)
    for body in _bodies(node):
        own = {item.name for item in [*body.input, *body.initializer]} | {o for n in body.node for o in n.output}

        def outer(name: str, own: set[str] = own) -> str:
            return name if name in own else name_of(name)

        for inner in body.node:
            _rename(inner, outer)
        for item in body.output:
            item.name = outer(item.name)


def _names_read(graph: Any) -> set[str]:
    """Every tensor that a graph, its bodies included, reads or returns."""
    found = {item.name for item in graph.output}
    for node in graph.node:
        found.update(node.input)
        for body in _bodies(node):
            found |= _names_read(body)
    return found
