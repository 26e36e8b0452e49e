"""Calibration: run an island on real data, one batch at a time, and choose the range of every tensor.

Thresholds are found by ONNX Runtime (``onnxruntime.quantization.calibrate.HistogramCollector``, version 1.31 read and
measured) in histograms of ours (:mod:`refimpl.converter.precision.histogram`). What its code does, and what that asks
of the histograms:

* ``get_entropy_threshold`` is the KL search of NVIDIA's talk (S. Migacz, *8-bit Inference with TensorRT*, GTC 2017) in
  MXNet's form. It works on signed bins and cuts the result to the extremes seen, so half of its levels lie where a ReLU
  has no values, and the spike at zero draws the threshold to a half of the right one. Only magnitudes matter to a
  symmetric range, and zero is exact in all of them: it is given |x| mirrored, without the zeros.
* It compares a range of 2 i + 1 bins with 128 levels of whole bins, and what is left over counts as empty. So only
  ranges of about a multiple of 128 bins can win: eighths of 1024 bins, sixteenths of 2048. The first, an eighth, is
  still far too wide when one value is 200 times the others. So the search is repeated over the smallest power of two
  that holds what it found, in finer bins, until it takes more than half of it. Then outliers of any size give the same
  answer.
* 1024 bins take 0.2 s a search, 2048 take 0.5 s. Of 400,000 normal, ReLU or Laplace values the error is within 23 % of
  the best range's with 1024 and within 14 % with 2048 (the largest value: 41 %). Of 5,000 values, whose scatter both
  take for structure, it is up to 2.1 and 4.7 times the best. Hence 1024.
  (``create_calibrator`` takes 128
  bins and 128 levels, which leaves one candidate: the whole range.)
* ``compute_percentile`` returns the lower edge of the bin that holds the percentile, and so keeps less than was asked
  for. It is given upper edges.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from refimpl.artifacts import Array
from refimpl.calibration import BUCKETS, METHODS, PERCENTILE, QUANTILES, TensorRange
from refimpl.converter.precision.histogram import Histogram
from refimpl.engines.onnxruntime import session_options
from refimpl.errors import InternalError, RecipeError, RunError, first_line
from refimpl.progress import Step
from refimpl.specs import Signature

_BINS = 1024  # over [-t, t], for the KL search
_LEVELS = 128  # that it compares them with; ONNX Runtime's default
_STRAYS = 1e-3  # share of the values other than zero that the KL search may leave beyond an empty octave at once
_SECONDS = 2.0  # between two lines of progress
_FLOATS = ("tensor(float)", "tensor(float16)")

# When a range is suspicious: this share of the values (in percent) leaves so many of the 8 bits unused. Tails of real
# data cost some bits (99 % of a Laplace distribution: about 1.3), so the rows further from the maximum ask for more.
_OUTLIERS = ((99.99, 2.0), (99.9, 4.0), (99.0, 5.0))
_MUCH_CLIPPED = 0.01  # share of values beyond the threshold that is worth a warning


class Observer:
    """Histograms of some tensors of one island over any number of batches.

    Between batches it holds about 100 KiB a tensor (1 MiB at most); during one, all observed tensors of that batch.

    Args:
        model_file: the island's ONNX, its external weights beside it; nothing is written.
        tensors: names of float tensors of the graph: inputs, outputs or any between.

    Raises:
        RunError: ONNX Runtime does not load the model.
        InternalError: a name is no float tensor of the graph.
    """

    def __init__(self, model_file: Path, tensors: Sequence[str]) -> None:
        self._session = _open(model_file, tensors)
        kinds = {item.name: item.type for item in (*self._session.get_inputs(), *self._session.get_outputs())}
        for name in tensors:
            if kinds.get(name) not in _FLOATS:
                raise InternalError(f"{model_file.name}: {name} is {kinds.get(name)}, which has no INT8 range")
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._fetched = [name for name in dict.fromkeys(tensors) if name not in self._inputs]
        self._histograms = {name: Histogram() for name in dict.fromkeys(tensors)}
        self._name = model_file.name
        self.batches = 0

    def add(self, inputs: Sequence[Array]) -> bool:
        """Run one batch and count what every tensor holds.

        Args:
            inputs: values of the graph's inputs, in its order; shapes may differ from batch to batch.

        Returns:
            Whether it was run; a batch with an empty input is skipped.

        Raises:
            RunError: ONNX Runtime fails on it.
        """
        if any(np.asarray(value).size == 0 for value in inputs):
            return False
        feeds = dict(zip(self._inputs, inputs, strict=True))
        try:
            found = self._session.run(self._fetched, feeds) if self._fetched else []
        except Exception as error:  # its exceptions share no base class with a public name
            raise RunError(f"ONNX Runtime failed while calibrating {self._name}: {first_line(error)}") from error
        for name in self._histograms.keys() & feeds.keys():
            self._histograms[name].add(feeds[name])
        for name, value in zip(self._fetched, found, strict=True):
            self._histograms[name].add(value)
        self.batches += 1
        return True

    @property
    def nbytes(self) -> int:
        """Memory of all histograms, in bytes; it grows with the octaves that values span, not with their number."""
        return sum(histogram.nbytes for histogram in self._histograms.values())

    def ranges(
        self, method: str, percentile: float = PERCENTILE, tell: Callable[[str], None] = lambda _: None
    ) -> dict[str, TensorRange]:
        """The range of every tensor, by name, in the order that the tensors were given in.

        Batches may be added afterwards, and other methods asked for.

        Args:
            method: one of :data:`refimpl.calibration.METHODS`.
            percentile: share of the values in percent that method ``percentile`` keeps, more than 0 and at most 100.
            tell: takes lines of progress.

        Raises:
            RecipeError: no batch was run, or there is no such method or percentile.
        """
        if not self.batches:
            raise RecipeError("there is no data to calibrate with", hint="give at least one sample that is not empty")
        found, last = {}, time.monotonic()
        for number, (name, histogram) in enumerate(self._histograms.items()):
            if time.monotonic() - last > _SECONDS:
                line = f"calibrate: ranges by {method}, {number} of {len(self._histograms)} tensors"
                tell(Step(line, stage="ranges", done=number, total=len(self._histograms)))
                last = time.monotonic()
            found[name] = range_of(histogram, method, percentile)
        return found


def _open(model_file: Path, tensors: Sequence[str]) -> Any:
    """A session with these tensors as outputs, too.

    Nothing is optimized: an output survives every optimization, but what it is computed from may be fused and rounded
    otherwise. The arena is off, since it would keep the largest batch's memory, and more for every new shape. External
    weights are left where they are.
    """
    proto = onnx.load(model_file, load_external_data=False)
    known = {item.name for item in (*proto.graph.input, *proto.graph.output)}
    made = {name for node in proto.graph.node for name in node.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name in made and name not in known
    )
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    folder = str(model_file.absolute().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    content = proto.SerializeToString()
    del proto  # a second copy of the weights
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunError(f"ONNX Runtime cannot load {model_file.name}: {first_line(error)}") from error


def range_of(histogram: Histogram, method: str, percentile: float = PERCENTILE) -> TensorRange:
    """The range of one tensor; arguments and errors as for :meth:`Observer.ranges`."""
    if method not in METHODS:
        raise RecipeError(f"no calibration method {method!r}", hint=f"methods: {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise RecipeError(f"percentile is {percentile}", hint="give a number above 0, up to 100, such as 99.99")
    largest = histogram.largest
    if largest == 0:
        threshold = 0.0
    elif method == "entropy":
        threshold = _entropy(histogram)
    elif method == "percentile":
        # A tensor that is nearly always zero: its percentile is 0, and a range of 0 holds nothing.
        threshold = _percentile(histogram, percentile, zeros=True) or _percentile(histogram, percentile, zeros=False)
    else:
        threshold = largest
    return TensorRange(
        low=histogram.low,
        high=histogram.high,
        threshold=threshold,
        clipped=histogram.above(threshold) / histogram.values if threshold else 0.0,
        values=histogram.values,
        zeros=histogram.zeros,
        nonfinite=histogram.nonfinite,
        quantiles={_name(share): _percentile(histogram, share, zeros=False) if largest else 0.0 for share in QUANTILES},
        histogram=histogram.equal_parts(BUCKETS),
    )


def _collector(method: str, percentile: float = PERCENTILE) -> Any:
    # Imported here: it loads much more of ONNX Runtime than a session needs.
    from onnxruntime.quantization.calibrate import HistogramCollector

    return HistogramCollector(method, True, _BINS, _LEVELS, percentile, "same")


def _entropy(histogram: Histogram) -> float:
    """The threshold with the smallest KL divergence, by ONNX Runtime's search; see the module for its frame.

    With no more different values than levels, every level can have its value; with fewer values than bins, what the
    search sees is their scatter. Then the largest magnitude is kept, or of pixels and the like, the largest but strays.
    """
    exponent = _without_strays(histogram)
    if histogram.occupied <= _LEVELS or histogram.nonzero < _BINS:
        counts, _, upper = histogram.bins()
        return min(histogram.largest, float(upper[(counts > 0) & (upper <= math.ldexp(1.0, exponent))].max()))
    collector = _collector("entropy")
    while True:
        half = histogram.linear(exponent, _BINS // 2)
        counts = np.concatenate([half[::-1], half])
        edges = np.linspace(-1.0, 1.0, _BINS + 1) * math.ldexp(1.0, exponent)
        _, high = collector.get_entropy_threshold((counts, edges, edges[0], edges[-1]), _LEVELS)
        narrower = math.ceil(math.log2(float(high)))
        if narrower >= exponent:
            return min(float(high), histogram.largest)
        exponent = narrower


def _without_strays(histogram: Histogram) -> int:
    """The smallest e with 2^e above all values but a few, which lie beyond an empty octave.

    The search would come down to it by itself, in steps of at most three octaves; a mask of -3.4e38 takes 40.
    """
    octaves = histogram.octaves
    found, beyond = octaves[0][0], 0
    for (exponent, count), (below, _) in itertools.pairwise(octaves):
        beyond += count
        if beyond > _STRAYS * histogram.nonzero:
            break
        if below < exponent - 1:
            found = below
    return found


def _percentile(histogram: Histogram, percentile: float, *, zeros: bool) -> float:
    """The magnitude that at least this percentage of the values lie within, with or without the zeros among them.

    It is the upper edge of a bin or the largest magnitude, at most two bins (2 / 512) above the exact percentile: the
    library's sum of shares may be rounded to less than it is.
    """
    counts, _, upper = histogram.bins()
    counts = np.concatenate([[histogram.zeros if zeros else 0], counts])
    upper = np.concatenate([[0.0], upper, upper[-1:]])  # one more, for a sum that is rounded to less than 1
    collector = _collector("percentile", percentile)
    largest = np.float64(histogram.largest)
    collector.histogram_dict = {"x": (counts, upper, -largest, largest)}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        return float(collector.compute_percentile()["x"][1])


def _name(percent: float) -> str:
    return f"{percent:g}"


def warnings_of(ranges: Mapping[str, TensorRange], method: str) -> tuple[str, ...]:
    """What a user should know about these ranges, in plain words, in the order of the names.

    A range far wider than nearly all values is said with the bits that it costs: with a threshold T and nearly all
    values within q, those values share 127 q / T of INT8's 127 steps, so log2(T / q) bits say nothing about them.
    """
    found: list[str] = []
    for name in sorted(ranges):
        seen = ranges[name]
        if seen.nonfinite:
            found.append(
                f"{name} held {seen.nonfinite} NaN or infinite values, which INT8 cannot hold: its range covers the "
                f"others; keep it in higher precision"
            )
        if seen.threshold == 0:
            held = "was always zero" if seen.values else "never held a finite value"
            found.append(f"{name} {held}, so it has no range")
        elif (outliers := _outliers(seen)) is not None:
            percent, bits = outliers
            cost = f"{bits:.1f} bits of its 8" if bits < 8 else "all of its 8 bits"
            found.append(
                f"{method}: the range of {name} is {seen.threshold:.4g}, but {percent:g} % of its values other than "
                f"zero lie within {seen.quantiles[_name(percent)]:.4g}: a few outliers cost it {cost}"
            )
        if seen.clipped >= _MUCH_CLIPPED:
            found.append(
                f"{method}: the range of {name} is {seen.threshold:.4g} and clips {100 * seen.clipped:.2g} % of its "
                f"values, of which the largest is {seen.largest:.4g}"
            )
    return tuple(found)


def _outliers(seen: TensorRange) -> tuple[float, float] | None:
    """The percentage and the bits lost to what lies beyond it, where they are too many."""
    for percent, limit in _OUTLIERS:
        within = seen.quantiles.get(_name(percent), 0.0)
        if within > 0 and (bits := math.log2(seen.threshold / within)) >= limit:
            return percent, bits
    return None


def check_batch(name: str, values: Mapping[str, Array], signature: Signature) -> None:
    """Make sure that a sample can be calibrated with: it holds no NaN and no infinity.

    Args:
        name: of the sample, for the message.
        values: arrays by input name.
        signature: whose inputs they are.

    Raises:
        RecipeError: an input holds some; sample, input and how many are named.
    """
    for spec in signature.inputs:
        value = values[spec.name]
        if not _is_float(spec.dtype):
            continue
        bad = value.size - int(np.count_nonzero(np.isfinite(value)))
        if bad:
            raise RecipeError(
                f"sample {name}: {bad} of the {value.size} values of input {spec.name!r} are NaN or infinite",
                hint="ranges are made of finite values; leave the sample out or repair it",
            )


class InputCheck:
    """Looks at samples one by one, and says at the end whether they were data.

    Args:
        signature: whose inputs the samples give.
    """

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._seen: dict[str, tuple[float, float]] = {}
        self.batches = 0

    def add(self, name: str, values: Mapping[str, Array]) -> bool:
        """Check one sample by :func:`check_batch`, and remember the extremes of its inputs.

        Returns:
            Whether it holds data; one with an empty input is to be skipped.

        Raises:
            RecipeError: as :func:`check_batch`.
        """
        if any(values[spec.name].size == 0 for spec in self._signature.inputs):
            return False
        check_batch(name, values, self._signature)
        for spec in self._signature.inputs:
            value = values[spec.name]
            # A scalar is a setting of the model, such as a dropout rate, and may well stay the same.
            if value.ndim and _is_float(spec.dtype) and not spec.dtype.startswith("complex"):
                low, high = float(value.min()), float(value.max())
                before = self._seen.get(spec.name, (low, high))
                self._seen[spec.name] = min(low, before[0]), max(high, before[1])
        self.batches += 1
        return True

    def check_varied(self) -> None:
        """Make sure that there was data, and that every float input took more than one value.

        A range is made from how values spread. From an input that is always the same (zeros of a placeholder, a file
        that was not filled), all ranges behind it fit that one value, and INT8 would clip all real data to it. Integers
        may stay the same: they are often lengths, modes or masks.

        Raises:
            RecipeError: no sample held data, or an input was constant, which is named.
        """
        if not self.batches:
            raise RecipeError("there is no data to calibrate with", hint="give at least one sample that is not empty")
        for name, (low, high) in self._seen.items():
            if low == high:
                raise RecipeError(
                    f"input {name!r} was {low:g} everywhere in all {self.batches} samples",
                    hint="ranges made from it would clip real data; calibrate with what the model will meet",
                )


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "complex", "half", "double"))
