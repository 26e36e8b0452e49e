"""The graph of a partition on disk: complete, edge for edge, compact, covered by checksums, refused when damaged."""

from __future__ import annotations

import json
import time

import pytest

import refimpl
from refimpl import bundle, graph_record
from refimpl.converter.load import signature_graph
from refimpl.converter.source import Source
from refimpl.errors import BundleError
from refimpl.graph_record import GRAPH, GraphOp, SignatureGraph, format_tensor, parse_tensor, read_graphs, write_graphs
from refimpl.specs import TensorSpec
from tests.bundles import copy_of, make_bundle, reseal
from tests.models import saved_model

MODELS = ["decode_and_label", "detector", "tensor_array", "while_loop", "counter", "odd_ops", "pass_through"]


@pytest.mark.parametrize("name", MODELS)
def test_edges_are_tensorflows(name):
    """Against the inlined graph itself: what each op reads of other ops, tensor for tensor, constants left out."""
    graph = read_graphs(make_bundle(name))["serving_default"]
    with Source(saved_model(name), ()) as source:
        nodes = {node.name: node for node in signature_graph(source, "serving_default").graph_def.node}
    known = {op.name for op in graph.ops}
    for op in graph.ops:
        wanted = [text for text in nodes[op.name].input if not text.startswith("^") and text.split(":")[0] in known]
        got = [_spelled(graph.ops[source].name, slot) for source, slot in zip(op.inputs, op.slots, strict=True)]
        assert got == list(dict.fromkeys(wanted)), op.name
        control = [text[1:] for text in nodes[op.name].input if text.startswith("^") and text[1:] in known]
        assert [graph.ops[source].name for source in op.controls] == list(dict.fromkeys(control))
        assert op.type == nodes[op.name].op


def _spelled(name: str, slot: int) -> str:
    return f"{name}:{slot}" if slot else name


@pytest.mark.parametrize("name", MODELS)
def test_it_says_of_each_op_what_the_manifest_says(name):
    folder = make_bundle(name)
    (record,) = [item for item in bundle.read(folder).signatures if item.signature.key == "serving_default"]
    graph = read_graphs(folder)["serving_default"]
    inside = {op.name: op.island for op in graph.ops if op.island}
    assert inside == {op: island.name for island in record.islands for op, _ in island.ops}
    left = {op.name: op.reason for op in graph.ops if not op.island and op.type not in bundle.IDLE_OPS}
    assert left == {op.name: op.reason for op in record.left}
    assert all(bool(op.island) != bool(op.reason) for op in graph.ops)
    assert (graph.inputs, graph.outputs) == (record.signature.inputs, record.signature.outputs)
    assert graph.islands == tuple(dict.fromkeys(inside.values()))


def test_tensors_inputs_and_results_are_named():
    graph = read_graphs(make_bundle("detector"))["serving_default"]
    first = next(op for op in graph.ops if op.type == "Conv2D")
    while first.inputs:
        first = graph.ops[first.inputs[0]]
    assert first.feeds == (graph.inputs[0].name,)
    assert {feed for op in graph.ops for feed in op.feeds} == {spec.name for spec in graph.inputs}
    last = next(index for index, op in enumerate(graph.ops) if op.type == "CombinedNonMaxSuppression")
    assert graph.ops[last].outputs == ("float32[?,30,4]", "float32[?,30]", "float32[?,30]", "int32[?]")
    assert len(graph.results) == len(graph.outputs)
    passed = read_graphs(make_bundle("pass_through"))["serving_default"]
    assert (-1, 0) in passed.results, "an input that is an output is no op's"


def test_readers_are_the_edges_turned_around():
    graph = read_graphs(make_bundle("odd_ops"))["serving_default"]
    edges = {(source, index) for index, op in enumerate(graph.ops) for source in op.inputs}
    assert {(source, index) for source, found in enumerate(graph.readers()) for index in found} == edges


def test_a_plan_has_the_same_graph():
    plan = refimpl.explain(saved_model("odd_ops"))
    assert plan.signatures[0].graph == read_graphs(make_bundle("odd_ops"))["serving_default"]


def test_what_comes_from_the_cache_has_its_graph(tmp_path):
    for name in ("first", "second"):
        refimpl.convert(saved_model("odd_ops"), tmp_path / name, cache=tmp_path / "cache")
    notes = bundle.read(tmp_path / "second").notes
    assert any("from the cache" in note for note in notes)
    assert read_graphs(tmp_path / "second") == read_graphs(tmp_path / "first") != {}


def test_checksums_cover_it(tmp_path):
    folder = copy_of("odd_ops", tmp_path)
    assert GRAPH in bundle.read(folder).files
    (folder / GRAPH).write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"graph\.json was changed"):
        bundle.read(folder)


def test_a_bundle_made_before_graphs_were_stored_has_none(tmp_path):
    folder = copy_of("odd_ops", tmp_path)
    (folder / GRAPH).unlink()
    reseal(folder)
    bundle.read(folder)
    assert read_graphs(folder) == {}


def damaged(change):
    """The JSON of a graph of two ops after a change to its columns."""
    ops = (
        GraphOp("a/x", "Relu", "I0", "", (), ("float32[2]",), group=0),
        GraphOp("a/y", "Relu", "", "why not", (0,), ("float32[2]",), slots=(0,), group=1),
    )
    data = json.loads(json.dumps(graph_record.to_json([SignatureGraph("key", ops, results=((1, 0),))])))
    change(data, data["graphs"]["key"])
    return data


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data, key: data.update(version=9), id="another version"),
        pytest.param(lambda data, key: data.pop("texts"), id="no texts"),
        pytest.param(lambda data, key: key.pop("reason"), id="a column is missing"),
        pytest.param(lambda data, key: key["type"].append(0), id="a column is longer"),
        pytest.param(lambda data, key: key["type"].__setitem__(0, 99), id="no such text"),
        pytest.param(lambda data, key: key["type"].__setitem__(0, -1), id="a text before the first"),
        pytest.param(lambda data, key: key["inputs"].__setitem__(0, [1]), id="an op reads a later one"),
        pytest.param(lambda data, key: key["inputs"].__setitem__(1, [-1]), id="an op reads what is none"),
        pytest.param(lambda data, key: key["slots"].update({"1": [1]}), id="no such tensor"),
        pytest.param(lambda data, key: key["slots"].update({"1": [0, 0]}), id="too many slots"),
        pytest.param(lambda data, key: key["controls"].update({"0": [0]}), id="an op waits for itself"),
        pytest.param(lambda data, key: key["inputs"].__setitem__(0, None), id="no list"),
        pytest.param(lambda data, key: key["group"].update({"2": 0}), id="a group of no op"),
        pytest.param(lambda data, key: key["feeds"].update({"x": []}), id="no number"),
        pytest.param(lambda data, key: key.update(signature={}), id="no signature"),
        pytest.param(lambda data, key: key["results"].__setitem__(0, [7, 0]), id="no such result"),
    ],
)
def test_damage_is_one_clear_error(tmp_path, change):
    file = tmp_path / GRAPH
    file.parent.mkdir()
    file.write_text(json.dumps(damaged(lambda data, key: None)), encoding="utf-8")
    assert read_graphs(tmp_path)["key"].ops[1].inputs == (0,)
    file.write_text(json.dumps(damaged(change)), encoding="utf-8")
    with pytest.raises(BundleError, match=r"graph\.json is damaged: ") as error:
        read_graphs(tmp_path)
    assert "convert" in error.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 1, "texts": [], "graphs": []}', "\x00\xff"])
def test_what_is_no_graph_is_refused(tmp_path, text):
    file = tmp_path / GRAPH
    file.parent.mkdir()
    file.write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=r"graph\.json is damaged: "):
        read_graphs(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [
        ("float32", (None, 112, 64), "float32[?,112,64]"),
        ("int64", (), "int64[]"),
        ("string", None, "string[...]"),
    ],
)
def test_tensors_are_written_and_read(dtype, shape, text):
    assert format_tensor(dtype, shape) == text
    assert parse_tensor(text) == (dtype, shape)


@pytest.mark.parametrize("text", ["float32", "float32[1", "[1]", "float32[a]"])
def test_what_is_no_tensor_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_tensor(text)


def test_twelve_thousand_ops_are_small_and_quick(tmp_path):
    ops = []
    for index in range(12_000):
        name = (
            f"StatefulPartitionedCall/model/conv{index // 400}_block{index // 20}_{index // 5}_conv/Conv2D_{index % 5}"
        )
        reads = (index - 1, max(0, index - 9)) if index else ()
        group = GraphOp(
            name,
            "Conv2D",
            f"TRTEngineOp_000_{index // 100:03d}" if index % 7 else "",
            "" if index % 7 else f"the rank of {name}:0 is unknown",
            reads,
            (f"float32[?,{index % 50},112,64]",),
            slots=(0,) * len(reads),
            constants=(index,),
            group=index,
        )
        ops.append(group)
    graph = SignatureGraph("serving_default", tuple(ops), (TensorSpec("x", "float32", None),))
    start = time.process_time()
    write_graphs(tmp_path, [graph])
    assert read_graphs(tmp_path) == {"serving_default": graph}
    assert time.process_time() - start < 1.0
    assert (tmp_path / GRAPH).stat().st_size < 1_000_000
