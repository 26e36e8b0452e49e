"""How good a network is at its task: what ``--precision auto`` holds on to, and what a labelled golden record measures.

Both wings need it, and neither may import the other. :func:`metric_of` gives one number for a whole sample;
:func:`per_example` gives one number for every example of a batch, which is what a confidence interval is made from: the
mean over the examples is the metric, and examples can be drawn again (paired, when two networks are compared).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from refimpl.accuracy import accuracy
from refimpl.errors import RecipeError
from refimpl.user_code import user_function

Array = np.ndarray[Any, Any]


class Given(Protocol):
    """What a sample was given with (:class:`refimpl.converter.samples.Sample` is one)."""

    @property
    def name(self) -> str: ...
    @property
    def values(self) -> Mapping[str, Array]: ...  # the inputs
    @property
    def extras(self) -> Mapping[str, Any]: ...  # what came with them and is no input: labels


# A candidate's outputs, TensorFlow's outputs, and the sample -> a number, the higher the better.
Metric = Callable[[Mapping[str, Array], Mapping[str, Array], Given], float]

# Labels, outputs -> float64[batch]; every one is a mean over examples.
_PerExample = Callable[[Mapping[str, Array], Mapping[str, Array]], Array]


def metric_of(name: str) -> Metric:
    """The metric that a recipe names.

    Args:
        name: ``"agreement"``, ``"top1"``, or ``package.module:function`` of ``(outputs, sample)``: two dicts of arrays,
            the second with everything that the sample was given with, labels too.

    Raises:
        RecipeError: the user's function cannot be imported.
    """
    if name == "agreement":
        return _agreement
    if name == "top1":
        return _top1
    return _users(name, _imported(name))


def per_example(
    metric: str, labels: Mapping[str, Array], outputs: Mapping[str, Array], inputs: Mapping[str, Array] | None = None
) -> Array:
    """The metric of every example of one batch.

    ======================  ==============================================  ==========================================
    metric                  labels                                          value of an example
    ======================  ==============================================  ==========================================
    ``top1``, ``top5``      class numbers, ``int[batch]`` or                1 when the label is (among the five)
                            ``int[batch, 1]``, or scores,                   largest, else 0; of equal values the one
                            ``float[batch, ..., classes]``, whose largest   with the lower index counts as larger
                            is the class
    ``mae``                 numbers of the shape of an output               mean absolute error, lower is better
    ``agreement``           outputs of another run, by name                 1 minus the relative error (Euclidean norms)
                                                                            of the worst output
    ``package.module:f``    any                                             ``f(outputs, {**inputs, **labels})`` of a
                                                                            batch of this one example
    ======================  ==============================================  ==========================================

    Which output a label is about: the one with the label's name, or else, when there is one label, the first float
    output that it fits. An example whose label is compared in several places (a class for each pixel) counts with the
    mean over these.

    Args:
        metric: one of the names above.
        labels: the labels of one batch, by name; the first axis of each is the batch.
        outputs: the outputs of the network for the same batch, by name.
        inputs: the inputs, for a function of the user's own.

    Returns:
        ``float64[batch]``. Every metric but ``mae`` is the better the higher (:func:`higher_is_better`).

    Raises:
        RecipeError: no such metric, labels that fit no output, another batch, or the user's function fails.
    """
    count = _batch({**labels, **outputs})
    if ":" in metric:
        return _each(metric, count, {**(inputs or {}), **labels}, outputs)
    try:
        function = _PER_EXAMPLE[metric]
    except KeyError:
        known = ", ".join((*_PER_EXAMPLE, "package.module:function"))
        raise RecipeError(f"there is no metric {metric!r}", hint=f"there are: {known}") from None
    return function(labels, outputs)


def higher_is_better(metric: str) -> bool:
    """Whether more of this metric is better; a function of the user's own is taken to be so."""
    return metric != "mae"


def _agreement(got: Mapping[str, Array], want: Mapping[str, Array], sample: Given) -> float:
    """1 minus the relative error of the worst output (Euclidean norms; the share that differs, of integers)."""
    del sample
    return 1.0 - accuracy(list(want.values()), [got[name] for name in want]).relative


def _top1(got: Mapping[str, Array], want: Mapping[str, Array], sample: Given) -> float:
    """The share of rows whose largest value is where TensorFlow has it, in the first output that has such rows."""
    del sample
    name = next((name for name, value in want.items() if _has_columns(value)), None)
    if name is None:
        raise RecipeError(
            "--metric top1 needs a float output of at least two columns", hint="take agreement, or a function"
        )
    return float(np.mean(want[name].argmax(-1) == got[name].argmax(-1)))


def _users(name: str, function: Callable[..., Any]) -> Metric:
    def metric(got: Mapping[str, Array], want: Mapping[str, Array], sample: Given) -> float:
        del want
        return _call(name, function, got, {**sample.values, **sample.extras}, sample.name)

    return metric


def _imported(name: str) -> Callable[..., Any]:
    try:
        return user_function(name)
    except Exception as error:  # the user's code, which fails in its own ways
        raise RecipeError(
            f"--metric {name} cannot be imported: {type(error).__name__}: {error}",
            hint="name a function on the Python path: package.module:function",
        ) from error


def _call(
    name: str, function: Callable[..., Any], outputs: Mapping[str, Array], given: Mapping[str, Any], sample: str
) -> float:
    try:
        found = float(function(dict(outputs), dict(given)))
    except Exception as error:  # as above
        raise RecipeError(
            f"--metric {name} fails on sample {sample}: {type(error).__name__}: {error}",
            hint="it is called with (outputs, sample), two dicts of arrays, and returns a number, higher is better",
        ) from error
    if not math.isfinite(found):
        raise RecipeError(f"--metric {name} gives {found} on sample {sample}", hint="return a finite number")
    return found


def _each(metric: str, count: int, given: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
    """A function of the user's own, once for every example: a batch of one."""
    function = _imported(metric)

    def row(arrays: Mapping[str, Array], index: int) -> dict[str, Array]:
        return {name: array[index : index + 1] for name, array in arrays.items()}

    found = [_call(metric, function, row(outputs, i), row(given, i), f"#{i}") for i in range(count)]
    return np.array(found, dtype=np.float64)


def _top(k: int) -> _PerExample:
    def metric(labels: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
        label, scores = _pair(labels, outputs, _classifies)
        truth = label.argmax(-1) if _is_float(label) else label.reshape(scores.shape[:-1])
        strange = truth[(truth < 0) | (truth >= scores.shape[-1])]
        if strange.size:
            raise RecipeError(
                f"a label is class {strange[0]}, of {scores.shape[-1]} classes",
                hint="classes are numbered from 0 along the output's last axis",
            )
        wide = np.where(np.isnan(scores), -np.inf, scores.astype(np.float64))  # a NaN is never the largest
        best = np.argsort(-wide, axis=-1, kind="stable")[..., :k]
        hit = (best == truth[..., None]).any(-1) & ~np.isnan(scores.astype(np.float64)).all(-1)
        return _mean_of_examples(hit.astype(np.float64))

    return metric


def _mae(labels: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
    label, output = _pair(labels, outputs, lambda label, output: label.size == output.size)
    return _mean_of_examples(np.abs(label.astype(np.float64).reshape(output.shape) - output.astype(np.float64)))


def _agreements(labels: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
    missing = sorted(set(labels) - set(outputs))
    if missing:
        raise RecipeError(f"there is no output {missing[0]!r} to agree with", hint=f"there are: {', '.join(outputs)}")
    count = _batch(labels)
    rows = ([(label[i], outputs[name][i]) for name, label in labels.items()] for i in range(count))
    return np.array([1.0 - _relative(row) for row in rows], dtype=np.float64)


def _relative(pairs: Iterable[tuple[Any, Any]]) -> float:
    want, got = zip(*pairs, strict=True)
    return accuracy([np.asarray(item) for item in want], [np.asarray(item) for item in got]).relative


def _pair(
    labels: Mapping[str, Array], outputs: Mapping[str, Array], fits: Callable[[Array, Array], bool]
) -> tuple[Array, Array]:
    """The label, and the output that it is about."""
    named = [name for name in labels if name in outputs]
    chosen = named[0] if named else next(iter(labels)) if len(labels) == 1 else None
    if chosen is None:
        raise RecipeError(
            f"which label is about which output? labels {', '.join(labels) or 'none'}, outputs {', '.join(outputs)}",
            hint="give one label, or give it the name of the output",
        )
    candidates = [outputs[chosen]] if named else list(outputs.values())
    found = next((output for output in candidates if _is_float(output) and fits(labels[chosen], output)), None)
    if found is None:
        listed = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in outputs.items())
        label = labels[chosen]
        raise RecipeError(f"label {chosen!r}, {label.dtype}{list(label.shape)}, fits no output", hint=f"have: {listed}")
    return labels[chosen], found


def _classifies(label: Array, scores: Array) -> bool:
    if not _has_columns(scores):
        return False
    if _is_float(label):
        return bool(label.shape == scores.shape)
    return label.dtype.kind in "iu" and label.shape in (scores.shape[:-1], (*scores.shape[:-1], 1))


def _has_columns(value: Array) -> bool:
    return _is_float(value) and value.ndim >= 2 and int(value.shape[-1]) > 1


def _is_float(array: Array) -> bool:
    return bool(array.dtype.kind == "f") or str(array.dtype) == "bfloat16"  # to NumPy, bfloat16 is of no kind


def _mean_of_examples(values: Array) -> Array:
    return np.asarray(values.reshape(len(values), -1).mean(axis=1))


def _batch(arrays: Mapping[str, Array]) -> int:
    """The size that the first axis of all these has."""
    counts = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or None in counts.values():
        listed = ", ".join(f"{name}: {list(array.shape)}" for name, array in arrays.items()) or "nothing"
        raise RecipeError(f"labels and outputs are not of one batch: {listed}", hint="the first axis is the batch")
    return int(next(iter(arrays.values())).shape[0])


_PER_EXAMPLE: dict[str, _PerExample] = {"top1": _top(1), "top5": _top(5), "mae": _mae, "agreement": _agreements}
