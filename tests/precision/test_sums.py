"""Products as a GPU computes them, held against NumPy: a float16 sum every 16 terms, operands in TF32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refimpl.engines import numpy as numpy_engine
from refimpl.engines import onnxruntime, sums
from refimpl.engines.rounding import TF32

HALF = TensorProto.FLOAT16
BOTH = pytest.mark.parametrize("engine", [onnxruntime, numpy_engine], ids=["onnxruntime", "numpy"])


def draw(*shape: int, seed: int = 0, dtype: Any = np.float16) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def run(
    folder: Path,
    op: str,
    inputs: list[np.ndarray],
    weights: list[np.ndarray],
    engine: Any = onnxruntime,
    **attributes: Any,
) -> np.ndarray:
    """One op whose last operands are constants; float32 ones with TF32."""
    kind = HALF if inputs[0].dtype == np.float16 else TensorProto.FLOAT
    names = [f"x{i}" for i in range(len(inputs))] + [f"w{i}" for i in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], "product", **attributes)],
        "one",
        [helper.make_tensor_value_info(f"x{i}", kind, [None] * value.ndim) for i, value in enumerate(inputs)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, f"w{i}") for i, value in enumerate(weights)],
    )
    suffix = onnxruntime.HALF_SUFFIX if kind == HALF else f"{TF32}onnx"
    file = folder / f"m{suffix}"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    result: np.ndarray = engine.open(file).run(inputs)[0]
    return result


def summed(a: np.ndarray, b: np.ndarray, block: int = 16) -> np.ndarray:
    """``a @ b``, rounded to float16 after every ``block`` terms; each block is exact in float64."""
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float16)
    for start in range(0, a.shape[-1], block):
        part = a[..., start : start + block].astype(np.float64) @ b[..., start : start + block, :].astype(np.float64)
        total = (total.astype(np.float64) + part).astype(np.float16)
    return total


def equal(got: np.ndarray, want: np.ndarray) -> float:
    """The share of equal elements: float32 sums of 16 terms fall next to a tie now and then."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return float(np.mean(got == want))


@BOTH
@pytest.mark.parametrize(
    ("left", "right"), [((5, 16), (16, 4)), ((7, 100), (100, 9)), ((2, 3, 5, 40), (3, 40, 6)), ((4, 1), (1, 4))]
)
def test_products_are_summed_in_float16(
    left: tuple[int, ...], right: tuple[int, ...], engine: Any, tmp_path: Path
) -> None:
    a, b = draw(*left), draw(*right, seed=1)
    got = run(tmp_path, "MatMul", [a], [b], engine)
    assert equal(got, summed(a, b)) > 0.98
    if left[-1] > 32:
        assert equal(got, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16)) < 0.8, "rounded once"


def test_a_product_of_one_row_is_rounded_once(tmp_path: Path) -> None:
    a, b = draw(1, 100), draw(100, 60, seed=1)
    assert (
        equal(run(tmp_path, "MatMul", [a], [b]), (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16))
        > 0.98
    )
    a, b = a.astype(np.float32) + np.float32(1e-5), b.astype(np.float32) + np.float32(1e-5)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.linalg.norm(run(tmp_path, "MatMul", [a], [b]) - exact) < 1e-6 * np.linalg.norm(exact)


def test_both_operands_may_be_inputs(tmp_path: Path) -> None:
    a, b = draw(2, 6, 50), draw(2, 50, 7, seed=1)
    assert equal(run(tmp_path, "MatMul", [a, b], []), summed(a, b)) > 0.98


@BOTH
def test_gemm(engine: Any, tmp_path: Path) -> None:
    a, b, c = draw(40, 5), draw(8, 40, seed=1), draw(8, seed=2)
    got = run(tmp_path, "Gemm", [a], [b, c], engine, transA=1, transB=1, alpha=0.5, beta=2.0)
    want = 0.5 * summed(a.T, b.T).astype(np.float64) + 2 * c.astype(np.float64)
    assert equal(got, want.astype(np.float16)) > 0.98


def convolved(
    x: np.ndarray, w: np.ndarray, group: int, strides: list[int], dilations: list[int], pads: list[int]
) -> np.ndarray:
    """The running sum goes over the taps, and at each tap over 16 channels at a time."""
    rank = len(strides)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    out, channels, *kernel = w.shape
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilations, strides, strict=True)]
    total = np.zeros((x.shape[0], out, *sizes), np.float16)
    for tap in np.ndindex(*kernel):
        places = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, sizes, strides, strict=True)
        )
        for start in range(0, channels, 16):
            for g in range(group):
                mine = x[
                    (
                        slice(None),
                        slice(g * channels + start, min(g * channels + start + 16, (g + 1) * channels)),
                        *places,
                    )
                ]
                theirs = w[(slice(g * out // group, (g + 1) * out // group), slice(start, start + 16), *tap)]
                part = np.einsum("nc...,oc->no...", mine.astype(np.float64), theirs.astype(np.float64))
                where = total[:, g * out // group : (g + 1) * out // group]
                where[...] = (where.astype(np.float64) + part).astype(np.float16)
    return total


CONVOLUTIONS = {
    "3x3": ((2, 20, 9, 8), (6, 20, 3, 3), 1, [1, 1], [1, 1], [1, 1, 1, 1]),
    "1x1": ((1, 48, 5, 5), (7, 48, 1, 1), 1, [1, 1], [1, 1], [0, 0, 0, 0]),
    "few channels, stride": ((1, 3, 16, 15), (8, 3, 5, 5), 1, [2, 2], [1, 1], [2, 1, 2, 3]),
    "groups, dilation": ((2, 36, 11, 12), (8, 18, 3, 2), 2, [1, 2], [2, 3], [1, 0, 2, 1]),
    "one dimension": ((2, 10, 30), (4, 10, 7), 1, [3], [2], [3, 3]),
    "three dimensions": ((1, 5, 6, 5, 7), (3, 5, 2, 3, 2), 1, [1, 2, 1], [1, 1, 1], [1, 0, 1, 0, 1, 0]),
}


@BOTH
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_summed_in_float16(name: str, engine: Any, tmp_path: Path) -> None:
    shape, kernel, group, strides, dilations, pads = CONVOLUTIONS[name]
    x, w, b = draw(*shape), draw(*kernel, seed=1), draw(kernel[0], seed=2)
    got = run(tmp_path, "Conv", [x], [w, b], engine, group=group, strides=strides, dilations=dilations, pads=pads)
    sums_of = convolved(x, w, group, strides, dilations, pads).astype(np.float64)
    want = (sums_of + b.astype(np.float64).reshape(-1, *[1] * (w.ndim - 2))).astype(np.float16)
    assert equal(got, want) > 0.98


def test_a_depthwise_convolution_is_rounded_once(tmp_path: Path) -> None:
    x, w = draw(1, 6, 12, 12), draw(6, 1, 5, 5, seed=1)
    got = run(tmp_path, "Conv", [x], [w], group=6)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (5, 5), axis=(2, 3))
    want = np.einsum("nchwij,cij->nchw", windows, w[:, 0].astype(np.float64)).astype(np.float16)
    assert equal(got, want) > 0.98


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).astype(np.uint32).view(np.float32)


@BOTH
def test_tf32_rounds_the_operands(engine: Any, tmp_path: Path) -> None:
    a, b = draw(6, 50, dtype=np.float32), draw(50, 7, seed=1, dtype=np.float32)
    got = run(tmp_path, "MatMul", [a], [b], engine)
    want = rounded_to_tf32(a).astype(np.float64) @ rounded_to_tf32(b).astype(np.float64)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.linalg.norm(got - want) < 1e-6 * np.linalg.norm(want)
    assert np.linalg.norm(got - exact) > 1e-4 * np.linalg.norm(exact), "nothing was rounded"


def cut_to_tf32(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@BOTH
@pytest.mark.parametrize(
    ("channels", "out", "cuts"),
    [(2, 4, True), (16, 63, True), (17, 4, False), (16, 64, False), (1, 4, False)],
)
def test_convolutions_of_few_channels_cut_the_operands_off(
    channels: int, out: int, cuts: bool, engine: Any, tmp_path: Path
) -> None:
    x, w = draw(1, channels, 6, 6, dtype=np.float32), draw(out, channels, 3, 3, seed=1, dtype=np.float32)
    got = run(tmp_path, "Conv", [x], [w], engine)

    def product(rounded: Any) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(rounded(x).astype(np.float64), (3, 3), axis=(2, 3))
        return np.einsum("nchwij,ocij->nohw", windows, rounded(w).astype(np.float64))

    want, other = product(cut_to_tf32), product(rounded_to_tf32)
    if not cuts:
        want, other = other, want
    assert np.linalg.norm(got - want) < 1e-6 * np.linalg.norm(want)
    assert np.linalg.norm(got - other) > 1e-4 * np.linalg.norm(want)


def test_tf32_leaves_what_is_not_finite_and_what_is_large(tmp_path: Path) -> None:
    a = np.array([[np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, 1.0]], np.float32).T
    got = run(tmp_path, "MatMul", [a], [np.ones((1, 1), np.float32)])
    np.testing.assert_array_equal(got, a)


def test_a_depthwise_convolution_has_no_tf32(tmp_path: Path) -> None:
    x, w = draw(1, 6, 12, 12, dtype=np.float32), draw(6, 1, 3, 3, seed=1, dtype=np.float32)
    got = run(tmp_path, "Conv", [x], [w], group=6)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(2, 3))
    want = np.einsum("nchwij,cij->nchw", windows, w[:, 0].astype(np.float64))
    assert np.linalg.norm(got - want) < 1e-6 * np.linalg.norm(want)


def test_what_cannot_be_spelled_out_is_left_alone() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    assert sums.narrow(node, None, "n") is None, "weights that are no constant"
    padded = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")
    assert sums.narrow(padded, (4, 4, 3, 3), "n") is None
    assert sums.narrow(node, (4, 4, 3, 3), "n") is not None
