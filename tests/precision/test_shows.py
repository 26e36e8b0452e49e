"""What was promised of FP16 and INT8, sentence by sentence, on data and networks that are real.

The figures in docs/ come from the same modules (``tools/figures``), on more networks than fit here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from refimpl import cli
from refimpl.bundle import CALIBRATION
from tests.contract.sources import ROOT
from tools.figures import digits, measure, networks, photos, prediction
from tools.figures.measure import Array, Made

FIGURES = ROOT / "docs" / "benchmarks" / "precision.json"
CALIBRATORS = ("entropy", "minmax", "percentile")
QUANTIZED = 3  # layers of the digits network that int8 takes; the last one has too few columns
OUTLIER = {"batch": 17, "pixels": 1, "brightness": 100.0}


class Digits:
    """The trained network, and what TensorFlow makes of images that it was not trained on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, folder / "model"
        digits.digits_cnn(self.model)
        self.images, self.labels = digits.held_out()
        self.top1 = measure.top1(measure.tensorflow(self.model, {"image": self.images})["output_0"], self.labels)
        self._made: dict[str, Made] = {}

    def convert(self, samples: measure.Samples | None = None, **recipe: Any) -> Made:
        """A bundle; without samples, the same one for the same choices."""
        key = json.dumps(recipe if samples is None else len(self._made))
        if key not in self._made:
            given = digits.calibration_batches() if samples is None else samples
            self._made[key] = measure.convert(self.model, self.folder / f"bundle-{len(self._made)}", given, **recipe)
        return self._made[key]

    def right(self, made: Made) -> float:
        return measure.top1(made.run({"image": self.images})["output_0"], self.labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


def notes(made: Made, beginning: str) -> list[str]:
    return [note for note in made.notes() if note.startswith(beginning)]


# Digits CNN: FP16 top-1 within 0.1 points of FP32, INT8 within 1.0, with each calibrator.


def test_digits_are_learnt(trained: Digits) -> None:
    assert trained.top1 >= 0.97


def test_fp16_is_within_a_tenth_of_a_point(trained: Digits) -> None:
    whole, half = trained.convert(precision="fp32"), trained.convert(precision="fp16")
    assert trained.right(whole) == trained.top1
    assert abs(trained.right(half) - trained.right(whole)) <= 0.001
    assert set(half.layers()) == {"fp16"}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_int8_is_within_one_point(calibrator: str, trained: Digits) -> None:
    made = trained.convert(precision="int8", calibrator=calibrator)
    assert trained.right(made) >= trained.top1 - 0.01
    assert made.layers()["int8"] == QUANTIZED
    assert made.warnings() == made.repaired() == []


# A planted outlier batch: percentile and entropy survive, min-max visibly suffers, and the report says so.


def outliers() -> list[dict[str, Array]]:
    return digits.with_outliers(digits.calibration_batches(), **OUTLIER)


@pytest.mark.parametrize("calibrator", ["entropy", "percentile"])
def test_outliers_are_survived(calibrator: str, trained: Digits) -> None:
    made = trained.convert(outliers(), precision="int8", calibrator=calibrator)
    assert made.layers()["int8"] == QUANTIZED
    assert made.repaired() == []
    assert trained.right(made) >= trained.top1 - 0.01


def test_minmax_suffers_from_outliers_and_says_so(trained: Digits) -> None:
    made = trained.convert(outliers(), precision="int8", calibrator="minmax")
    assert made.layers()["int8"] < QUANTIZED
    assert trained.right(made) >= trained.top1 - 0.01, "what ships is verified all the same"
    assert any("a few outliers cost it" in line for line in made.warnings())
    assert notes(made, "calibration: minmax: the range of"), "refimpl convert prints the notes"
    shown = CliRunner().invoke(cli.group, ["calibration", "show", str(made.path / CALIBRATION)])
    assert shown.exit_code == 0
    assert "warning: minmax: the range of" in shown.output.replace("\n", " ")


def test_minmax_with_outliers_would_lose_points_in_int8(trained: Digits) -> None:
    """What ``auto`` tries first is all of it in int8, whatever TensorFlow says of it."""
    batches = digits.with_outliers(digits.calibration_batches(labels=True), **OUTLIER)
    found = {}
    for calibrator in ("entropy", "minmax"):
        made = trained.convert(
            batches, precision="auto", calibrator=calibrator, metric=f"{digits.__name__}:correct", max_drop=0.01
        )
        found[calibrator] = next(row for row in made.tried() if row["name"] == "int8")
    assert found["entropy"]["verdict"] == "chosen"
    assert found["entropy"]["metric"] - found["minmax"]["metric"] > 0.01


# ResNet50, MobileNetV2, EfficientNetB0: FP16 relative error < 1e-2, INT8 cosine >= 0.99 where the network allows it,
# and a loud flag where it does not.


@pytest.mark.slow
def test_a_network_on_photographs(tmp_path: Path) -> None:
    """MobileNetV2 here; the others, and their engines, are measured for the docs."""
    name = "MobileNetV2"
    half, int8 = (networks.image_bundle(name, kind, tmp_path, lambda _: None) for kind in ("fp16", "int8"))
    inputs = {"image": photos.prepared(name, photos.crops(8, seed=999))}
    want = measure.tensorflow(tmp_path / name, inputs)["output_0"]
    got = half.run(inputs)["output_0"]
    assert measure.relative(got, want) < 1.2e-2  # of other images than those that it was verified with
    assert measure.cosine(got, want) > 0.999
    cosine = measure.cosine(int8.run(inputs)["output_0"], want)
    assert cosine >= networks.LOW or notes(int8, "WARNING")
    assert int8.layers()["int8"] >= 10
    assert half.engine_bytes("tensorrt") > 0
    assert int8.engine_bytes("tensorrt") > 0


def test_measured_networks_hold_what_was_wanted() -> None:
    """ResNet50's three engines among them, sizes about 1 : 0.5 : 0.33."""
    sections = json.loads(FIGURES.read_text(encoding="utf-8"))["sections"]
    wanted = [item for section in sections.values() for item in section["wanted"]]
    assert len(wanted) > 15
    assert [item for item in wanted if not item["holds"]] == []
    assert set(photos.NETWORKS) <= set(sections["networks"]["facts"])


# A QAT graph with fake-quant nodes converts without calibration and equals TensorFlow's own fake-quant output within
# one quantization step.


def test_fake_quantization_is_within_one_step(tmp_path: Path) -> None:
    images, labels = measure.digits_qat(tmp_path / "model")
    made = measure.convert(tmp_path / "model", tmp_path / "bundle", None, precision="int8", use_calibration=False)
    (want,) = measure.tensorflow(tmp_path / "model", {"image": images}).values()
    (got,) = made.run({"image": images}).values()
    assert np.abs(got - want).max() <= np.abs(want).max() / 127
    assert abs(measure.top1(got, labels) - measure.top1(want, labels)) <= 0.01
    assert measure.top1(want, labels) >= 0.9
    assert not (made.path / CALIBRATION).exists()
    assert made.layers() == {"int8": 4}


# ``auto`` finds a planted sensitive layer and leaves exactly it in higher precision.


def test_auto_finds_the_planted_layer(tmp_path: Path) -> None:
    digits.planted(tmp_path / "model")
    made = measure.convert(
        tmp_path / "model",
        tmp_path / "bundle",
        digits.calibration_batches(labels=True),
        precision="auto",
        metric=f"{digits.__name__}:correct",
    )
    (lifted,) = made.repaired()
    assert digits.PLANTED in lifted
    assert made.layers()["int8"] == QUANTIZED - 1
    verdicts = {row["name"]: row["verdict"] for row in made.tried()}
    assert verdicts["int8, 1 layer in fp16"] == "chosen"
    assert {"fp32", "int8", "fp16"} <= set(verdicts)
    assert verdicts["int8"] not in ("chosen", "allowed")
    metric = {row["name"]: row["metric"] for row in made.tried()}
    assert metric["int8"] < metric["fp32"] - 0.05, "it is really sensitive"
    assert metric["int8, 1 layer in fp16"] >= metric["fp32"] - 0.005


def test_auto_leaves_the_network_in_int8_without_it(trained: Digits) -> None:
    samples = digits.calibration_batches(labels=True)
    made = trained.convert(samples, precision="auto", metric=f"{digits.__name__}:correct")
    assert {row["name"]: row["verdict"] for row in made.tried()}["int8"] == "chosen"
    assert made.layers()["int8"] == QUANTIZED
    assert trained.right(made) >= trained.top1 - 0.005


# The embedded engine computes what the rewritten graph says. The numpy engine agrees with it.


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_the_numpy_engine_agrees(kind: str, trained: Digits) -> None:
    made = trained.convert(precision=kind)
    assert prediction.engines_apart(made, trained.images[:16]) < 5e-3


def test_an_encoder_is_rounded_where_the_graph_says(tmp_path: Path) -> None:
    """Encoders have float32 parts that keep a plain session from joining ops: it comes close. In CNNs it does not."""
    samples = [measure.inputs_of_the_tests("vit", seed) for seed in range(2)]
    made = measure.convert(measure.model_of_the_tests("vit"), tmp_path / "bundle", samples, precision="fp16")
    plain, ours = prediction.errors(made)
    assert 1e-4 < ours < 1e-2
    assert 0.5 < ours / plain < 2


def test_a_plain_session_is_too_optimistic_about_a_cnn(trained: Digits) -> None:
    """It neither rounds at every tensor nor inside of sums."""
    plain, ours = prediction.errors(trained.convert(precision="fp16"))
    assert 0 < 2 * plain < ours < 2e-3


# The guide's example.


def test_the_guides_example_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"`refimpl (convert [^`]*my_code:top1[^`]*)`", text)
    (tmp_path / "my_code.py").write_text(program, encoding="utf-8")
    for words in (["my_code.py"], ["-m", "refimpl", *command.split()]):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    tried = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(("fp32 ", "int8 ", "fp16 "))}
    assert set(tried) == {"fp32", "int8", "fp16"}, done.stdout
    assert sum("chosen" in line for line in tried.values()) == 1
