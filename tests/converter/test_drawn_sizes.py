"""Where no sample runs through the whole model, TensorRT engines are built for drawn sizes, and the bundle says so."""

from __future__ import annotations

import pytest

import refimpl
from refimpl.engines import tensorrt
from refimpl.recipe import Recipe
from tests.models import sample_inputs, saved_model

NOTE = "where sizes are open, TensorRT engines take only those of the drawn values"
WITH_TENSORRT = Recipe(engines=("onnxruntime", "tensorrt"))


def converted(folder, recipe, **options):
    """The manifest, and the profiles of what enters the largest island: its smallest and its largest shapes."""
    manifest = refimpl.convert(saved_model("decode_and_label"), folder / "bundle", recipe, **options)
    island = max(manifest.islands, key=lambda item: len(item.ops))
    profiles = [profile for engine in island.engines for profile in engine.profiles]
    return manifest, [(profile["min"], profile["max"]) for profile in profiles]


@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
def test_a_range_comes_from_real_samples_alone_and_its_absence_is_told(tmp_path):
    drawn, ((low, high),) = converted(tmp_path, WITH_TENSORRT)
    assert low == high
    assert any(note.startswith(NOTE) for note in drawn.notes)
    (tmp_path / "real").mkdir()
    real, _ = converted(tmp_path / "real", WITH_TENSORRT, samples=sample_inputs("decode_and_label"))
    assert not any(note.startswith(NOTE) for note in real.notes)


def test_without_tensorrt_there_is_nothing_to_tell(tmp_path):
    manifest, profiles = converted(tmp_path, Recipe())
    assert profiles == []
    assert any(note.startswith("no input that can be made up") for note in manifest.notes)
    assert not any(note.startswith(NOTE) for note in manifest.notes)
