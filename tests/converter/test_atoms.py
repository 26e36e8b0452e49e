"""Cuts fall only where ONNX carries TensorFlow's value exactly: every marker tensor against TensorFlow's own tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tensorflow as tf

from refimpl.artifacts import Array
from refimpl.converter import lower, onnxgraphs
from refimpl.converter.atoms import Atoms, lower_atoms
from refimpl.converter.lower import OpGraph
from refimpl.converter.native import NativeGraph
from refimpl.converter.plan import mutable_state, signature_source
from refimpl.converter.refusals import refuse_statically
from refimpl.converter.source import Source
from refimpl.engines.onnxruntime import session_options
from refimpl.oracle.compare import compare
from refimpl.tolerance import tolerance_for
from tests.models import sample_inputs
from tests.models_tf1 import write_v1

UNCUTTABLE = {"variant", "resource", "string"}
# A model, and how many of its tensors have markers at least.
ROWS = [
    ("detector", 25),
    ("tf1_ref_variables", 10),
    ("fully_convolutional", 45),
    ("bidirectional", 30),
    ("while_loop", 5),
    ("cond", 6),
    ("tensor_array", 7),
    ("argmax_gather", 10),
    ("integer_matmul", 10),
    ("many_dtypes", 15),
    ("odd_ops", 18),
    ("several_signatures", 8),
    ("vit", 220),
    ("bert", 240),
    pytest.param("mobilenetv2", 200, marks=pytest.mark.slow),
]


def marked(graph: OpGraph) -> tuple[Atoms, list[str]]:
    """The marked ONNX graph, and the ops in it that have a lowering."""
    atoms = lower_atoms(graph, refuse_statically(graph, (), frozenset()), Path())  # no weight here needs a file
    return atoms, [name for name in graph.ops if name not in atoms.refused]


def carried(graph: OpGraph, atoms: Atoms, ops: list[str]) -> list[str]:
    """TensorFlow tensors of these ops that have a marker in the ONNX graph."""
    known = atoms.graph.tensors()
    return [
        spec.name
        for name in ops
        for spec in graph.ops[name].outputs
        if spec.dtype not in UNCUTTABLE and graph.onnx_name(spec.name) in known
    ]


def run_marked(graph: OpGraph, atoms: Atoms, ops: list[str], feeds: dict[str, Array], wanted: list[str]) -> list[Array]:
    """What ONNX Runtime gives at the markers of ``wanted``, nothing optimized."""
    model = onnxgraphs.cut_out(
        atoms.graph,
        [node for name in ops for node in atoms.nodes[name]],
        {graph.onnx_name(tensor): graph.specs[tensor] for tensor in feeds},
        {graph.onnx_name(tensor): graph.specs[tensor] for tensor in wanted},
    )
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    read = {item.name for item in session.get_inputs()}
    given = {graph.onnx_name(tensor): value for tensor, value in feeds.items()}
    outputs: list[Array] = session.run(
        [graph.onnx_name(tensor) for tensor in wanted], {name: given[name] for name in given if name in read}
    )
    return outputs


@pytest.mark.parametrize(("name", "least"), ROWS)
def test_every_marker_is_tensorflows_tensor(name: str, least: int, model: Callable[[str], Path]) -> None:
    with Source(model(name)) as source:
        signature, graph = signature_source(source, "serving_default", mutable_state(source))
        native = NativeGraph(source, signature)
        atoms, ops = marked(graph)
        _, entering, _ = lower.subgraph_nodes(graph, ops, marked=True)
        wanted = carried(graph, atoms, ops)
        assert len(wanted) >= least
        alone = [name for name in ops if sum(op.group == graph.ops[name].group for op in graph.ops.values()) == 1]
        read = {tensor for op in graph.ops.values() for tensor in op.inputs} | set(graph.results)
        made = {spec.name for name in alone for spec in graph.ops[name].outputs if spec.dtype not in UNCUTTABLE}
        assert made & read <= set(wanted), "an op outside of any group lost its marker"
        args = {arg.key: f"{arg.name}:0" for arg in signature.args if arg.kind == "input"}
        for inputs in sample_inputs(name):
            given = {args[key]: value for key, value in inputs.items()}
            fetched = [tensor for tensor in dict.fromkeys([*entering, *wanted]) if tensor not in given]
            truth = {**dict(zip(fetched, native.run(given, fetched), strict=True)), **given}
            outputs = run_marked(graph, atoms, ops, {tensor: truth[tensor] for tensor in entering}, wanted)
            assert_same(wanted, truth, outputs)


def assert_same(wanted: list[str], truth: dict[str, Array], outputs: list[Array]) -> None:
    want = {tensor: np.asarray(truth[tensor]) for tensor in wanted}
    got = {tensor: np.asarray(output) for tensor, output in zip(wanted, outputs, strict=True)}
    comparison = compare(want, got, lambda dtype: tolerance_for("fp32", dtype))
    assert comparison.ok, comparison.reason
    assert comparison.compared >= sum(array.size for array in want.values()) > 0


def test_a_name_alone_would_not_do(model: Callable[[str], Path]) -> None:
    """tf2onnx gives the name of a TensorFlow tensor to its NCHW twin; that is why there are markers."""
    with Source(model("detector")) as source:
        _, graph = signature_source(source, "serving_default", frozenset())
        atoms, _ = marked(graph)
    conv = next(op for op in graph.ops.values() if op.type == "Conv2D")
    twin = atoms.graph.tensors()[conv.outputs[0].name]
    carrier = atoms.graph.tensors()[graph.onnx_name(conv.outputs[0].name)]
    assert twin.inputs[0].op == "Conv"
    assert carrier is not twin
    assert [node.op for node in atoms.nodes[conv.name]].count("Transpose") >= 1


@pytest.mark.parametrize("name", ["detector", "bidirectional", "vit"])
def test_no_node_belongs_to_two_groups(name: str, model: Callable[[str], Path]) -> None:
    """An atom is the lowering of one op or group, so that what is said of a node can be said of an op."""
    with Source(model(name)) as source:
        _, graph = signature_source(source, "serving_default", frozenset())
        atoms, ops = marked(graph)
    owners: dict[str, set[int]] = {}
    for op in ops:
        for node in atoms.nodes[op]:
            owners.setdefault(node.name, set()).add(graph.ops[op].group)
    assert len(owners) > len(ops) / 2
    assert {node: groups for node, groups in owners.items() if len(groups) > 1} == {}


def test_a_model_may_call_its_ops_marked(tmp_path: Path) -> None:
    """Names of TF1 graphs come as they are, with no call's name before them."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
        y = tf.nn.relu(x, name="marked")
        write_v1(tmp_path / "model", session, {"x": x}, {"y": y})
    with Source(tmp_path / "model") as source:
        _, graph = signature_source(source, "serving_default", frozenset())
        atoms, ops = marked(graph)
    assert "marked" in ops
    assert "Relu" in [node.op for node in atoms.nodes["marked"]]
