"""A histogram of magnitudes that never grows and never depends on the order of what it saw.

ONNX Runtime's own collector (``onnxruntime.quantization.calibrate.HistogramCollector.collect``) has bins of the width
that the first batch gave, and appends bins for whatever lies beyond. One value 10^6 times larger costs 10^9 bins, and
other first batches give other thresholds. Bins that double their width instead are bounded, but after such an outlier
all other values share one bin, and no algorithm can find a range for them.

Here every octave 2^e < |x| <= 2^(e+1) has ``STEPS`` equal bins, which the bits of a float32 number name. An octave
takes 4 KiB once it has been met: about 100 KiB for most tensors, 1 MiB if all 247 are. A value is known to
1 / ``STEPS`` of itself, however large another one is (masks of -1e9 or -3.4e38 are common), and equal bins over
(0, 2^e] for the library's algorithms come from these by adding whole bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STEPS = 512  # bins an octave: 9 bits of the mantissa
_SHIFT = 23 - 9  # float32 bits that name no bin
_BIAS = 127  # of a float32 exponent
_INFINITY = 0x7F800000  # its bits; those of NaN are larger
# Magnitudes up to 2^-119 count as zero: threshold / 127 would be denormal, and engines flush denormals to zero.
_LEAST = _BIAS - 119
MAX_OCTAVES = 255 - _LEAST  # of float32 above that
_CHUNK = 1 << 17  # values counted at a time; bounds the temporaries


class Histogram:
    """Counts of |x| over all finite values of one tensor.

    Attributes:
        low: smallest finite value seen; 0.0 before any.
        high: largest finite value seen; 0.0 before any.
        values: finite values seen.
        nonfinite: NaN and infinite values seen.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.values = 0
        self.nonfinite = 0
        self._octaves: dict[int, Array] = {}  # float32 exponent -> counts of its bins, int64 [STEPS]

    @property
    def largest(self) -> float:
        """The largest finite magnitude seen, or 0.0 if it counts as zero."""
        return max(abs(self.low), abs(self.high)) if self._octaves else 0.0

    @property
    def nonzero(self) -> int:
        """Values that do not count as zero."""
        return sum(int(counts.sum()) for counts in self._octaves.values())

    @property
    def zeros(self) -> int:
        """Values that are zero, or not above 2^-119 in magnitude."""
        return self.values - self.nonzero

    @property
    def occupied(self) -> int:
        """Bins with a value in them."""
        return sum(int(np.count_nonzero(counts)) for counts in self._octaves.values())

    @property
    def octaves(self) -> tuple[tuple[int, int], ...]:
        """``(e, count)`` of every octave that holds values 2^(e-1) < |x| <= 2^e, the largest first."""
        return tuple((row - _BIAS + 1, int(self._octaves[row].sum())) for row in sorted(self._octaves, reverse=True))

    @property
    def nbytes(self) -> int:
        """Memory of the counts, in bytes; ``MAX_OCTAVES * STEPS * 8`` at most."""
        return sum(counts.nbytes for counts in self._octaves.values())

    def add(self, values: Array) -> None:
        """Count all elements of an array of any shape; float16 and float64 are counted as float32."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._add(flat[start : start + _CHUNK])

    def _add(self, chunk: Array) -> None:
        bits = chunk.view(np.uint32) & np.uint32(0x7FFFFFFF)
        if int(bits.max()) >= _INFINITY:
            finite = bits < _INFINITY
            chunk, bits = chunk[finite], bits[finite]
            self.nonfinite += finite.size - chunk.size
            if not chunk.size:
                return
        low, high = float(chunk.min()), float(chunk.max())
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.values else (low, high)
        self.values += chunk.size
        # One less makes a power of two the last value of its octave, so that a bin ends with its upper edge.
        bins = (bits.astype(np.int64) - 1) >> _SHIFT
        bins = bins[bins >= _LEAST * STEPS]
        if bins.size:
            first = int(bins.min()) // STEPS
            rows = int(bins.max()) // STEPS - first + 1
            found = np.bincount(bins - first * STEPS, minlength=rows * STEPS).reshape(rows, STEPS)
            for row in np.flatnonzero(found.any(axis=1)).tolist():
                self._octaves[first + row] = self._octaves.get(first + row, 0) + found[row]

    def bins(self) -> tuple[Array, Array, Array]:
        """The bins of the values that are not zero, the smallest first; octaves without values are left out.

        Returns:
            counts: int64, [STEPS * octaves]; bin i holds lower[i] < |x| <= upper[i].
            lower: float64, of the same shape.
            upper: likewise.
        """
        rows = sorted(self._octaves)
        counts = np.concatenate([self._octaves[row] for row in rows]) if rows else np.zeros(0, np.int64)
        exponents = np.array(rows, np.int64)[:, None] - _BIAS
        lower, upper = (np.ldexp(1.0 + (np.arange(STEPS) + end) / STEPS, exponents).reshape(-1) for end in (0, 1))
        return counts, lower, upper

    def linear(self, exponent: int, parts: int) -> Array:
        """Counts in equal bins over (0, 2^exponent], without the zeros; what lies beyond is in the last one.

        No bin of an octave is split as long as ``parts`` is a power of two and at most ``2 * STEPS``.

        Returns:
            int64, [parts].
        """
        counts, lower, _ = self.bins()
        index = np.minimum(np.ldexp(lower, -exponent) * parts, parts - 1).astype(np.int64)
        return np.bincount(index, weights=counts, minlength=parts).astype(np.int64)

    def equal_parts(self, parts: int) -> tuple[int, ...]:
        """Counts in equal parts of [0, the largest |x|], zeros in the first; a bin counts where its middle lies."""
        counts, lower, upper = self.bins()
        top = self.largest or 1.0
        index = np.minimum((lower + upper) / 2 / top * parts, parts - 1).astype(np.int64)
        found = np.bincount(index, weights=counts, minlength=parts).astype(np.int64)
        found[0] += self.zeros
        return tuple(found.tolist())

    def above(self, threshold: float) -> int:
        """How many values are larger in magnitude; exact where the threshold is an edge or the largest value."""
        counts, lower, _ = self.bins()
        return 0 if threshold >= self.largest else int(counts[lower >= threshold].sum())
