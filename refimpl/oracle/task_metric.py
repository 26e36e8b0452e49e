"""What a labelled data set says: the task's metric of TensorFlow and of the bundle, and how sure the difference is.

The drop is a mean over examples of one difference each, so it has a *paired* bootstrap interval: examples are drawn
again with replacement, both networks on the same ones (percentile method; B. Efron and R. J. Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). A share of right answers also has the interval of E. B. Wilson
(Journal of the American Statistical Association 22, 1927), which holds for small counts and near 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refimpl import metrics
from refimpl.errors import RefimplError
from refimpl.oracle.arrays import Array
from refimpl.oracle.golden import GoldenCase

RESAMPLES = 2000
_SEED = 20_240_229  # any will do, but always the same
_Z = 1.959963984540054  # 97.5 % of a normal distribution lies below
_AT_ONCE = 1 << 22  # drawn indices held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetric:
    """A metric over all labelled examples; the drop is positive when the bundle is worse. Intervals are of 95 %."""

    metric: str
    examples: int
    signature: str = ""
    tensorflow: float | None = None
    bundle: float | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None  # paired bootstrap
    tensorflow_interval: tuple[float, float] | None = None  # Wilson; None when the metric is not a share
    bundle_interval: tuple[float, float] | None = None
    max_drop: float | None = None  # what was allowed; None: the metric is reported, and decides nothing
    unmeasured: str = ""  # why there is no number

    @property
    def problem(self) -> str:
        """Why a verdict with it does not pass; empty when it does.

        The point estimate decides, as in ``refimpl convert --max-drop``. The lower end of the interval would let any
        loss pass on few examples, and the upper end would let nothing pass on them.
        """
        if self.max_drop is None:
            return ""
        if self.drop is None:
            return f"{self.metric} was not measured: {self.unmeasured}"
        if self.drop <= self.max_drop:  # false for NaN
            return ""
        return f"{self.metric} drops by {self.drop:.4g}, more than {self.max_drop:.4g}"

    @property
    def uncertain(self) -> bool:
        """It passes, but a drop beyond what is allowed lies within the interval."""
        if self.drop_interval is None or self.max_drop is None or self.problem:
            return False
        return self.drop_interval[1] > self.max_drop

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "problem": self.problem}


def measure(
    metric: str, runs: Sequence[tuple[GoldenCase, dict[str, Array] | None]], max_drop: float | None
) -> TaskMetric | None:
    """The metric of the signature whose labelled cases lose most.

    Signatures are not put together: the same examples often go through several, and one that stayed in TensorFlow
    loses nothing. Arguments, result and errors are as for :func:`measure_one`.
    """
    keys = dict.fromkeys(case.signature for case, _ in runs)
    found = [measure_one(metric, [run for run in runs if run[0].signature == key], max_drop) for key in keys]
    return max((item for item in found if item is not None), key=_badness, default=None)


def _badness(task: TaskMetric) -> tuple[bool, float]:
    """What cannot be measured is worst."""
    return task.drop is None or not np.isfinite(task.drop), task.drop or 0.0


def measure_one(
    metric: str, runs: Sequence[tuple[GoldenCase, dict[str, Array] | None]], max_drop: float | None
) -> TaskMetric | None:
    """The metric of all labelled cases of one signature together.

    Args:
        metric: a name that :func:`refimpl.metrics.per_example` knows.
        runs: labelled cases, each with the bundle's outputs; None where it gave none that can be measured.
        max_drop: the largest drop that passes.

    Returns:
        None when there is no labelled case.

    Raises:
        RecipeError: no such metric, or it cannot be taken of TensorFlow's own outputs.
    """
    if not runs:
        return None
    golden = np.concatenate([metrics.per_example(metric, c.labels, c.outputs, c.inputs) for c, _ in runs])
    key = runs[0][0].signature
    blank = TaskMetric(metric=metric, examples=golden.size, signature=key, tensorflow=_mean(golden), max_drop=max_drop)
    missing = [case.name for case, outputs in runs if outputs is None]
    if missing or not golden.size:
        why = f"no comparable outputs in {', '.join(missing[:3])}" if missing else "there is no example"
        return _with(blank, unmeasured=why)
    try:
        parts = [metrics.per_example(metric, c.labels, outputs or {}, c.inputs) for c, outputs in runs]
    except RefimplError as error:  # of TensorFlow's outputs it could be taken
        return _with(blank, unmeasured=error.message)
    ours = np.concatenate(parts)
    losses = golden - ours if metrics.higher_is_better(metric) else ours - golden
    return _with(
        blank,
        bundle=_mean(ours),
        drop=_mean(losses),
        drop_interval=bootstrap_interval(losses),
        tensorflow_interval=_wilson_of(golden),
        bundle_interval=_wilson_of(ours),
    )


def bootstrap_interval(values: Array) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean; the same for the same values, whatever ran before."""
    rng = np.random.default_rng(_SEED)
    step = max(1, _AT_ONCE // values.size)
    drawn = [
        values[rng.integers(values.size, size=(min(step, RESAMPLES - done), values.size))].mean(axis=1)
        for done in range(0, RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of the share ``hits / count``."""
    share, z2 = hits / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _wilson_of(values: Array) -> tuple[float, float] | None:
    return wilson_interval(int(values.sum()), values.size) if np.isin(values, (0.0, 1.0)).all() else None


def _mean(values: Array) -> float | None:
    return float(values.mean()) if values.size else None


def _with(blank: TaskMetric, **found: Any) -> TaskMetric:
    return TaskMetric(**{**asdict(blank), **found})
