"""What an ``input_fn`` may yield, and how it is bound to inputs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from tests.tftrt.models import DIGITS, RNG, TWO, converted, converter, images
from tests.tftrt.models import tensorrt_records as _records

SAME = RNG.random((2, 2, 6), np.float32), RNG.random((2, 2, 6), np.float32)


@pytest.mark.parametrize(
    "item",
    [
        {"image": images()},
        [images()],
        (tf.constant(images()),),
        images(),
        tf.constant(images()),
        images().tolist(),
    ],
    ids=["dict", "list", "tuple", "array", "tensor", "nested"],
)
def test_forms_of_an_item(item):
    if isinstance(item, list) and len(item) == 3:
        item = [item]  # a bare list is a list of inputs
    bound = converted_binder(DIGITS).bind(item)
    np.testing.assert_array_equal(bound["image"], images())


def converted_binder(model):
    made = converter(model)
    made._open_model()
    return made._binder


def test_positions_are_the_models_own(caplog):
    binder = converted_binder(TWO)
    assert binder.order == ("query", "key"), "not the alphabetical order"
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        for _ in range(2):
            bound = binder.bind(SAME)
    np.testing.assert_array_equal(bound["query"], SAME[0])
    np.testing.assert_array_equal(bound["key"], SAME[1])
    assert caplog.text.count("TF-TRT would have bound them to ('key', 'query')") == 1


def test_positions_that_only_fit_in_alphabetical_order(tmp_path, caplog):
    module = tf.Module()
    specs = [tf.TensorSpec([None, 3], tf.float32, name="z"), tf.TensorSpec([None, 4], tf.float32, name="a")]
    module.run = tf.function(lambda z, a: {"o": tf.concat([z * 2, a], 1)}, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path / "m"), module.run.get_concrete_function())
    binder = converted_binder(tmp_path / "m")
    with caplog.at_level(logging.WARNING, "refimpl.trt_convert"):
        bound = binder.bind([np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float32)])
    assert {name: tuple(value.shape) for name, value in bound.items()} == {"z": (1, 3), "a": (1, 4)}
    assert "fit only in the alphabetical order" in caplog.text


@pytest.fixture
def ambiguous(tmp_path):
    """A binder of two inputs of which one takes what the other takes, too; declared against the alphabet."""
    module = tf.Module()
    specs = [tf.TensorSpec([None, None], tf.float32, name="z"), tf.TensorSpec([None, 4], tf.float32, name="a")]
    module.run = tf.function(lambda z, a: {"o": tf.reduce_sum(z) + a}, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path / "m"), module.run.get_concrete_function())
    return converted_binder(tmp_path / "m")


def two(*sizes: int) -> list[np.ndarray]:
    return [np.full((1, size), size * 10 + index, np.float32) for index, size in enumerate(sizes)]


def test_one_order_for_all_positional_items(ambiguous):
    """What the first item shows holds for those that would fit either way."""
    ambiguous.bind(two(4, 3))
    later = ambiguous.bind(two(4, 4))
    assert (float(later["a"][0, 0]), float(later["z"][0, 0])) == (40, 41)


def test_items_that_contradict_each_other_are_an_error(ambiguous):
    ambiguous.bind(two(4, 4))
    with pytest.raises(TypeError, match=r"fit only \('a', 'z'\), and those before were bound to \('z', 'a'\)"):
        ambiguous.bind(two(4, 3))
    ambiguous.bind({"z": two(3)[0], "a": two(4)[0]})


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        ({"image": object()}, RuntimeError, "^Failed to convert input to tensor.$"),
        (object(), RuntimeError, "^Failed to convert input to tensor.$"),
        ([object()], ValueError, "unsupported type"),
        ([images(), images()], TypeError, "^Binding inputs to tf.function failed due to `too many"),
        ([], TypeError, "^Binding inputs to tf.function failed due to `missing"),
        ({}, TypeError, "missing a required argument: 'image'"),
        ({"image": images(), "mask": images()}, TypeError, "unexpected keyword argument 'mask'"),
        (images().astype(np.float64), TypeError, r"image: float64\[3,28,28,1\] is not compatible with image: float32"),
        ({"image": images()[0]}, TypeError, r"image: float32\[28,28,1\] is not compatible with"),
    ],
)
def test_items_that_do_not_bind(item, error, says):
    with pytest.raises(error, match=says):
        converted_binder(DIGITS).bind(item)


def test_forms_may_be_mixed_and_nothing_is_an_error():
    made = converted()
    with pytest.raises(RuntimeError, match=r"^Failed to convert input to tensor.$"):
        made.build(input_fn=lambda: iter(()))
    with pytest.raises(TypeError, match="not callable"):
        made.build(input_fn=[images()])
    made.build(input_fn=lambda: iter([images(1), [images(2)], {"image": images(4)}]))
    assert [profile["max"][0][0] for profile in _records(made)[0].profiles] == [1, 2, 4]
