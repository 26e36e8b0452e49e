"""TF-TRT's four profile strategies, on the example of its own tests: shapes [8,128] and [4,384]."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.engines import Profile
from refimpl.profiles import profiles_for
from refimpl.specs import TensorSpec

X = TensorSpec("x", "float32", (None, None))
W = TensorSpec("w", "float32", (None, 3))
SHAPE = TensorSpec("shape", "int32", (2,))
SEEN = [(8, 128), (4, 384), (8, 128)]


def profile(low, high, values=()):
    return Profile(low, high, high, values)


def seen(*shapes, **others):
    return [{"x": np.zeros(shape, np.float32), **others} for shape in shapes]


TABLE = {
    "range": (profile(((4, 128),), ((8, 384),)),),
    "optimal": (profile(((8, 128),), ((8, 128),)), profile(((4, 384),), ((4, 384),))),
    "range+optimal": (
        profile(((8, 128),), ((8, 128),)),
        profile(((4, 384),), ((4, 384),)),
        profile(((4, 128),), ((8, 384),)),
    ),
    "implicit-batch": (profile(((1, 128),), ((8, 128),)), profile(((1, 384),), ((4, 384),))),
}


@pytest.mark.parametrize("strategy", TABLE)
def test_the_table(strategy):
    assert profiles_for(strategy, [X], seen(*SEEN)) == TABLE[strategy]


def test_extremes_are_taken_per_input_and_dimension():
    samples = [
        {"x": np.zeros((2, 9), np.float32), "w": np.zeros((5, 3), np.float32)},
        {"x": np.zeros((7, 1), np.float32), "w": np.zeros((4, 3), np.float32)},
    ]
    assert profiles_for("range", [X, W], samples) == (profile(((2, 1), (4, 3)), ((7, 9), (5, 3))),)
    assert profiles_for("optimal", [X, W], samples) == (
        profile(((2, 9), (5, 3)), ((2, 9), (5, 3))),
        profile(((7, 1), (4, 3)), ((7, 1), (4, 3))),
    )


def test_implicit_batch_opens_the_batch_of_every_input_that_leaves_it_open():
    fixed = TensorSpec("fixed", "float32", (6, None))
    anything = TensorSpec("anything", "float32", None)
    scalar = TensorSpec("scalar", "float32", ())
    sample = {
        "x": np.zeros((8, 128), np.float32),
        "fixed": np.zeros((6, 5), np.float32),
        "anything": np.zeros((9, 2, 2), np.float32),
        "scalar": np.float32(1),
    }
    sample["scalar"] = np.asarray(sample["scalar"])
    (made,) = profiles_for("implicit-batch", [X, fixed, anything, scalar], [sample])
    assert made.min == ((1, 128), (6, 5), (1, 2, 2), ())
    assert made.opt == made.max == ((8, 128), (6, 5), (9, 2, 2), ())


def values(low, high):
    return ((1, low, high, high),)


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ("range", [values((4, 128), (8, 384))]),
        ("optimal", [values((8, 128), (8, 128)), values((4, 384), (4, 384))]),
        ("range+optimal", [values((8, 128), (8, 128)), values((4, 384), (4, 384)), values((4, 128), (8, 384))]),
        ("implicit-batch", [values((1, 128), (8, 128)), values((1, 384), (4, 384))]),
    ],
)
def test_values_used_as_shapes_follow_the_same_rules(strategy, wanted):
    samples = [{"x": np.zeros(shape, np.float32), "shape": np.array(shape, np.int32)} for shape in SEEN]
    made = profiles_for(strategy, [X, SHAPE], samples)
    assert [item.values for item in made] == wanted
    assert {item.max[1] for item in made} == {(2,)}


def test_implicit_batch_leaves_values_that_are_no_sizes():
    samples = [{"x": np.zeros((3, 4), np.float32), "shape": np.array([-1, 4], np.int32)}]
    (made,) = profiles_for("implicit-batch", [X, SHAPE], samples)
    assert made.values == values((-1, 4), (-1, 4))


def test_one_shape_with_other_values_is_another_optimum():
    samples = [{"x": np.zeros((2, 6), np.float32), "shape": np.array(target, np.int32)} for target in [(3, 4), (4, 3)]]
    assert [item.values for item in profiles_for("optimal", [X, SHAPE], samples)] == [
        values((3, 4), (3, 4)),
        values((4, 3), (4, 3)),
    ]


@pytest.mark.parametrize(
    ("spec", "like"),
    [
        (TensorSpec("s", "int32", ()), True),
        (TensorSpec("s", "int64", (64,)), True),
        (TensorSpec("s", "int64", (65,)), False),
        (TensorSpec("s", "int32", (2, 2)), True),  # paddings
        (TensorSpec("s", "int32", (9, 9)), False),
        (TensorSpec("s", "int32", (None,)), False),
        (TensorSpec("s", "int8", (2,)), False),
        (TensorSpec("s", "float32", (2,)), False),
    ],
)
def test_which_inputs_may_be_shapes(spec, like):
    array = np.ones([size or 2 for size in spec.shape], spec.numpy_dtype())
    (made,) = profiles_for("range", [X, spec], seen((1, 2), s=array))
    assert bool(made.values) == like


def test_mixed_ranks_keep_the_lowest():
    anything = TensorSpec("x", "float32", None)
    made = profiles_for("range", [anything], seen((5, 6, 7), (8, 128), (4, 384), (1, 2, 3)))
    assert made == TABLE["range"]


def test_no_profile_where_none_is_needed():
    static = TensorSpec("x", "float32", (4, 4))
    assert profiles_for("optimal", [static], seen((4, 4))) == ()
    assert profiles_for("range", [X], []) == ()
    assert profiles_for("range", [], seen((4, 4))) == ()
    with_values = profiles_for("range", [static, SHAPE], seen((4, 4), shape=np.array([2, 8], np.int32)))
    assert with_values == (profile(((4, 4), (2,)), ((4, 4), (2,)), values((2, 8), (2, 8))),)
