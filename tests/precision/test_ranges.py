"""Histograms and the ranges made from them: against NumPy and ONNX Runtime, with outliers, without data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector

from refimpl.calibration import METHODS
from refimpl.converter.precision.calibrate import range_of, warnings_of
from refimpl.converter.precision.histogram import MAX_OCTAVES, STEPS, Histogram
from refimpl.errors import RecipeError

rng = np.random.default_rng(11)
NORMAL = rng.standard_normal(200_000).astype(np.float32)
RELU = np.maximum(NORMAL, 0)


def histogram(*arrays):
    found = Histogram()
    for array in arrays:
        found.add(np.asarray(array))
    return found


def closed_above(data, parts, top):
    """Counts of magnitudes in equal bins over (0, top]; NumPy's bins are closed below."""
    return np.histogram(-np.abs(data), parts, range=(-top, 0))[0][::-1]


# The histogram


def test_equal_bins_are_exact():
    found = histogram(NORMAL)
    assert 2.0 ** (found.octaves[0][0] - 1) <= np.abs(NORMAL).max() < 2.0 ** found.octaves[0][0]
    for parts in (1, 64, 512, 2 * STEPS):
        want = closed_above(NORMAL, parts, 2.0 ** found.octaves[0][0])
        np.testing.assert_array_equal(found.linear(found.octaves[0][0], parts), want)


def test_what_lies_beyond_is_in_the_last_bin():
    found = histogram(NORMAL)
    want = closed_above(np.minimum(np.abs(NORMAL), 0.999), 512, 1.0)
    np.testing.assert_array_equal(found.linear(0, 512), want)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6, 1e30])
def test_order_and_batch_sizes_change_nothing(scale):
    parts = [NORMAL[:100], NORMAL[100:1000] * 1e-4, NORMAL[1000:] * scale, np.zeros(7, np.float32)]
    one = histogram(np.concatenate(parts))
    for other in (
        histogram(*parts),
        histogram(*parts[::-1]),
        histogram(*np.split(np.concatenate(parts)[7:], 4), parts[0][:7]),
    ):
        assert (other.low, other.high, other.values, other.zeros) == (one.low, one.high, one.values, one.zeros)
        for mine, theirs in zip(one.bins(), other.bins(), strict=True):
            np.testing.assert_array_equal(theirs, mine)


def test_memory_is_bounded_whatever_was_seen():
    found = Histogram()
    found.add(np.ldexp(np.float32(1.5), np.arange(-149, 128)))
    assert (found.values, found.zeros) == (277, 30)
    assert found.nbytes == MAX_OCTAVES * STEPS * 8 < 1.1e6
    found.add(NORMAL)
    assert found.nbytes == MAX_OCTAVES * STEPS * 8


def test_octaves_end_with_powers_of_two():
    found = histogram(np.float32([0.5, 0.51, 1.0, 1.01, 4.0, np.finfo(np.float32).max]))
    assert found.octaves == ((128, 1), (2, 1), (1, 1), (0, 2), (-1, 1))


def test_zeros_denormals_and_signs():
    found = histogram(np.array([0.0, -0.0, 1e-40, -1e-38, -3.0, 2.0, 2.0], np.float32))
    assert (found.low, found.high, found.largest, found.values, found.zeros) == (-3.0, 2.0, 3.0, 7, 4)
    tiny = histogram(np.array([1e-40, -1e-38], np.float32))
    assert (tiny.largest, tiny.zeros) == (0.0, 2), "threshold / 127 must be a normal float32"
    least = histogram(np.array([2.0**-119 * 1.01, 2.0**-119], np.float32))
    assert least.zeros == 1
    assert np.float32(least.largest / 127) >= np.finfo(np.float32).tiny


def test_nan_and_infinity_are_counted_apart():
    found = histogram([np.nan, np.inf, -np.inf, 1.5, -0.5], [np.nan], [])
    assert (found.nonfinite, found.values, found.low, found.high) == (4, 2, -0.5, 1.5)


def test_float16_is_counted_exactly():
    half = NORMAL.astype(np.float16)
    np.testing.assert_array_equal(histogram(half).bins()[0], histogram(half.astype(np.float32)).bins()[0])


def test_more_values_than_are_counted_at_a_time():
    assert histogram(np.tile(NORMAL, 3)).values == 3 * NORMAL.size
    np.testing.assert_array_equal(histogram(np.tile(NORMAL, 3)).bins()[0], 3 * histogram(NORMAL).bins()[0])


def test_equal_parts_for_reports():
    found = range_of(histogram(np.array([0.0, 0.0, 0.1, 5.1, -10.0], np.float32)), "minmax").histogram
    assert len(found) == 64
    assert (found[0], found[32], found[63], sum(found)) == (3, 1, 1, 5)


# Thresholds


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("data", [NORMAL, RELU, NORMAL**3, NORMAL * 1e-20, np.arange(1000, dtype=np.float32)])
def test_percentiles_keep_what_was_asked_for(data, percentile):
    found = range_of(histogram(data), "percentile", percentile)
    exact = np.percentile(np.abs(data), percentile, method="inverted_cdf")
    if exact == 0:  # half of the ReLU: see below
        return
    assert exact <= found.threshold <= exact * (1 + 2 / STEPS)
    assert found.clipped == np.mean(np.abs(data) > found.threshold)
    assert found.clipped <= 1 - percentile / 100 + 1e-12


def test_a_percentile_of_zero_is_taken_without_the_zeros():
    sparse = np.concatenate([np.zeros(10**6), np.linspace(1, 2, 50)]).astype(np.float32)
    found = range_of(histogram(sparse), "percentile", 99.9)
    assert 1.9 < found.threshold <= 2.0


def test_minmax_is_the_largest_magnitude():
    for data in (NORMAL, RELU, -RELU, np.float32([3.0, -7.5]), np.float32([3.0, 7.5]), np.float32([-3.0, -7.5])):
        found = range_of(histogram(data), "minmax")
        assert found.threshold == found.largest == np.abs(data).max()
        assert (found.low, found.high, found.clipped) == (data.min(), data.max(), 0.0)


@pytest.mark.parametrize("data", [NORMAL, rng.laplace(size=100_000).astype(np.float32)], ids=["normal", "laplace"])
def test_entropy_is_the_librarys_search(data):
    top = 2.0 ** math.ceil(math.log2(np.abs(data).max()))
    half = closed_above(data, 512, top)
    edges = np.linspace(-top, top, 1025)
    library = HistogramCollector("entropy", True, 1024, 128, 99.99, "same")
    _, want = library.get_entropy_threshold((np.concatenate([half[::-1], half]), edges, edges[0], edges[-1]), 128)
    assert range_of(histogram(data), "entropy").threshold == min(want, np.abs(data).max())


def error_of(data, threshold):
    """Relative root mean square error of INT8 with this range."""
    scale = threshold / 127
    quantized = np.clip(np.rint(data / scale), -128, 127) * scale
    return float(np.sqrt(np.mean((quantized - data) ** 2) / np.mean(data**2)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [NORMAL, RELU, rng.laplace(size=200_000), rng.uniform(-1, 1, 200_000)])
def test_every_method_is_near_the_best_range(data, method):
    found = range_of(histogram(data), method).threshold
    best = min(error_of(data, threshold) for threshold in np.linspace(0.4, 1.0, 61) * np.abs(data).max())
    assert error_of(data, found) < 1.25 * best


def test_the_library_alone_halves_the_range_of_a_relu():
    """Why zeros are left out and magnitudes mirrored; if this fails, the library was repaired."""
    counts, edges = np.histogram(RELU, 2048, range=(-RELU.max(), RELU.max()))
    library = HistogramCollector("entropy", True, 2048, 128, 99.99, "same")
    low, high = library.get_entropy_threshold((counts, edges, RELU.min(), RELU.max()), 128)
    assert low == 0
    assert error_of(RELU, high) > 2 * error_of(RELU, range_of(histogram(RELU), "entropy").threshold)


@pytest.mark.parametrize(
    "data", [np.full(5000, 3.3), np.full(5000, -1e-3), rng.choice([1.0, 100.0], 5000), NORMAL[:640]]
)
def test_without_a_distribution_entropy_keeps_everything(data):
    data = data.astype(np.float32)
    assert range_of(histogram(data), "entropy").threshold == np.abs(data).max()


def test_with_a_level_for_every_value_entropy_keeps_everything():
    data = np.minimum(rng.exponential(8, 50_000).astype(int), 100).astype(np.float32)
    assert len(np.unique(data)) < 128
    assert range_of(histogram(data), "entropy").threshold == data.max()


@pytest.mark.parametrize("method", METHODS)
def test_always_zero_has_no_range(method):
    found = range_of(histogram(np.zeros(100)), method)
    assert (found.threshold, found.clipped, found.zeros, found.largest) == (0.0, 0.0, 100, 0.0)
    assert warnings_of({"t": found}, method) == ("t was always zero, so it has no range",)


@pytest.mark.parametrize("method", METHODS)
def test_only_nan_has_no_range(method):
    found = range_of(histogram(np.full(3, np.nan)), method)
    assert (found.threshold, found.values, found.nonfinite) == (0.0, 0, 3)
    assert "t never held a finite value" in warnings_of({"t": found}, method)[1]


def test_methods_and_percentiles_that_are_none():
    with pytest.raises(RecipeError, match="no calibration method 'best'"):
        range_of(histogram(NORMAL), "best")
    for percentile in (0.0, -1.0, 100.5, math.nan):
        with pytest.raises(RecipeError, match="percentile is"):
            range_of(histogram(NORMAL), "percentile", percentile)


# Outliers


@pytest.mark.parametrize("outlier", [50.0, 480.0, 1e6, 3e38])
@pytest.mark.parametrize("data", [NORMAL, RELU], ids=["normal", "relu"])
def test_outliers_are_loud_with_minmax_and_quiet_otherwise(data, outlier):
    clean = {method: range_of(histogram(data), method).threshold for method in METHODS}
    spoilt = histogram(data, np.float32([outlier, -outlier / 2]))
    for method in METHODS:
        found = range_of(spoilt, method)
        said = warnings_of({"conv1/Relu:0": found}, method)
        if method == "minmax":
            assert found.threshold == np.float32(outlier)
            assert len(said) == 1
            bits = math.log2(outlier / found.quantiles["99.99"])
            cost = f"{bits:.1f} bits of its 8" if bits < 8 else "all of its 8 bits"
            assert said[0] == (
                f"minmax: the range of conv1/Relu:0 is {outlier:.4g}, but 99.99 % of its values other than zero lie "
                f"within {found.quantiles['99.99']:.4g}: a few outliers cost it {cost}"
            )
        else:
            assert clean[method] / 1.4 < found.threshold < 1.4 * clean[method]
            assert said == ()


def test_entropy_comes_down_a_long_thin_tail():
    """No empty octave parts these from the rest, and one search comes down to an eighth of the largest at most."""
    tail = np.geomspace(4, 4000, 60)
    found = range_of(histogram(NORMAL, tail), "entropy")
    assert range_of(histogram(NORMAL), "entropy").threshold / 1.4 < found.threshold < 8


def test_entropy_does_not_search_where_nothing_is(monkeypatch):
    searched = []
    search = HistogramCollector.get_entropy_threshold
    monkeypatch.setattr(
        HistogramCollector, "get_entropy_threshold", lambda *given: searched.append(given[1][1][-1]) or search(*given)
    )
    range_of(histogram(NORMAL, np.float32([-3e38, 1e9, 1e9])), "entropy")
    assert searched[0] == 8.0, "2^3 holds all but the masks"
    assert len(searched) <= 2


def test_a_whole_batch_of_outliers_is_seen_too():
    found = range_of(histogram(NORMAL, 1000 * NORMAL[:500]), "minmax")
    (said,) = warnings_of({"t": found}, "minmax")
    assert "99 %" in said or "99.9 %" in said or "99.99 %" in said
    assert "bits of its 8" in said or "all of its 8 bits" in said


@pytest.mark.parametrize("data", [NORMAL, RELU, rng.laplace(size=200_000), rng.uniform(size=5000), NORMAL[:100] ** 3])
@pytest.mark.parametrize("method", METHODS)
def test_ordinary_data_is_quiet(data, method):
    assert warnings_of({"t": range_of(histogram(data), method)}, method) == ()


def test_much_clipping_is_said():
    found = range_of(histogram(NORMAL), "percentile", 90.0)
    (said,) = warnings_of({"t": found}, "percentile")
    assert said.startswith(f"percentile: the range of t is {found.threshold:.4g} and clips {100 * found.clipped:.2g} %")
    assert f"{np.abs(NORMAL).max():.4g}" in said
