"""Task metrics, one number an example: what they count, whose label they take, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refimpl.errors import RecipeError
from refimpl.metrics import higher_is_better, metric_of, per_example

SCORES = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]], np.float32)
LABELS = np.array([1, 2, 2, 1])  # right, wrong, right, wrong: of equal scores the first wins


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "label", [LABELS, LABELS[:, None], LABELS.astype(np.uint8), np.eye(3, dtype=np.float32)[LABELS]], ids=str
)
def test_top1(label: np.ndarray, dtype: Any) -> None:
    found = per_example("top1", {"y": label}, {"scores": SCORES.astype(dtype), "ids": np.arange(4)})
    assert found.tolist() == [1, 0, 1, 0]
    assert found.dtype == np.float64


def test_top5() -> None:
    scores = np.tile(np.arange(8, dtype=np.float32), (3, 1))
    assert per_example("top5", {"y": np.array([7, 3, 2])}, {"s": scores}).tolist() == [1, 1, 0]
    few = per_example("top5", {"y": LABELS}, {"s": SCORES})
    assert few.tolist() == [1, 1, 1, 1], "of three classes all are among the five"


def test_a_nan_is_never_right() -> None:
    scores = np.array([[np.nan, 1.0], [np.nan, np.nan]], np.float32)
    assert per_example("top1", {"y": np.array([1, 0])}, {"s": scores}).tolist() == [1, 0]
    assert per_example("top5", {"y": np.array([1, 0])}, {"s": scores}).tolist() == [1, 0]


def test_a_class_for_each_place_counts_with_the_mean() -> None:
    scores = np.zeros((2, 4, 3), np.float32)
    scores[..., 1] = 1
    label = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert per_example("top1", {"y": label}, {"s": scores}).tolist() == [0.5, 1]


def test_mae_is_lower_the_better() -> None:
    got = {"n": np.array([2, 2]), "p": np.array([[1.0], [3.0]], np.float32)}
    assert per_example("mae", {"y": np.array([1.5, 3.0])}, got).tolist() == [0.5, 0]
    assert [higher_is_better(name) for name in ("top1", "top5", "agreement", "m:f", "mae")] == [True] * 4 + [False]


def test_the_label_of_an_outputs_name_is_about_that_output() -> None:
    outputs = {"a": SCORES, "b": SCORES[:, ::-1].copy()}
    assert per_example("top1", {"b": LABELS}, outputs).tolist() == [1, 1, 0, 1]
    assert per_example("top1", {"other": np.arange(4), "b": LABELS}, outputs).tolist() == [1, 1, 0, 1]
    assert per_example("top1", {"y": LABELS}, outputs).tolist() == [1, 0, 1, 0], "the first that fits"


def test_agreement_with_another_run() -> None:
    want = {"y": np.array([[3.0, 4.0], [3.0, 4.0]], np.float32), "i": np.array([1, 2])}
    got = {"y": want["y"] * np.array([[1], [1.1]], np.float32), "i": np.array([1, 2]), "more": np.zeros(2)}
    assert per_example("agreement", want, got) == pytest.approx([1, 0.9])
    assert per_example("agreement", want, {**got, "i": np.array([2, 2])}) == pytest.approx([0, 0.9])
    with pytest.raises(RecipeError, match="no output 'i' to agree with"):
        per_example("agreement", want, {"y": got["y"]})


def test_the_mean_over_examples_is_the_metric_of_the_sample() -> None:
    """The two forms of top1 tell the same."""

    class Sample:
        name, values, extras = "s", {"x": SCORES}, {"y": LABELS}

    got = {"s": np.roll(SCORES, 1, axis=0)}
    whole = metric_of("top1")(got, {"s": SCORES}, Sample())
    assert whole == per_example("top1", {"s": SCORES.argmax(-1)}, got).mean()


def test_a_function_of_ones_own_sees_one_example_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_example_metric.py").write_text(
        "def f(outputs, sample):\n"
        "    assert sample['x'].shape == (1, 3) and outputs['s'].shape == (1, 3)\n"
        "    return float(outputs['s'].argmax() == sample['y'][0]) + sample['x'][0, 0]\n"
    )
    monkeypatch.chdir(tmp_path)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = per_example("my_example_metric:f", {"y": LABELS}, {"s": SCORES}, {"x": x})
    assert found.tolist() == [1, 3, 7, 9]
    with pytest.raises(RecipeError, match="my_example_metric:f fails on sample #0: KeyError"):
        per_example("my_example_metric:f", {"y": LABELS}, {"s": SCORES})
    with pytest.raises(RecipeError, match="cannot be imported"):
        per_example("my_example_metric:absent", {"y": LABELS}, {"s": SCORES})


@pytest.mark.parametrize(
    ("metric", "labels", "outputs", "says"),
    [
        ("best", {"y": LABELS}, {"s": SCORES}, "there is no metric 'best'"),
        ("top1", {"y": LABELS[:3]}, {"s": SCORES}, "not of one batch"),
        ("top1", {"y": np.array(1)}, {"s": SCORES}, "not of one batch"),
        ("top1", {}, {}, "not of one batch: nothing"),
        ("top1", {"y": LABELS + 1}, {"s": SCORES}, "a label is class 3, of 3 classes"),
        ("top1", {"y": LABELS - 2}, {"s": SCORES}, "a label is class -1, of 3 classes"),
        ("top1", {"y": LABELS}, {"n": np.arange(4)}, r"label 'y', int64\[4\], fits no output"),
        ("top1", {"s": LABELS}, {"s": np.arange(4), "t": SCORES}, "label 's', .* fits no output"),
        ("top1", {"y": LABELS.astype(np.float32)}, {"s": SCORES}, "fits no output"),
        ("top1", {"a": LABELS, "b": LABELS}, {"s": SCORES}, "which label is about which output"),
        ("top1", {}, {"s": SCORES}, "labels none"),
        ("mae", {"y": SCORES}, {"s": SCORES[:, :2]}, "fits no output"),
    ],
)
def test_what_cannot_be_measured(metric: str, labels: dict[str, Any], outputs: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        per_example(metric, labels, outputs)
    assert caught.value.hint
