"""Bad choices of precision on the command line: one error each, exit code 2, nothing left. And tables of ranges."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl.bundle import CALIBRATION
from refimpl.engines.describing import digest_without
from refimpl.errors import RecipeError
from refimpl.recipe import Recipe
from tests import models_quant
from tests.bundles import assert_refused, main
from tests.precision.helpers import images, small_cnn

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cnn(tmp_path_factory.mktemp("cnn") / "model")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    return functools.partial(assert_refused, capfd)


def data(name: str = "data.npz", **arrays: np.ndarray) -> str:
    np.savez(name, **(arrays or images(8, seed=1, scale=3.0)))
    return name


def int8(model: Path, *more: object) -> list[object]:
    return ["convert", model, "b", "--precision", "int8", *more]


# Nothing to make ranges from.


def test_int8_from_nothing(cnn: Path, refused: Refused) -> None:
    refused(*int8(cnn), says="int8 needs ranges, and there is nothing to make them from", hint="--calibration")
    refused(
        *int8(cnn, "--no-calibration"),
        says="takes its ranges from the model, and the model has no fake-quantization ops",
        hint="train with fake quantization",
    )
    refused(
        *int8(cnn, "--no-calibration", "--calibration-table", "ranges.json"),
        says="--calibration-table gives ranges, and --no-calibration takes the model's own",
        hint="leave one of the two away",
    )


def test_a_model_with_ranges_of_its_own_is_told_so(place: Path, tmp_path: Path, refused: Refused) -> None:
    models_quant.symmetric_conv(tmp_path / "qat")
    refused(*int8(tmp_path / "qat"), says="int8 needs ranges", hint="--no-calibration takes its ranges")


def test_a_range_that_is_missing_is_named(place: Path, tmp_path: Path, refused: Refused) -> None:
    models_quant.missing_range(tmp_path / "qat")
    said = refused(*int8(tmp_path / "qat", "--no-calibration"), says="has no range in the model", hint="--keep-fp32")
    assert "bare" in said


def test_auto_needs_samples_and_verification(cnn: Path, refused: Refused) -> None:
    auto = ["convert", cnn, "b", "--precision", "auto"]
    refused(*auto, says="--precision auto measures on real samples, and there are none", hint="--calibration")
    data()
    refused(*auto, "--calibration", "data.npz", "--no-calibration", says="auto calibrates", hint="--precision int8")


def test_auto_does_not_go_unverified(cnn: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", cnn, "b", "--precision", "auto", "--calibration", data(), "--no-verify"]
    assert main(*arguments) == 2
    assert "--no-verify compares nothing" in capfd.readouterr().err
    assert not (place / "b").exists()


# Data that is none.


def test_an_empty_folder(cnn: Path, place: Path, refused: Refused) -> None:
    (place / "folder").mkdir()
    refused(*int8(cnn, "--calibration", "folder"), says="folder yields no samples", hint="at least one")
    refused(*int8(cnn, "--calibration", "missing"), says="no samples at missing", hint=".npz")


def bad_image(value: float) -> np.ndarray:
    x = images(4)["x"]
    x[1, 2, 3, 0] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.zeros((2, 8, 8, 4), np.float32)}, "has no input 'x'"),
        ({"x": np.zeros((2, 8, 8, 3), np.float32)}, "'x' has shape [2, 8, 8, 3]"),
        ({"x": np.zeros((2, 8, 8, 4), np.float64)}, "'x' is float64"),
        ({"x": np.zeros((8, 8, 4), np.float32)}, "'x' has shape [8, 8, 4]"),
        ({"x": bad_image(np.nan)}, "1 of the 1024 values of input 'x' are NaN or infinite"),
        ({"x": bad_image(-np.inf)}, "1 of the 1024 values of input 'x' are NaN or infinite"),
        ({"x": np.zeros((2, 8, 8, 4), np.float32)}, "input 'x' was 0 everywhere in all 1 samples"),
        ({"x": np.full((2, 8, 8, 4), 0.5, np.float32)}, "input 'x' was 0.5 everywhere in all 1 samples"),
    ],
    ids=["name", "channels", "dtype", "rank", "nan", "inf", "zeros", "constant"],
)
@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_data_that_ranges_cannot_be_made_of(
    precision: str, arrays: dict[str, np.ndarray], says: str, cnn: Path, refused: Refused
) -> None:
    refused("convert", cnn, "b", "--precision", precision, "--calibration", data(**arrays), says=says)


def test_a_bad_batch_far_behind(cnn: Path, place: Path, refused: Refused) -> None:
    """Verification looks at some samples only; calibration reads them all."""
    (place / "many").mkdir()
    for number in range(20):
        np.savez(place / "many" / f"{number:02d}.npz", **images(2, seed=number))
    np.savez(place / "many" / "99.npz", x=bad_image(np.nan))
    refused(
        *int8(cnn, "--calibration", "many"), says="sample 99.npz: 1 of the 1024 values", hint="leave the sample out"
    )


def test_a_function_that_fails_on_the_way(cnn: Path, place: Path, refused: Refused) -> None:
    (place / "fails_half_way.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for seed in range(30):\n"
        "        if seed == 25:\n"
        "            raise OSError('the disk is gone')\n"
        "        yield {'x': np.random.default_rng(seed).standard_normal((2, 8, 8, 4)).astype('float32')}\n"
    )
    refused(*int8(cnn, "--calibration", "fails_half_way:samples"), says="OSError: the disk is gone", hint="")


def test_a_generator_can_be_read_only_once(cnn: Path, place: Path) -> None:
    def samples() -> Iterator[dict[str, np.ndarray]]:
        yield from (images(8, seed=seed) for seed in range(3))

    for precision in ("int8", "auto", "fp16"):
        with pytest.raises(RecipeError, match="read only once from a generator"):
            refimpl.convert(cnn, place / "b", Recipe(precision=precision), samples=samples())  # type: ignore[arg-type]
    assert list(place.iterdir()) == []
    assert refimpl.convert(cnn, place / "b", Recipe(precision="int8"), samples=samples).precision == "int8"


# Choices.


@pytest.mark.parametrize(
    ("options", "says", "hint"),
    [
        (["--precision", "auto", "--metric", "no_such_module:f"], "no_such_module", "Python path"),
        (["--precision", "auto", "--metric", "math:no_such_function"], "no_such_function", "Python path"),
        (["--precision", "auto", "--metric", "accuracy"], "metric 'accuracy' is not known", "top1"),
        (["--precision", "auto", "--max-drop", "x"], "--max-drop 'x' is no share", "0.5%"),
        (["--precision", "auto", "--max-drop", "%"], "--max-drop '%' is no share", "0.5%"),
        (["--precision", "auto", "--max-drop", "-1%"], "max_drop is -0.01", "0.5%"),
        (["--precision", "auto", "--max-drop", "nan"], "max_drop is nan", "0.5%"),
        (["--precision", "auto", "--max-drop", "150%"], "max_drop is 1.5", "0.5%"),
        (["--precision", "int8", "--percentile", "30"], "percentile is 30", "99.99"),
        (["--precision", "int8", "--percentile", "nan"], "percentile is nan", "99.99"),
        (["--precision", "int8", "--keep-fp32", "conv7"], "--keep-fp32 'conv7' names no layer", "op type"),
        (["--precision", "fp16", "--keep-fp32", "Convv"], "--keep-fp32 'Convv' names no layer", "op type"),
        (["--precision", "auto", "--keep-fp32", ""], "--keep-fp32 '' names no layer", "op type"),
        (["--precision", "int8", "--save-calibration", "data.npz"], "data.npz exists already", "another name"),
        (["--precision", "int8", "--save-calibration", "no/where.json"], "lies in no folder", "make the folder"),
    ],
    ids=lambda item: " ".join(item[1:]) if isinstance(item, list) else "",
)
def test_choices_that_make_no_sense(options: list[str], says: str, hint: str, cnn: Path, refused: Refused) -> None:
    refused("convert", cnn, "b", "--calibration", data(), *options, says=says, hint=hint)


@pytest.mark.parametrize(
    ("body", "says"),
    [("return 1 / 0", "ZeroDivisionError"), ("return 'good'", "ValueError"), ("return float('nan')", "gives nan")],
)
def test_a_metric_that_does_not_work(
    body: str, says: str, cnn: Path, place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"cli_metric_{says.replace(' ', '_').lower()}"
    (place / f"{module}.py").write_text(f"def f(outputs, sample):\n    {body}\n")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    auto = ["convert", cnn, "b", "--precision", "auto", "--calibration", data()]
    refused(*auto, "--metric", f"{module}:f", says=says)


# Tables.


@pytest.fixture
def table(cnn: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """Made by a conversion to ``a``, whose data lies in ``data.npz``."""
    assert (
        main("convert", cnn, "a", "--precision", "int8", "--calibration", data(), "--save-calibration", "t.json") == 0
    )
    capfd.readouterr()
    return place / "t.json"


def engine_of(folder: str) -> tuple[str, str]:
    manifest = json.loads(next(Path(folder).rglob("manifest.json")).read_text())
    (island,) = manifest["signatures"][0]["islands"]
    file = Path(folder) / island["engines"][0]["file"]
    return island["precision"], digest_without(file)  # what it says about itself counts the samples


def test_a_saved_table_gives_the_same_engines(table: Path, cnn: Path, place: Path, capfd: Any) -> None:
    assert table.read_bytes() == (place / "a" / CALIBRATION).read_bytes()
    assert main(*int8(cnn, "--calibration-table", table, "--calibration", "data.npz")) == 0
    assert engine_of("b") == engine_of("a")
    assert engine_of("b")[0] == "int8"
    assert (place / "b" / CALIBRATION).read_bytes() == table.read_bytes()
    assert main("convert", cnn, "c", "--precision", "int8", "--calibration-table", table) == 0
    assert engine_of("c") == engine_of("a"), "samples are for verification only"
    capfd.readouterr()
    assert main("calibration", "diff", "t.json", place / "b" / CALIBRATION) == 0
    assert "the same 4 thresholds" in capfd.readouterr().out


def test_a_table_is_read_by_people_and_programs(table: Path, cnn: Path, place: Path, capfd: Any) -> None:
    assert main("calibration", "show", table) == 0
    out = capfd.readouterr().out
    assert "serving_default: 4 tensors, entropy, 1 batch" in out
    assert main("calibration", "show", table, "--json") == 0
    (found,) = json.loads(capfd.readouterr().out)["tables"]
    assert len(found["ranges"]) == 4
    assert all(item["threshold"] > 0 for item in found["ranges"].values())
    arguments = ["--calibration", "data.npz", "--calibrator", "minmax", "--save-calibration", "m.json"]
    assert main(*int8(cnn, *arguments)) == 0
    capfd.readouterr()
    assert main("calibration", "diff", table, "m.json") == 1
    out = capfd.readouterr().out
    assert "thresholds differ" in out
    assert "method: entropy in A, minmax in B" in out


def test_tables_that_do_not_fit(table: Path, cnn: Path, place: Path, tmp_path: Path, refused: Refused) -> None:
    models_quant.asymmetric_conv(tmp_path / "other")
    refused(
        *int8(tmp_path / "other", "--calibration-table", "t.json"),
        says="the calibration table was made from another model",
        hint="calibrate again",
    )
    refused(*int8(cnn, "--calibration-table", "no.json"), says="no.json cannot be read", hint="path of a table")
    whole = json.loads(table.read_text())
    del whole["tables"][0]["ranges"][next(iter(whole["tables"][0]["ranges"]))]
    (place / "less.json").write_text(json.dumps(whole))
    refused(*int8(cnn, "--calibration-table", "less.json"), says="has no range of", hint="calibrate again")
    (place / "half.json").write_bytes(table.read_bytes()[:2000])
    refused(*int8(cnn, "--calibration-table", "half.json"), says="half.json is damaged", hint="calibrate again")
    refused(*int8(cnn, "--calibration-table", "data.npz"), says="data.npz is damaged", hint="calibrate again")
    (place / "else.json").write_text("{}")
    refused(*int8(cnn, "--calibration-table", "else.json"), says="no calibration table of refimpl", hint="again")
    whole["tables"][0]["signature"] = "another"
    (place / "key.json").write_text(json.dumps(whole))
    refused(*int8(cnn, "--calibration-table", "key.json"), says="no ranges of signature 'serving_default'", hint="")


def test_nothing_to_save_is_said(cnn: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main("convert", cnn, "b", "--precision", "fp16", "--save-calibration", "t.json") == 0
    assert "warning: nothing was calibrated" in capfd.readouterr().err
    assert not (place / "t.json").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "top1"], "--metric is for --precision auto"),
        (["--max-drop", "1%"], "--max-drop is for --precision auto"),
        (["--percentile", "99.9"], "--percentile is for --calibrator percentile"),
        (["--keep-fp32", "Conv"], "--keep-fp32 is for a --precision other than fp32"),
    ],
)
def test_an_option_that_does_nothing_is_told(
    options: list[str], says: str, cnn: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main("convert", cnn, "b", *options) == 0
    assert f"warning: {says}: it does nothing here" in capfd.readouterr().err
    assert main("convert", cnn, "c") == 0
    assert "does nothing here" not in capfd.readouterr().err


def test_a_metric_that_is_not_there_is_told_before_the_work(
    cnn: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data()
    auto = ["--precision", "auto", "--calibration", "data.npz", "--metric", "nowhere:nothing"]
    assert main("convert", cnn, "b", *auto) == 2
    err = capfd.readouterr().err
    assert "--metric nowhere:nothing cannot be imported" in err
    assert "calibrating" not in err
