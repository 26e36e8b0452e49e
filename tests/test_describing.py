"""What islands' ONNX files say about themselves: names, properties, shapes; no engine and no cache key hangs on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import refimpl
from refimpl import bundle
from refimpl.bundle import Manifest
from refimpl.engine_cache import engine_key
from refimpl.engines import BuildOptions, onnxruntime
from refimpl.engines.describing import describe, digest_without
from refimpl.runtime import read_probe
from refimpl.specs import TensorSpec
from tests.bundles import make_bundle

FACTS = {"refimpl": "9.9", "island": "I", "source": "my_model"}
OPTIONS = BuildOptions(tf32=False, workspace_bytes=0)
IN, OUT = TensorSpec("image:0", "float32", (None, 3)), TensorSpec("logits:0", "float32", (None, 2))


def small(folder: Path, *, scale: float = 1.0, external: bool = False, data: str = "m.onnx.data") -> Path:
    """A product and a Relu."""
    weights = numpy_helper.from_array(np.full((3, 2), scale, np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "mul"), helper.make_node("Relu", ["h"], ["y"], "relu")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 3), ("y", 2))]
    graph = helper.make_graph(nodes, "tf2onnx", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="tf2onnx", ir_version=8)
    file = folder / "m.onnx"
    onnx.save(model, file, save_as_external_data=external, location=data if external else None, size_threshold=0)
    return file


def described(file: Path, **facts: str) -> Path:
    describe(file, "I", "An island.", {**FACTS, **facts}, [IN], [OUT])
    return file


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    model = onnx.load(described(small(tmp_path)))
    assert (model.producer_name, model.producer_version) == ("refimpl", "9.9")
    assert (model.graph.name, model.doc_string) == ("I", "An island.")
    assert {item.key: item.value for item in model.metadata_props} == {f"refimpl.{k}": v for k, v in FACTS.items()}
    assert model.graph.input[0].doc_string == "TensorFlow's image:0: float32[?,3]"
    assert model.graph.output[0].doc_string == "TensorFlow's logits:0: float32[?,2]"
    (inside,) = model.graph.value_info
    assert inside.name == "h"
    assert [dim.dim_param or dim.dim_value for dim in inside.type.tensor_type.shape.dim] == ["n", 2]
    onnx.checker.check_model(model, full_check=True)


def test_saying_it_again_replaces_what_was_said(tmp_path: Path) -> None:
    once = described(small(tmp_path)).read_bytes()
    assert described(tmp_path / "m.onnx").read_bytes() == once
    described(tmp_path / "m.onnx", source="other")
    props = [(item.key, item.value) for item in onnx.load(tmp_path / "m.onnx").metadata_props]
    assert ("refimpl.source", "other") in props
    assert len(props) == len(FACTS)


def test_a_node_without_a_name_gets_that_of_its_output(tmp_path: Path) -> None:
    model = onnx.load(small(tmp_path))
    model.graph.node[1].ClearField("name")
    onnx.save(model, tmp_path / "m.onnx")
    before = digest_without(tmp_path / "m.onnx")
    assert [node.name for node in onnx.load(described(tmp_path / "m.onnx")).graph.node] == ["mul", "y"]
    assert digest_without(tmp_path / "m.onnx") == before


def test_properties_of_others_stay(tmp_path: Path) -> None:
    model = onnx.load(small(tmp_path))
    model.metadata_props.add(key="theirs", value="1")
    onnx.save(model, tmp_path / "m.onnx")
    assert "theirs" in {item.key for item in onnx.load(described(tmp_path / "m.onnx")).metadata_props}


def test_weights_beside_the_file_stay_there(tmp_path: Path) -> None:
    file = small(tmp_path, external=True)
    x = np.ones((2, 3), np.float32)
    (before,), data = onnxruntime.open(file).run([x]), (tmp_path / "m.onnx.data").read_bytes()
    (after,) = onnxruntime.open(described(file)).run([x])
    assert (tmp_path / "m.onnx.data").read_bytes() == data
    np.testing.assert_array_equal(after, before)
    assert file.stat().st_size < 2000


# Keys


def test_the_digest_leaves_out_what_is_said_and_nothing_else(tmp_path: Path) -> None:
    file = small(tmp_path)
    plain = digest_without(file)
    assert digest_without(described(file)) == plain
    assert digest_without(described(file, refimpl="10", source="other", more="yes")) == plain
    assert digest_without(small(tmp_path, scale=2.0)) != plain, "a weight"
    for change in (
        lambda model: setattr(model.graph.node[1], "op_type", "Sigmoid"),
        lambda model: setattr(model.graph.node[0], "name", "other"),  # engines and precisions go by names of layers
        lambda model: setattr(model.opset_import[0], "version", 19),
        lambda model: model.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 7),
    ):
        model = onnx.load(described(small(tmp_path)))
        change(model)
        onnx.save(model, tmp_path / "m.onnx")
        assert digest_without(tmp_path / "m.onnx") != plain


def test_where_weights_lie_is_no_part_of_the_digest(tmp_path: Path) -> None:
    """Their bytes are a part of an engine's key of their own."""
    one = digest_without(small(tmp_path, external=True))
    assert digest_without(small(tmp_path, external=True, data="n.data")) == one
    assert digest_without(small(tmp_path)) != one


def test_what_is_no_model_counts_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    found = set()
    for content in (b"", b"another", b"another one", b"\xff" * 40):
        file.write_bytes(content)
        found.add(digest_without(file))
    assert len(found) == 4


def test_an_engine_is_found_whatever_its_file_says(tmp_path: Path) -> None:
    file = small(tmp_path)
    key = engine_key("tensorrt", file, (), OPTIONS)
    assert engine_key("tensorrt", described(file), (), OPTIONS) == key
    assert engine_key("tensorrt", small(tmp_path, scale=2.0), (), OPTIONS) != key


# Bundles


def islands(folder: Path) -> list[tuple[str, bundle.IslandRecord, Path]]:
    manifest: Manifest = bundle.read(folder)
    return [
        (record.signature.key, island, folder / engine.file)
        for record in manifest.signatures
        for island in record.islands
        for engine in island.engines
        if engine.kind == onnxruntime.NAME
    ]


@pytest.mark.parametrize("name", ["detector", "decode_and_label", "half", "several_signatures"])
def test_islands_of_bundles_are_described(name: str) -> None:
    found = islands(make_bundle(name))
    for key, island, file in found:
        model = onnx.load(file)
        props = {item.key.removeprefix("refimpl."): item.value for item in model.metadata_props}
        assert (props["island"], props["signature"]) == (island.name, key)
        assert props["refimpl"] == refimpl.__version__
        assert props["source"].startswith(name)
        assert len(props["source_sha256"]) == 64
        assert props["precision"] == island.precision
        assert island.name in model.doc_string
        assert key in model.doc_string
        assert [item.doc_string.split(":")[0] for item in model.graph.output] == [
            f"TensorFlow's {spec.name.split(':')[0]}" for spec in island.outputs
        ]
        assert all(node.name for node in model.graph.node)
        known = {item.name for item in [*model.graph.value_info, *model.graph.output]}
        made = [tensor for node in model.graph.node for tensor in node.output if tensor]
        assert len(known & set(made)) >= 0.9 * len(made), "ONNX can infer nearly all types and shapes"
    assert found


@pytest.mark.parametrize("name", ["detector", "half"])
def test_answers_are_those_of_the_file_without_words(name: str, tmp_path: Path) -> None:
    for _, island, file in islands(make_bundle(name)):
        model = onnx.load(file)
        for field in ("producer_name", "producer_version", "doc_string", "metadata_props"):
            model.ClearField(field)
        model.graph.ClearField("value_info")
        bare = tmp_path / file.name
        onnx.save(model, bare)
        inputs, _ = read_probe(make_bundle(name) / island.probe)
        for one, other in zip(onnxruntime.open(file).run(inputs), onnxruntime.open(bare).run(inputs), strict=True):
            np.testing.assert_array_equal(one, other)


def test_exported_files_say_it_too(tmp_path: Path) -> None:
    refimpl.export(shutil.copytree(make_bundle("detector"), tmp_path / "bundle"), tmp_path / "export")
    (file,) = (tmp_path / "export").rglob("fp32.onnx")
    assert {item.key: item.value for item in onnx.load(file).metadata_props}["refimpl.island"] == "TRTEngineOp_000_000"
