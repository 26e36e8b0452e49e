"""Converted signatures from the cache: when they are, when they must not be, and what they are proven with."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tf2onnx.tfonnx

import refimpl
from refimpl import bundle
from refimpl.cache import Cache, Key, open_cache, store
from refimpl.converter import check_bundle, reuse
from refimpl.engines import onnxruntime, tensorrt
from refimpl.errors import BuildError
from refimpl.recipe import Recipe
from tests.contract.sources import ROOT
from tests.converter.reused import from_cache, signatures, two_islands
from tests.converter.small import ALL, answers, assert_agrees

needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
FEEDS = {"x": np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return two_islands(tmp_path_factory.mktemp("reuse") / "model")


@pytest.fixture
def cache(tmp_path) -> Cache:
    return open_cache(tmp_path / "cache")


class Work:
    """How often the costly things were done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lowered = self.built = self.proven = 0
        for owner, name, what in (
            (tf2onnx.tfonnx, "process_tf_graph", "lowered"),
            (tensorrt, "build", "built"),
            (check_bundle, "prove", "proven"),
        ):
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name), what))

    def _counting(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            setattr(self, what, getattr(self, what) + 1)
            return function(*args, **named)

        return counted

    def since(self) -> tuple[int, int, int]:
        """(lowerings, builds, last gates) since the last call."""
        found = self.lowered, self.built, self.proven
        self.lowered = self.built = self.proven = 0
        return found


@pytest.fixture
def work(monkeypatch) -> Work:
    return Work(monkeypatch)


def as_json(manifest: bundle.Manifest) -> str:
    return json.dumps([item.to_json() for item in manifest.signatures])


def islands_in(folder: Path) -> dict[str, str]:
    files = bundle.read(folder).files
    return {name: digest for name, digest in files.items() if name.startswith(f"{bundle.FOLDER}/islands/")}


# A second conversion.


@pytest.mark.parametrize("kinds", [("onnxruntime",), pytest.param(("onnxruntime", "tensorrt"), marks=needs_tensorrt)])
def test_a_second_conversion_neither_lowers_nor_builds(model, cache, tmp_path, work, kinds):
    recipe = dataclasses.replace(ALL, engines=kinds)
    first = refimpl.convert(model, tmp_path / "a", recipe, cache=cache)
    lowered, built, proven = work.since()
    assert lowered
    assert (built, proven) == (2 * (len(kinds) - 1), 1)
    second = refimpl.convert(model, tmp_path / "b", recipe, cache=cache)
    assert work.since() == (0, 0, 1), "the last gate is passed all the same"
    assert (from_cache(first), from_cache(second)) == (False, True)
    assert islands_in(tmp_path / "a") == islands_in(tmp_path / "b")
    assert first.bundle_id != second.bundle_id
    assert as_json(first) == as_json(second)
    for name in "ab":
        assert {run.engine for run in assert_agrees(model, tmp_path / name, FEEDS)} == {"onnxruntime"}


def test_the_note_names_key_and_date(model, cache, tmp_path):
    refimpl.convert(model, tmp_path / "a", ALL, cache=cache)
    (entry,) = signatures(cache)
    assert entry.label == {"model": "model", "signature": "serving_default", "precision": "fp32"}
    notes = refimpl.convert(model, tmp_path / "b", ALL, cache=cache).notes
    assert any(entry.key[:12] in note and entry.created in note for note in notes)


def test_without_a_cache_nothing_is_reused_and_nothing_kept(model, tmp_path, work, monkeypatch):
    monkeypatch.delenv("REFIMPL_CACHE_DIR", raising=False)
    for name in "ab":
        assert not from_cache(refimpl.convert(model, tmp_path / name, ALL))
        assert work.since()[0]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "b"]


def test_the_environment_may_name_the_cache(model, tmp_path, monkeypatch):
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(tmp_path / "cache"))
    assert [from_cache(refimpl.convert(model, tmp_path / name, ALL)) for name in "ab"] == [False, True]


def test_a_read_only_cache_gives_and_takes_nothing(model, cache, tmp_path):
    reader = dataclasses.replace(cache, read_only=True)
    assert not from_cache(refimpl.convert(model, tmp_path / "a", ALL, cache=reader))
    assert cache.entries() == ()
    refimpl.convert(model, tmp_path / "b", ALL, cache=cache)
    assert from_cache(refimpl.convert(model, tmp_path / "c", ALL, cache=reader))


@needs_tensorrt
def test_after_a_change_engines_of_the_islands_that_are_the_same_are_reused(model, cache, tmp_path, work):
    recipe = dataclasses.replace(ALL, engines=("onnxruntime", "tensorrt"))
    refimpl.convert(model, tmp_path / "a", recipe, cache=cache)
    assert work.since()[1] == 2
    changed = two_islands(tmp_path / "changed", seed=3)  # other weights in the second island
    refimpl.convert(changed, tmp_path / "b", recipe, cache=cache)
    assert work.since()[1] == 1
    refimpl.convert(model, tmp_path / "c", dataclasses.replace(recipe, max_engines=5), cache=cache)
    assert work.since()[1] == 0
    assert_agrees(changed, tmp_path / "b", FEEDS)


def test_int8_comes_back_with_its_table_and_layers_that_were_kept(tmp_path, cache, work):
    from tests.precision import helpers

    cnn = helpers.small_cnn(tmp_path / "cnn")
    choices = {"precision": "int8", "keep_fp32": ("MatMul",), "engines": ("onnxruntime",)}
    made = [
        refimpl.convert(cnn, tmp_path / name, Recipe(**choices), samples=helpers.batches(), cache=cache)
        for name in "ab"
    ]
    assert [from_cache(item) for item in made] == [False, True]
    assert made[0].precision == made[1].precision == "int8"
    tables = [(tmp_path / name / bundle.CALIBRATION).read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    assert as_json(made[0]) == as_json(made[1])


def test_what_fails_the_last_gate_is_not_kept(model, cache, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise BuildError("the whole does not agree")

    monkeypatch.setattr(check_bundle, "prove", refuse)
    with pytest.raises(BuildError):
        refimpl.convert(model, tmp_path / "a", ALL, cache=cache)
    assert signatures(cache) == []


@pytest.mark.parametrize(("owner", "step"), [(store, "copy"), (reuse.tempfile, "TemporaryDirectory")])
def test_a_disk_that_is_full_when_it_is_kept_fails_nothing(model, cache, tmp_path, monkeypatch, caplog, owner, step):
    keep = reuse.Reuse.keep

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def keep_on_a_full_disk(*args: Any) -> None:
        monkeypatch.setattr(owner, step, full)
        keep(*args)
        monkeypatch.undo()

    monkeypatch.setattr(reuse.Reuse, "keep", keep_on_a_full_disk)
    assert refimpl.convert(model, tmp_path / "a", ALL, cache=cache).islands
    assert "No space left on device" in caplog.text
    assert signatures(cache) == []


CONVERT = """
import sys
sys.path.insert(0, {root!r})
import refimpl
from refimpl.converter import check_bundle
manifest = refimpl.convert({model!r}, sys.argv[1], refimpl.Recipe(min_segment_size=1), cache={cache!r})
print("reused" if any("from the cache" in note for note in manifest.notes) else "made")
"""


def test_two_processes_make_it_once(model, cache, tmp_path):
    code = CONVERT.format(root=str(ROOT), model=str(model), cache=str(cache.folder))
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    assert sorted(item.communicate(timeout=200)[0].split()[-1] for item in both) == ["made", "reused"]
    for name in "ab":
        assert_agrees(model, tmp_path / name, FEEDS)


# Entries that lie, with all their checksums right.


def forge(cache: Cache, change: Callable[[Path], None]) -> None:
    """Change the files of the one signature, and store them under its key as if they belonged there."""
    (entry,) = signatures(cache)
    place = cache.folder / "entries" / entry.key
    key = Key(entry.kind, json.loads((place / "entry.json").read_text(encoding="utf-8"))["what"]["parts"])
    folder = cache.folder.parent / "forged"
    folder.mkdir()
    assert cache.get(key, folder) is not None
    change(folder)
    assert cache.put(key, {item.name: item for item in folder.iterdir()}, replace=True)


def other_weights(folder: Path) -> None:
    for file in folder.glob("*.onnx"):
        proto = onnx.load(file)
        for tensor in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), tensor.name))
        onnx.save(proto, file)


def other_probe(folder: Path) -> None:
    """The probe says what the changed engine says: between them, they agree."""
    other_weights(folder)
    for file in folder.glob("*.npz"):
        with np.load(file) as data:
            arrays = dict(data)
        inputs = [arrays[f"input_{index}"] for index in range(sum(name.startswith("input") for name in arrays))]
        outputs = onnxruntime.open(Path(str(file).removesuffix(".probe.npz") + ".onnx")).run(inputs)
        np.savez(file, **{**arrays, **{f"output_{index}": value for index, value in enumerate(outputs)}})


def no_engine(folder: Path) -> None:
    next(folder.glob("*.onnx")).unlink()


def empty_engine(folder: Path) -> None:
    next(folder.glob("*.onnx")).write_bytes(b"")


def foreign_record(folder: Path) -> None:
    data = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    del data["record"]["islands"][0]["outputs"]
    (folder / "record.json").write_text(json.dumps(data), encoding="utf-8")


def unknown_tensor(folder: Path) -> None:
    data = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    data["record"]["islands"][0]["outputs"][0]["name"] = "no/such:0"
    (folder / "record.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    "lie",
    [other_weights, other_probe, no_engine, empty_engine, foreign_record, unknown_tensor],
    ids=lambda f: f.__name__,
)
def test_an_entry_that_lies_never_reaches_a_bundle(model, cache, tmp_path, caplog, work, lie):
    refimpl.convert(model, tmp_path / "a", ALL, cache=cache)
    forge(cache, lie)
    work.since()
    manifest = refimpl.convert(model, tmp_path / "b", ALL, cache=cache)
    assert not from_cache(manifest)
    assert work.since()[0], "it was lowered anew"
    assert "is damaged" in caplog.text
    assert islands_in(tmp_path / "a") == islands_in(tmp_path / "b")
    assert from_cache(refimpl.convert(model, tmp_path / "c", ALL, cache=cache)), "the right ones took their place"


def test_another_models_engines_under_this_models_key_never_reach_a_bundle(model, cache, tmp_path, caplog):
    other = two_islands(tmp_path / "other", scale=0.5)
    refimpl.convert(other, tmp_path / "a", ALL, cache=open_cache(tmp_path / "other cache"))
    refimpl.convert(model, tmp_path / "b", ALL, cache=cache)
    (entry,) = signatures(open_cache(tmp_path / "other cache"))
    foreign = tmp_path / "other cache" / "entries" / entry.key

    def swap(folder: Path) -> None:
        for file in folder.iterdir():
            shutil.copyfile(foreign / file.name, file)

    forge(cache, swap)
    assert not from_cache(refimpl.convert(model, tmp_path / "c", ALL, cache=cache))
    assert "is damaged" in caplog.text
    assert_agrees(model, tmp_path / "c", FEEDS)
    assert np.abs(answers(model, FEEDS)["y"] - answers(other, FEEDS)["y"]).max() > 1e-3, "they would differ"
