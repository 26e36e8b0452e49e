"""Re-fuse what tf2onnx took apart: normalisations and GELU become the one ONNX op that they were in Keras.

In float16 the chains overflow (256 squared is infinite) and cancel; the ops compute in float32 inside, by ONNX's
``stash_type`` and in TensorRT.

A chain is recognised by what it computes, not by how it is spelled. The values along it are polynomials with constant
coefficients over a few symbols: x, its mean m and r = 1/sqrt(variance + epsilon), or x and t = erf(x/sqrt(2)). A
tensor that is ``g·x·r - g·m·r + b`` is a layer normalisation in any order of steps (Keras 3 writes x·(rg) +
((-m)·(rg) + b), ``tf.nn.batch_normalization`` x·(rg) + (b - m·(rg)), textbooks (x - m)/sqrt(...)·g + b). g and b must
come out as exact float32 numbers, and nothing outside the chain may read what is inside.

=====================  =====  ========================================================================================
op                     opset  stands for
=====================  =====  ========================================================================================
LayerNormalization        17  mean and variance over any axes of known size; transposed where they are not the last,
                              as in ConvNeXt after ONNX Runtime has moved the transposes of a convolution behind it
InstanceNormalization      6  over all axes but the batch and one more, of any size: group normalisation
Gelu                      20  exact (erf, erfc) and tanh
RMSNormalization          23  mean of squares over any axes of known size
=====================  =====  ========================================================================================

tf2onnx stops at opset 18, so the model's opset is raised when that changes nothing else. Measured with float32 and
float16 inputs: TensorRT-RTX 1.7.1 builds all of it; ONNX Runtime 1.23.2 and 1.31.1 and ``onnx.reference`` 1.23.2 run
all of it. Left out, for what was measured:

* ``Attention`` (23): TensorRT-RTX builds it for 3-D inputs of fixed shape only, fails on an open batch or 4-D inputs
  ("not decomposable"), and crashes the process where q, k and v are one tensor. Attention stays products and softmax,
  a pattern that TensorRT documents as one it fuses; softmax stays in float32 by the rules of
  :mod:`refimpl.converter.precision.half`.
* ``GroupNormalization`` (21): ONNX Runtime and the reference expand it into mean(x²) - mean(x)², which loses 8 % at a
  mean of 1000 deviations and gives NaN at 10000.
* LayerNormalization where ONNX Runtime does the same: 1.23.2 does, 1.31.1 does not.

Ready-made fusions were tried: those of ONNX Runtime, in its optimizer and in ``onnxruntime.transformers``, find one of
nine chains from Keras and TensorFlow (a textbook GELU) and make it an op of Microsoft's own domain, which TensorRT has
not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from refimpl.converter.precision.chains import Float64
from refimpl.converter.precision.graph_view import View, named, unused
from refimpl.converter.precision.opsets import can_raise
from refimpl.converter.precision.patterns import FINDERS, Match
from refimpl.engines.onnxruntime import session_options

NEWEST = 23
_SINCE = {"InstanceNormalization": 6, "LayerNormalization": 17, "Gelu": 20, "RMSNormalization": 23}

_CALLS = ("StatefulPartitionedCall", "PartitionedCall")


@dataclass(frozen=True)
class Fused:
    """A model with its chains re-fused.

    Attributes:
        model: a copy, or the model that was given when nothing matched.
        found: one line per fusion, such as ``LayerNormalization at encoder/norm1 (13 nodes)``, in graph order.
    """

    model: onnx.ModelProto
    found: tuple[str, ...]


def fuse(model: onnx.ModelProto, *, newest: int = NEWEST) -> Fused:
    """Replace chains of primitive ops by the ops that they spell out.

    Args:
        model: a clean island: float32, standard ops, all weights in it, ONNX Runtime's BASIC optimizations done.
            It stays as it is. Bodies of ``If`` and ``Loop`` are not searched.
        newest: raise the model's opset to this at most; chains whose op came later stay.
    """
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    view = View(named(model))
    reachable = max(
        version
        for version in {opset, *_SINCE.values()}
        if version == opset or (opset < version <= newest and can_raise(view.model, opset, version))
    )
    taken: set[int] = set()
    matches = []
    for index, node in enumerate(view.nodes):
        finder = FINDERS.get(node.op_type)
        match = finder(view, index) if finder else None
        if match and _SINCE[match.op] <= reachable and _runs_true(match.op) and not taken & match.inside:
            taken |= match.inside
            matches.append(match)
    if not matches:
        return Fused(model, ())
    matches.sort(key=lambda match: match.out)
    needed = max(opset, *(_SINCE[match.op] for match in matches))
    return _rewrite(view, matches, needed)


@functools.cache
def _runs_true(op: str) -> bool:
    """Whether the ONNX Runtime that is installed computes an op without cancellation (see the module's docstring)."""
    if op != "LayerNormalization":
        return True
    scale = numpy_helper.from_array(np.ones(4, np.float32), "scale")
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 4)) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x", "scale"], ["y"], epsilon=1e-6)], "probe", [x], [y], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.array([[1000, 1000.125, 1000, 999.875]], np.float32)})
    return bool(np.allclose(got, [[0, math.sqrt(2), 0, -math.sqrt(2)]], atol=1e-3))


def _rewrite(view: View, matches: Sequence[Match], opset: int) -> Fused:
    made = onnx.ModelProto()
    made.CopyFrom(view.model)
    graph = made.graph
    names = {node.name for node in view.nodes} | {item.name for item in graph.initializer} | set(view.producer)
    gone = {index for match in matches for index in match.inside}
    replacements = {match.out: match for match in matches}
    nodes, found = [], []
    for index, node in enumerate(view.nodes):
        if match := replacements.get(index):
            layer = _layer(view, match)
            nodes += _emit(graph, match, node.output[0], layer or node.name, names)
            found.append(f"{match.op} at {_shown(layer) or _shown(node.name)} ({len(match.inside)} nodes)")
        elif index not in gone:
            nodes.append(node)
    dead = {name for index in gone - set(replacements) for name in view.nodes[index].output}
    graph.ClearField("node")
    graph.node.extend(nodes)
    _drop(graph.value_info, dead)
    read = {name for node in nodes for name in node.input} | view.captured | view.outputs
    _drop(graph.initializer, {item.name for item in graph.initializer} - read)
    for item in made.opset_import:
        if item.domain in ("", "ai.onnx"):
            item.version = opset
    oldest = helper.find_min_ir_version_for([helper.make_opsetid("", opset)], ignore_unknown=True)
    made.ir_version = max(made.ir_version, oldest)
    return Fused(made, tuple(found))


def _drop(items: Any, names: set[str]) -> None:
    for index in reversed(range(len(items))):
        if items[index].name in names:
            del items[index]


def _emit(graph: onnx.GraphProto, match: Match, output: str, layer: str, names: set[str]) -> list[onnx.NodeProto]:
    """The nodes that stand for a match; their weights go into the graph."""
    nodes: list[onnx.NodeProto] = []
    current = match.x

    def constant(what: str, value: Float64) -> str:
        name = unused(f"{layer}/{match.op}/{what}", names)
        names.add(name)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def step(op: str, *more: str, **attributes: Any) -> None:
        nonlocal current
        name = unused(f"{layer}/{op}", names)
        names.add(name)
        nodes.append(helper.make_node(op, [current, *more], [f"{name}:0"], name, **attributes))
        current = f"{name}:0"

    if match.perm:
        step("Transpose", perm=match.perm)
    weights = (("scale", match.scale), ("bias", match.bias))
    step(match.op, *(constant(what, value) for what, value in weights if value is not None), **match.attributes)
    if match.perm:
        step("Transpose", perm=np.argsort(match.perm).tolist())
    if match.gamma is not None:
        step("Mul", constant("gamma", match.gamma))
    if match.beta is not None:
        step("Add", constant("beta", match.beta))
    nodes[-1].output[0] = output
    return nodes


def _layer(view: View, match: Match) -> str:
    """The path of the layer that a match was: what the names of its nodes have in common."""
    paths = [view.nodes[index].name.split("/") for index in match.inside]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)


def _shown(path: str) -> str:
    return "/".join(part for part in path.split("/") if not part.startswith(_CALLS))
