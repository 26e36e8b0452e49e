"""Probes: inputs of an island and TensorFlow's outputs for them, as files of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def write_probe(file: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
    """Store inputs of an island and the outputs that TensorFlow gives for them."""
    arrays = {f"input_{i}": array for i, array in enumerate(inputs)} | {
        f"output_{i}": array for i, array in enumerate(outputs)
    }
    np.savez(file, **arrays)  # type: ignore[arg-type]


def read_probe(file: Path) -> tuple[list[Array], list[Array]]:
    """The inputs and outputs that :func:`write_probe` stored."""
    with np.load(file, allow_pickle=False) as data:
        sides = []
        for side in ("input_", "output_"):
            count = sum(name.startswith(side) for name in data.files)
            sides.append([data[f"{side}{index}"] for index in range(count)])
    return sides[0], sides[1]
