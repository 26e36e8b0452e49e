"""The tools for machines with a GPU: what of them runs anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import runtime
from refimpl.engines import tensorrt
from refimpl.errors import BuildError
from tests.fake_gpu import FakeGpu
from tools.gpu import judged, networks, prediction, record, verified
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
    found = prediction.merged(old, new)["rows"]
    assert [(row["precision"], row["measured"], row.get("code")) for row in found] == [
        ("fp16", 2e-3, None),
        ("int8", 1.5e-3, None),
    ]
    assert prediction.merged({**old, "tensorrt": "another one"}, new)["rows"] == new["rows"]


def test_rows_of_another_version_are_marked_until_they_are_measured_again() -> None:
    older = {**prediction.record([ROW, replace(ROW, precision="int8")]), "code": "older"}
    found = prediction.merged(older, prediction.record([ROW]))
    assert [row.get("code") for row in found["rows"]] == [None, "older"]
    text = prediction.markdown(found)
    assert "| bert | fp16 |" in text
    assert "| bert* | int8 |" in text
    assert "\\* measured on the same GPU with an earlier version" in text
    again = prediction.merged(found, prediction.record([replace(ROW, precision="int8")]))
    assert [row.get("code") for row in again["rows"]] == [None, None]


@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
@pytest.mark.skipif(not tensorrt.why_not_here(), reason="TensorRT can execute on this machine")
def test_without_a_gpu_it_converts_and_says_what_did_not_run(tmp_path: Path) -> None:
    assert prediction.main(["--only", "digits", "--precision", "fp16", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "gpu-prediction.md").read_text()
    assert "* digits, fp16: tensorrt: no usable NVIDIA GPU" in text


@pytest.mark.parametrize("factor", [1.0, 1.5], ids=["sound", "wrong"])
def test_the_verdict_is_that_of_check_with_tensorrt_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """On a GPU that computes rightly when the bundle is made there; then on one that does, and one that does not."""
    FakeGpu().install(monkeypatch)
    model = tmp_path / "model"
    tf.saved_model.save(module := Halves(), str(model), signatures=module.serve)
    inputs = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    refimpl.convert(model, tmp_path / "b", refimpl.Recipe(engines=("onnxruntime", "tensorrt"), min_segment_size=1))
    golden = judged.golden(model, inputs, tmp_path / "g")
    real = tensorrt.open

    def other(path: Path, *_: object) -> object:
        engine = real(path)
        run = engine.run
        engine.run = lambda values: [factor * value for value in run(values)]
        return engine

    runtime.forget(tmp_path / "b")
    monkeypatch.setattr(tensorrt, "open", other)
    said = judged.verdict(tmp_path / "b", golden)
    assert said is not None
    assert bool(said) is (factor != 1)
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "no GPU")
    assert judged.verdict(tmp_path / "b", golden) is None


class Halves(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.tanh(x) / 2}


def test_the_detector_has_tensorflow_in_the_middle(tmp_path: Path) -> None:
    networks.detector(tmp_path / "model")
    samples = [networks.pictures(1, seed) for seed in range(2)]
    manifest = refimpl.convert(tmp_path / "model", tmp_path / "b", refimpl.Recipe(precision="fp16"), samples=samples)
    assert [island.precision for island in manifest.islands] == ["fp16", "fp16"]
    assert [op.type for op in manifest.signatures[0].left] == ["CombinedNonMaxSuppression"]
    count = refimpl.load(tmp_path / "b").run(networks.pictures(2, 9)).outputs["count"]
    assert count.tolist() == [108, 108], "half of the boxes of each class: the others overlap them"


VERIFIED = verified.Row(
    "MobileNetV2", "fp16", "1 tensorrt", 0.9, 2e-3, "", {"conv": "wrong here"}, {"tanh": "wrong, too"}, ["a note"], 61.4
)


def test_what_was_lifted_and_left_is_listed_with_its_reason() -> None:
    rows = [VERIFIED, replace(VERIFIED, model="ResNet50", problem="max 0.7", error=None)]
    text = verified.markdown({**record.machine(), "rows": [asdict(row) for row in rows]})
    assert "| MobileNetV2 | fp16 | 1 tensorrt | 90% | 1 | 1 | 0.002 | yes |" in text
    assert "| ResNet50 | fp16 | 1 tensorrt | 90% | 1 | 1 | - | max 0.7 |" in text
    assert "## MobileNetV2, fp16 (61 s)\n\n* a note\n* `conv`: wrong here\n* `tanh`: wrong, too\n" in text


@pytest.mark.slow
@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
def test_networks_are_verified_on_the_gpu_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that gets convolutions in float16 wrong, only those are lifted; the answers are right."""
    gpu = FakeGpu(lambda nodes: [node for node in nodes.of("Conv") if nodes.is_half(node)]).install(monkeypatch)
    assert verified.main(["--only", "digits", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "gpu-verified.json").read_text())["rows"]
    assert (row["engines"], row["problem"], row["left"]) == ("1 tensorrt", "", {})
    assert row["accelerated"] == 1
    assert row["lifted"]
    assert len(gpu.built) > 1


def test_a_model_that_cannot_be_converted_is_a_row_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BuildError("no room")

    monkeypatch.setitem(verified.SUBJECTS, "m", lambda: prediction.Subject(lambda folder: folder, list, dict))
    monkeypatch.setattr("refimpl.convert", refuse)
    assert verified.main(["--only", "m", "--out", str(tmp_path)]) == 1
    assert "| m | fp16 | none | 0% | 0 | 0 | - | not converted: no room |" in (tmp_path / "gpu-verified.md").read_text()
