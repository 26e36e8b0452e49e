"""``TrtGraphConverterV2`` from end to end: convert, build, save, summary, in the right and in the wrong order."""

from __future__ import annotations

import gc
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle, runtime, tftrt_env
from refimpl import trt_convert as trt
from refimpl.engines import tensorrt
from refimpl.errors import RecipeError
from tests.tftrt.models import assert_same, call, images, saved_model

DIGITS, TWO = saved_model("digits"), saved_model("two")
needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
RNG = np.random.default_rng(0)
QUERY, KEY = RNG.random((2, 3, 6), np.float32), RNG.random((2, 5, 6), np.float32)
SAME = RNG.random((2, 2, 6), np.float32), RNG.random((2, 2, 6), np.float32)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for row in tftrt_env.TABLE:
        monkeypatch.delenv(row.name, raising=False)


def converter(model=DIGITS, **options):
    return trt.TrtGraphConverterV2(input_saved_model_dir=str(model), **options)


def converted(model=DIGITS, **options):
    made = converter(model, **options)
    made.convert()
    return made


@pytest.fixture(scope="module")
def ready():
    """A converter that nobody may build or change."""
    return converted()


def test_the_guides_example(tmp_path):
    """Convert, build, save, load, run: and the answers are the model's."""
    made = converter()
    function = made.convert()
    assert_same(function(tf.constant(images())), call(DIGITS, image=images()))

    def input_fn():
        for size in (1, 3):
            yield (images(size),)

    made.build(input_fn=input_fn)
    made.save(str(tmp_path / "out"))
    assert_same(call(tmp_path / "out", image=images()), call(DIGITS, image=images()))
    loaded = refimpl.load(tmp_path / "out")
    assert {run.engine for run in loaded.run({"image": images()}).islands} <= {"onnxruntime", "tensorrt"}


def test_the_saved_model_loads_in_another_process_and_place(tmp_path, ready):
    ready.save(str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    np.save(tmp_path / "x.npy", images())
    code = f"""if True:
        import numpy as np, refimpl, tensorflow as tf
        model = tf.saved_model.load({str(tmp_path / "b")!r})
        image = tf.constant(np.load({str(tmp_path / "x.npy")!r}))
        np.save({str(tmp_path / "y.npy")!r}, model.signatures["serving_default"](image=image)["logits"])
    """
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), call(DIGITS, image=images())["logits"], rtol=1e-4)


def test_the_function_takes_positions_and_names_and_returns_a_dict():
    function = converted(TWO)._converted_func
    want = call(TWO, query=QUERY, key=KEY)
    assert_same(function(tf.constant(QUERY), tf.constant(KEY)), want)
    assert_same(function(key=tf.constant(KEY), query=tf.constant(QUERY)), want)


def test_the_function_outlives_the_converter():
    function = converted()._converted_func
    gc.collect()
    runtime._open_bundles.clear()  # so that its files are read again
    assert_same(function(tf.constant(images())), call(DIGITS, image=images()))


def test_the_home_goes_with_the_last_user():
    made = converted()
    home = made._home.path
    assert home.is_dir()
    del made
    gc.collect()
    assert not home.exists()


def test_engines_stand_on_top_of_the_converted_graph(ready):
    for graph in (ready._converted_graph_def, ready._converted_func.graph.as_graph_def()):
        engines = [node for node in graph.node if re.fullmatch(r"TRTEngineOp_\d{3}_\d{3}", node.name)]
        assert len(engines) == len(ready._manifest.islands) >= 1
        for node in engines:
            assert node.attr["_precision_mode"].s == b"FP32"
            assert node.attr["_use_implicit_batch"].b
            assert node.attr["_max_cached_engines_count"].i == 1
            assert "_profile_strategy" not in node.attr or node.attr["_profile_strategy"].s == b"implicit-batch"
    names = {function.signature.name for function in ready._converted_graph_def.library.function}
    assert {f"{island.name}_native_segment" for island in ready._manifest.islands} <= names


def test_other_signatures_stay(tmp_path, ready):
    ready.save(str(tmp_path / "out"))
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    assert set(loaded.signatures) == {"serving_default", "brightness"}
    assert_same(call(tmp_path / "out", "brightness", image=images()), call(DIGITS, "brightness", image=images()))


def test_another_signature_is_converted(tmp_path):
    made = converted(input_saved_model_signature_key="brightness", minimum_segment_size=1)
    made.save(str(tmp_path / "out"))
    records = {record.signature.key: record for record in bundle.read(tmp_path / "out").signatures}
    assert (records["brightness"].converted, records["serving_default"].converted) == (True, False)


@pytest.mark.parametrize("allow", [True, False])
def test_output_names_survive_whatever_is_allowed(tmp_path, allow):
    made = converted(TWO, allow_build_at_runtime=allow)
    made.save(str(tmp_path / "out"))
    assert set(call(tmp_path / "out", query=QUERY, key=KEY)) == {"a", "b"}
    manifest = bundle.read(tmp_path / "out")
    assert manifest.recipe["build_at_runtime"] is allow
    graph = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_default"].graph.as_graph_def()
    nodes = [node for function in graph.library.function for node in function.node_def if node.op == "PyFunc"]
    assert {node.attr["_allow_build_at_runtime"].b for node in nodes} == {allow}


def test_two_models_in_one_process(tmp_path):
    """Their engines have the same names."""
    for name, model in (("digits", DIGITS), ("two", TWO)):
        converted(model).save(str(tmp_path / name))
    one, two = (tf.saved_model.load(str(tmp_path / name)).signatures["serving_default"] for name in ("digits", "two"))
    for _ in range(2):
        assert_same(one(image=tf.constant(images())), call(DIGITS, image=images()))
        assert_same(two(query=tf.constant(QUERY), key=tf.constant(KEY)), call(TWO, query=QUERY, key=KEY))


# Order and errors.


def test_convert_only_once(ready):
    with pytest.raises(AssertionError):
        ready.convert()


def test_build_and_save_and_summary_before_convert(tmp_path):
    made = converter()
    with pytest.raises(RuntimeError, match=r"^Need to call convert\(\) before build\(\)$"):
        made.build(input_fn=lambda: iter([images()]))
    with pytest.raises(AssertionError):
        made.save(str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match=r"Impossible to call `TrtGraphConverterV2.summary"):
        made.summary()


def test_build_only_once_but_again_after_a_failure():
    made = converted()
    with pytest.raises(RuntimeError, match=r"^input_fn is None. Method build"):
        made.build(input_fn=None)
    with pytest.raises(ZeroDivisionError):
        made.build(input_fn=lambda: iter([1 / 0]))
    made.build(input_fn=lambda: iter([images()]))
    with pytest.raises(NotImplementedError, match=r"^build.. is already called. It is not supported"):
        made.build(input_fn=lambda: iter([images()]))


def test_calibration_functions_must_match_the_precision():
    with pytest.raises(ValueError, match=r"^Should specify calibration_input_fn because INT8 calibration is needed$"):
        converter(precision_mode="INT8").convert()
    with pytest.raises(ValueError, match=r"^Should not specify calibration_input_fn because INT8 calibration is not"):
        converter().convert(calibration_input_fn=lambda: iter(()))
    with pytest.raises(ValueError, match=r"^Should not specify"):
        converter(precision_mode="int8", use_calibration=False).convert(calibration_input_fn=lambda: iter(()))


def test_what_is_no_model(tmp_path):
    with pytest.raises(TypeError, match=r"^Expected binary or unicode string, got None$"):
        trt.TrtGraphConverterV2().convert()
    with pytest.raises(OSError, match=r"^SavedModel file does not exist at: "):
        converter(tmp_path / "nothing").convert()
    with pytest.raises(KeyError, match="other"):
        converter(input_saved_model_signature_key="other").convert()
    with pytest.raises(ValueError, match=r"^Got an incompatible argument to `tags`"):
        converter(input_saved_model_tags=["train"]).convert()


def test_lines_must_be_long_enough(ready):
    with pytest.raises(ValueError, match=r"^Invalid `line_length` value has been received: 159. Minimum: 160.$"):
        ready.summary(line_length=159)


# What an input_fn may yield.


@pytest.mark.parametrize(
    "item",
    [
        {"image": images()},
        [images()],
        (tf.constant(images()),),
        images(),
        tf.constant(images()),
        images().tolist(),
    ],
    ids=["dict", "list", "tuple", "array", "tensor", "nested"],
)
def test_forms_of_an_item(item):
    if isinstance(item, list) and len(item) == 3:
        item = [item]  # a bare list is a list of inputs
    bound = converted_binder(DIGITS).bind(item)
    np.testing.assert_array_equal(bound["image"], images())


def converted_binder(model):
    made = converter(model)
    made._open_model()
    return made._binder


def test_positions_are_the_models_own(caplog):
    binder = converted_binder(TWO)
    assert binder.order == ("query", "key"), "not the alphabetical order"
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        for _ in range(2):
            bound = binder.bind(SAME)
    np.testing.assert_array_equal(bound["query"], SAME[0])
    np.testing.assert_array_equal(bound["key"], SAME[1])
    assert caplog.text.count("TF-TRT would have bound them to ('key', 'query')") == 1


def test_positions_that_only_fit_in_alphabetical_order(tmp_path, caplog):
    module = tf.Module()
    specs = [tf.TensorSpec([None, 3], tf.float32, name="z"), tf.TensorSpec([None, 4], tf.float32, name="a")]
    module.run = tf.function(lambda z, a: {"o": tf.concat([z * 2, a], 1)}, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path / "m"), module.run.get_concrete_function())
    binder = converted_binder(tmp_path / "m")
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        bound = binder.bind([np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float32)])
    assert {name: tuple(value.shape) for name, value in bound.items()} == {"z": (1, 3), "a": (1, 4)}
    assert "fit only in the alphabetical order" in caplog.text


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        ({"image": object()}, RuntimeError, "^Failed to convert input to tensor.$"),
        (object(), RuntimeError, "^Failed to convert input to tensor.$"),
        ([object()], ValueError, "unsupported type"),
        ([images(), images()], TypeError, "^Binding inputs to tf.function failed due to `too many"),
        ([], TypeError, "^Binding inputs to tf.function failed due to `missing"),
        ({}, TypeError, "missing a required argument: 'image'"),
        ({"image": images(), "mask": images()}, TypeError, "unexpected keyword argument 'mask'"),
    ],
)
def test_items_that_do_not_bind(item, error, says):
    with pytest.raises(error, match=says):
        converted_binder(DIGITS).bind(item)


def test_forms_may_be_mixed_and_nothing_is_an_error():
    made = converted()
    with pytest.raises(RuntimeError, match=r"^Failed to convert input to tensor.$"):
        made.build(input_fn=lambda: iter(()))
    with pytest.raises(TypeError, match="not callable"):
        made.build(input_fn=[images()])
    made.build(input_fn=lambda: iter([images(1), [images(2)], {"image": images(4)}]))
    assert [profile["max"][0][0] for profile in _records(made)[0].profiles] == [1, 2, 4]


# Engines, profiles, files.


def _records(made):
    return [engine for island in made._manifest.islands for engine in island.engines if engine.kind == "tensorrt"]


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


def test_options_of_saving_are_taken(tmp_path, ready):
    ready.save(str(tmp_path / "out"), options=tf.saved_model.SaveOptions(save_debug_info=True))
    assert (tmp_path / "out" / "saved_model.pb").is_file()


# Variables.


def test_builds_can_be_aborted_and_native_execution_forbidden(monkeypatch):
    made = converted()
    monkeypatch.setenv("TF_TRT_ABORT_CUDA_ENGINE_BUILD", "True")
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "False")
    with pytest.raises(tf.errors.AbortedError, match=r"^User disallowed engine native segment execution.$"):
        made.build(input_fn=lambda: iter([images()]))
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "True")
    made.build(input_fn=lambda: iter([images()]))
    assert [record.file for record in _records(made)] == [""] * len(made._manifest.islands)
    assert_same(made._converted_func(images()), call(DIGITS, image=images()))


def test_a_forbidden_fallback_is_an_error_of_the_call(tmp_path, monkeypatch, ready):
    ready.save(str(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out" / "refimpl" / "islands")
    function = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_default"]
    assert_same(function(image=tf.constant(images())), call(DIGITS, image=images()))
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "0")
    with pytest.raises(tf.errors.UnknownError, match=r"User disallowed engine native segment execution."):
        function(image=tf.constant(images()))


def test_reports(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", str(tmp_path / "report.csv"))
    monkeypatch.setenv("TF_TRT_EXPORT_GRAPH_VIZ_PATH", str(tmp_path / "graph.dot"))
    monkeypatch.setenv("TF_TRT_OP_DENYLIST", "MatMul")
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        made = converted()
    assert "\n\t- MatMul -> 1x\n\t\t- [Count: 1x] Denylisted with the env var TF_TRT_OP_DENYLIST\n" in caplog.text
    assert f"TF-TRT Non-Conversion Report saved at: `{tmp_path / 'report.csv'}`" in caplog.text
    table = (tmp_path / "report.csv").read_text().splitlines()
    assert table[0] == "OP Name|Reason|Count"
    assert "MatMul|Denylisted with the env var TF_TRT_OP_DENYLIST|1" in table
    assert made._manifest.islands[0].name in (tmp_path / "graph.dot").read_text()
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", str(tmp_path / "no" / "report.csv"))
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        converted()
    assert f"Failed to open output file: `{tmp_path / 'no' / 'report.csv'}`" in caplog.text


def test_summary_counts_the_graph(ready, capsys):
    ready.summary()
    text = capsys.readouterr().out
    assert "[*] Total number of TensorRT engines: 1" in text
    assert "\t- Conv2D: 1x" in text
    assert "[[-1, 28, 28, 1]]" in text
    match = re.search(r"% of OPs Converted: [\d.]+% \[(\d+)/(\d+)\]", text)
    assert match
    assert int(match[1]) < int(match[2])
    lines = []
    ready.summary(line_length=180, detailed=False, print_fn=lines.append)
    assert lines[1] == "=" * 180
    assert not any("Conv2D" in line for line in lines)


def test_nothing_is_converted_when_asked(tmp_path):
    made = converted(minimum_segment_size=-1)
    assert_same(made._converted_func(images()), call(DIGITS, image=images()))
    lines = []
    made.summary(print_fn=lambda *text: lines.append(text))
    assert ("[*] Total number of TensorRT engines: 0",) in lines
    made.build(input_fn=lambda: iter([images()]))
    made.save(str(tmp_path / "out"))
    assert_same(call(tmp_path / "out", image=images()), call(DIGITS, image=images()))


def test_max_engines(monkeypatch):
    assert len(converted(TWO)._manifest.islands) > 1
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "1")
    assert len(converted(TWO)._manifest.islands) == 1


def test_names_that_are_no_identifiers(tmp_path):
    """Keras and TF1 name inputs as they like."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        y = tf.nn.tanh(x * 2.0) + 1.0
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "m"), {"in-put": x}, {"out": y})
    made = converted(tmp_path / "m", minimum_segment_size=1)
    value = np.ones((2, 4), np.float32)
    made.build(input_fn=lambda: iter([value]))
    np.testing.assert_allclose(made._converted_func(tf.constant(value))["out"], np.tanh(2) + 1, rtol=1e-5)


def test_a_tf1_model_is_built_too(tmp_path):
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        weights = tf.compat.v1.get_variable("w", initializer=np.full((4, 3), 0.5, np.float32), use_resource=True)
        y = tf.nn.tanh(tf.matmul(x, weights)) + 1.0
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": x}, {"y": y})
    made = converted(tmp_path / "m")
    made.build(input_fn=lambda: iter([np.ones((5, 4), np.float32)]))
    assert [record.profiles[0]["max"][0] for record in _records(made)] == [(5, 4)]
    made.save(str(tmp_path / "out"))
    value = RNG.random((2, 4), np.float32)
    assert_same(call(tmp_path / "out", x=value), call(tmp_path / "m", x=value))
