"""Exports: what is in them, and whether their scripts tell right from wrong; ``reproduce.sh`` really runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper

import refimpl
from refimpl import bundle, exporter, oracle, runtime
from refimpl.engines import onnxruntime, tensorrt
from refimpl.errors import BundleError, GoldenError, RecipeError, SourceError
from refimpl.exporter import limits, script
from refimpl.exporter.samples import Sample
from refimpl.recipe import Recipe
from refimpl.specs import TensorSpec
from refimpl.tolerance import TABLE, tolerance_for
from tests.bundles import main, reseal
from tests.models_ops import save

ISLAND = "TRTEngineOp_000_000"
BIN = Path(sys.executable).parent
needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


def small(image: tf.Tensor) -> dict[str, tf.Tensor]:
    """A convolution, a product and a decision; the strings keep TensorFlow in the bundle."""
    rng = np.random.default_rng(0)
    kernel, dense = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 3, 8), (8, 5)))
    features = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME")), [1, 2])
    logits = tf.linalg.matmul(features, dense)
    return {"probs": tf.nn.softmax(logits), "best": tf.argmax(logits, 1), "positive": logits > 0}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def model(room: Path) -> Path:
    save(room / "model", small, tf.TensorSpec((None, 8, 8, 3), name="image"))
    return room / "model"


@pytest.fixture(scope="module")
def float32(room: Path, model: Path) -> Path:
    refimpl.convert(model, room / "float32")
    return room / "float32"


@pytest.fixture(scope="module")
def half(room: Path, model: Path) -> Path:
    refimpl.convert(model, room / "half", Recipe(precision="bf16"))
    return room / "half"


@pytest.fixture(scope="module")
def golden(room: Path, model: Path) -> Path:
    oracle.record(model, room / "golden")
    return room / "golden"


def reproduce(folder: Path, *args: str) -> tuple[int, str]:
    """Exit code and output of an export's script, ``polygraphy`` being that of this environment."""
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(folder / script.NAME), *args],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def edit(file: Path, change: Any) -> None:
    proto = onnx.load(file)
    change(proto.graph)
    onnx.save(proto, file)


def scale_a_weight(graph: Any) -> None:
    weight = max(graph.initializer, key=lambda item: len(item.raw_data))
    array = numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(numpy_helper.from_array(array.astype(np.float32), weight.name))


# What is in an export


def test_an_export_is_complete_and_its_manifest_true(tmp_path: Path, float32: Path) -> None:
    made = refimpl.export(float32, tmp_path / "out")
    files = sorted(
        file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()
    )
    assert sorted([*made["files"], "manifest.json"]) == files
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == made
    for name, digest in made["files"].items():
        assert bundle.file_sha256(tmp_path / "out" / name) == digest
    own = {name.split("/", 1)[1] for name in files if name.startswith(ISLAND)}
    samples = {f"samples/000-probe.{ending}" for ending in ("npz", "inputs.json", "outputs.json")}
    always = {"fp32.onnx", "layers.json", "ops.json", "profiles.json", "reproduce.sh", "trt_config.py"}
    assert own == always | samples
    assert made["bundle"]["source_sha256"] == bundle.read(float32).source_sha256
    assert made["islands"][0]["missing"] == [
        "a TensorRT engine: the bundle holds none; refimpl convert --engine tensorrt builds it"
    ]
    assert str(tmp_path) not in (tmp_path / "out" / ISLAND / "ops.json").read_text()


def test_samples_are_the_probe_under_the_names_of_the_model(tmp_path: Path, float32: Path) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    refimpl.export(float32, tmp_path / "out")
    (island,) = bundle.read(float32).islands
    inputs, outputs = runtime.read_probe(float32 / island.probe)
    folder = tmp_path / "out" / ISLAND
    graph = onnx.load(folder / "fp32.onnx").graph
    (feed,) = load_json(str(folder / "samples" / "000-probe.inputs.json"))
    ((name, (result,)),) = RunResults.load(str(folder / "samples" / "000-probe.outputs.json")).items()
    stored = np.load(folder / "samples" / "000-probe.npz")
    assert name == "TensorFlow"
    assert list(feed) == [item.name for item in graph.input]
    assert list(result.keys()) == [item.name for item in graph.output]
    for side, known, want in (("inputs", feed, inputs), ("outputs", dict(result.items()), outputs)):
        for (key, value), expected in zip(known.items(), want, strict=True):
            assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(value, expected)
            np.testing.assert_array_equal(stored[f"{side}/{key}"], expected)


def test_weights_beside_the_model_keep_their_place(tmp_path: Path, float32: Path) -> None:
    """As in an island with more than a GiB of weights."""
    source = Path(shutil.copytree(float32, tmp_path / "bundle"))
    file = source / bundle.read(source).islands[0].engines[0].file
    onnx.save(onnx.load(file), file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=500)
    reseal(source)
    refimpl.export(source, tmp_path / "out")
    folder = tmp_path / "out" / ISLAND
    proto = onnx.load(folder / "fp32.onnx", load_external_data=False)
    places = {
        entry.value for item in proto.graph.initializer for entry in item.external_data if entry.key == "location"
    }
    assert places == {"fp32.onnx.data"}
    assert reproduce(tmp_path / "out")[0] == 0
    assert reproduce(tmp_path / "out")[0] == 0


@needs_tensorrt
def test_engines_profiles_and_layers_of_tensorrt(tmp_path: Path, model: Path) -> None:
    refimpl.convert(model, tmp_path / "bundle", Recipe(engines=("onnxruntime", "tensorrt")))
    made = refimpl.export(tmp_path / "bundle", tmp_path / "out")
    folder = tmp_path / "out" / ISLAND
    record = next(item for item in bundle.read(tmp_path / "bundle").islands[0].engines if item.kind == "tensorrt")
    assert (folder / "tensorrt.fp32.engine").read_bytes() == (tmp_path / "bundle" / record.file).read_bytes()
    (profile,) = json.loads((folder / "profiles.json").read_text())
    (name,) = made["islands"][0]["inputs"]
    assert profile == {name: {"min": [1, 8, 8, 3], "opt": [8, 8, 8, 3], "max": [8, 8, 8, 3]}}
    layers = json.loads((folder / "layers.json").read_text())
    assert "CONVOLUTION" in {layer["type"] for layer in layers["network"]}
    assert layers["engine"] or layers["why_no_engine_layers"]
    text = (folder / script.NAME).read_text()
    assert f"--trt-max-shapes '{name}:[8,8,8,3]'" in text
    assert "POLYGRAPHY_USE_TENSORRT_RTX" in text


def test_only_the_islands_asked_for(tmp_path: Path, float32: Path) -> None:
    assert [item["name"] for item in refimpl.export(float32, tmp_path / "out", islands=[ISLAND])["islands"]] == [ISLAND]


# The script


def test_the_script_is_green_on_a_good_export(tmp_path: Path, float32: Path) -> None:
    refimpl.export(float32, tmp_path / "out")
    code, said = reproduce(tmp_path / "out")
    assert code == 0, said
    assert f"MATCH {ISLAND}: fp32.onnx" in said
    assert "PASSED | Output: " in said, "Polygraphy itself has compared"


def drop_an_output(graph: Any) -> None:
    del graph.output[1]


def rename_an_output(graph: Any) -> None:
    old, new = graph.output[0].name, graph.output[0].name + "_renamed"
    graph.node.add(op_type="Identity", input=[old], output=[new])
    graph.output[0].name = new


def swap_a_decision(graph: Any) -> None:
    node = next(item for item in graph.node if item.op_type == "ArgMax")
    node.op_type = "ArgMin"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (scale_a_weight, "MISMATCH"),
        (swap_a_decision, "MISMATCH"),
        (drop_an_output, "NOT COMPARED"),
        (rename_an_output, "NOT COMPARED"),
        (lambda graph: graph.node.pop(), "FAILED TO RUN"),
    ],
)
def test_the_script_is_red_on_a_planted_fault(tmp_path: Path, float32: Path, fault: Any, says: str) -> None:
    refimpl.export(float32, tmp_path / "out")
    edit(tmp_path / "out" / ISLAND / "fp32.onnx", fault)
    code, said = reproduce(tmp_path / "out")
    assert code == 1, said
    assert f"\n{says} {ISLAND}: fp32.onnx" in said
    assert f"\nMATCH {ISLAND}" not in said


def test_a_half_island_runs_as_refimpl_rounds(tmp_path: Path, half: Path) -> None:
    """Stock ONNX Runtime has no bfloat16 convolution, so the spelled-out form is what its script runs."""
    made = refimpl.export(half, tmp_path / "out")
    (form,) = made["islands"][0]["forms"]
    assert (form["file"], form["cpu_file"]) == ("bf16.half.onnx", "bf16.cpu.onnx")
    assert any("float32 form" in line for line in made["islands"][0]["missing"])
    (island,) = bundle.read(half).islands
    inputs, _ = runtime.read_probe(half / island.probe)
    ours = onnxruntime.open(half / island.engines[0].file).run(inputs)
    spelled = onnxruntime.open(tmp_path / "out" / ISLAND / "bf16.cpu.onnx").run(inputs)
    for want, got in zip(ours, spelled, strict=True):
        np.testing.assert_array_equal(got, want)
    code, said = reproduce(tmp_path / "out")
    assert code == 0, said
    assert "fp32" not in said


def test_a_mode_with_nothing_to_compare_is_no_pass(tmp_path: Path, float32: Path) -> None:
    refimpl.export(float32, tmp_path / "out")
    code, said = reproduce(tmp_path / "out", "--engine")
    assert (code, "there was nothing to compare" in said) == (2, True)
    code, said = reproduce(tmp_path / "out" / ISLAND, "--unknown")
    assert (code, "./reproduce.sh --trt" in said) == (2, True)


def test_without_samples_nothing_passes(tmp_path: Path, model: Path) -> None:
    refimpl.convert(model, tmp_path / "bundle", Recipe(verify=False))
    made = refimpl.export(tmp_path / "bundle", tmp_path / "out")
    assert any(line.startswith("samples: ") for line in made["islands"][0]["missing"])
    assert "UNVERIFIED" in (tmp_path / "out" / "README.txt").read_text()
    assert reproduce(tmp_path / "out")[0] == 2


# The limits


@pytest.mark.parametrize("precision", sorted({precision for precision, _ in TABLE}))
def test_what_polygraphy_passes_is_within_refimpls_tolerance(precision: str) -> None:
    """On the edge of both rules, element by element, and never the other way round."""
    want = np.array([1e-7, 1e-3, -0.3, 2.0, -40.0, 500.0])
    row = tolerance_for(precision, "float32")
    record = type("Record", (), {"outputs": (TensorSpec("y", "float32", None),)})()
    (limit,) = limits.limits_for(record, ["y"], Sample("s", (), (want.astype(np.float32),)), precision)
    allowed = row.rtol * np.abs(want) + row.of_max * np.abs(want).max() + row.atol
    passed = np.maximum(limit.atol, limit.rtol * np.abs(want))
    assert np.all(passed <= allowed * (1 + 1e-6))
    assert np.all(passed >= allowed / 2.0001), "nor is it needlessly strict"


def test_integers_are_exact_or_may_flip_in_the_share_of_the_table() -> None:
    record = type("Record", (), {"outputs": (TensorSpec("i", "int64", None), TensorSpec("b", "bool", None))})()
    sample = Sample("s", (), (np.arange(4), np.array([True])))
    exact = limits.limits_for(record, ["i", "b"], sample, "fp32")
    assert [(item.rtol, item.atol, item.quantile) for item in exact] == [(0.0, 0.0, None)] * 2
    flips = limits.limits_for(record, ["i", "b"], sample, "fp16")
    assert [item.quantile for item in flips] == [1.0 - tolerance_for("fp16", "int64").flips, None]
    assert limits.arguments(flips, sample)[-2:] == ["--error-quantile", "i:0.99"]


def test_values_that_polygraphy_cannot_judge_are_left_out(tmp_path: Path, float32: Path) -> None:
    (island,) = bundle.read(float32).islands
    inputs, outputs = (tuple(side) for side in runtime.read_probe(float32 / island.probe))
    spoiled = (np.full_like(inputs[0], np.nan),)
    samples = (Sample("../a b", spoiled, outputs), Sample("empty", (inputs[0][:0],), outputs))
    exporter.export_bundle(float32, tmp_path / "out", extras={ISLAND: exporter.Extras(samples=samples)})
    code, said = reproduce(tmp_path / "out")
    assert code == 0
    assert said.count("is left out") == 2
    assert (tmp_path / "out" / ISLAND / "samples" / "001-a-b.npz").is_file()


# Golden cases and other precisions


def test_golden_cases_and_the_float32_form(tmp_path: Path, half: Path, model: Path, golden: Path) -> None:
    made = refimpl.export(half, tmp_path / "out", golden=golden, saved_model=model)
    (island,) = made["islands"]
    assert [form["precision"] for form in island["forms"]] == ["bf16", "fp32"]
    cases = {case.name: case for case in oracle.read_golden(golden).cases}
    left = {note.split("/")[1].split(" ")[0] for note in made["notes"]}  # an empty batch, where oneDNN is on
    assert [item["name"] for item in island["samples"]] == ["probe", *(name for name in cases if name not in left)]
    stored = np.load(tmp_path / "out" / ISLAND / next(s["arrays"] for s in island["samples"] if s["name"] == "unit"))
    np.testing.assert_array_equal(stored[f"inputs/{island['inputs'][0]}"], cases["unit"].inputs["image"])
    probs = next(name for name in island["outputs"] if "Softmax" in name)
    np.testing.assert_allclose(stored[f"outputs/{probs}"], cases["unit"].outputs["probs"], rtol=1e-5, atol=1e-6)


def test_another_model_is_refused(tmp_path: Path, half: Path, golden: Path) -> None:
    save(tmp_path / "other", lambda image: {"y": tf.nn.relu(image) + 1}, tf.TensorSpec((None, 4), name="image"))
    with pytest.raises(SourceError, match="is not the model that the bundle was made from"):
        refimpl.export(half, tmp_path / "out", saved_model=tmp_path / "other")
    oracle.record(tmp_path / "other", tmp_path / "golden")
    with pytest.raises(GoldenError, match="another SavedModel"):
        refimpl.export(half, tmp_path / "out", golden=tmp_path / "golden")
    assert not (tmp_path / "out").exists()


# Refusals


def test_refusals_leave_nothing(tmp_path: Path, float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="no island 'x'") as error:
        refimpl.export(float32, tmp_path / "out", islands=["x"])
    assert ISLAND in error.value.hint
    damaged = Path(shutil.copytree(float32, tmp_path / "bundle"))
    (damaged / bundle.read(damaged).islands[0].probe).write_bytes(b"")
    with pytest.raises(BundleError, match="was changed"):
        refimpl.export(damaged, tmp_path / "out")
    monkeypatch.setattr(script, "script_of", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        refimpl.export(float32, tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="exists already"):
        refimpl.export(float32, tmp_path / "out")


def test_the_command(tmp_path: Path, float32: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main("export", float32, tmp_path / "out") == 0
    assert f"{ISLAND}: fp32.onnx; 1 sample" in capfd.readouterr().out
    assert main("export", float32, tmp_path / "again", "--json", "--island", ISLAND) == 0
    assert json.loads(capfd.readouterr().out)["format"] == "refimpl export"
    assert main("export", float32, tmp_path / "more", "--island", "x") == 2
    assert f"hint: islands: {ISLAND}" in capfd.readouterr().err


# TF_TRT_EXPORT_TRT_ENGINES_PATH


def test_the_variable_exports_after_a_conversion(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_TRT_EXPORT_TRT_ENGINES_PATH", str(tmp_path / "a" / "plans"))
    refimpl.convert(model, tmp_path / "bundle")
    assert reproduce(tmp_path / "a" / "plans" / "bundle")[0] == 0


def test_the_variable_is_refused_before_a_conversion(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "plans" / "bundle").mkdir(parents=True)
    for place, says in (
        (tmp_path / "file" / "plans", "cannot be made"),
        (tmp_path / "plans", "is there and is no export"),
        (tmp_path, "names the folder that"),
    ):
        monkeypatch.setenv("TF_TRT_EXPORT_TRT_ENGINES_PATH", str(place))
        with pytest.raises(RecipeError, match=says):
            refimpl.convert(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_variable_exports_what_tf_trts_api_saves(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SavedModel that is saved again replaces the first one, and so does its export."""
    from refimpl import trt_convert

    converter = trt_convert.TrtGraphConverterV2(input_saved_model_dir=str(model))
    monkeypatch.setenv("TF_TRT_EXPORT_TRT_ENGINES_PATH", str(tmp_path / "plans"))
    converter.convert()
    assert not (tmp_path / "plans" / "out").exists(), "the conversion itself is a step on the way"
    created = []
    for _ in range(2):
        converter.save(str(tmp_path / "out"))
        created.append((tmp_path / "plans" / "out" / "manifest.json").stat().st_ino)
        assert reproduce(tmp_path / "plans" / "out")[0] == 0
    assert len(set(created)) == 2
    converter.save(str(tmp_path / "bare"), save_gpu_specific_engines=False)
    assert not (tmp_path / "plans" / "bare").exists(), "TF-TRT exported no engines that it did not save"
