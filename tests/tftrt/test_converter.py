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
from refimpl import bundle, runtime
from refimpl import trt_convert as trt
from refimpl.engines import tensorrt
from tests.tftrt.models import DIGITS, KEY, QUERY, RNG, TWO, assert_same, call, converted, converter, images
from tests.tftrt.models import tensorrt_records as _records

needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


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


def test_build_reads_one_item_at_a_time(monkeypatch):
    """They need not fit into memory together."""
    made = converted()
    events = []
    natively = made._natively

    def watched(sample):
        events.append("run")
        return natively(sample)

    def input_fn():
        for size in (1, 2, 3):
            events.append("yield")
            yield images(size)

    monkeypatch.setattr(made, "_natively", watched)
    made.build(input_fn)
    assert events[:6] == ["yield", "run"] * 3


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


def test_max_engines(monkeypatch, caplog):
    assert len(converted(TWO)._manifest.islands) > 1
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "1")
    assert len(converted(TWO)._manifest.islands) == 1
    assert "more than 1 segments with at least minimum_segment_size=3" in caplog.text


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
