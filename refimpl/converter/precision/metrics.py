"""What ``--precision auto`` measures: agreement with TensorFlow, or the user's own metric on labelled samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refimpl.artifacts import Array
from refimpl.converter.precision.accuracy import accuracy
from refimpl.converter.samples import Sample, user_function
from refimpl.errors import RecipeError

# A candidate's outputs, TensorFlow's outputs, and the sample -> a number, the higher the better.
Metric = Callable[[Mapping[str, Array], Mapping[str, Array], Sample], float]


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
    try:
        function = user_function(name)
    except Exception as error:  # the user's code, which fails in its own ways
        raise RecipeError(
            f"--metric {name} cannot be imported: {type(error).__name__}: {error}",
            hint="name a function on the Python path: package.module:function",
        ) from error
    return _users(name, function)


def _agreement(got: Mapping[str, Array], want: Mapping[str, Array], sample: Sample) -> float:
    """1 minus the relative error of the worst output (Euclidean norms; the share that differs, of integers)."""
    del sample
    return 1.0 - accuracy(list(want.values()), [got[name] for name in want]).relative


def _top1(got: Mapping[str, Array], want: Mapping[str, Array], sample: Sample) -> float:
    """The share of rows whose largest value is where TensorFlow has it, in the first output that has such rows."""
    del sample
    for name, value in want.items():
        if value.dtype.kind == "f" and value.ndim >= 2 and value.shape[-1] > 1:
            return float(np.mean(value.argmax(-1) == got[name].argmax(-1)))
    raise RecipeError(
        "--metric top1 needs a float output of at least two columns", hint="take agreement, or a function"
    )


def _users(name: str, function: Callable[..., Any]) -> Metric:
    def metric(got: Mapping[str, Array], want: Mapping[str, Array], sample: Sample) -> float:
        del want
        try:
            return float(function(dict(got), {**sample.values, **sample.extras}))
        except Exception as error:  # as above
            raise RecipeError(
                f"--metric {name} fails on sample {sample.name}: {type(error).__name__}: {error}",
                hint="it is called with (outputs, sample), two dicts of arrays, and returns a number, higher is better",
            ) from error

    return metric
