"""The bundle's format on disk: round trip, damage of every file in every way, versions, mix-ups, atomic writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle, oracle
from refimpl.bundle import FORMAT_VERSION, EngineRecord, Manifest
from refimpl.errors import BundleError
from refimpl.graph_record import GRAPH
from tests.bundles import (
    MANIFEST,
    POINTER,
    answers,
    assert_same,
    call,
    copy_of,
    feeds_of,
    files_of,
    golden_of,
    logged,
    main,
    make_bundle,
    reseal,
)
from tests.models import saved_model

NAME = "odd_ops"
OURS = ("refimpl/", POINTER)  # what TensorFlow itself does not read


def test_a_bundle_is_a_saved_model_that_plain_tensorflow_loads():
    model = tf.saved_model.load(str(make_bundle(NAME)))
    assert_same(call(model, feeds_of(NAME)), answers(NAME, feeds_of(NAME)))


def test_what_is_in_it():
    folder = make_bundle(NAME)
    manifest = bundle.read(folder)
    assert set(files_of(folder)) == {*manifest.files, MANIFEST, POINTER}
    assert manifest.source_name == saved_model(NAME).name
    assert manifest.verified
    assert manifest.format_version == FORMAT_VERSION
    assert {engine.file for island in manifest.islands for engine in island.engines} <= set(manifest.files)
    assert all(island.probe in manifest.files for island in manifest.islands)
    record = manifest.signatures[0]
    assert len(manifest.islands) == 2
    assert record.ops_converted + len(record.left) == record.ops_total
    assert {op.type for op in record.left} == {"Svd", "StatelessRandomNormalV2"}


def test_the_manifest_survives_json():
    manifest = bundle.read(make_bundle(NAME))
    text = json.dumps(manifest.to_json(), sort_keys=True)
    again = Manifest.from_json(json.loads(text))
    assert again == manifest
    assert json.dumps(again.to_json(), sort_keys=True) == text


def test_sealing_again_changes_nothing(tmp_path):
    folder = copy_of(NAME, tmp_path)
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}
    reseal(folder)
    assert {name: (folder / name).read_bytes() for name in files_of(folder)} == before


def test_a_manifest_tells_nothing_about_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved_model(NAME), "m")
    refimpl.convert("m", "b")
    for name in (MANIFEST, POINTER, GRAPH, "saved_model.pb"):
        assert str(tmp_path).encode() not in (tmp_path / "b" / name).read_bytes(), name


# Damage. Every file of the bundle, in every way.


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_first(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 0x80]) + data[1:])


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


DAMAGES = (flip, flip_first, shorten, empty, lengthen, Path.unlink)
FILES = (
    "saved_model.pb",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
    POINTER,
    MANIFEST,
    GRAPH,
    *(f"refimpl/islands/TRTEngineOp_000_00{n}.{kind}" for n in (0, 1) for kind in ("onnx", "probe.npz")),
)


def test_every_file_is_damaged_below():
    assert set(FILES) == set(files_of(make_bundle(NAME)))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda item: item.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(name, damage, tmp_path, capsys):
    folder = copy_of(NAME, tmp_path)
    damage(folder / name)
    with pytest.raises(BundleError, match="hint: ") as caught:
        refimpl.load(folder)
    is_the_pointer_itself = name == POINTER and not (folder / name).exists()
    assert (str(folder) if is_the_pointer_itself else str(folder / name)) in caught.value.message
    with pytest.raises(BundleError):
        oracle.check(folder, golden_of(NAME))
    assert main("inspect", folder) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert caught.value.message in err


def test_every_single_bit_of_the_pointer_counts(tmp_path):
    folder = copy_of(NAME, tmp_path)
    file = folder / POINTER
    whole = file.read_bytes()
    for index in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[index] ^= 1 << bit
            file.write_bytes(data)
            with pytest.raises(BundleError):
                bundle.read(folder, check_files=False)
    file.write_bytes(whole)
    bundle.read(folder)


@pytest.mark.parametrize("name", ["saved_model.cpb", "refimpl/islands/more.onnx", "assets/vocabulary.txt"])
def test_a_file_that_was_slipped_in_is_named(name, tmp_path):
    folder = copy_of(NAME, tmp_path)
    (folder / name).write_bytes(b"new")
    with pytest.raises(BundleError, match="is not a file of the bundle") as caught:
        refimpl.load(folder)
    assert name in caught.value.message


def test_warmup_requests_of_tensorflow_serving_may_be_added(tmp_path):
    folder = copy_of(NAME, tmp_path)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"new")
    bundle.read(folder)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda item: item.__name__)
@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(OURS) and name != GRAPH])
def test_after_damage_tensorflow_gives_the_answers(name, damage, tmp_path):
    """Plain ``tf.saved_model.load`` asks nobody for checksums; the engine nodes do, and step aside."""
    folder = copy_of(NAME, tmp_path)
    model = tf.saved_model.load(str(folder))
    damage(folder / name)
    with logged() as lines:
        for _ in range(2):
            assert_same(call(model, feeds_of(NAME)), answers(NAME, feeds_of(NAME)))
    assert len(lines) == 1, "one warning, not one per call"
    assert lines[0].startswith("refimpl: TensorFlow runs ")
    if name.startswith("refimpl/islands/"):  # found before anything was read from it
        assert ("cannot be read" if damage is Path.unlink else "checksum mismatch") in lines[0]
    affected = {run.island for run in refimpl.runtime._runtime(str(folder / POINTER), _id(NAME)).counts if run.reason}
    assert len(affected) == (2 if name in {POINTER, MANIFEST} else 1)


def test_engines_ask_nothing_of_the_graph(tmp_path):
    """It is for people: where it is damaged, a bundle that is loaded as a SavedModel runs as ever."""
    folder = copy_of(NAME, tmp_path)
    (folder / GRAPH).unlink()
    with logged() as lines:
        assert_same(call(tf.saved_model.load(str(folder)), feeds_of(NAME)), answers(NAME, feeds_of(NAME)))
    assert lines == []


def _id(name: str) -> str:
    return bundle.read(make_bundle(name)).bundle_id


# Versions and mix-ups.


def rewrite_pointer(folder: Path, **changes) -> None:
    file = folder / POINTER
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("version", "says"), [(FORMAT_VERSION + 1, "a newer one"), (0, "an unknown one"), ("1", "an unknown one")]
)
def test_other_formats_are_refused(version, says, tmp_path, capsys):
    folder = copy_of(NAME, tmp_path)
    rewrite_pointer(folder, format_version=version)
    with pytest.raises(BundleError) as caught:
        refimpl.load(folder)
    assert says in caught.value.message
    assert f"reads format {FORMAT_VERSION}" in caught.value.message
    assert "upgrade refimpl" in caught.value.hint
    assert main("run", folder, "--inputs", "random") == 2
    assert says in capsys.readouterr().err
    model = tf.saved_model.load(str(folder))
    with logged() as lines:
        assert_same(call(model, feeds_of(NAME)), answers(NAME, feeds_of(NAME)))
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[[", '"1"', '{"format_version": 1}', "\x00"])
def test_a_pointer_that_is_no_pointer(text, tmp_path):
    folder = copy_of(NAME, tmp_path)
    (folder / POINTER).write_text(text)
    with pytest.raises(BundleError, match=r"refimpl_bundle\.json is damaged"):
        refimpl.load(folder)


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"tags": 3}', "\xff", '{"signatures": [{}], "tags": [], "notes": []}']
)
def test_a_manifest_that_is_no_manifest(text, tmp_path):
    """With a checksum that is right: what was written was wrong."""
    folder = copy_of(NAME, tmp_path)
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    rewrite_pointer(folder, manifest_sha256=bundle.file_sha256(folder / MANIFEST))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        refimpl.load(folder)


def test_a_field_that_this_version_does_not_know(tmp_path):
    folder = copy_of(NAME, tmp_path)
    data = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**data, "colour": "red"}))
    rewrite_pointer(folder, manifest_sha256=bundle.file_sha256(folder / MANIFEST))
    with pytest.raises(BundleError, match="colour"):
        refimpl.load(folder)


def test_the_pointer_of_another_bundle(tmp_path):
    folder = copy_of(NAME, tmp_path)
    shutil.copyfile(make_bundle("several_signatures") / POINTER, folder / POINTER)
    with pytest.raises(BundleError, match="does not have the checksum"):
        refimpl.load(folder)
    rewrite_pointer(folder, manifest_sha256=bundle.file_sha256(folder / MANIFEST))
    with pytest.raises(BundleError, match="names bundle "):
        refimpl.load(folder)


def test_the_manifest_and_pointer_of_another_bundle(tmp_path):
    """They fit each other, but not the files; and the graph belongs to another bundle."""
    folder, other = copy_of(NAME, tmp_path), make_bundle("several_signatures")
    for name in (POINTER, MANIFEST):
        shutil.copyfile(other / name, folder / name)
    with pytest.raises(BundleError):
        refimpl.load(folder)
    model = tf.saved_model.load(str(folder))
    with logged() as lines:
        assert_same(call(model, feeds_of(NAME)), answers(NAME, feeds_of(NAME)))
    assert len(lines) == 1
    assert "holds another bundle than the one that was loaded" in lines[0]


def test_another_bundle_at_the_same_path(tmp_path):
    """A model that was loaded from a path keeps its answers when the bundle there is replaced."""
    folder = copy_of(NAME, tmp_path)
    first = tf.saved_model.load(str(folder))
    shutil.rmtree(folder)
    shutil.copytree(make_bundle("several_signatures"), folder)
    second = refimpl.load(folder)
    with logged() as lines:
        assert_same(call(first, feeds_of(NAME)), answers(NAME, feeds_of(NAME)))
        inputs = feeds_of("several_signatures")
        result = second.run(inputs)
    assert_same(result.outputs, answers("several_signatures", inputs))
    assert {run.engine for run in result.islands} == {"onnxruntime"}
    assert len(lines) == 1
    assert "holds another bundle" in lines[0]


def test_a_bundle_moves_and_lives_beside_its_copy(tmp_path):
    one = copy_of(NAME, tmp_path)
    two = Path(shutil.copytree(one, tmp_path / "elsewhere with spaces, ünd sönderzeichen" / "b"))
    one = one.rename(tmp_path / "moved")
    for folder in (one, two):
        loaded = refimpl.load(folder)
        result = loaded.run(feeds_of(NAME))
        assert_same(result.outputs, answers(NAME, feeds_of(NAME)))
        assert {run.engine for run in result.islands} == {"onnxruntime"}
        assert sum(loaded.counts().values()) == 2


def test_an_engine_is_as_large_as_its_files() -> None:
    sizes = {"a.onnx": 5, "a.onnx.data": 70, "b.engine": 11, "b.engine.kernels": 100, "c": 1000}
    stored = [EngineRecord(kind="k", file=file, version="v", precision="fp32") for file in ("a.onnx", "b.engine", "")]
    assert [engine.nbytes(sizes) for engine in stored] == [75, 111, 0]
