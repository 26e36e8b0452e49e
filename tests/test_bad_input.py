"""Bad shapes, samples, bundles and inputs: one clear error each, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest

import refimpl
from tests.bundles import (
    MANIFEST,
    POINTER,
    assert_refused,
    copy_of,
    feeds_of,
    golden_of,
    main,
    make_bundle,
)
from tests.models import saved_model

NAME = "odd_ops"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that a command works in; what it holds after an error is what it held before."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(place, capfd):
    """Runs a command that must fail, as :func:`tests.bundles.assert_refused` says."""
    return functools.partial(assert_refused, capfd)


# Shapes and samples.


@pytest.mark.parametrize(
    ("shape", "says", "hint"),
    [
        ("y=2x12", "--shape names 'y', which is no input", "x"),
        ("x=2x13", "x=[2, 13] does not fit", "float32[?,12]"),
        ("x=12", "x=[12] does not fit", "float32[?,12]"),
        ("x=2x12x1", "x=[2, 12, 1] does not fit", "float32[?,12]"),
        ("x=0x12", "shape of 'x'", "at least 1"),
        ("x=-1x12", "shape of 'x'", "at least 1"),
        ("x", "not of the form NAME=", ""),
        ("x=2,12", "not of the form NAME=", ""),
    ],
)
def test_shapes_that_do_not_fit(shape, says, hint, place, capfd):
    assert main("convert", saved_model(NAME), "b", "--shape", shape) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert hint in err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "says", "hint"),
    [
        ("y=2x12", "--shape names 'y', which is no input", "inputs: x"),
        ("x=2x13", "input 'x' has shape [2, 13]", "float32[?,12]"),
        ("x=", "input 'x' has shape []", "float32[?,12]"),
        ("x=-1x12", "negative", ""),
        ("x=2,12", "not of the form", ""),
    ],
)
def test_shapes_that_do_not_fit_a_run(shape, says, hint, place, capfd):
    assert main("run", make_bundle(NAME), "--inputs", "random", "--shape", shape) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert hint in err


def npz(name: str, **arrays: np.ndarray) -> str:
    np.savez(name, **arrays)
    return name


def test_calibration_that_is_missing_or_empty(place, refused):
    (place / "folder").mkdir()
    (place / "empty.npz").write_bytes(b"")
    model = saved_model(NAME)
    refused("convert", model, "b", "--calibration", "no.npz", says="no.npz cannot be read", hint="numpy.savez")
    refused("convert", model, "b", "--calibration", "empty.npz", says="empty.npz cannot be read", hint="numpy.savez")
    refused("convert", model, "b", "--calibration", "folder", says="folder yields no samples", hint="at least one")
    refused("convert", model, "b", "--calibration", "data.txt", says="no samples at data.txt", hint=".npz")
    refused("convert", model, "b", "--calibration", "no_module:f", says="no_module", hint="Python path")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.zeros((2, 12), np.float32)}, "has no input 'x'"),
        ({"x": np.zeros((2, 12))}, "'x' is float64"),
        ({"x": np.zeros((2, 13), np.float32)}, "'x' has shape [2, 13]"),
        ({"x": np.array(["a"])}, "'x' is <U1"),
    ],
)
def test_calibration_that_does_not_fit(arrays, says, place, refused):
    file = npz("c.npz", **arrays)
    refused("convert", saved_model(NAME), "b", "--calibration", file, says=says)


def test_calibration_that_tensorflow_refuses(place, refused):
    """Names, dtypes and shapes fit, the values do not."""
    feeds = feeds_of("many_dtypes")
    file = npz("c.npz", **{**feeds, "row": feeds["row"] + 100, "text": np.array([b"a"] * 4)})
    refused(
        "convert", saved_model("many_dtypes"), "b", "--calibration", file, says="sample c.npz: TensorFlow fails on it: "
    )


def test_calibration_is_used(place):
    """The control: what fits is accepted, and seen."""
    file = npz("c.npz", x=feeds_of(NAME)["x"])
    manifest = refimpl.convert(saved_model(NAME), "b", refimpl.Recipe(calibration=file))
    assert manifest.recipe["calibration"] == "c.npz"
    with np.load(Path("b") / manifest.islands[0].probe) as probe:
        np.testing.assert_array_equal(probe["input_0"], feeds_of(NAME)["x"])


# Bundles.


@pytest.mark.parametrize("name", ["inspect", "run", "check"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda place: place / "missing", "no such bundle"),
        (lambda place: Path(npz("file.npz")), "is not a refimpl bundle (a file)"),
        (lambda place: place, "is not a refimpl bundle"),
        (lambda place: saved_model(NAME), "a SavedModel that was not converted"),
    ],
    ids=["missing", "file", "empty", "not-converted"],
)
def test_what_is_no_bundle(make, says, name, place, refused, tmp_path):
    more = {"run": ["--inputs", "random"], "check": [golden_of(NAME)]}.get(name, [])
    refused(name, make(place), *more, says=says, hint="refimpl convert")


@pytest.mark.parametrize("name", ["inspect", "run", "check"])
def test_damaged_bundles(name, place, refused, tmp_path):
    more = {"run": ["--inputs", "random"], "check": [golden_of(NAME)]}.get(name, [])
    folder = copy_of(NAME, tmp_path)
    whole = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(whole[:-10])
    refused(name, folder, *more, says="manifest.json does not have the checksum", hint="convert the model again")
    (folder / MANIFEST).write_bytes(whole)
    with (folder / "saved_model.pb").open("ab") as stream:
        stream.write(b"\0")
    refused(name, folder, *more, says="saved_model.pb was changed", hint="copy or convert it again")
    pointer = json.loads((folder / POINTER).read_text())
    (folder / POINTER).write_text(json.dumps({**pointer, "format_version": 99}))
    refused(name, folder, *more, says="bundle format 99, a newer one", hint="upgrade refimpl")


def test_a_golden_record_of_another_model(place, capfd, tmp_path):
    assert main("check", make_bundle("several_signatures"), golden_of(NAME)) == 2
    assert "recorded from another SavedModel" in capfd.readouterr().err


# Running.


def test_inputs_that_cannot_be_read(place, refused):
    (place / "in.npz").write_bytes(b"PK\x03\x04 half a file")
    np.save(place / "array.npy", np.ones(3))
    folder = make_bundle(NAME)
    refused("run", folder, "--inputs", "no.npz", says="no.npz cannot be read", hint="numpy.savez")
    refused("run", folder, "--inputs", "in.npz", says="in.npz cannot be read", hint="numpy.savez")
    refused("run", folder, "--inputs", "array.npy", says="array.npy cannot be read", hint="numpy.savez")
    refused("run", folder, "--inputs", ".", says=". cannot be read", hint="numpy.savez")


@pytest.mark.parametrize(
    ("arrays", "says", "hint"),
    [
        ({}, "input 'x' is missing", "x: float32[?,12]"),
        ({"x": np.zeros((2, 12))}, "input 'x' is float64", "x: float32[?,12]"),
        ({"x": np.zeros((2, 3), np.float32)}, "input 'x' has shape [2, 3]", "x: float32[?,12]"),
        ({"x": np.zeros((2, 12), np.float32), "y": np.zeros(1)}, "unknown input 'y'", "inputs: x"),
    ],
)
def test_inputs_that_do_not_fit(arrays, says, hint, place, refused):
    refused("run", make_bundle(NAME), "--inputs", npz("in.npz", **arrays), says=says, hint=hint)


def test_other_wrong_runs(place, refused):
    folder = make_bundle(NAME)
    npz("in.npz", x=feeds_of(NAME)["x"])
    refused("run", folder, "--inputs", "random", "--engine", "cuda", says="engine 'cuda' is not known", hint="numpy")
    refused("run", folder, "--inputs", "random", "--signature", "f", says="no signature 'f'", hint="serving_default")
    refused("run", folder, "--inputs", "random", "--output", "no/out.npz", says="cannot write no/out.npz")
    refused("run", folder, "--inputs", "in.npz", "--output", "in.npz", says="in.npz exists already")
    refused("run", folder, "--inputs", "in.npz", "--shape", "x=1x12", says="--shape is for --inputs random")
    refused("run", make_bundle("many_dtypes"), "--inputs", "random", says="'text' takes strings", hint="FILE.npz")


def test_outputs_that_cannot_be_stored(place, refused):
    feeds = {**feeds_of("many_dtypes"), "text": np.array([b"a"] * 4)}
    file = npz("in.npz", **feeds)
    refused("run", make_bundle("many_dtypes"), "--inputs", file, "--output", "out.npz", says="string outputs")


def test_half_an_output_is_never_left(place, refused, monkeypatch):
    def full(stream, array, **options):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = make_bundle(NAME)
    monkeypatch.setattr(np.lib.format, "write_array", full)
    refused("run", folder, "--inputs", "random", "--output", "out.npz", says="No space left on device")
