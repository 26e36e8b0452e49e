"""Real inputs for ``--cases`` and ``--calibration`` of models that nothing made up at random runs through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.models import sample_inputs

Inputs = dict[str, np.ndarray]


def detector() -> Iterator[Inputs]:
    yield from sample_inputs("detector")


def decode_and_label() -> Iterator[Inputs]:
    yield from sample_inputs("decode_and_label")


def spliceai() -> Iterator[Inputs]:
    yield from sample_inputs("spliceai")
