"""How far outputs are from TensorFlow's, in numbers that people compare networks by: reported, never a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LOW_COSINE = (
    0.99  # below it, published INT8 recipes call a layer or a network broken (peers' thresholds: docs/precision.md)
)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The worst over the float outputs; reported, and never a reason to accept: cosine forgives a wrong scale.

    Attributes:
        relative: Euclidean norm of the error over that of the wanted values; 1 where those are all zero and others
            came; infinite where a NaN or infinity differs.
        cosine: between the two, 1.0 when both are zero.
    """

    relative: float
    cosine: float

    def to_json(self) -> dict[str, float]:
        return {"relative": self.relative, "cosine": self.cosine}


def accuracy(want: Sequence[Array], got: Sequence[Array]) -> Accuracy:
    """Compare outputs pairwise; of integers and booleans, the share that differs counts as the relative error.

    Args:
        want: TensorFlow's outputs.
        got: the engine's, of the same shapes.
    """
    relative, cosine = 0.0, 1.0
    for a, b in zip(want, got, strict=True):
        if (a.dtype.kind == "f" or a.dtype.name == "bfloat16") and a.size:
            one = _compare(a.astype(np.float64).ravel(), b.astype(np.float64).ravel())
            relative, cosine = max(relative, one[0]), min(cosine, one[1])
        elif a.size:
            relative = max(relative, float(np.mean(a != b)))
    return Accuracy(relative, cosine)


def worst(found: Sequence[Accuracy]) -> Accuracy:
    """The worst of several; perfect when there are none."""
    return Accuracy(
        max((item.relative for item in found), default=0.0), min((item.cosine for item in found), default=1.0)
    )


def _compare(a: Array, b: Array) -> tuple[float, float]:
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    if not bool((same | finite).all()):
        return float("inf"), 0.0
    a, b = a[finite], b[finite]
    size, other = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    error = float(np.linalg.norm(a - b))
    if not size or not other:
        return (0.0, 1.0) if not error else (1.0, 0.0)
    return error / size, float(a @ b) / (size * other)
