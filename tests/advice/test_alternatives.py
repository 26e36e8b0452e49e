"""An alternative that is named must convert, and what it stands in for must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl.advice.alternatives import ALTERNATIVES, alternative
from refimpl.recipe import Recipe

BOUNDARIES = [0.2, 0.5, 1.5]
WRITTEN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "Log1p": (tf.math.log1p, lambda x: tf.math.log(1.0 + x)),
    "Expm1": (tf.math.expm1, lambda x: tf.exp(x) - 1.0),
    "L2Loss": (tf.nn.l2_loss, lambda x: tf.reduce_sum(x * x) / 2.0),
    "Xlogy": (lambda x: tf.math.xlogy(x, x + 1.0), lambda x: x * tf.math.log(x + 1.0)),
    "Xdivy": (lambda x: tf.math.xdivy(x, x + 1.0), lambda x: x / (x + 1.0)),
    "Bucketize": (
        lambda x: tf.raw_ops.Bucketize(input=x, boundaries=BOUNDARIES),
        lambda x: tf.reduce_sum(tf.cast(x[..., None] >= tf.constant(BOUNDARIES), tf.float32), -1),
    ),
}


class Both(tf.Module):
    """One signature that has the ops, one that has their alternatives, each under the op's name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(np.ones((4,), np.float32))

    @tf.function(input_signature=[tf.TensorSpec([2, 4], tf.float32, name="x")])
    def original(self, x):
        return {name: tf.identity(written[0](tf.nn.relu(x * self.scale))) for name, written in WRITTEN.items()}

    @tf.function(input_signature=[tf.TensorSpec([2, 4], tf.float32, name="x")])
    def rewritten(self, x):
        return {name: tf.identity(written[1](tf.nn.relu(x * self.scale))) for name, written in WRITTEN.items()}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    target = tmp_path_factory.mktemp("alternatives") / "model"
    module = Both()
    tf.saved_model.save(module, str(target), signatures={"original": module.original, "rewritten": module.rewritten})
    value = tf.constant(np.random.default_rng(0).uniform(0.1, 2, (2, 4)).astype(np.float32))
    for name, first in module.original(value).items():
        np.testing.assert_allclose(first, module.rewritten(value)[name], rtol=1e-5, err_msg=name)
    found = refimpl.explain(target, Recipe(signatures=("original", "rewritten"), min_segment_size=1))
    return {plan.signature.key: plan for plan in found.signatures}


@pytest.mark.parametrize("op_type", WRITTEN)
def test_the_op_stays_and_has_that_alternative(plans, op_type):
    assert op_type in {op.type for op in plans["original"].left}
    assert alternative(op_type)


def test_the_alternatives_convert(plans):
    assert [(op.name, op.reason) for op in plans["rewritten"].left] == []


def test_random_ops_have_theirs():
    assert "as an input" in alternative("StatelessRandomUniformV2")
    assert alternative("Conv2D") == ""


def test_alternatives_are_to_ops_that_exist():
    unknown = [name for name in ALTERNATIVES if not hasattr(tf.raw_ops, name)]
    assert unknown == []
