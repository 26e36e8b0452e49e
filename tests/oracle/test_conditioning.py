"""What floating point leaves open is held against nobody: subnormal numbers, and the last bit of huge inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refimpl.errors import GoldenError
from refimpl.oracle import record
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.conditioning import without_subnormals
from refimpl.oracle.golden import Golden, GoldenCase
from tests.oracle import saved_models
from tests.oracle.saved_models import spec, tf


def denormals(made: Golden) -> GoldenCase | None:
    return next((case for case in made.cases if case.name == "denormals"), None)


def recorded(folder: Path, call: Callable[..., Any], dtype: Any = tf.float32) -> Golden:
    return record(saved_models.from_function(folder / "m", call, spec([None, 6], dtype, "x")), folder / "g")


def test_what_hangs_on_them_is_judged_by_shape_only(tmp_path: Path) -> None:
    """1 where they are numbers, NaN where they are zeros: TensorFlow says the latter, ONNX Runtime the former."""

    def call(x: Any) -> dict[str, Any]:
        largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
        return {"normed": x / largest, "log": tf.math.log(tf.abs(x)), "sign": x > 0, "sum": tf.reduce_sum(x, -1) + 1}

    case = denormals(recorded(tmp_path, call))
    assert case
    assert case.kind is CaseKind.STRESS
    assert case.unstable == dict.fromkeys(("normed", "log", "sign"), "subnormals")


def test_other_cases_are_left_alone(tmp_path: Path) -> None:
    made = recorded(tmp_path, lambda x: {"normed": x / tf.reduce_max(tf.abs(x)), "y": x * 2})
    assert {case.name for case in made.cases if case.unstable} == {"denormals"}


def test_a_model_that_is_nothing_but_sensitive_drops_the_case(tmp_path: Path) -> None:
    made = recorded(tmp_path, lambda x: {"y": 1 / x})
    assert denormals(made) is None
    lost = next(lost for lost in made.dropped if lost.name == "denormals")
    assert lost.reason == "TensorFlow's answer hangs on what a machine makes of subnormal numbers"


def test_a_model_that_refuses_zeros_has_no_say(tmp_path: Path) -> None:
    def call(x: Any) -> dict[str, Any]:
        smallest = tf.reduce_min(tf.abs(x))
        with tf.control_dependencies([tf.debugging.assert_none_equal(smallest, tf.zeros_like(smallest))]):
            return {"y": tf.identity(x)}

    assert denormals(recorded(tmp_path, call)) is None


def test_float16_has_no_such_trouble(tmp_path: Path) -> None:
    """It is computed as float32, where these numbers are normal."""
    case = denormals(recorded(tmp_path, lambda x: {"normed": x / tf.reduce_max(tf.abs(x))}, tf.float16))
    assert case
    assert not case.unstable
    assert float(np.abs(case.outputs["normed"]).max()) == 1


def test_a_users_case_is_no_exception(tmp_path: Path) -> None:
    model = saved_models.from_function(tmp_path / "m", lambda x: {"y": 1 / x}, spec([2], tf.float32, "x"))
    np.savez(tmp_path / "mine.npz", x=np.array([1e-39, 1], np.float32))
    with pytest.raises(GoldenError, match="hangs on what a machine makes of subnormal numbers"):
        record(model, tmp_path / "g", cases=str(tmp_path / "mine.npz"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.complex64])
def test_replacing_them(dtype: Any) -> None:
    least = float(np.finfo(np.float64 if dtype is np.float64 else np.float32).smallest_normal)
    values = np.array([least / 2, -least / 2, least, -3, 0, np.nan, -np.inf]).astype(dtype)
    if dtype is np.complex64:
        values = values + np.array(1j * least / 4).astype(dtype)
    for to in (0, 1):
        got = without_subnormals(values, to)
        assert got.dtype == values.dtype
        want = np.array([to * least, -to * least, least, -3, 0, np.nan, -np.inf])
        np.testing.assert_array_equal(got.real.astype(np.float64), want)
        if dtype is np.complex64:
            np.testing.assert_array_equal(got.imag.astype(np.float64)[:-2], [to * least] * 5)
    clean = np.array([1, 0, np.inf]).astype(dtype)
    assert without_subnormals(clean, 0) is clean


# The last bit.


def unstable(made: Golden) -> dict[str, dict[str, str]]:
    return {case.name: dict(case.unstable) for case in made.cases if case.unstable}


def test_a_magnified_last_bit_is_judged_by_shape_where_magnitudes_are_strange(tmp_path: Path) -> None:
    def call(image: Any) -> dict[str, Any]:
        return {"phase": tf.sin(image * 1e4), "double": image * 2}

    model = saved_models.from_function(tmp_path / "m", call, spec([None, 4, 4, 3], tf.float32, "image"))
    hanging = {"phase": "rounding"}
    assert unstable(record(model, tmp_path / "g")) == {"pixels": hanging, "large": hanging}


def test_ordinary_and_users_cases_are_judged_whatever_the_model_makes_of_them(tmp_path: Path) -> None:
    def call(x: Any) -> dict[str, Any]:
        return {"phase": tf.sin(x * 1e4), "double": x * 2}

    model = saved_models.from_function(tmp_path / "m", call, spec([None, 6], tf.float32, "x"))
    assert unstable(record(model, tmp_path / "g")) == {"large": {"phase": "rounding"}}
    np.savez(tmp_path / "mine.npz", x=np.full((2, 6), 1234.5, np.float32))
    assert unstable(record(model, tmp_path / "h", cases=str(tmp_path / "mine.npz"))) == {}


def test_a_case_of_nothing_but_the_last_bit_is_dropped(tmp_path: Path) -> None:
    made = recorded(tmp_path, lambda x: {"phase": tf.sin(x * 1e4)})
    lost = {lost.name: lost.reason for lost in made.dropped}
    assert lost == {"large": "TensorFlow's answer hangs on the last bit of the inputs"}


def test_a_decision_of_huge_values_is_not_held_to_the_last_bit(tmp_path: Path) -> None:
    made = recorded(tmp_path, lambda x: {"even": tf.cast(x * 1e5, tf.int64) % 2, "double": x * 2})
    assert unstable(made)["large"] == {"even": "rounding"}
