"""Bad models and targets: one clear error each, with what, where and what to do; nothing left behind."""

from __future__ import annotations

import errno
import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle
from refimpl.converter import pipeline
from refimpl.errors import SourceError
from tests.bundles import (
    assert_refused,
    assert_same,
    call,
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


# The SavedModel.


def missing(place: Path) -> Path:
    return place / "no-such-model"


def a_file(place: Path) -> Path:
    (place / "model.h5").write_bytes(b"\x89HDF")
    return place / "model.h5"


def empty_folder(place: Path) -> Path:
    (place / "empty").mkdir()
    return place / "empty"


def keras_folder(place: Path) -> Path:
    (place / "keras").mkdir()
    (place / "keras" / "model.keras").write_bytes(b"PK")
    return place / "keras"


def h5_folder(place: Path) -> Path:
    (place / "h5").mkdir()
    (place / "h5" / "weights.h5").write_bytes(b"\x89HDF")
    return place / "h5"


def one_level_up(place: Path) -> Path:
    (place / "up").mkdir()
    shutil.copytree(saved_model(NAME), place / "up" / "1")
    return place / "up"


def _changed(place: Path, change) -> Path:
    folder = Path(shutil.copytree(saved_model(NAME), place / "m"))
    file = folder / "saved_model.pb"
    file.write_bytes(change(file.read_bytes()))
    return folder


def truncated(place: Path) -> Path:
    return _changed(place, lambda data: data[: len(data) * 2 // 3])


def garbage(place: Path) -> Path:
    return _changed(place, lambda data: b"this is no protobuf " * 10)


def hollow(place: Path) -> Path:
    return _changed(place, lambda data: b"")


def no_variables(place: Path) -> Path:
    folder = Path(shutil.copytree(saved_model(NAME), place / "m"))
    shutil.rmtree(folder / "variables")
    return folder


def damaged_variables(place: Path) -> Path:
    folder = Path(shutil.copytree(saved_model(NAME), place / "m"))
    (folder / "variables" / "variables.index").write_bytes(b"\0" * 50)
    return folder


SOURCES = [
    (missing, "no-such-model", "saved_model.pb"),
    (a_file, "model.h5", "saved_model.pb"),
    (empty_folder, "empty is not a SavedModel", ""),
    (keras_folder, "keras is not a SavedModel", ""),
    (h5_folder, "h5 is not a SavedModel", ""),
    (one_level_up, "up is not a SavedModel", ""),
    (truncated, "/m is ", ""),
    (garbage, "/m is ", ""),
    (hollow, "/m is ", ""),
    (no_variables, "TensorFlow ", ""),
    (damaged_variables, "TensorFlow ", ""),
]


@pytest.mark.parametrize("name", ["convert", "explain"])
@pytest.mark.parametrize(("make", "says", "hint"), SOURCES, ids=lambda item: getattr(item, "__name__", ""))
def test_what_is_no_saved_model(make, says, hint, name, place, refused):
    source = make(place)
    refused(name, source, *(["b"] if name == "convert" else []), says=says, hint=hint)


@pytest.mark.parametrize(
    ("make", "says"), [(make, says) for make, says, _ in SOURCES], ids=lambda item: getattr(item, "__name__", "")
)
def test_what_is_no_saved_model_cannot_be_recorded(make, says, place, capfd):
    source = make(place)
    before = sorted(place.rglob("*"))
    assert main("record", source, "g") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: " in err
    assert "Traceback" not in err
    assert sorted(place.rglob("*")) == before


def test_hints_know_keras_and_nested_folders(place, refused):
    assert "model.export" in refused("convert", keras_folder(place), "b", says="not a SavedModel")
    assert "model.export" in refused("convert", h5_folder(place), "b", says="not a SavedModel")
    assert "did you mean" in refused("convert", one_level_up(place), "b", says="not a SavedModel", hint="up/1")


def test_unknown_tags_and_signatures(refused):
    refused("convert", saved_model(NAME), "b", "--tags", "train", says="no meta graph tagged train", hint="serve")
    source = saved_model("several_signatures")
    refused("convert", source, "b", "--signature", "embed", says="no signature 'embed'", hint="decide, encode")


def test_no_signature_to_choose(place, refused):
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": tf.nn.relu(x)}, input_signature=[tf.TensorSpec([2], name="x")])
    tf.saved_model.save(module, str(place / "m"), signatures={"a": module.f, "b": module.f})
    refused("convert", "m", "b", says="has no signature serving_default", hint="a, b")
    bare = tf.Module()
    bare.a = tf.Variable(1.0)
    tf.saved_model.save(bare, str(place / "none"))
    refused("convert", "none", "b", says="has no signature serving_default", hint="none")


def test_a_bundle_is_not_converted_again(refused):
    refused("convert", make_bundle(NAME), "b", says="is a bundle already", hint="the SavedModel that it was made from")
    refused("explain", make_bundle(NAME), says="is a bundle already")


# Where the bundle goes.


def test_outputs_that_exist(place, refused):
    (place / "b").mkdir()
    (place / "b" / "mine").write_text("mine")
    refused("convert", saved_model(NAME), "b", says="b exists already", hint="nothing is ever overwritten")
    assert (place / "b" / "mine").read_text() == "mine"
    refused("convert", saved_model(NAME), "no/b", says="no is not a directory", hint="create")


def test_a_bundle_inside_its_own_model(place, refused):
    shutil.copytree(saved_model(NAME), place / "m")
    refused("convert", "m", "m/b", says="inside the SavedModel", hint="outside")
    (place / "link").symlink_to(place / "m")
    refused("convert", "m", "link/variables/b", says="inside the SavedModel")
    assert main("convert", "m", "m-trt") == 0, "a name that only begins alike is fine"


def test_a_disk_that_fills_up(place, refused, monkeypatch):
    real = Path.write_bytes

    def full(self, data):
        if self.name == "saved_model.pb":
            real(self, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    refused("convert", saved_model(NAME), "b", says="cannot write b: No space left on device", hint="disk space")


def test_a_manifest_that_cannot_be_written(place, refused, monkeypatch):
    def full(folder, manifest, known=None):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(bundle, "seal", full)
    refused("convert", saved_model(NAME), "b", says="cannot write b: Read-only file system")


def test_our_bug_leaves_nothing_either(place, monkeypatch, capfd):
    def bug(*args, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline.check_bundle, "prove", bug)
    assert main("convert", saved_model(NAME), "b") == 3
    assert list(place.iterdir()) == []


# Odd models, not bad ones.


def test_a_scalar_string_variable(place):
    """It is state of the model, and no engine's business."""
    module = tf.Module()
    module.label, module.a = tf.Variable("cat"), tf.Variable(tf.eye(4))
    module.f = tf.function(
        lambda x: {"y": tf.nn.relu(tf.tanh(x @ module.a) + 1.0), "label": tf.strings.upper(module.label)},
        input_signature=[tf.TensorSpec((None, 4), name="x")],
    )
    tf.saved_model.save(module, "m", signatures=module.f)
    manifest = refimpl.convert("m", "b")
    assert len(manifest.islands) == 1
    x = {"x": np.float32([[1, 2, 3, 4]])}
    result = refimpl.load("b").run(x)
    want = call(tf.saved_model.load("m"), x)
    assert_same({"y": result.outputs["y"]}, {"y": want["y"]})
    assert result.outputs["label"] == b"CAT"


def test_outputs_named_like_arguments(place):
    module = tf.Module()
    module.f = tf.function(
        lambda file: {"file": tf.nn.relu(file) * 2.0 + 1.0}, input_signature=[tf.TensorSpec((None, 4), name="file")]
    )
    tf.saved_model.save(module, "m", signatures=module.f)
    assert main("convert", "m", "b") == 0
    assert main("run", "b", "--inputs", "random", "--output", "out.npz") == 0
    with np.load("out.npz") as data:
        assert data.files == ["file"]
        assert data["file"].shape == (1, 4)


def test_errors_in_python_are_the_same(place):
    with pytest.raises(SourceError, match="no such directory") as caught:
        refimpl.convert("nowhere", "b")
    assert caught.value.hint
    assert caught.value.where["stage"] == "load"
    with pytest.raises(SourceError, match="no signature"):
        refimpl.explain(saved_model(NAME), refimpl.Recipe(signatures=("f",)))
    assert list(place.iterdir()) == []
