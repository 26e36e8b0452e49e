"""The planted fragile layer is ranked first, in INT8 and in FP16, and the printed line repairs it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from refimpl import bundle, oracle
from refimpl.bundle import EngineRecord, IslandRecord, Manifest
from refimpl.converter import check_bundle
from refimpl.oracle.bisect import Ranking, bisect, render
from refimpl.oracle.bisect.keep import command, patterns
from refimpl.recipe import Recipe
from tests.bundles import main
from tests.models_ops import normal, spec
from tests.precision.helpers import Tiny, batches, convert, images, layers_of, outputs_of, small_cnn
from tools.figures import digits


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that ships what disagrees with TensorFlow."""
    monkeypatch.setattr(check_bundle, "prove", lambda *args, **more: ())


def record(model: Path, target: Path, **inputs: np.ndarray) -> Path:
    file = target.with_suffix(".npz")
    np.savez(file, **inputs)  # type: ignore[arg-type]
    oracle.record(model, target, cases=str(file))
    return target


def options_of(line: str) -> dict[str, Any]:
    """The ``--keep-fp32`` patterns of a printed command, which must be one that refimpl takes."""
    words = shlex.split(line)
    assert words[:2] == ["refimpl", "convert"]
    return {"keep_fp32": tuple(words[at + 1] for at, word in enumerate(words) if word == "--keep-fp32")}


def ranked(path: Path, golden: Path) -> Ranking:
    report = bisect(path, golden)
    assert report.ranking is not None
    return report.ranking


def test_int8(tmp_path: Path, careless: None) -> None:
    model = tmp_path / "model"
    digits.planted(model)
    samples = digits.calibration_batches()
    convert(model, tmp_path / "low", samples, precision="int8", verify=False)
    golden = record(model, tmp_path / "golden", image=digits.held_out()[0][:40])

    report = bisect(tmp_path / "low", golden)
    assert report.finding is not None
    assert digits.PLANTED in report.finding.op[0]
    found = report.ranking
    assert found is not None
    assert digits.PLANTED in found.layers[0].op[0]
    assert found.layers[0].op[1] == "Conv2D"
    assert found.layers[0].precision == "int8"
    assert found.layers[0].output is not None
    assert found.layers[1].output is not None
    assert found.layers[0].output > 10 * found.layers[1].output
    assert found.before > 1
    assert found.after <= 0.5
    assert found.keep == (f"*/{digits.PLANTED}_1/convolution",)

    convert(model, tmp_path / "repaired", samples, precision="int8", verify=False, **options_of(found.command))
    repaired = bisect(tmp_path / "repaired", golden)
    assert repaired.finding is None
    assert repaired.ranking is not None
    assert repaired.ranking.before <= 0.5
    assert repaired.ranking.keep == ()
    kinds = [kind for kind, _ in layers_of(bundle.read(tmp_path / "repaired")).values()]
    assert kinds.count("int8") == 2, "only the planted layer was lifted"


def overflowing(target: Path) -> Path:
    """Three convolutions; the sums of the second one go beyond float16's 65504, and the third brings them back."""
    kernels = [normal(3, 3, 4, 16, seed=1, scale=0.2), normal(3, 3, 16, 16, seed=2), normal(3, 3, 16, 16, seed=3)]
    weights = [tf.Variable(kernels[0]), tf.Variable(kernels[1] * 2e4), tf.Variable(kernels[2] * 1e-5)]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        for number, kernel in enumerate(weights):
            x = tf.nn.conv2d(x, kernel, 1, "SAME", name=f"conv{number}")
        return {"y": tf.tanh(tf.reduce_mean(x, [1, 2]))}

    return Tiny(call, spec((None, 8, 8, 4), name="x"), holds=weights).save(target)


def test_fp16(tmp_path: Path, careless: None) -> None:
    model = overflowing(tmp_path / "model")
    convert(model, tmp_path / "low", precision="fp16", verify=False)
    golden = record(model, tmp_path / "golden", **images(2, seed=5))
    _, ran_on = outputs_of(tmp_path / "low", images(2, seed=5))
    assert ran_on == {"native"}, "TensorFlow answers where a value overflows, and users ask why"

    report = bisect(tmp_path / "low", golden)
    assert report.finding is not None
    assert report.finding.op[0].endswith("conv1")
    assert any("non-finite" in line for line in report.finding.remarks)
    found = report.ranking
    assert found is not None
    assert found.layers[0].op[0].endswith("conv1")
    assert np.isinf(found.before)
    assert found.after <= 0.5

    convert(model, tmp_path / "repaired", precision="fp16", verify=False, **options_of(found.command))
    assert bisect(tmp_path / "repaired", golden).finding is None
    _, ran_on = outputs_of(tmp_path / "repaired", images(2, seed=5))
    assert ran_on == {"onnxruntime"}
    kinds = {name.rsplit("/", 1)[-1]: kind for name, (kind, _) in layers_of(bundle.read(tmp_path / "repaired")).items()}
    assert kinds["conv0"] == "fp16"
    assert kinds["conv1"] == "fp32"


def test_a_network_that_stands_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = small_cnn(tmp_path / "model")
    convert(model, tmp_path / "low", batches(), precision="int8")
    golden = record(model, tmp_path / "golden", **images(4, seed=9))
    assert main("bisect", tmp_path / "low", golden) == 0
    out = capfd.readouterr().out
    assert "nothing needs to be kept in float32" in out
    assert "--keep-fp32" not in out
    assert out.rstrip().splitlines()[-1].startswith("NOTHING TO FIND")
    assert main("bisect", tmp_path / "low", golden, "--no-rank") == 0
    assert "layers by the error" not in capfd.readouterr().out


def test_the_table_has_ten_rows_at_most(tmp_path: Path) -> None:
    model = small_cnn(tmp_path / "model")
    convert(model, tmp_path / "low", batches(), precision="int8")
    report = bisect(tmp_path / "low", record(model, tmp_path / "golden", **images(4, seed=9)))
    assert report.ranking is not None
    errors = [layer.output for layer in report.ranking.layers]
    assert None not in errors
    assert errors == sorted(errors, reverse=True)
    console = Console(width=80, record=True)
    render.print_report(report, console)
    assert console.export_text().count(" int8 ") == len(errors)


# What is printed


def manifest(layers: list[str], **recipe: Any) -> Manifest:
    island = IslandRecord(
        name="TRTEngineOp_000_000",
        ops=tuple((layer, "Conv2D") for layer in layers),
        inputs=(),
        outputs=(),
        engines=(EngineRecord(kind="onnxruntime", file="x.onnx", version="", precision="fp16"),),
        probe="",
        finite_only=True,
        precision="fp16",
        verified="",
        layers=tuple((layer, "Conv", "fp16", "") for layer in layers),
    )
    signature = bundle.SignatureRecord(
        signature=bundle.Signature("serving_default", (), ()), converted=True, reason="", islands=(island,)
    )
    return Manifest(
        bundle_id="0",
        created="",
        refimpl="",
        versions={},
        source_name="my model",
        source_sha256="",
        tags=(),
        precision="fp16",
        judge="",
        verified=True,
        recipe=Recipe(**recipe).to_json(),
        signatures=(signature,),
    )


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (["m/a/conv", "m/b/conv"], "*/a/conv"),
        (["m/a/conv", "n/a/conv"], "*/m/a/conv"),
        (["p/m/a/conv", "p/n/a/conv"], "*/m/a/conv"),
        (["conv", "m/conv"], "conv"),
        (["m/a[0]/conv", "m/a0/conv"], "*/a[[]0]/conv"),
        (["m/a/conv*", "m/a/conv1"], "*/a/conv[*]"),
    ],
)
def test_a_pattern_names_one_layer(layers: list[str], wanted: str) -> None:
    import fnmatch

    (pattern,) = patterns(manifest(layers), layers[:1])
    assert [layer for layer in layers if fnmatch.fnmatchcase(layer, pattern)] == layers[:1]
    assert pattern == wanted or len(pattern) <= len(wanted)


def test_the_command_repeats_what_was_chosen() -> None:
    chosen = manifest(
        ["a/b"],
        precision="fp16",
        signatures=("f",),
        keep_fp32=("Softmax",),
        calibration="my.npz",
        shapes=(("x", (1, 2)),),
    )
    line = command(chosen, ["*/a/b"])
    assert line == (
        "refimpl convert 'my model' NEW_BUNDLE --precision fp16 --signature f --calibration my.npz --shape x=1x2 "
        "--keep-fp32 Softmax --keep-fp32 '*/a/b'"
    )
    assert "SAMPLES" in command(manifest(["a/b"], calibration="samples from list"), [])
