"""TensorRT engines on a machine without a GPU, and on one without TensorRT."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto

import refimpl
from refimpl import gpus
from refimpl.converter import judge
from refimpl.engines import BuildOptions, Profile, tensorrt
from refimpl.engines.tensorrt import building, library
from refimpl.errors import BuildError, RunError, UnsupportedError
from tests.bundles import answers, assert_same, feeds_of, main
from tests.models import saved_model
from tests.onnx_models import dense, info, make_model, node, relu, saved

OPTIONS = BuildOptions(tf32=False, workspace_bytes=0)


FULL = Path("/dev/full")  # every byte that is written to it finds the disk full


@pytest.fixture(scope="module", autouse=True)
def _needs_tensorrt_for_some():
    """Availability is cached per process; tests that fake it must not leave that behind."""
    yield
    tensorrt.why_not_here.cache_clear()


needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


def test_without_any_tensorrt(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(library, "module", lambda: None)
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

    monkeypatch.setattr(library.importlib, "import_module", broken)
    library.module.cache_clear()
    try:
        assert tensorrt.version() == ""
    finally:
        monkeypatch.undo()
        library.module.cache_clear()


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
    real = building._trt_profile

    def spy(builder, network, item):
        made = real(builder, network, item)
        seen.append([tuple(shape) for shape in made.get_shape("x")])
        return made

    monkeypatch.setattr(building, "_trt_profile", spy)
    profiles = (profile((2, 8), (2, 8)), profile((1, 8), (64, 8)))
    tensorrt.build(saved(tmp_path, dense(weights_are_inputs=False)), tmp_path / "e.engine", profiles, OPTIONS)
    assert seen == [[(2, 8), (2, 8), (2, 8)], [(1, 8), (64, 8), (64, 8)]]


@needs_tensorrt
def test_values_of_shape_tensors_reach_tensorrt(tmp_path, monkeypatch):
    seen = []
    real = building._trt_profile

    def spy(builder, network, item):
        made = real(builder, network, item)
        seen.append([tuple(values) for values in made.get_shape_input("target")])
        return made

    monkeypatch.setattr(building, "_trt_profile", spy)
    model = make_model(
        [node("Reshape", "x target", "y")],
        [info("x", ("n", 6)), info("target", (2,), TensorProto.INT64)],
        [info("y", ("a", "b"))],
    )
    given = Profile(((2, 6), (2,)), ((4, 6), (2,)), ((4, 6), (2,)), ((1, (2, 6), (4, 6), (4, 6)),))
    tensorrt.build(saved(tmp_path, model), tmp_path / "e.engine", (given,), OPTIONS)
    assert seen == [[(2, 6), (4, 6), (4, 6)]]


@needs_tensorrt
def test_integers_that_are_data_make_no_profiles_of_their_own(tmp_path, monkeypatch):
    made = []
    real = building._trt_profile
    monkeypatch.setattr(building, "_trt_profile", lambda *args: made.append(args[2]) or real(*args))
    model = make_model(
        [node("Gather", "x index", "y")],
        [info("x", ("n", 6)), info("index", (2,), TensorProto.INT64)],
        [info("y", (2, 6))],
    )
    shapes = ((4, 6), (2,))
    given = [Profile(shapes, shapes, shapes, ((1, (n, 0), (n, 0), (n, 0)),)) for n in range(3)]
    tensorrt.build(saved(tmp_path, model), tmp_path / "e.engine", given, OPTIONS)
    assert made == [Profile(shapes, shapes, shapes)]


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
        if any(item.op_type == "Tanh" for item in onnx.load(model).graph.node):
            raise BuildError("no implementation obeys the constraints")
        real(model, target, profiles, options)

    monkeypatch.setattr(tensorrt, "build", fussy)
    target = tmp_path / "b"
    manifest = refimpl.convert(saved_model("odd_ops"), target, refimpl.Recipe(engines=("onnxruntime", "tensorrt")))
    left = {op.type: op.reason for op in manifest.signatures[0].left}
    assert "tensorrt cannot build it" in left["Tanh"]
    assert "no implementation obeys" in left["Tanh"]
    assert manifest.islands, "the rest is still converted"
    for island in manifest.islands:
        assert "Tanh" not in [kind for _, kind in island.ops]
        assert [engine.kind for engine in island.engines] == ["onnxruntime", "tensorrt"]
    assert len({(target / engine.file).read_bytes() for island in manifest.islands for engine in island.engines}) == (
        2 * len(manifest.islands)
    ), "every island has files of its own"
    loaded = refimpl.load(target)
    result = loaded.run(feeds_of("odd_ops"))
    assert {(run.engine, run.reason) for run in result.islands} == {("onnxruntime", "")}
    assert_same(result.outputs, answers("odd_ops", feeds_of("odd_ops")))


@needs_tensorrt
@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_an_engine_that_could_not_be_written_is_none(tmp_path):
    """The library calls back for every part, swallows what that raises, and says that it has built."""
    target = tmp_path / "e.engine"
    target.symlink_to(FULL)
    with pytest.raises(OSError, match="No space left"):
        tensorrt.build(relu(tmp_path), target, (profile((1, 3), (4, 3)),), OPTIONS)
