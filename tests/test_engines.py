"""The three kinds of engines: building, opening, running, and how each says no."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

import refimpl
from refimpl import engines, gpus
from refimpl.converter import judge
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from refimpl.engines import numpy as numpy_engine
from refimpl.errors import BuildError, BundleError, RunError, UnsupportedError
from tests.bundles import answers, assert_same, call, feeds_of, files_of, logged, main
from tests.models import saved_model

OPTIONS = BuildOptions(tf32=False, workspace_bytes=0)
rng = np.random.default_rng(7)
X = rng.standard_normal((5, 8)).astype(np.float32)
WEIGHTS = {
    "w": rng.standard_normal((8, 600)).astype(np.float32),
    "b": rng.standard_normal(600).astype(np.float32),
}
WANT = np.maximum(X @ WEIGHTS["w"] + WEIGHTS["b"], 0).T


@pytest.fixture(scope="module", autouse=True)
def _needs_tensorrt_for_some():
    """Availability is cached per process; tests that fake it must not leave that behind."""
    yield
    tensorrt.why_not_here.cache_clear()


needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def node(op, inputs, outputs, name="", **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), name or outputs, **attributes)


def dense(weights_are_inputs=True):
    """``relu(x @ w + b)``, transposed thrice: BASIC must cancel two transposes and fold what is constant."""
    nodes = [
        node("MatMul", "x w", "product"),
        node("Add", "product b", "sum"),
        node("Relu", "sum", "active"),
        node("Transpose", "active", "t1", perm=[1, 0]),
        node("Transpose", "t1", "t2", perm=[1, 0]),
        node("Transpose", "t2", "y", perm=[1, 0]),
    ]
    given = [info("w", (8, 600)), info("b", (600,))] if weights_are_inputs else []
    stored = [] if weights_are_inputs else [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    return make_model(nodes, [info("x", ("n", 8)), *given], [info("y", (600, "n"))], stored)


def saved(folder: Path, model, name="m.onnx"):
    file = folder / name
    onnx.save(model, file)
    return file


def relu(folder: Path):
    return saved(folder, make_model([node("Relu", "x", "y")], [info("x", ("n", 3))], [info("y", ("n", 3))]))


# every kind


def test_preference_and_protocol():
    assert engines.KINDS == ("tensorrt", "onnxruntime"), "numpy is never chosen unless asked for"
    for name in (*engines.KINDS, "numpy"):
        kind = engines.kind(name)
        assert name == kind.NAME
        for method in ("version", "why_not_here", "build", "open"):
            wanted = inspect.signature(getattr(engines.EngineKind, method)).parameters
            assert list(inspect.signature(getattr(kind, method)).parameters) == list(wanted)[1:], (name, method)


@pytest.mark.parametrize("name", ["onnxruntime", "numpy"])
def test_kinds_that_run_everywhere(name, tmp_path):
    kind = engines.kind(name)
    assert kind.why_not_here() == ""
    assert kind.version()
    target = tmp_path / f"built{kind.SUFFIX}"
    kind.build(saved(tmp_path, dense(weights_are_inputs=False)), target, (), OPTIONS)
    (y,) = kind.open(target).run([X])
    assert y.flags.c_contiguous
    np.testing.assert_allclose(y, WANT, rtol=1e-5, atol=1e-5)
    assert kind.open(target).run([X[:0]])[0].shape == (600, 0)


@pytest.mark.parametrize("kind", [onnxruntime, numpy_engine])
def test_errors_are_mapped(kind, tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"\x08\x09 this is no model")
    with pytest.raises(RunError, match="cannot load garbage.onnx"):
        kind.open(tmp_path / "garbage.onnx")
    with pytest.raises(RunError, match="cannot load missing.onnx"):
        kind.open(tmp_path / "missing.onnx")
    engine = kind.open(saved(tmp_path, dense(weights_are_inputs=False)))
    with pytest.raises(RunError, match="failed"):
        engine.run([X[:, :5]])
    with pytest.raises(RunError, match="failed"):
        engine.run([X, X])
    np.testing.assert_allclose(engine.run([X])[0], WANT, rtol=1e-5, atol=1e-5, err_msg="still usable after errors")


def test_onnxruntime_refuses_a_wrong_dtype(tmp_path):
    with pytest.raises(RunError, match="ONNX Runtime failed: .*double"):
        onnxruntime.open(relu(tmp_path)).run([np.ones((2, 3))])


# onnxruntime


def test_building_garbage_is_a_build_error(tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"\x08\x09 this is no model")
    with pytest.raises(BuildError, match="cannot load garbage.onnx"):
        onnxruntime.build(tmp_path / "garbage.onnx", tmp_path / "t.onnx", (), OPTIONS)
    assert not (tmp_path / "t.onnx").exists()


@pytest.mark.parametrize("limit", [onnxruntime.EXTERNAL_BYTES, 1000], ids=["inside", "external"])
@pytest.mark.parametrize("save", [onnxruntime.optimize, onnxruntime.save_plain])
def test_saving_puts_the_weights_back(save, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "EXTERNAL_BYTES", limit)
    target = tmp_path / "island.onnx"
    save(dense(), WEIGHTS, target)
    outside = tmp_path / "island.onnx.data"
    assert outside.exists() == (limit == 1000)
    assert (target.stat().st_size < 4 * WEIGHTS["w"].size) == outside.exists()
    assert [item.name for item in onnx.load(target, load_external_data=False).graph.input] == ["x"]
    for kind in (onnxruntime, numpy_engine):
        np.testing.assert_allclose(kind.open(target).run([X])[0], WANT, rtol=1e-5, atol=1e-5)


def test_optimize_cancels_transposes_in_standard_ops(tmp_path):
    onnxruntime.optimize(dense(), WEIGHTS, tmp_path / "clean.onnx")
    onnxruntime.save_plain(dense(), WEIGHTS, tmp_path / "m.plain.onnx")
    clean, plain = onnx.load(tmp_path / "clean.onnx"), onnx.load(tmp_path / "m.plain.onnx")
    assert [item.op_type for item in plain.graph.node].count("Transpose") == 3
    assert [item.op_type for item in clean.graph.node].count("Transpose") == 1
    assert {item.domain for item in clean.graph.node} <= {"", "ai.onnx"}
    onnx.checker.check_model(clean)


def test_optimize_leaves_the_callers_weights_alone(tmp_path):
    before = {name: value.copy() for name, value in WEIGHTS.items()}
    onnxruntime.optimize(dense(), WEIGHTS, tmp_path / "clean.onnx")
    for name, value in before.items():
        np.testing.assert_array_equal(WEIGHTS[name], value)


def test_weights_can_move_to_a_file_of_another_name(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "EXTERNAL_BYTES", 1000)
    onnxruntime.optimize(dense(), WEIGHTS, tmp_path / "1.onnx")
    onnxruntime.move_weights(tmp_path / "1.onnx", "final.onnx.data")
    (tmp_path / "1.onnx.data").rename(tmp_path / "final.onnx.data")
    (tmp_path / "1.onnx").rename(tmp_path / "final.onnx")
    np.testing.assert_allclose(onnxruntime.open(tmp_path / "final.onnx").run([X])[0], WANT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("save", [onnxruntime.optimize, onnxruntime.save_plain])
def test_weights_of_every_dtype(save, tmp_path):
    given = {
        "f": np.float32([1.5, -2]),
        "h": np.float16([1.5, -2]),
        "i": np.int64([3, -4]),
        "u": np.uint8([3, 4]),
        "t": np.array([True, False]),
        "s": np.array(2.5, np.float32),
        "e": np.zeros((0, 2), np.float32),
    }
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in given.items()}
    nodes = [node("Identity", name, f"{name}_out") for name in given]
    model = make_model(
        nodes,
        [info(name, value.shape, kinds[name]) for name, value in given.items()],
        [info(f"{name}_out", value.shape, kinds[name]) for name, value in given.items()],
    )
    save(model, given, tmp_path / "m.onnx")
    for got, want in zip(onnxruntime.open(tmp_path / "m.onnx").run([]), given.values(), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_optimize_refuses_what_it_cannot_read(tmp_path):
    model = make_model([node("Levitate", "x", "y")], [info("x", (3,))], [info("y", (3,))])
    with pytest.raises(BuildError, match="ONNX Runtime refuses the island: .*Levitate"):
        onnxruntime.optimize(model, {}, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_plain_files_are_opened_without_optimizations(tmp_path, monkeypatch):
    levels = []
    real = onnxruntime.ort.InferenceSession
    monkeypatch.setattr(
        onnxruntime.ort,
        "InferenceSession",
        lambda path, options, **more: levels.append(options.graph_optimization_level) or real(path, options, **more),
    )
    model = dense(weights_are_inputs=False)
    for name in ("m.onnx", "m.plain.onnx"):
        onnxruntime.open(saved(tmp_path, model, name))
    level = onnxruntime.ort.GraphOptimizationLevel
    assert levels == [level.ORT_ENABLE_ALL, level.ORT_DISABLE_ALL]


def two_towers(target: Path) -> None:
    """Two signatures, each with weights of its own."""
    module = tf.Module()
    module.a, module.b = (tf.Variable(rng.standard_normal((40, 60)).astype(np.float32)) for _ in "ab")

    def tower(weight):
        call = tf.function(lambda x: {"y": tf.nn.relu(tf.tanh(x @ weight) + 0.1)})
        return call.get_concrete_function(tf.TensorSpec((None, 40), tf.float32, name="x"))

    module.f, module.g = tower(module.a), tower(module.b)
    tf.saved_model.save(module, str(target), signatures={"f": module.f, "g": module.g})


def test_large_weights_of_two_signatures_do_not_share_a_file(tmp_path, monkeypatch):
    """Weights outside the protobuf, in an island of either signature; each finds its own again."""
    monkeypatch.setattr(onnxruntime, "EXTERNAL_BYTES", 1000)
    source, target = tmp_path / "m", tmp_path / "b"
    two_towers(source)
    refimpl.convert(source, target, refimpl.Recipe(signatures=("*",)))
    stored = [name for name in files_of(target) if name.endswith(".data")]
    assert len(stored) == 2
    assert all(name.removesuffix(".data") in files_of(target) for name in stored)
    loaded, original = refimpl.load(target), tf.saved_model.load(str(source))
    x = rng.standard_normal((3, 40)).astype(np.float32)
    for key in "fg":
        result = loaded.run({"x": x}, key)
        assert {(run.engine, run.reason) for run in result.islands} == {("onnxruntime", "")}
        assert_same(result.outputs, call(original, {"x": x}, key))

    damaged = tmp_path / "damaged"
    shutil.copytree(target, damaged)
    data = bytearray((damaged / stored[0]).read_bytes())
    data[100] ^= 1
    (damaged / stored[0]).write_bytes(data)
    with pytest.raises(BundleError, match=stored[0]):
        refimpl.load(damaged)
    plain = tf.saved_model.load(str(damaged))
    with logged() as lines:
        for key in "fg":
            assert_same(call(plain, {"x": x}, key), call(original, {"x": x}, key))
    assert len(lines) == 1
    assert "checksum mismatch" in lines[0]


# tensorrt


def test_without_any_tensorrt(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tensorrt, "_module", lambda: None)
    tensorrt.why_not_here.cache_clear()
    assert tensorrt.version() == ""
    assert tensorrt.why_not_here() == "neither tensorrt nor tensorrt_rtx is installed"
    with pytest.raises(UnsupportedError, match=r"refimpl\[rtx\]"):
        tensorrt.build(relu(tmp_path), tmp_path / "e.engine", (), OPTIONS)
    with pytest.raises(UnsupportedError):
        tensorrt.parser_refusals(b"")
    with pytest.raises(RunError, match="cannot execute here"):
        tensorrt.open(tmp_path / "e.engine")
    assert isinstance(judge.pick_judge(), judge.TableJudge)

    assert main("convert", saved_model("odd_ops"), tmp_path / "b") == 0
    out, _ = capsys.readouterr()
    assert "judged by: table of ops" in " ".join(out.split())
    assert "refimpl[rtx]" in out
    loaded = refimpl.load(tmp_path / "b")
    result = loaded.run(feeds_of("odd_ops"))
    assert {run.engine for run in result.islands} == {"onnxruntime"}
    assert_same(result.outputs, answers("odd_ops", feeds_of("odd_ops")))

    assert main("convert", saved_model("odd_ops"), tmp_path / "c", "--engine", "tensorrt") == 2
    _, err = capsys.readouterr()
    assert "--engine tensorrt was asked for" in err
    assert "hint: pip install 'refimpl[rtx]'" in err
    assert not (tmp_path / "c").exists()
    tensorrt.why_not_here.cache_clear()


def test_a_broken_installation_counts_as_none(monkeypatch):
    def broken(name):
        raise OSError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(tensorrt.importlib, "import_module", broken)
    tensorrt._module.cache_clear()
    try:
        assert tensorrt.version() == ""
    finally:
        monkeypatch.undo()
        tensorrt._module.cache_clear()


@needs_tensorrt
def test_the_parser_takes_what_it_can():
    model = make_model([node("Relu", "x", "y")], [info("x", (2, 3))], [info("y", (2, 3))])
    assert tensorrt.parser_refusals(model.SerializeToString()) == ((), True)


@needs_tensorrt
def test_the_parser_names_the_node_that_it_refuses():
    nodes = [node("Relu", "x", "a"), node("Det", "a", "d", name="the_determinant"), node("Exp", "d", "y")]
    model = make_model(nodes, [info("x", (2, 3, 3))], [info("y", (2,))])
    refusals, whole = tensorrt.parser_refusals(model.SerializeToString())
    assert not whole
    assert [item.node for item in refusals] == ["the_determinant"]
    assert refusals[0].reason.startswith("Det: ")
    assert len(refusals[0].reason) > len("Det: ") + 10, "and says why"


@needs_tensorrt
def test_building_needs_no_gpu(tmp_path):
    target = tmp_path / "e.engine"
    tensorrt.build(saved(tmp_path, dense(weights_are_inputs=False)), target, (profile((1, 8), (16, 8)),), OPTIONS)
    assert target.stat().st_size > 1000


def profile(low, high):
    return Profile((low,), (high,), (high,))


@needs_tensorrt
def test_profiles_reach_tensorrt(tmp_path, monkeypatch):
    seen = []
    real = tensorrt._trt_profile

    def spy(builder, network, item):
        made = real(builder, network, item)
        seen.append([tuple(shape) for shape in made.get_shape("x")])
        return made

    monkeypatch.setattr(tensorrt, "_trt_profile", spy)
    profiles = (profile((2, 8), (2, 8)), profile((1, 8), (64, 8)))
    tensorrt.build(saved(tmp_path, dense(weights_are_inputs=False)), tmp_path / "e.engine", profiles, OPTIONS)
    assert seen == [[(2, 8), (2, 8), (2, 8)], [(1, 8), (64, 8), (64, 8)]]


@needs_tensorrt
def test_values_of_shape_tensors_reach_tensorrt(tmp_path, monkeypatch):
    seen = []
    real = tensorrt._trt_profile

    def spy(builder, network, item):
        made = real(builder, network, item)
        seen.append([tuple(values) for values in made.get_shape_input("target")])
        return made

    monkeypatch.setattr(tensorrt, "_trt_profile", spy)
    model = make_model(
        [node("Reshape", "x target", "y")],
        [info("x", ("n", 6)), info("target", (2,), TensorProto.INT64)],
        [info("y", ("a", "b"))],
    )
    given = Profile(((2, 6), (2,)), ((4, 6), (2,)), ((4, 6), (2,)), ((1, (2, 6), (4, 6), (4, 6)),))
    tensorrt.build(saved(tmp_path, model), tmp_path / "e.engine", (given,), OPTIONS)
    assert seen == [[(2, 6), (4, 6), (4, 6)]]


@needs_tensorrt
def test_a_dynamic_network_without_a_profile_fails_with_tensorrts_words(tmp_path):
    with pytest.raises(BuildError, match="profile"):
        tensorrt.build(relu(tmp_path), tmp_path / "e.engine", (), OPTIONS)
    assert not (tmp_path / "e.engine").exists()


@needs_tensorrt
def test_a_parse_failure_speaks_with_tensorrts_words(tmp_path):
    model = make_model([node("Det", "x", "y")], [info("x", (2, 3, 3))], [info("y", (2,))])
    with pytest.raises(BuildError, match="Det"):
        tensorrt.build(saved(tmp_path, model), tmp_path / "e.engine", (), OPTIONS)
    (tmp_path / "garbage.onnx").write_bytes(b"\x08\x09 this is no model")
    with pytest.raises(BuildError, match=r"\w+ \w+"):
        tensorrt.build(tmp_path / "garbage.onnx", tmp_path / "e.engine", (), OPTIONS)


@needs_tensorrt
def test_opening_without_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "list_gpus", lambda: ("", ()))
    tensorrt.why_not_here.cache_clear()
    target = tmp_path / "e.engine"
    target.write_bytes(b"never read")
    with pytest.raises(RunError, match="no usable NVIDIA GPU"):
        tensorrt.open(target)
    tensorrt.why_not_here.cache_clear()


@needs_tensorrt
def test_a_gpu_that_cannot_be_used_is_no_gpu(tmp_path, monkeypatch):
    """A driver that lists a GPU and then fails, as in containers without its libraries."""
    if gpus.list_gpus()[1]:
        pytest.skip("there is a GPU here that can be used")
    monkeypatch.setattr(gpus, "list_gpus", lambda: ("13.0", (SimpleNamespace(name="a GPU"),)))
    tensorrt.why_not_here.cache_clear()
    assert tensorrt.why_not_here().startswith("no usable NVIDIA GPU: ")
    tensorrt.why_not_here.cache_clear()


@needs_tensorrt
def test_ops_that_tensorrt_cannot_build_go_back_to_tensorflow(tmp_path, monkeypatch):
    """The parser takes everything here; the build fails for islands with a certain op, with TensorRT's words."""
    real = tensorrt.build

    def fussy(model, target, profiles, options):
        if any(item.op_type == "Sigmoid" for item in onnx.load(model).graph.node):
            raise BuildError("no implementation obeys the constraints")
        real(model, target, profiles, options)

    monkeypatch.setattr(tensorrt, "build", fussy)
    target = tmp_path / "b"
    manifest = refimpl.convert(saved_model("odd_ops"), target, refimpl.Recipe(engines=("onnxruntime", "tensorrt")))
    left = {op.type: op.reason for op in manifest.signatures[0].left}
    assert "tensorrt cannot build it" in left["Sigmoid"]
    assert "no implementation obeys" in left["Sigmoid"]
    assert manifest.islands, "the rest is still converted"
    for island in manifest.islands:
        assert "Sigmoid" not in [kind for _, kind in island.ops]
        assert [engine.kind for engine in island.engines] == ["onnxruntime", "tensorrt"]
    assert len({(target / engine.file).read_bytes() for island in manifest.islands for engine in island.engines}) == (
        2 * len(manifest.islands)
    ), "every island has files of its own"
    loaded = refimpl.load(target)
    result = loaded.run(feeds_of("odd_ops"))
    assert {(run.engine, run.reason) for run in result.islands} == {("onnxruntime", "")}
    assert_same(result.outputs, answers("odd_ops", feeds_of("odd_ops")))
