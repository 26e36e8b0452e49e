"""The numbers of a comparison, against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.oracle.compare import diff
from refimpl.oracle.statistics import HISTOGRAM_EDGES, Places, error_statistics, histogram, places, top_agreement
from refimpl.tolerance import EXACT, Tolerance

LOOSE = Tolerance(0.01, 0.0, 0.0, "for a test")


def test_means_and_maxima() -> None:
    found = error_statistics(np.array([1.0, 2.0, 0.0, -4.0]), np.array([1.0, 2.5, 0.5, -4.0]))
    assert (found["max_abs"], found["mean_abs"]) == (0.5, 0.25)
    assert (found["max_rel"], found["mean_rel"]) == (0.25, pytest.approx(0.25 / 3))  # where the golden value is not 0
    assert found["rmse"] == pytest.approx(np.sqrt(0.125))
    assert found["psnr_db"] == pytest.approx(20 * np.log10(4 / np.sqrt(0.125)))
    assert found["cosine"] == pytest.approx(22 / np.sqrt(21 * 23.5))


def test_a_scaled_output_has_the_best_cosine_and_fails() -> None:
    want = np.arange(1, 9, dtype=np.float32)
    found = diff("y", want, want * 3, LOOSE)
    assert found.cosine == pytest.approx(1.0)
    assert not found.ok


def test_histogram_bins() -> None:
    assert HISTOGRAM_EDGES[0] == 1e-9
    assert HISTOGRAM_EDGES[-1] == 1.0
    error = np.array([0.0, 1e-12, 2e-9, 0.5, 2.0, 20.0])
    counts = histogram(error, 2.0)
    assert len(counts) == len(HISTOGRAM_EDGES) + 2
    assert sum(counts) == error.size
    assert (counts[0], counts[1], counts[2]) == (1, 1, 1)  # exact, below 1e-9, and 1e-9 itself
    assert counts[-2] == 1  # a quarter
    assert counts[-1] == 2  # as large as the largest value, or larger
    assert histogram(error, 0.0)[-1] == 2, "without a largest value the error stands for itself"


def test_share_of_the_tolerance() -> None:
    want = np.array([100.0, 200.0], np.float32)
    assert diff("y", want, want + np.float32([0.5, 0.0]), LOOSE).share == pytest.approx(0.5)
    assert diff("y", want, want + np.float32([0.0, 4.0]), LOOSE).share == pytest.approx(2.0)
    assert diff("y", want, want, LOOSE).share == 0.0
    assert diff("y", want, np.array([100.0, np.nan], np.float32), LOOSE).share == np.inf
    integers = np.arange(100)
    flips = Tolerance(0.0, 0.0, 0.0, "for a test", flips=0.1)
    assert diff("n", integers, np.where(integers < 5, -1, integers), flips).share == pytest.approx(0.5)
    assert diff("n", integers, integers + 1, EXACT).share == np.inf
    assert diff("n", integers, integers, EXACT).share == 0.0


def test_top_k_agreement() -> None:
    want = np.array([[3, 2, 1, 0, -1, -2], [9, 1, 2, 3, 4, 5]], np.float64)
    assert top_agreement(want, want) == {"top1": 1.0, "top5": 1.0}
    swapped = want.copy()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    assert top_agreement(want, swapped) == {"top1": 0.5, "top5": 1.0}, "the order within the five does not count"
    other = want.copy()
    other[1, 1] = 4.5  # what was least is among the five now
    assert top_agreement(want, other) == {"top1": 1.0, "top5": 0.5}
    nan = want.copy()
    nan[0, 0] = np.nan
    assert top_agreement(want, nan)["top1"] == 0.5, "NaN is never the largest"


@pytest.mark.parametrize("shape", [(6,), (), (2, 1), (0, 6)])
def test_no_top_k_where_it_means_nothing(shape: tuple[int, ...]) -> None:
    assert top_agreement(np.zeros(shape), np.zeros(shape)) == {}
    assert set(top_agreement(np.zeros((2, 3)), np.zeros((2, 3)))) == {"top1"}, "five of three are all"


def test_places() -> None:
    mask = np.zeros((3, 4), bool)
    assert places(mask) is None
    mask[1, 2] = True
    assert places(mask) == Places(1, ((1, 2),))
    assert places(np.ones((3, 4), bool)) == Places(12, ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0)))
    assert places(np.ones((), bool)) == Places(1, ((),))


def test_nan_and_infinities_of_both_sides_are_placed() -> None:
    want = np.array([np.nan, 1, np.inf, 2], np.float32)
    got = np.array([np.nan, np.nan, np.inf, -np.inf], np.float32)
    found = diff("y", want, got, LOOSE)
    assert (found.nan_want, found.nan_got) == (Places(1, ((0,),)), Places(2, ((0,), (1,))))
    assert (found.inf_want, found.inf_got) == (Places(1, ((2,),)), Places(2, ((2,), (3,))))
