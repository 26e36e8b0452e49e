"""The comparer against seeded faults: each is caught, and for the reason that was planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refimpl.errors import GoldenError
from refimpl.oracle.compare import TensorDiff, compare, diff
from refimpl.tolerance import EXACT, TABLE, Tolerance, tolerance_for
from tests.oracle.fakes import strings

FP32 = TABLE["fp32", "float32"]
Y = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
SPECIAL = Y.copy()
SPECIAL[0, 1], SPECIAL[1, 2], SPECIAL[2, 3] = np.nan, np.inf, -np.inf


def changed(array: np.ndarray, index: tuple[int, ...], value: Any) -> np.ndarray:
    out = array.copy()
    out[index] = value
    return out


FAULTS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "scaled by 3 (cosine 1.0)": (lambda y: y * 3, "beyond the tolerance"),
    "scaled by 1.001": (lambda y: y * np.float32(1.001), "beyond the tolerance"),
    "shifted by one": (lambda y: np.roll(y, 1), "beyond the tolerance"),
    "biased": (lambda y: y + np.float32(1e-3), "beyond the tolerance"),
    "negated": (lambda y: -y, "beyond the tolerance"),
    "zeroed": (np.zeros_like, "beyond the tolerance"),
    "one row stale": (lambda y: changed(y, (3,), y[0]), "5 of 20 beyond"),
    "one element": (lambda y: changed(y, (2, 2), y[2, 2] * np.float32(1.01)), "1 of 20 beyond"),
    "one NaN": (lambda y: changed(y, (0, 3), np.nan), "NaN at different places (1)"),
    "all NaN": (lambda y: np.full_like(y, np.nan), "NaN at different places (20)"),
    "one infinity": (lambda y: changed(y, (0, 3), np.inf), "infinities differ (1)"),
    "transposed": (lambda y: y.T, "shape [5,4], want [4,5]"),
    "flat": (lambda y: y.ravel(), "shape [20], want [4,5]"),
    "truncated batch": (lambda y: y[:3], "shape [3,5], want [4,5]"),
    "repeated batch": (lambda y: np.concatenate([y, y]), "shape [8,5], want [4,5]"),
    "one scalar": (lambda y: y[0, 0, None][0:1].reshape(()), "shape [], want [4,5]"),
    "nothing": (lambda y: y[:0], "shape [0,5], want [4,5]"),
    "wider": (lambda y: y.astype(np.float64), "dtype float64, want float32"),
    "narrower": (lambda y: y.astype(np.float16), "dtype float16, want float32"),
    "a list": (lambda y: y.tolist(), "not an array but list"),
    "None": (lambda y: None, "not an array but NoneType"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught_for_its_reason(fault: str) -> None:
    bend, reason = FAULTS[fault]
    assert diff("y", Y, Y.copy(), FP32).ok
    result = diff("y", Y, bend(Y), FP32)
    assert not result.ok
    assert reason in result.reason


@pytest.mark.parametrize(
    ("index", "value", "reason"),
    [
        ((1, 2), -np.inf, "infinities differ (1)"),
        ((1, 2), np.float32(1e30), "infinities differ (1)"),
        ((1, 2), np.nan, "NaN at different places (1)"),
        ((0, 1), 0.0, "NaN at different places (1)"),
        ((0, 1), np.inf, "NaN at different places (1)"),
        ((3, 3), 9.0, "1 of 17 beyond"),
    ],
)
def test_special_values_stay_where_they_are(index: tuple[int, ...], value: float, reason: str) -> None:
    assert diff("y", SPECIAL, SPECIAL.copy(), FP32).ok
    result = diff("y", SPECIAL, changed(SPECIAL, index, value), FP32)
    assert not result.ok
    assert reason in result.reason
    assert result.worst_index == index


def test_moved_infinity_is_caught() -> None:
    moved = changed(changed(SPECIAL, (1, 2), Y[1, 2]), (1, 3), np.inf)
    assert "infinities differ (2)" in diff("y", SPECIAL, moved, FP32).reason


def test_a_huge_value_does_not_hide_the_rest_nor_its_own_error() -> None:
    want = np.array([1e30, 1.0], np.float32)
    assert diff("y", want, np.array([1.01e30, 1.0], np.float32), FP32).over == 1
    wild = diff("y", np.ones(2, np.float32), np.array([1e9, 1.5], np.float32), FP32)
    assert wild.over == 2  # what is judged never scales the tolerance
    with_inf = np.array([np.inf, 1.0], np.float32)
    assert not diff("y", with_inf, np.array([np.inf, 1.1], np.float32), FP32).ok  # Inf does not scale the tolerance


EXACT_FAULTS = {
    "int off by one": (np.arange(6), lambda y: changed(y, (2,), 3), "1 of 6 differ"),
    "int64 beyond float64": (np.array([2**62]), lambda y: y + 1, "1 of 1 differ"),
    "uint64 top": (np.array([2**64 - 1], np.uint64), lambda y: y - np.uint64(1), "1 of 1 differ"),
    "uint8 wrapped": (np.array([0, 9], np.uint8), lambda y: y - np.uint8(1), "2 of 2 differ"),
    "int32 for int64": (np.arange(3), lambda y: y.astype(np.int32), "dtype int32, want int64"),
    "bool flipped": (np.array([True, False]), lambda y: changed(y, (1,), True), "1 of 2 differ"),
    "bool as uint8": (np.array([True, False]), lambda y: y.astype(np.uint8), "dtype uint8, want bool"),
    "string changed": (strings(b"cat", b"dog"), lambda y: strings(b"cat", b"dOg"), "1 of 2 differ"),
    "string with a NUL lost": (strings(b"a\0"), lambda y: strings(b"a"), "1 of 1 differ"),
    "string as str": (strings(b"cat"), lambda y: np.array(["cat"], dtype=object), "1 of 1 differ"),
    "string as fixed width": (strings(b"cat"), lambda y: np.array([b"cat"]), "dtype bytes24, want string"),
}


@pytest.mark.parametrize("fault", EXACT_FAULTS)
def test_exact_types_have_no_tolerance(fault: str) -> None:
    want, bend, reason = EXACT_FAULTS[fault]
    assert diff("y", want, want.copy(), EXACT).ok
    result = diff("y", want, bend(want), EXACT)
    assert not result.ok
    assert reason in result.reason


def test_integer_distance_is_exact() -> None:
    result = diff("y", np.array([0, 2**64 - 1], np.uint64), np.array([7, 2**64 - 1], np.uint64), EXACT)
    assert (result.max_abs, result.worst_index, result.want, result.got) == (7.0, (0,), 0, 7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64", "complex128"])
def test_every_float_type_is_judged(dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    want = (Y * (1 + 2j) if dtype.startswith("complex") else Y).astype(kind)
    tolerance = tolerance_for("fp32", dtype)
    assert diff("y", want, want.copy(), tolerance).ok
    for fault in (want * kind.type(1.1), -want, changed(want, (1, 1), np.nan), np.zeros_like(want)):
        assert not diff("y", want, fault.astype(kind), tolerance).ok
    if dtype.startswith("complex"):
        assert not diff("y", want, want.conj(), tolerance).ok
        assert diff("y", want, changed(want, (2, 1), 9), tolerance).worst_index == (2, 1)


def test_the_tolerance_is_the_documented_formula() -> None:
    tolerance = Tolerance(rtol=0.01, of_max=0.001, atol=0.002, why="test")
    want = np.array([10.0, 1.0, 0.0])
    limit = 0.01 * np.abs(want) + 0.001 * 10 + 0.002
    assert diff("y", want, want + 0.999 * limit, tolerance).ok
    for i in range(3):
        assert diff("y", want, changed(want, (i,), want[i] + 1.001 * limit[i]), tolerance).worst_index == (i,)
        assert diff("y", want, changed(want, (i,), want[i] - 1.001 * limit[i]), tolerance).over == 1
    assert diff("y", want, want, Tolerance(0, 0, 0, "zero means zero")).ok
    assert not diff("y", want, want + 1e-15, Tolerance(0, 0, 0, "zero means zero")).ok


def test_the_tolerance_does_not_grow_with_the_number_of_elements() -> None:
    for size in (10, 1_000_000):
        want = np.ones(size, np.float32)
        assert not diff("y", want, want * np.float32(1.001), FP32).ok


def test_the_golden_side_scales_the_tolerance() -> None:
    tolerance = Tolerance(rtol=0.1, of_max=0, atol=0, why="test")
    assert not diff("y", np.array([1.0]), np.array([1.105]), tolerance).ok
    assert diff("y", np.array([1.105]), np.array([1.0]), tolerance).ok


def test_statistics_are_right() -> None:
    want = np.array([1.0, 2.0, -4.0], np.float32)
    got = np.array([1.0, 2.5, -4.0], np.float32)
    result = diff("y", want, got, FP32)
    assert result.compared == 3
    assert result.max_abs == 0.5
    assert result.mean_abs == pytest.approx(0.5 / 3)
    assert result.max_rel == 0.25
    assert result.rmse == pytest.approx(math.sqrt(0.25 / 3))
    assert result.psnr_db == pytest.approx(20 * math.log10(4 / math.sqrt(0.25 / 3)))
    assert result.cosine == pytest.approx(float(want @ got) / math.sqrt(21 * 23.25))
    assert (result.worst_index, result.want, result.got) == ((1,), 2.0, 2.5)
    assert result.max_ulp == 2**21


@pytest.mark.parametrize(("a", "b", "ulp"), [(1.0, np.nextafter(np.float32(1), np.float32(2)), 1), (-0.0, 0.0, 0)])
def test_ulps(a: float, b: float, ulp: int) -> None:
    assert diff("y", np.array([a], np.float32), np.array([b], np.float32), FP32).max_ulp == ulp
    tiny = np.float32(1e-45)
    assert diff("y", np.array([-tiny], np.float32), np.array([tiny], np.float32), FP32).max_ulp == 2


def test_cosine_is_reported_and_decides_nothing() -> None:
    result = diff("y", Y, Y * 3, FP32)
    assert result.cosine == pytest.approx(1.0)
    assert not result.ok


def test_all_nan_is_judged_by_its_places() -> None:
    want = np.full((2, 2), np.nan, np.float32)
    assert diff("y", want, want.copy(), FP32).ok
    assert not diff("y", want, np.zeros((2, 2), np.float32), FP32).ok


def test_an_empty_tensor_is_right_and_compares_nothing() -> None:
    want = np.zeros((0, 5), np.float32)
    result = diff("y", want, want.copy(), FP32)
    assert result.ok
    assert result.compared == 0
    assert not diff("y", want, np.zeros((0, 4), np.float32), FP32).ok
    assert not diff("y", want, np.zeros((0, 5), np.float64), FP32).ok


@pytest.mark.parametrize("want", [np.full(3, 1e-8, np.float32), np.zeros(3, np.float32), np.zeros(3, bool)])
def test_weak_says_that_zeros_would_pass(want: np.ndarray) -> None:
    tolerance = tolerance_for("fp32", want.dtype.name)
    assert diff("y", want, np.zeros_like(want), tolerance).ok
    assert diff("y", want, want, tolerance).weak
    assert not diff("y", want + np.ones_like(want), want + np.ones_like(want), tolerance).weak


def test_float64_extremes_do_not_overflow_into_a_pass() -> None:
    want, got = np.array([1e308]), np.array([-1e308])
    result = diff("y", want, got, TABLE["fp32", "float64"])
    assert not result.ok
    assert result.max_abs == math.inf


def test_tensors_of_rank_0_may_come_as_scalars() -> None:
    """As ``Tensor.numpy()`` gives them; dtype and value are judged all the same."""
    want = np.array(1.5, np.float32)
    assert diff("y", want, np.float32(1.5), FP32).ok
    assert not diff("y", want, np.float64(1.5), FP32).ok
    assert not diff("y", want, 1.5, FP32).ok
    assert not diff("y", want, np.float32(1.6), FP32).ok
    text = np.array(b"cat", dtype=object)
    assert diff("y", text, b"cat", EXACT).ok
    assert not diff("y", text, b"cow", EXACT).ok
    assert not diff("y", text, "cat", EXACT).ok
    assert not diff("y", want[None], np.float32(1.5), FP32).ok


def outputs() -> dict[str, np.ndarray]:
    return {"a": Y, "b": Y + 1, "n": np.arange(3)}


def by_name(dtype: str) -> Tolerance:
    return tolerance_for("fp32", dtype)


def test_outputs_are_compared_by_name() -> None:
    want = {f"output_{i}": np.full(2, i, np.float32) for i in range(12)}
    assert compare(want, dict(reversed(want.items())), by_name).ok


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda o: {"a": o["b"], "b": o["a"], "n": o["n"]}, "a: 20 of 20 beyond"),
        (lambda o: {"a": o["a"], "b": o["b"]}, "missing outputs: n"),
        (lambda o: {**o, "c": Y}, "outputs that golden does not have: c"),
        (lambda o: {"A": o["a"], "b": o["b"], "n": o["n"]}, "missing outputs: a"),
        (lambda o: {}, "missing outputs: a, b, n"),
        (lambda o: {**o, "n": o["n"] + 1}, "n: 3 of 3 differ"),
    ],
    ids=["swapped", "missing", "extra", "renamed", "none", "last one wrong"],
)
def test_sets_of_outputs(bend: Callable[[dict[str, Any]], dict[str, Any]], reason: str) -> None:
    result = compare(outputs(), bend(outputs()), by_name)
    assert not result.ok
    assert reason in result.reason


def test_no_golden_outputs_is_an_error() -> None:
    with pytest.raises(GoldenError, match="no outputs"):
        compare({}, {}, by_name)


def unstable_diff(got: np.ndarray, what: str) -> TensorDiff:
    return compare({"a": Y}, {"a": got}, by_name, {"a": what}).tensors[0]


def test_unstable_outputs_are_judged_by_form_only() -> None:
    assert unstable_diff(-Y, "values").ok
    assert unstable_diff(-Y, "values").compared == 0
    assert not unstable_diff(Y[:2], "values").ok
    assert not unstable_diff(Y.astype(np.float64), "values").ok
    assert unstable_diff(Y[:2], "shape").ok
    assert not unstable_diff(Y[0], "shape").ok
