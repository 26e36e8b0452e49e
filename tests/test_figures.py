"""The command that measures precisions: what it computes without measuring, and that the docs hold its last output."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from tests.contract.sources import ROOT
from tools import precision
from tools.figures import digits, measure, photos, report
from tools.figures.measure import Section, Table, Wanted

WRITTEN = ROOT / "docs" / "benchmarks" / "precision.json"


def section(holds: bool = True) -> Section:
    table = Table(("a", "b"), (("1", "x|y"),), title="Numbers")
    return Section("Things", "What they are.", (table,), (Wanted("it works", "0.5", holds),), {"a": 1})


def record(**sections: object) -> dict[str, object]:
    return {"command": "do it", "processor": "p", "versions": {"numpy": "2"}, "sections": sections}


def test_sections_in_their_own_order():
    assert precision.chosen("") == list(precision.SECTIONS)
    assert precision.chosen("auto, digits") == ["digits", "auto"]
    with pytest.raises(argparse.ArgumentTypeError, match="no section 'digit'"):
        precision.chosen("digit")


def test_markdown():
    data = report.to_json(section(), date="2026-01-02", seconds=3.21)
    text = report.markdown(record(things=json.loads(json.dumps(data))))
    assert "## Things\n\nWhat they are.\n\n**Numbers**\n\n| a | b |\n| --- | --- |\n| 1 | x/y |\n\n" in text
    assert "* holds: it works (0.5)\n\nMeasured 2026-01-02, in 3 s.\n" in text
    assert "* p\n* numpy 2\n" in text


def test_tables_go_between_their_marks():
    data = record(things=report.to_json(section(), date="2026-01-02", seconds=3))
    text = "before\n<!-- things -->\nold\n<!-- end -->\nafter\n<!-- other"
    new = report.filled(text, data)
    table = "**Numbers**\n\n| a | b |\n| --- | --- |\n| 1 | x/y |"
    assert new == f"before\n<!-- things -->\n\n{table}\n\n<!-- end -->\nafter\n<!-- other"
    assert report.filled(new, data) == new


def test_what_does_not_hold_is_loud():
    data = report.to_json(section(holds=False), date="2026-01-02", seconds=3)
    assert "* **DOES NOT HOLD**: it works (0.5)" in report.markdown(record(things=data))


def test_sections_that_were_not_measured_again_stay():
    old, new = record(a="old", b="old"), record(b="new")
    assert list(report.merged(old, new, "abc")["sections"].items()) == [("a", "old"), ("b", "new")]
    assert report.merged({}, new, "abc")["sections"] == {"b": "new"}


@pytest.mark.parametrize("changed", [{"versions": {"numpy": "1"}}, {"processor": "q"}])
def test_sections_of_other_versions_go(changed):
    assert report.merged({**record(a="old"), **changed}, record(b="new"), "abc")["sections"] == {"b": "new"}


def test_errors():
    want = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert measure.relative(want, want) == 0.0
    assert measure.relative(2 * want, want) == 1.0
    assert measure.cosine(2 * want, want) == pytest.approx(1.0)
    assert measure.cosine(want[:, ::-1] * [1, -1], want) == pytest.approx(0.0)
    assert measure.top1([[1, 2], [5, 1]], np.array([1, 1])) == 0.5
    np.testing.assert_array_equal(measure.centred(want).sum(0), 0.0)


def test_words():
    assert measure.counted({"fp32": 2, "int8": 3, "fp16": 0}) == "3 int8, 2 fp32"
    assert measure.counted({}) == "-"
    assert measure.short(["StatefulPartitionedCall_1/PartitionedCall/net/conv"]) == "net/conv"
    assert (measure.percent(0.98765), measure.mib(3 << 19)) == ("98.77 %", "1.5 MiB")


def test_digits_are_split_once():
    images, labels = digits.digits()
    held, numbers = digits.held_out()
    assert len(images) == digits.TRAINED_ON + len(held)
    np.testing.assert_array_equal(labels[digits.TRAINED_ON :], numbers)
    batches = digits.calibration_batches(labels=True)
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches]), images[: digits.TRAINED_ON])
    assert digits.correct({"output_0": np.eye(10)[batches[0]["label"]]}, batches[0]) == 1.0


def test_a_few_pixels_are_damaged():
    good = digits.calibration_batches()
    bad = digits.with_outliers(good, batch=3, pixels=2, brightness=9.0)
    different = [int((a["image"] != b["image"]).sum()) for a, b in zip(good, bad, strict=True)]
    assert different == [0, 0, 0, 2, *[0] * 16]
    assert bad[3]["image"].max() == 9.0
    assert good[3]["image"].max() == 1.0, "the batches that were given stay as they are"


def test_crops_are_photographs():
    found = photos.crops(4, seed=1)
    assert (found.shape, found.dtype) == ((4, photos.SIZE, photos.SIZE, 3), np.float32)
    assert 0 <= found.min() < 60
    assert 200 < found.max() <= 255
    np.testing.assert_array_equal(photos.crops(4, seed=1), found)
    assert np.abs(photos.crops(4, seed=2) - found).max() > 50
    assert -1 <= photos.prepared("ResNet50", found).min() < photos.prepared("ResNet50", found).max() <= 1
    assert photos.prepared("EfficientNetB0", found) is found


def test_the_docs_hold_what_was_measured():
    data = json.loads(WRITTEN.read_text(encoding="utf-8"))
    assert list(data["sections"]) == list(precision.SECTIONS), "measure all of it: python tools/precision.py"
    assert WRITTEN.with_suffix(".md").read_text(encoding="utf-8") == report.markdown(data)
    guide = precision.GUIDE.read_text(encoding="utf-8")
    assert report.filled(guide, data) == guide
    assert guide.count("<!-- end -->") == len(precision.SECTIONS)


@pytest.mark.slow
def test_networks_pass_a_change_on_and_do_not_multiply_it():
    assert 0.5 < photos.gain("MobileNetV2") < 4
