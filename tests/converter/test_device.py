"""What an engine answers on the GPU at hand is compared with TensorFlow; parts of it, with the embedded engine."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refimpl.converter import device, repair
from refimpl.converter.fusions import Fusions
from refimpl.converter.islands import Built, Island, Shipped
from refimpl.converter.narrow import Budget, GaveUp, Narrower, prefix
from refimpl.converter.verify import Evidence, Finding
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from refimpl.engines.rounding import tensor_types
from refimpl.errors import RunError
from tests.fake_gpu import FakeGpu
from tests.onnx_models import info, make_model, node, saved

ONES = np.ones((2, 3), np.float32)
INPUTS = [ONES, np.arange(6, dtype=np.float32).reshape(2, 3)]  # of the network: z, x
NAN = np.full((2, 3), np.nan, np.float32)
BUILT = Built("tensorrt", Path("e.engine"), "t 1", "fp32", ())
Array = np.ndarray


def judged(
    monkeypatch: pytest.MonkeyPatch, answer: object, *evidence: Evidence, built: Built = BUILT
) -> device.Verdict:
    """What is said of an engine that answers so."""

    def run(inputs: Sequence[Array]) -> list[Array]:
        if isinstance(answer, Exception):
            raise answer
        return [np.asarray(answer(*inputs))]  # type: ignore[operator]

    opened, closed = [], []
    engine = types.SimpleNamespace(run=run, close=lambda: closed.append(True))
    monkeypatch.setattr(tensorrt, "open", lambda path: opened.append(path) or engine)
    verdict = device.judged(built, evidence, "fp32")
    assert len(opened) == len(closed), "its memory is given back"
    assert len(opened) == bool(verdict.compared or verdict.problem)
    return verdict


def same(name: str, value: Array) -> Evidence:
    return Evidence(name, (value,), (value,))


def test_agreeing_samples_are_counted(monkeypatch):
    verdict = judged(monkeypatch, lambda x: x * np.float32(1 + 1e-6), same("a", ONES), same("b", 2 * ONES))
    assert (verdict.problem, verdict.compared, verdict.finite_only) == ("", 2, False)
    assert verdict.relative == pytest.approx(1e-6, rel=0.2)


def test_the_sample_that_disagrees_is_kept(monkeypatch):
    verdict = judged(monkeypatch, lambda x: np.minimum(x, 1.5).astype(np.float32), same("a", ONES), same("b", 2 * ONES))
    assert verdict.problem.endswith("(b)")
    assert verdict.item is not None
    assert verdict.item.name == "b"
    assert np.array_equal(verdict.outputs[0], 1.5 * ONES)
    assert verdict.relative == pytest.approx(0.25)


@pytest.mark.parametrize("answer", [lambda x: x[:1], lambda x: x.astype(np.float16)])
def test_another_shape_or_dtype_is_wrong(answer, monkeypatch):
    assert judged(monkeypatch, answer, same("a", ONES)).problem


def test_a_nan_that_the_engine_swallows_makes_it_finite_only(monkeypatch):
    verdict = judged(monkeypatch, np.nan_to_num, same("a", ONES), same("nan", NAN))
    assert (verdict.problem, verdict.compared, verdict.finite_only) == ("", 1, True)


def test_a_nan_of_the_engine_alone_is_wrong(monkeypatch):
    """The runtime would let TensorFlow answer, every time: that is no engine to store."""
    assert judged(monkeypatch, lambda x: x * np.float32(np.nan), same("a", ONES)).problem.startswith("NaN at 6 places")


def test_an_engine_that_fails_names_no_sample(monkeypatch):
    verdict = judged(monkeypatch, RunError("the GPU is gone"), same("a", ONES))
    assert (verdict.problem, verdict.item) == ("the GPU is gone", None)


def test_what_never_reaches_the_engine_is_left_out(monkeypatch):
    built = Built("tensorrt", Path("e.engine"), "t 1", "fp32", (Profile(((1, 3),), ((2, 3),), ((2, 3),)),))
    large, empty = same("large", np.ones((9, 3), np.float32)), same("empty", np.ones((0, 3), np.float32))
    verdict = judged(monkeypatch, lambda x: -x, large, empty, built=built)
    assert (verdict.problem, verdict.compared) == ("", 0), "nothing compared is no pass either: see Case.verdict"
    assert judged(monkeypatch, lambda x: -x, large, same("fits", ONES), built=built).problem


def network() -> onnx.ModelProto:
    """Two inputs; the second joins late. ``shape`` is read by a Reshape and makes no floats."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Relu", "a", "b"),
        node("Shape", "b", "shape"),
        node("Add", "b z", "c"),
        node("Reshape", "c shape", "d"),
        node("Add", "d a", "y"),
    ]
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    return make_model(nodes, [info("z", (2, 3)), info("x", (2, 3))], [info("y", (2, 3))], [weight])


@pytest.mark.parametrize(
    ("count", "nodes", "outputs", "used"),
    [
        (1, ["a"], ["a"], [1]),
        (3, ["a", "b"], ["a", "b"], [1]),
        (4, ["a", "b", "c"], ["a", "c"], [0, 1]),
        (6, ["a", "b", "shape", "c", "d", "y"], ["y"], [0, 1]),
    ],
)
def test_a_part_shows_all_that_the_rest_reads(count, nodes, outputs, used, tmp_path):
    model = network()
    part, found = prefix(model, count, tensor_types(model))
    assert [item.name for item in part.graph.node] == nodes
    assert [item.name for item in part.graph.output] == outputs
    assert found == used
    assert [item.name for item in part.graph.input] == [model.graph.input[index].name for index in used]
    shown = onnxruntime.open(saved(tmp_path, part)).run([INPUTS[index] for index in used])
    whole = dict(zip(["y"], onnxruntime.open(saved(tmp_path, model)).run(INPUTS), strict=True))
    assert len(shown) == len(outputs)
    assert count < 6 or np.array_equal(shown[0], whole["y"])


def test_bfloat16_is_shown_as_float32():
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "h", to=TensorProto.BFLOAT16),
        node("Neg", "h", "n"),
        helper.make_node("Cast", ["n"], ["y"], "y", to=TensorProto.FLOAT),
    ]
    model = make_model(nodes, [info("x", (3,))], [info("y", (3,))])
    part, _ = prefix(model, 2, tensor_types(model))
    assert [(item.name, item.type.tensor_type.elem_type) for item in part.graph.output] == [("n/shown", 1)]


def narrower(folder: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, builds: int = 9) -> Narrower:
    gpu.install(monkeypatch)
    model = network()
    shapes = ((2, 3), (2, 3))
    profiles = (Profile(shapes, shapes, shapes, ((0, (1,), (1,), (1,)),)),)
    options = BuildOptions(tf32=False, workspace_bytes=0)
    return Narrower(model, saved(folder, model), profiles, options, "fp32", Budget(builds, 60.0))


@pytest.mark.parametrize("wrong", ["a", "b", "c", "y"])
def test_the_first_wrong_layer_is_found(wrong, tmp_path, monkeypatch):
    gpu = FakeGpu(lambda nodes: [item for item in nodes.model.graph.node if item.name == wrong])
    found = narrower(tmp_path, gpu, monkeypatch).first_wrong(INPUTS, 0.5)
    assert found.layer == wrong
    assert found.before == 0
    assert found.after == pytest.approx(0.5, rel=0.5)
    assert found.jump
    assert len(gpu.built) <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"], "parts are deleted"


def test_a_part_has_the_profiles_of_its_inputs(tmp_path, monkeypatch):
    gpu = FakeGpu()
    assert not narrower(tmp_path, gpu, monkeypatch).wrong_up_to("b", INPUTS)
    assert gpu.asked[0][0] == (Profile(((2, 3),), ((2, 3),), ((2, 3),)),), "x alone, and no values of z"
    assert narrower(tmp_path, gpu, monkeypatch).wrong_up_to("c", INPUTS) is False
    assert gpu.asked[1][0][0].values == ((0, (1,), (1,), (1,)),)


def test_the_budget_ends_it(tmp_path, monkeypatch):
    gpu = FakeGpu(lambda nodes: nodes.of("Add"))
    with pytest.raises(GaveUp, match="too many engines"):
        narrower(tmp_path, gpu, monkeypatch, builds=1).first_wrong(INPUTS, 0.5)
    with pytest.raises(GaveUp, match="after 0 s"):
        Budget(9, 0.0).take()


def chained() -> onnx.ModelProto:
    """Two blocks of convolutions as in MobileNet, the second with a sum behind it."""
    nodes, stored, last = [], [], "x"
    for block in "pq":
        for name, group, size in (("wide", 1, 1), ("deep", 4, 3), ("narrow", 1, 1)):
            weight = np.ones((4, 4 // group, size, size), np.float32)
            stored.append(numpy_helper.from_array(weight, f"{block}{name}w"))
            made = helper.make_node(
                "Conv", [last, f"{block}{name}w"], [f"{block}{name}"], f"{block}{name}", group=group,
                kernel_shape=[size, size], pads=[size // 2] * 4,
            )  # fmt: skip
            last = f"{block}{name}"
            nodes.append(made)
            if name != "narrow":
                nodes += [node("Cast", last, f"{last}h"), node("Relu", f"{last}h", f"{last}r")]
                nodes[-2].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
                last = f"{last}r"
    nodes += [node("Add", f"{last} pnarrow", "sum"), node("GlobalAveragePool", "sum", "y")]
    return make_model(nodes, [info("x", (1, 4, 8, 8))], [info("y", (1, 4, 1, 1))], stored)


def test_what_may_be_fused_is_seen_through_casts():
    fusions = Fusions(chained())
    assert fusions.groups("qnarrow") == (
        ("qnarrow",),
        ("qnarrow", "qdeepr", "qdeep"),
        ("qnarrow", "qdeepr", "qdeep", "sum"),
    )
    assert fusions.groups("y") == (("y",), ("y", "sum", "qnarrow", "pnarrow"))


def test_places_are_alike_by_what_comes_before():
    fusions = Fusions(chained())
    assert fusions.alike("qnarrow", 0) == ("pnarrow",)
    assert fusions.alike("qnarrow", 1) == ("pnarrow", "pdeepr", "pdeep")
    assert set(fusions.alike("qnarrow", 2)) == {"pnarrow", "pdeepr", "pdeep"}
    assert fusions.alike("qdeep", 0) == ("pdeep",)


@pytest.mark.parametrize(("before", "here", "after"), [(False, False, False), (True, False, True), (False, True, True)])
def test_what_the_gpu_makes_of_a_nan_decides_with_the_embedded_engine(before, here, after, monkeypatch):
    monkeypatch.setattr(repair, "where", lambda: "t 1 on a GPU")
    form = Shipped(Path("m.onnx"), "fp32", Finding(finite_only=before, compared=7))
    island = Island((), (), (), (BUILT,), form)
    shipped = repair.standing(island, device.Verdict(compared=3, relative=1e-7, finite_only=here)).shipped
    assert shipped.finding == Finding(finite_only=after, compared=7)
    assert shipped.notes == ("t 1 on a GPU: 3 samples agree with TensorFlow, relative error 1e-07",)
