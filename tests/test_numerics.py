"""The converter's and the runtime's own comparison: what it must notice, and what it must let pass."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refimpl.numerics import disagreement, has_nonfinite
from refimpl.tolerance import EXACT, Tolerance, tolerance_for

FP32 = tolerance_for("fp32", "float32")
X = np.array([[1.0, -2.0, 3.0], [0.5, 100.0, -7.0]], np.float32)


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (X.astype(np.float64), "dtype float64"),
        (X.reshape(3, 2), "shape [3, 2]"),
        (X[:, :2], "shape [2, 2]"),
        (X * 3, "elements beyond tolerance"),
        (np.roll(X, 1), "elements beyond tolerance"),
        (np.zeros_like(X), "6 of 6 elements"),
        (np.where(X == 3, np.nan, X).astype(np.float32), "NaN at 1 places"),
        (np.where(X == 3, np.inf, X).astype(np.float32), "infinities"),
        (X + np.float32(0.01), "max |Δ| 0.01"),
    ],
)
def test_faults_are_noticed(got, says):
    assert says in disagreement(X, got, FP32)


def test_tolerance_is_relative_to_element_and_to_the_largest():
    tolerance = Tolerance(1e-3, 1e-4, 1e-5, "for this test")
    want = np.array([1000.0, 0.0], np.float64)
    allowed = np.array([1e-3 * 1000 + 1e-4 * 1000 + 1e-5, 1e-4 * 1000 + 1e-5])
    assert not disagreement(want, want + 0.999 * allowed, tolerance)
    for index in range(2):
        beyond = want.copy()
        beyond[index] += 1.001 * allowed[index]
        assert "1 of 2" in disagreement(want, beyond, tolerance)


def test_nan_and_infinities_must_stand_at_the_same_places():
    want = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert not disagreement(want, want.copy(), FP32)
    assert "sign" in disagreement(want, want * np.array([1, -1, 1, 1], np.float32), FP32)
    assert "NaN" in disagreement(want, want[[1, 0, 2, 3]], FP32)
    assert "beyond" in disagreement(want, np.array([np.nan, np.inf, -np.inf, 2.0], np.float32), FP32)
    assert not disagreement(np.full(3, np.nan, np.float32), np.full(3, np.nan, np.float32), FP32)


@pytest.mark.parametrize("array", [np.arange(4), np.array([True, False]), np.array([b"a", b"\xff"], object)])
def test_what_cannot_round_must_be_equal(array):
    assert not disagreement(array, array.copy(), EXACT)
    other = array.copy()
    other[0] = other[1]
    assert disagreement(array, other, EXACT) == f"1 of {array.size} elements differ"


def test_a_wrong_imaginary_part_is_noticed():
    want = np.array([1 + 2j, 3 - 4j], np.complex64)
    tolerance = tolerance_for("fp32", "complex64")
    assert not disagreement(want, want.copy(), tolerance)
    assert disagreement(want, want.conj(), tolerance).startswith("imaginary part: max |Δ| 8")
    assert disagreement(want, -want.conj(), tolerance).startswith("real part: max |Δ| 6")


def test_bfloat16_rounds_like_a_float():
    want = np.array([1.0, 2.0, 3.0], ml_dtypes.bfloat16)
    tolerance = tolerance_for("fp32", "bfloat16")
    assert not disagreement(want, (want.astype(np.float32) * 1.004).astype(ml_dtypes.bfloat16), tolerance)
    assert disagreement(want, want * 2, tolerance)


def test_empty_arrays_agree():
    assert not disagreement(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), FP32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_found(dtype, bad):
    array = np.ones((3, 5), dtype)
    assert not has_nonfinite(array)
    array[1, 2] = bad
    assert has_nonfinite(array)


def test_a_sum_that_overflows_is_no_infinity():
    assert not has_nonfinite(np.full(1000, 60000, np.float16))
    assert not has_nonfinite(np.full(4, 3e38, np.float32))


def test_infinities_that_cancel_are_found():
    assert has_nonfinite(np.array([np.inf, -np.inf, 1.0], np.float32))


@pytest.mark.parametrize("array", [np.arange(3), np.array([b"nan"], object), np.zeros((0, 2), np.float32)])
def test_other_arrays_hold_no_nonfinite_values(array):
    assert not has_nonfinite(array)
