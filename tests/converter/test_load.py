"""Signatures cut out of SavedModels of every kind: what is state, what is order, what cannot be cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl.converter.constants import assigned_variables
from refimpl.converter.load import read_signature, signature_graph
from refimpl.converter.native import NativeGraph
from refimpl.converter.plan import mutable_state, signature_source
from refimpl.converter.source import Source
from refimpl.errors import RunError, SourceError
from refimpl.oracle.compare import compare
from refimpl.tolerance import tolerance_for
from tests.converter.small import ALL, answers, assert_agrees, default
from tests.models import sample_inputs
from tests.models_ops import spec

v1 = tf.compat.v1
Model = Callable[[str], Path]


def kinds_of_arguments(source: Source, key: str = "serving_default") -> dict[str, int]:
    args = signature_graph(source, key).args
    return {kind: sum(arg.kind == kind for arg in args) for kind in dict.fromkeys(arg.kind for arg in args)}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("tf1_resource_variables", {"input": 1, "variable": 8}),
        ("tf1_ref_variables", {"input": 1, "value": 8}),
        ("tf1_table", {"input": 1, "variable": 2, "resource": 1}),
        ("keras2_optimizer_slots", {"input": 1, "variable": 2}),  # its optimizer's slots are nobody's business
        ("captured_table", {"input": 2, "variable": 1, "resource": 1}),
        ("counter", {"input": 1, "variable": 3}),
        ("no_input", {"variable": 1}),
        ("many_dtypes", {"input": 5, "variable": 1}),
    ],
)
def test_state_becomes_arguments(name: str, kinds: dict[str, int], model: Model) -> None:
    with Source(model(name)) as source:
        assert kinds_of_arguments(source) == kinds


INLINED = ["resnet50", "vit", "bidirectional", "cond", "tensor_array", "decode_and_label", "tf1_table", "basic_pitch"]


@pytest.mark.parametrize("name", INLINED)
def test_every_call_is_inlined_and_control_flow_is_not(name: str, model: Model) -> None:
    with Source(model(name)) as source:
        ops = [node.op for node in signature_graph(source, "serving_default").graph_def.node]
    assert not {"PartitionedCall", "StatefulPartitionedCall"} & set(ops)
    assert not {"Switch", "Merge", "Enter", "Exit", "NextIteration"} & set(ops)
    loops = {"bidirectional": 2, "tensor_array": 1, "decode_and_label": 1}
    assert sum(op in ("While", "StatelessWhile") for op in ops) == loops.get(name, 0)
    assert sum(op in ("If", "StatelessIf") for op in ops) == (2 if name == "cond" else 0)


SMALL = [
    *("lstm", "while_loop", "cond", "tensor_array", "detector", "decode_and_label", "odd_ops", "many_dtypes"),
    *("odd_names", "pass_through", "captured_table", "tf1_ref_variables", "tf1_table", "keras2_optimizer_slots"),
]


@pytest.mark.parametrize("name", SMALL)
def test_the_inlined_graph_computes_what_the_model_computes(name: str, model: Model) -> None:
    """In the session where the variables and tables live, initialized by the model's own main op."""
    inputs = sample_inputs(name)[0]
    with Source(model(name)) as source:
        graph = signature_graph(source, "serving_default")
        fed = {arg.key: f"{arg.name}:0" for arg in graph.args if arg.kind == "input"}
        feeds = {fed[key]: value for key, value in inputs.items()}
        values = NativeGraph(source, graph).run(feeds, graph.results)
    got = {spec.name: as_array(value) for spec, value in zip(graph.signature.outputs, values, strict=True)}
    comparison = compare(answers(model(name), inputs), got, lambda dtype: tolerance_for("fp32", dtype))
    assert comparison.ok, comparison.reason


def as_array(value: object) -> np.ndarray:
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)


@pytest.mark.parametrize("name", ["odd_names", "many_dtypes", "bert", "tf1_table", "tf1_ref_variables"])
def test_inputs_and_outputs_have_an_order_that_tensorflow_leaves_open(name: str, model: Model) -> None:
    """A SignatureDef holds maps; the functions that ``tf.saved_model.save`` makes take and give by sorted name."""
    loaded = tf.saved_model.load(str(model(name))).signatures["serving_default"]
    with Source(model(name)) as source:
        signature = read_signature(source, "serving_default")
    assert [item.name for item in signature.inputs] == sorted(loaded.structured_input_signature[1])
    assert [item.name for item in signature.outputs] == sorted(loaded.structured_outputs)


def test_dtypes_and_shapes(model: Model) -> None:
    with Source(model("many_dtypes")) as source:
        inputs = {item.name: item for item in read_signature(source, "serving_default").inputs}
    assert {name: item.dtype for name, item in inputs.items()} == {
        "image": "uint8",
        "flip": "bool",
        "row": "int64",
        "text": "string",
        "gain": "float32",
    }
    assert inputs["image"].shape == (None, 3, 3, 3)
    with Source(model("unknown_rank")) as source:
        assert read_signature(source, "serving_default").inputs[0].shape is None


def test_only_what_is_assigned_somewhere_stays_a_variable(model: Model) -> None:
    with Source(model("counter")) as source:
        graph = signature_graph(source, "serving_default")
        written = assigned_variables(graph)
        assert len(written) == 2
        tensors = {arg.tensor for arg in graph.args if arg.name in written}
        assert mutable_state(source) == tensors
        _, op_graph = signature_source(source, "serving_default", mutable_state(source))
        constant = {arg.name for arg in graph.args if arg.kind == "variable"} & op_graph.lowering.constant
        assert constant == {arg.name for arg in graph.args if arg.kind == "variable"} - written
    with Source(model("several_signatures")) as source:
        assert mutable_state(source) == frozenset()


def test_a_placeholder_with_a_default_that_nobody_feeds_has_its_default(model: Model) -> None:
    with Source(model("tf1_resource_variables")) as source:
        ops = {node.op for node in signature_graph(source, "serving_default").graph_def.node}
    assert "PlaceholderWithDefault" not in ops


def test_what_tensorflow_refuses_is_a_run_error(model: Model) -> None:
    with Source(model("lstm")) as source:
        graph = signature_graph(source, "serving_default")
        native = NativeGraph(source, graph)
        with pytest.raises(RunError):
            native.run({"arg/0:0": np.zeros((1, 20, 3), np.float32)}, graph.results)


def test_two_graphs_of_one_source_do_not_meet(model: Model) -> None:
    with Source(model("several_signatures")) as source:
        graphs = {key: signature_graph(source, key) for key in ("encode", "serving_default")}
        natives = {key: NativeGraph(source, graph) for key, graph in graphs.items()}
        x = np.ones((2, 12), np.float32)
        shapes = {key: natives[key].run({"arg/0:0": x}, graphs[key].results)[0].shape for key in graphs}
    assert shapes == {"encode": (2, 20), "serving_default": (2, 4)}


# --- models that are made here


def test_tf1_control_flow_stays_and_the_other_signature_is_converted(tmp_path: Path) -> None:
    model = tmp_path / "model"
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, (None, 4), "x")
            _, looped = v1.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2.0), (tf.constant(0), x))
            plain = tf.tanh(tf.nn.relu(x * 2.0) + 1.0)
            builder = v1.saved_model.Builder(str(model))
            info = v1.saved_model.build_tensor_info
            signatures = {
                key: v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(y)}, "predict")
                for key, y in (("looped", looped), ("serving_default", plain))
            }
            builder.add_meta_graph_and_variables(session, ["serve"], signatures)
            builder.save()
    finally:
        v1.enable_control_flow_v2()
    with Source(model) as source, pytest.raises(SourceError, match="TF1 control flow"):
        signature_graph(source, "looped")
    inputs = {"x": np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)}
    everything = refimpl.Recipe(signatures=("*",), min_segment_size=1)
    manifest = refimpl.convert(model, tmp_path / "bundle", everything)
    records = {record.signature.key: record for record in manifest.signatures}
    assert records["serving_default"].converted
    assert not records["looped"].converted
    assert records["looped"].reason
    assert assert_agrees(model, tmp_path / "bundle", inputs)
    assert assert_agrees(model, tmp_path / "bundle", inputs, "looped") == ()
    with pytest.raises(SourceError, match="TF1 control flow"):
        refimpl.convert(model, tmp_path / "asked", refimpl.Recipe(signatures=("looped",)))
    assert not (tmp_path / "asked").exists()


def test_composite_inputs_stay_and_the_other_signature_is_converted(tmp_path: Path) -> None:
    model = tmp_path / "model"
    with tf.Graph().as_default(), v1.Session() as session:
        pairs, x = v1.sparse_placeholder(tf.float32, (None, 5), "pairs"), v1.placeholder(tf.float32, (None, 5), "x")
        dense, y = tf.sparse.to_dense(pairs) * 2.0, tf.tanh(tf.nn.relu(x) * 2.0)
        info = v1.saved_model.build_tensor_info
        signatures = {
            "serving_default": v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(y)}, "predict"),
            "sparse": v1.saved_model.build_signature_def({"pairs": info(pairs)}, {"dense": info(dense)}, "predict"),
        }
        builder = v1.saved_model.Builder(str(model))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    manifest = refimpl.convert(model, tmp_path / "bundle", refimpl.Recipe(signatures=("*",), min_segment_size=1))
    records = {record.signature.key: record for record in manifest.signatures}
    assert not records["sparse"].converted
    assert "coo_sparse" in records["sparse"].reason
    assert default(manifest).converted
    assert assert_agrees(model, tmp_path / "bundle", {"x": np.arange(-5, 5, dtype=np.float32).reshape(2, 5)})
    with tf.Graph().as_default(), v1.Session() as session:
        definition = v1.saved_model.load(session, ["serve"], str(tmp_path / "bundle")).signature_def["sparse"]
        parts = definition.inputs["pairs"].coo_sparse
        feeds = {
            parts.indices_tensor_name: [[0, 1]],
            parts.values_tensor_name: [3.0],
            parts.dense_shape_tensor_name: [1, 5],
        }
        assert session.run(definition.outputs["dense"].name, feeds).tolist() == [[0, 6, 0, 0, 0]]


def test_lists_that_are_read_between_writes(tmp_path: Path) -> None:
    """An unrolled recurrence over a TensorArray: the ops between its reads and writes belong to one group with it."""
    a = tf.Variable(np.eye(6, dtype=np.float32) * 0.7 + 0.1)

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        seen = tf.TensorArray(tf.float32, size=3, clear_after_read=False, element_shape=(None, 6))
        seen = seen.write(0, tf.nn.relu(x @ a))
        seen = seen.write(1, tf.tanh(seen.read(0) @ a))
        seen = seen.write(2, tf.sigmoid(seen.read(1) @ a))
        return {"y": tf.nn.relu(tf.transpose(seen.stack(), [1, 0, 2]) * 2.0 - 0.5)}

    module = tf.Module()
    module.a = a
    module.call = tf.function(call, input_signature=[spec((None, 6), name="x")])
    model = tmp_path / "model"
    tf.saved_model.save(module, str(model), signatures={"serving_default": module.call})
    record = default(refimpl.convert(model, tmp_path / "bundle", ALL))
    assert len(record.islands) == 2
    assert {op.type for op in record.left} >= {"TensorListSetItem", "TensorListGetItem", "TensorListStack"}
    assert assert_agrees(model, tmp_path / "bundle", {"x": np.arange(-6, 6, dtype=np.float32).reshape(2, 6) / 5})
