"""Real inputs, for ``--cases`` and ``--calibration``, of models to which generated ones are no fair question.

Encoded images and sequences of 10,000 bases cannot be made up. Where inputs have no scale, a "large" case makes logits
of a thousand, and the rounding of those decides near zero. Silence is normalized to noise. Large images would only
take long.
"""

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


def fully_convolutional() -> Iterator[Inputs]:
    yield from sample_inputs("fully_convolutional")


def resnet50() -> Iterator[Inputs]:
    yield from sample_inputs("resnet50")


def mobilenetv2() -> Iterator[Inputs]:
    yield from sample_inputs("mobilenetv2")


def efficientnetb0() -> Iterator[Inputs]:
    yield from sample_inputs("efficientnetb0")


def convnexttiny() -> Iterator[Inputs]:
    yield from sample_inputs("convnexttiny")


def inceptionv3() -> Iterator[Inputs]:
    yield from sample_inputs("inceptionv3")


def basic_pitch() -> Iterator[Inputs]:
    yield from sample_inputs("basic_pitch")
