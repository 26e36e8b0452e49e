"""Profiles and engines that ``build()`` makes, and what ``save()`` writes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_debug_info_pb2

import refimpl
from refimpl import bundle, runtime
from refimpl.engines import tensorrt
from refimpl.errors import RecipeError
from refimpl.trt_convert import artifact
from tests.bundles import main
from tests.tftrt.models import DIGITS, KEY, QUERY, TWO, assert_same, call, converted, images

needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


@pytest.mark.parametrize(
    ("strategy", "profiles"),
    [
        ("Range", [((1, 3), (4, 5))]),
        ("Optimal", [((1, 5), (1, 5)), ((4, 3), (4, 3))]),
        ("Range+Optimal", [((1, 5), (1, 5)), ((4, 3), (4, 3)), ((1, 3), (4, 5))]),
        ("ImplicitBatchModeCompatible", [((1, 5), (1, 5)), ((1, 3), (4, 3))]),
    ],
)
def test_profiles(strategy, profiles):
    made = converted(TWO, use_dynamic_shape=True, dynamic_shape_profile_strategy=strategy)

    def input_fn():
        for batch, length in ((1, 5), (4, 3)):
            yield {name: np.ones((batch, length, 6), np.float32) for name in ("query", "key")}

    made.build(input_fn=input_fn)
    record = next(
        engine
        for island in made._manifest.islands
        for engine in island.engines
        if engine.kind == "tensorrt" and island.inputs[0].shape == (None, None, 6)
    )
    assert [(item["min"][0][:2], item["max"][0][:2]) for item in record.profiles] == profiles
    assert all(item["opt"] == item["max"] for item in record.profiles)
    assert_same(made._converted_func(QUERY, KEY), call(TWO, query=QUERY, key=KEY))


@needs_tensorrt
def test_engines_are_assets_and_can_be_left_out(tmp_path):
    made = converted()
    name = made._manifest.islands[0].name
    made.save(str(tmp_path / "unbuilt"))
    assert not (tmp_path / "unbuilt" / "assets" / f"trt-serialized-engine.{name}").exists()
    made.build(input_fn=lambda: iter([images()]))
    for keep in (True, False, True):  # save() may be called again, and then saves all again
        place = tmp_path / f"{keep}"
        made.save(str(place), save_gpu_specific_engines=keep)
        size = (place / "assets" / f"trt-serialized-engine.{name}").stat().st_size
        assert (size > 1000) if keep else (size == 0)
        assert_same(call(place, image=images()), call(DIGITS, image=images()))
        (record,) = [item for item in bundle.read(place).islands[0].engines if item.kind == "tensorrt"]
        assert bool(record.file) is keep
        assert record.profiles, "another GPU needs them to build for the same shapes"


def test_inspect_says_that_an_engine_is_not_built(tmp_path, ready, capfd):
    ready.save(str(tmp_path / "out"))
    assert main("inspect", tmp_path / "out") == 0
    (row,) = [line for line in capfd.readouterr().out.splitlines() if line.strip().startswith("tensorrt ")]
    assert "not built" in row


@needs_tensorrt
def test_plans_are_exported(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_TRT_EXPORT_TRT_ENGINES_PATH", str(tmp_path / "a" / "plans"))
    made = converted()
    made.build(input_fn=lambda: iter([images()]))
    made.save(str(tmp_path / "out"))
    for island in made._manifest.islands:
        plan = (tmp_path / "a" / "plans" / island.name).read_bytes()
        assert plan == (tmp_path / "out" / "assets" / f"trt-serialized-engine.{island.name}").read_bytes()
        assert "max ((3, 28, 28, 1),)" in (tmp_path / "a" / "plans" / f"dims-{island.name}").read_text()


@needs_tensorrt
def test_a_new_probe_is_drawn_for_shapes_that_the_old_one_does_not_have():
    made = converted(use_dynamic_shape=True, dynamic_shape_profile_strategy="Optimal")
    made.build(input_fn=lambda: iter([np.zeros((7, 28, 28, 1), np.float32)]))
    island = made._manifest.islands[0]
    inputs, outputs = runtime.read_probe(made._folder / island.probe)
    assert inputs[0].shape == (7, 28, 28, 1)
    assert np.ptp(inputs[0]) > 1, "random values tell more than zeros"
    module = tf.saved_model.load(str(DIGITS))
    want = module.signatures["serving_default"](image=tf.constant(inputs[0]))["logits"]
    np.testing.assert_allclose(outputs[0], want, rtol=1e-4, atol=1e-5)


def test_save_replaces_savedmodels_and_empty_folders_only(tmp_path, ready):
    place = tmp_path / "out"
    place.mkdir()
    ready.save(str(place))
    first = (place / "saved_model.pb").stat().st_ino
    ready.save(str(place))
    assert (place / "saved_model.pb").stat().st_ino != first
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RecipeError, match="is no SavedModel"):
        ready.save(str(tmp_path / "mine"))
    assert [item.name for item in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    ready.save(str(tmp_path / "new" / "deep"))
    assert refimpl.load(tmp_path / "new" / "deep").signatures.keys() == {"serving_default", "brightness"}


def test_what_lies_beside_an_old_savedmodel_stays(tmp_path, ready):
    place = tmp_path / "1"
    ready.save(str(place))
    (place / "labels.txt").write_text("cat")
    (place / "client").mkdir()
    (place / "client" / "run.py").write_text("import refimpl")
    (place / "assets" / "old.txt").write_text("of the old model")
    ready.save(str(place))
    assert (place / "labels.txt").read_text() == "cat"
    assert (place / "client" / "run.py").is_file()
    assert not (place / "assets" / "old.txt").exists()
    assert refimpl.load(place).signatures
    assert [item.name for item in tmp_path.iterdir()] == ["1"]


def test_a_link_stays_a_link(tmp_path, ready, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "latest").symlink_to("real")
    for _ in range(2):
        ready.save(str(tmp_path / "latest"))
    assert (tmp_path / "latest").is_symlink()
    assert refimpl.load(tmp_path / "real").signatures
    monkeypatch.chdir(tmp_path / "real")
    ready.save(".")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["latest", "real"]


def test_debug_information_is_saved_when_asked(tmp_path, ready, caplog):
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        ready.save(str(tmp_path / "out"), options=tf.saved_model.SaveOptions(save_debug_info=True))
    assert not caplog.text
    file = tmp_path / "out" / "debug" / "saved_model_debug_info.pb"
    info = graph_debug_info_pb2.GraphDebugInfo.FromString(file.read_bytes())
    function = ready._converted_func.name
    assert f"image@{function.decode() if isinstance(function, bytes) else function}" in info.traces
    assert any(name.endswith("trt_convert/function.py") for name in info.files)
    assert "debug/saved_model_debug_info.pb" in refimpl.load(tmp_path / "out").manifest.files
    ready.save(str(tmp_path / "plain"), options=tf.saved_model.SaveOptions())
    assert not (tmp_path / "plain" / "debug").exists()


def test_options_without_effect_are_told(tmp_path, ready, caplog):
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Mine"], experimental_io_device="/job:localhost")
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        ready.save(str(tmp_path / "out"), options=options)
    assert "without effect: experimental_io_device, namespace_whitelist (" in caplog.text
    assert (tmp_path / "out" / "saved_model.pb").is_file()


def test_profiles_need_little_of_what_was_seen():
    image, index = np.ones((64, 100, 100), np.float32), np.arange(5, dtype=np.int32)
    entering, leaving = artifact.outline({"a": ([image, index], [image])})["a"]
    assert entering[0].shape == leaving[0].shape == image.shape
    assert entering[0].strides == (0, 0, 0), "no memory"
    np.testing.assert_array_equal(entering[1], index)
