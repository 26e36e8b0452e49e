"""What is watched while samples run through an island: its largest values, and how much work its products are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from refimpl.accuracy import Accuracy, accuracy, worst
from refimpl.converter.precision.observe import Maxima, maxima, multiplications
from refimpl.numerics import disagreement
from refimpl.tolerance import TABLE, tolerance_for
from tests.onnx_models import node
from tests.precision.helpers import graph


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def watched(model: onnx.ModelProto, folder: Path, *batches: list[np.ndarray]) -> Maxima:
    onnx.save(model, folder / "m.onnx")
    found = Maxima(folder / "m.onnx")
    for batch in batches:
        found.add(batch)
    return found


def test_the_largest_of_all_batches(tmp_path: Path) -> None:
    w = draw(6, 5, seed=1)
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "r"), node("Neg", "r", "n"), node("ArgMax", "n", "y")]
    model = graph(nodes, {"x": ("n", 6)}, "y", w=w)
    batches = [draw(n, 6, seed=n) for n in (3, 1, 5)]
    found = watched(model, tmp_path, *([x] for x in batches)).found
    a = np.concatenate([x @ w for x in batches])
    assert found.keys() == {"x", "a", "r", "n"}
    assert found["x"] == max(np.abs(x).max() for x in batches)
    assert found["a"] == pytest.approx(np.abs(a).max(), rel=1e-6)
    assert found["r"] == found["n"] == pytest.approx(a.max(), rel=1e-6)
    assert maxima(tmp_path / "m.onnx", [[x] for x in batches]) == found
    assert maxima(tmp_path / "m.onnx", []) == dict.fromkeys(found, 0.0)


def test_an_empty_batch_shows_nothing_and_a_nan_counts_as_infinite(tmp_path: Path) -> None:
    model = graph([node("Log", "x", "y")], {"x": ("n", 2)}, "y")
    found = watched(model, tmp_path, [np.zeros((0, 2), np.float32)], [np.array([[1, 2]], np.float32)])
    assert found.found["x"] == 2
    found.add([np.array([[-1, 900]], np.float32)])
    assert found.found == {"x": 900, "y": np.inf}


def test_a_tensor_that_is_empty_inside_shows_nothing(tmp_path: Path) -> None:
    nodes = [node("Slice", "x zero zero zero", "e"), node("Relu", "e", "y")]
    found = watched(graph(nodes, {"x": (3, 4)}, "y", zero=np.array([0])), tmp_path, [draw(3, 4)])
    assert found.found["y"] == 0


# Work, against products counted one by one.


def counted(model: onnx.ModelProto, folder: Path, *shapes: tuple[int, ...]) -> dict[str, float]:
    found = watched(model, folder, [draw(*shape) for shape in shapes])
    return multiplications(model, found.shapes)


def conv_work(x: tuple[int, ...], w: tuple[int, ...], out: tuple[int, ...]) -> int:
    del x
    return sum(w[1] * w[2] * w[3] for _ in range(int(np.prod(out))))


@pytest.mark.parametrize("group", [1, 2, 8])
def test_work_of_convolutions(group: int, tmp_path: Path) -> None:
    weight = draw(16, 8 // group, 3, 5)
    model = graph([node("Conv", "x w", "y", group=group, strides=[2, 1])], {"x": (2, 8, 9, 9)}, "y", w=weight)
    assert counted(model, tmp_path, (2, 8, 9, 9)) == {"y": conv_work((2, 8, 9, 9), weight.shape, (2, 16, 4, 5))}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("stride", [1, 3])
def test_work_of_transposed_convolutions(group: int, stride: int, tmp_path: Path) -> None:
    """Each input element is spread over the window, in every output channel of its group."""
    x, w = (2, 8, 5, 4), (8, 6 // group, 3, 5)
    nodes = [node("ConvTranspose", "x w", "y", group=group, strides=[stride, stride])]
    work = sum(w[1] * w[2] * w[3] for _ in np.ndindex(*x))
    assert counted(graph(nodes, {"x": x}, "y", w=draw(*w)), tmp_path, x) == {"y": work}


PRODUCTS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], int]] = {
    "matmul": (node("MatMul", "x w", "y"), (3, 4, 6), (6, 5), 3 * 4 * 6 * 5),
    "gemm": (node("Gemm", "x w", "y"), (4, 6), (6, 5), 4 * 6 * 5),
    "gemm of a transposed weight": (node("Gemm", "x w", "y", transB=1), (4, 6), (5, 6), 4 * 6 * 5),
    "gemm of a transposed input": (node("Gemm", "x w", "y", transA=1), (6, 4), (6, 5), 4 * 6 * 5),
    "einsum": (node("Einsum", "x w", "y", equation="abc,cde->abde"), (2, 3, 4), (4, 5, 6), 2 * 3 * 4 * 5 * 6),
    "einsum of heads": (
        node("Einsum", "x w", "y", equation="bhqd,bhkd->bhqk"),
        (2, 3, 4, 5),
        (2, 3, 6, 5),
        2 * 3 * 4 * 5 * 6,
    ),
    "einsum with an ellipsis": (node("Einsum", "x w", "y", equation="...c, cd -> ...d"), (2, 3, 4), (4, 5), 120),
}


@pytest.mark.parametrize("weight", [True, False], ids=["weight", "two activations"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_work_of_products(name: str, weight: bool, tmp_path: Path) -> None:
    op, x, w, work = PRODUCTS[name]
    model = graph([op], {"x": x} if weight else {"x": x, "w": w}, "y", **({"w": draw(*w)} if weight else {}))
    assert counted(model, tmp_path, *((x,) if weight else (x, w))) == {"y": work}


def test_work_of_batched_products(tmp_path: Path) -> None:
    x, w = (2, 3, 4, 5), (2, 3, 5, 6)
    model = graph([node("MatMul", "x w", "y")], {"x": x, "w": w}, "y")
    assert counted(model, tmp_path, x, w) == {"y": 2 * 3 * 4 * 5 * 6}


def test_an_einsum_of_one_operand_is_no_accident(tmp_path: Path) -> None:
    model = graph([node("Einsum", "x", "y", equation="ab->ba")], {"x": (2, 3)}, "y")
    assert counted(model, tmp_path, (2, 3)) == {"y": 6}


# How far is how far.


def test_accuracy_is_the_worst_output() -> None:
    a, b = draw(40), draw(40, seed=1)
    found = accuracy([a, b], [a * np.float32(1.5), b])
    assert found.relative == pytest.approx(0.5, rel=1e-6)
    assert found.cosine == pytest.approx(1)
    assert accuracy([a], [-a]).cosine == pytest.approx(-1)
    assert accuracy([np.arange(4)], [np.array([0, 1, 2, 4])]) == Accuracy(0.25, 1.0)
    assert accuracy([np.zeros(3)], [np.zeros(3)]) == Accuracy(0.0, 1.0)
    assert accuracy([np.zeros(3)], [np.ones(3)]) == Accuracy(1.0, 0.0)
    assert accuracy([np.ones(3)], [np.array([1, np.nan, 1])]).relative == np.inf
    assert accuracy([np.array([1, np.nan])], [np.array([1, np.nan])]) == Accuracy(0.0, 1.0)
    assert worst([Accuracy(0.1, 0.9), Accuracy(0.2, 0.95)]) == Accuracy(0.2, 0.9)
    assert worst([]) == Accuracy(0.0, 1.0)


PRECISIONS = sorted({precision for precision, _ in TABLE})


@pytest.mark.parametrize("dtype", ["int32", "bool", "string", "object", "uint8"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_who_may_decide_otherwise(precision: str, dtype: str) -> None:
    """Engines made less precise may flip a few integers; nobody may change a string."""
    found = tolerance_for(precision, dtype)
    assert (found.rtol, found.of_max, found.atol) == (0, 0, 0)
    shares = {"fp16": 0.01, "bf16": 0.05, "int8": 0.05}
    assert found.flips == (0 if dtype in ("string", "object") else shares.get(precision, 0))


def test_flips_are_counted() -> None:
    want, got = np.zeros(100, np.int64), np.zeros(100, np.int64)
    got[:5] = 7
    assert disagreement(want, got, tolerance_for("int8", "int64")) == ""
    assert disagreement(want, got, tolerance_for("fp16", "int64")) == "5 of 100 elements differ"
    assert disagreement(want, got, tolerance_for("fp32", "int64")) == "5 of 100 elements differ"
    got[5] = 7
    assert disagreement(want, got, tolerance_for("int8", "int64"))
    assert disagreement(want[:3], got[:3], tolerance_for("int8", "int64")), "a share of few is none"
    words = np.array([b"a"] * 100, object)
    others = words.copy()
    others[0] = b"b"
    assert disagreement(words, others, tolerance_for("int8", words.dtype.name))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "quantized"])
def test_every_float_dtype_has_a_row(precision: str) -> None:
    rows = {dtype for kind, dtype in TABLE if kind == precision}
    assert rows == {"float16", "float32", "float64", "bfloat16", "complex64", "complex128"}
    loose = {"fp16": 1e-2, "quantized": 1e-2, "bf16": 8e-2, "int8": 1e-1}[precision]
    assert tolerance_for(precision, "float32").rtol == loose
