"""The open model holds the variables that some signature reads, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from refimpl.converter import source as under_test
from refimpl.converter.load import signature_graph
from refimpl.converter.source import Source
from tests.models import saved_model

NAME = "lstm"


def held(session: tf.compat.v1.Session, graph: tf.Graph) -> dict[str, bool]:
    """Handle by name -> whether its variable has a value."""
    with graph.as_default():
        flags = {
            op.name: tf.raw_ops.VarIsInitializedOp(resource=op.outputs[0])
            for op in graph.get_operations()
            if op.type == "VarHandleOp"
        }
    return session.run(flags)


def test_what_no_signature_reads_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    with Source(saved_model(NAME)) as source:
        after = held(source.session, source.graph)
        args = [arg for arg in signature_graph(source, "serving_default").args if arg.kind == "variable"]
        values = source.values(args)
    monkeypatch.setattr(under_test, "_forget_unread", lambda *_: None)
    with Source(saved_model(NAME)) as source:
        before = held(source.session, source.graph)
        wanted = source.values(args)
    read = {arg.tensor.split(":")[0] for arg in args}
    assert {name for name, flag in after.items() if flag} == read
    assert read < {name for name, flag in before.items() if flag}, "the model restores what nobody reads"
    for name, value in wanted.items():
        np.testing.assert_array_equal(values[name], value)


def small_graph(*, in_function: bool = False) -> tuple[tf.Graph, tf.Operation]:
    """Four variables; ``out`` reads the one called ``read`` by a second handle, and ``counted`` by a control edge."""
    graph = tf.Graph()
    with graph.as_default():
        handles = {
            name: tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name=name, name=f"first_{name}")
            for name in ("read", "counted", "unread", "inner")
        }
        assigned = [tf.raw_ops.AssignVariableOp(resource=item, value=tf.constant(2.0)) for item in handles.values()]
        again = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="read", name="second_read")
        count = tf.raw_ops.AssignAddVariableOp(resource=handles["counted"], value=tf.constant(1.0))
        with tf.control_dependencies([count]):
            value = tf.raw_ops.ReadVariableOp(resource=again, dtype=tf.float32)
        if in_function:

            @tf.function
            def inner() -> tf.Tensor:
                handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="inner")
                return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)

            value += inner()
        tf.identity(value, name="out")
        return graph, tf.group(assigned)


def meta_graph_of(graph: tf.Graph, output: meta_graph_pb2.TensorInfo) -> meta_graph_pb2.MetaGraphDef:
    found = meta_graph_pb2.MetaGraphDef(graph_def=graph.as_graph_def())
    found.signature_def["serving_default"].outputs["out"].CopyFrom(output)
    found.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "NoOp"
    return found


@pytest.mark.parametrize("in_function", [False, True])
def test_all_handles_of_a_variable_that_is_read_keep_it(in_function: bool) -> None:
    graph, assign = small_graph(in_function=in_function)
    with tf.compat.v1.Session(graph=graph) as session:
        session.run(assign)
        output = meta_graph_pb2.TensorInfo(name="out:0")
        under_test._forget_unread(session, graph, meta_graph_of(graph, output))
        lost = {name for name, flag in held(session, graph).items() if not flag}
        assert lost == {"first_unread"} | (set() if in_function else {"first_inner"})
        assert session.run("out:0") == (4.0 if in_function else 2.0)


def test_parts_of_composite_outputs_are_read() -> None:
    graph, assign = small_graph()
    sparse = meta_graph_pb2.TensorInfo()
    for name in ("values", "indices", "dense_shape"):
        setattr(sparse.coo_sparse, f"{name}_tensor_name", "out:0")
    ragged = meta_graph_pb2.TensorInfo()
    ragged.composite_tensor.components.add().CopyFrom(sparse)
    with tf.compat.v1.Session(graph=graph) as session:
        session.run(assign)
        under_test._forget_unread(session, graph, meta_graph_of(graph, ragged))
        assert held(session, graph)["second_read"]
        assert not held(session, graph)["first_unread"]


def test_where_an_output_is_unknown_nothing_is_forgotten() -> None:
    graph, assign = small_graph()
    with tf.compat.v1.Session(graph=graph) as session:
        session.run(assign)
        under_test._forget_unread(session, graph, meta_graph_of(graph, meta_graph_pb2.TensorInfo(name="gone:0")))
        assert all(held(session, graph).values())
