"""The tools for machines with a GPU: what of them runs anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.engines import tensorrt
from tools.gpu import prediction
from tools.gpu.prediction import Row

ROW = Row("bert", "fp16", "fp16", 1e-3, 1.5e-3, "", "25 fp16")


def test_the_ratio_needs_both_errors() -> None:
    assert ROW.ratio == pytest.approx(1.5)
    assert replace(ROW, measured=None).ratio is None


def test_an_engine_that_did_not_run_is_said_with_its_reason() -> None:
    text = prediction.markdown(prediction.record([ROW, replace(ROW, model="vit", measured=None, says="no GPU here")]))
    assert "| bert | fp16 | fp16 | 25 fp16 | 0.001 | 0.0015 | 1.50 |" in text
    assert "| vit | fp16 | fp16 | 25 fp16 | 0.001 | - | - |" in text
    assert "* vit, fp16: no GPU here" in text


def test_rows_are_kept_only_beside_those_of_the_same_machine() -> None:
    old = prediction.record([ROW, replace(ROW, precision="int8")])
    new = prediction.record([replace(ROW, measured=2e-3)])
    assert [(row["precision"], row["measured"]) for row in prediction.merged(old, new)["rows"]] == [
        ("int8", 1.5e-3),
        ("fp16", 2e-3),
    ]
    assert prediction.merged({**old, "tensorrt": "another one"}, new)["rows"] == new["rows"]


@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
@pytest.mark.skipif(not tensorrt.why_not_here(), reason="TensorRT can execute on this machine")
def test_without_a_gpu_it_converts_and_says_what_did_not_run(tmp_path: Path) -> None:
    assert prediction.main(["--only", "digits", "--precision", "fp16", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "gpu-prediction.md").read_text()
    assert "* digits, fp16: tensorrt: no usable NVIDIA GPU" in text
