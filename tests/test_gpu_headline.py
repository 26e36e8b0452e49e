"""The headline of the docs is the record's."""

from __future__ import annotations

import json

import pytest

from tools.gpu import headline


def test_the_pages_show_what_the_record_says() -> None:
    data = json.loads(headline.RECORD.read_text(encoding="utf-8"))
    for place in headline.PLACES:
        text = place.read_text(encoding="utf-8")
        assert headline.written(text, data) == text, f"{place.name}: run python -m tools.gpu.headline"
        changed = json.loads(json.dumps(data))
        changed["rows"][0]["model"] = "another"
        assert headline.written(text, changed) != text


def test_what_did_not_run_and_what_ran_in_something_else_is_said() -> None:
    row = {"model": "m", "precision": "fp32", "built": "tf32", "predicted": 9e-4, "measured": 1e-3}
    data = {"rows": [row, {**row, "precision": "fp16", "built": "", "measured": None}, {**row, "model": "n"}]}
    assert headline.table(data)[2:] == [
        "| m | 9.0e-04 → 1.0e-03 (tf32) | not on the GPU |",
        "| n | 9.0e-04 → 1.0e-03 (tf32) |  |",
    ]
    old = headline.table({"rows": [{**row, "code": "older", "predicted": None}]})
    assert old[2] == "| m | - → 1.0e-03 (tf32)* |"
    assert "earlier version" in old[-1]
    with pytest.raises(ValueError, match="there is no <!-- gpu-prediction"):
        headline.written("a page", data)
