"""One graph with a switch per layer: all off is float32, all on is the rewrite, one on is a rewrite of that one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest

from refimpl.accuracy import accuracy
from refimpl.converter.precision.half import HEAVY, to_half
from refimpl.converter.precision.observe import maxima
from refimpl.converter.precision.quantize import place, tensors_to_observe
from refimpl.converter.precision.simulate import Simulation, costs
from refimpl.engines import onnxruntime, sums
from tests.onnx_models import node
from tests.precision.helpers import graph

PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
SHAPE = (3, 16, 8, 8)


def draw(*shape: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


X = draw(*SHAPE, seed=0)


def network() -> onnx.ModelProto:
    """Convolutions with a residual sum, a pool, a transposed weight: whatever a switch must get right."""
    nodes = [
        node("Conv", "x k1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 k2", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "s"),
        node("MaxPool", "s", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("ConvTranspose", "m k3", "t", strides=[2, 2]),
        node("Sigmoid", "t", "g"),
        node("ReduceMean", "g axes", "p", keepdims=0),
        node("Gemm", "p w b2", "y", transB=1),
    ]
    scales = np.geomspace(0.1, 3, 16).astype(np.float32)
    return graph(
        nodes,
        {"x": SHAPE},
        "y s",
        k1=draw(16, 16, 3, 3, seed=1, scale=0.1) * scales[:, None, None, None],
        k2=draw(16, 16, 3, 3, seed=2, scale=0.1),
        k3=draw(16, 16, 2, 2, seed=3, scale=0.2) * scales[None, :, None, None],
        w=draw(24, 16, seed=4) * np.geomspace(0.1, 3, 24).astype(np.float32)[:, None],
        b1=draw(16, seed=5),
        b2=draw(24, seed=6),
        axes=np.array([2, 3]),
    )


@pytest.fixture
def model() -> onnx.ModelProto:
    return network()


def run(model: onnx.ModelProto, folder: Path, name: str) -> list[np.ndarray]:
    onnx.save(model, folder / name)
    return onnxruntime.open(folder / name).run([X])


def thresholds(model: onnx.ModelProto, folder: Path) -> dict[str, float]:
    onnx.save(model, folder / "plain.onnx")
    found = maxima(folder / "plain.onnx", [[X]])
    return {name: found[name] for name in tensors_to_observe(model)}


def layers_of(model: onnx.ModelProto, precision: str) -> list[str]:
    if precision == "int8":
        return [item.name for item in model.graph.node if item.op_type in HEAVY]
    return [name for name, why in to_half(model, precision, {}, {}).layers.items() if not why]


def simulation(model: onnx.ModelProto, precision: str, folder: Path) -> Simulation:
    quantized = place(model, thresholds(model, folder), {}) if precision == "int8" else None
    return Simulation(model, layers_of(model, precision), precision, quantized, folder / "s.onnx")


def rewritten(model: onnx.ModelProto, precision: str, only: Iterable[str], folder: Path) -> list[np.ndarray]:
    """The real thing, with everything but some layers left in float32."""
    keep = {name: "kept" for name in layers_of(model, precision) if name not in set(only)}
    if precision == "int8":
        return run(place(model, thresholds(model, folder), {**keep, "s": "kept"}).model, folder, "q.onnx")
    return run(to_half(model, precision, {}, keep).model, folder, f"h{onnxruntime.HALF_SUFFIX}")


def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return accuracy(a, b).relative


@PRECISIONS
def test_all_off_is_float32(precision: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    before = model.SerializeToString()
    found = simulation(model, precision, tmp_path)
    assert model.SerializeToString() == before
    for want, got in zip(run(model, tmp_path, "plain.onnx"), found.run((), [X]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # fused otherwise, so summed in another order


@pytest.fixture
def wide_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation rounds what goes into a layer and what comes out of it, not the sums inside."""
    monkeypatch.setattr(sums, "PRODUCTS", frozenset())


@pytest.mark.usefixtures("wide_sums")
@PRECISIONS
def test_all_on_is_the_rewrite(precision: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    layers = layers_of(model, precision)
    got = simulation(model, precision, tmp_path).run(layers, [X])
    want = rewritten(model, precision, layers, tmp_path)
    plain = run(model, tmp_path, "plain.onnx")
    assert apart(plain, want) > {"fp16": 1e-5, "bf16": 1e-3, "int8": 1e-3}[precision], "nothing was rounded"
    assert apart(want, got) < 0.2 * apart(plain, want)


@pytest.mark.usefixtures("wide_sums")
@PRECISIONS
def test_one_on_is_a_rewrite_of_one(precision: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    """Each of the products: its own weights, its own axis of scales, its own input, and nobody else's."""
    found = simulation(model, precision, tmp_path)
    plain = run(model, tmp_path, "plain.onnx")
    for name in [item.name for item in model.graph.node if item.op_type in HEAVY]:
        want, got = rewritten(model, precision, [name], tmp_path), found.run({name}, [X])
        assert apart(plain, want) > 0, name
        assert apart(want, got) < 0.25 * apart(plain, want), name
        if name in ("y", "t"):
            np.testing.assert_allclose(got[1], plain[1], rtol=1e-5, atol=1e-5)  # `s` lies before them


def test_costs_rank_a_layer_that_rounding_ruins_first(model: onnx.ModelProto, tmp_path: Path) -> None:
    """A thousand added and taken off again: only the ops between lose anything much."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", "a large", "up"),
        node("Sub", "up large", "down"),
        node("MatMul", "down w", "y"),
    ]
    fragile = graph(nodes, {"x": (4, 16)}, "y", w=draw(16, 16, seed=7, scale=0.25), large=np.float32(3000))
    found = Simulation(fragile, ["a", "up", "down", "y"], "fp16", None, tmp_path / "f.onnx")
    x = draw(4, 16, seed=8)
    want = found.run((), [x])
    cost = costs(found, ["a", "up", "down", "y"], [x], lambda got: accuracy(want, got).relative)
    assert max(cost["a"], cost["y"]) < 2e-3
    assert min(cost["up"], cost["down"]) > 0.1  # what goes out of the one comes into the other


def test_a_scale_is_found_behind_what_only_moves(model: onnx.ModelProto, tmp_path: Path) -> None:
    """The pair of `t` stands before the pool; its switch must round with the same scale."""
    scales = place(model, thresholds(model, tmp_path), {}).scales
    assert "m" not in scales
    assert "s" in scales
    found = simulation(model, "int8", tmp_path)
    graph_file = onnx.load(tmp_path / "s.onnx")
    (pair,) = [item for item in graph_file.graph.node if item.op_type == "QuantizeLinear" and item.input[0] == "m"]
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph_file.graph.initializer}
    assert stored[pair.input[1]] == np.float32(scales["s"])
    assert apart(found.run((), [X]), found.run({"t"}, [X])) > 1e-4
