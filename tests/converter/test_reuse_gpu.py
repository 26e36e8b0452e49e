"""What is taken from the cache is proven on the GPU at hand, as what is built there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle
from refimpl.bundle import Manifest
from refimpl.converter import islands
from refimpl.engines import tensorrt
from refimpl.recipe import Recipe
from tests.fake_gpu import FakeGpu, Nodes

RECIPE = Recipe(engines=("tensorrt", "onnxruntime"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    module = tf.Module()
    module.w = tf.Variable(np.random.default_rng(3).standard_normal((8, 8)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.softplus(tf.matmul(x, module.w))}

    tf.saved_model.save(module, str(tmp_path / "model"), signatures=serve)
    return tmp_path / "model"


def kinds(manifest: Manifest) -> set[str]:
    return {engine.kind for island in manifest.islands for engine in island.engines if engine.file}


def from_cache(manifest: Manifest) -> bool:
    return any("from the cache" in note for note in manifest.notes)


def softplus(nodes: Nodes) -> list:
    return nodes.of("Softplus")


def test_an_engine_that_could_not_be_proven_is_not_taken_where_it_can(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeGpu(softplus).install(monkeypatch)
    here = tensorrt.why_not_here
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "no usable NVIDIA GPU: out of memory")
    first = refimpl.convert(model, tmp_path / "a", RECIPE, cache=tmp_path / "cache")
    assert "tensorrt" in kinds(first), "nothing could be said against it there"
    monkeypatch.setattr(tensorrt, "why_not_here", here)
    second = refimpl.convert(model, tmp_path / "b", RECIPE, cache=tmp_path / "cache")
    assert not from_cache(second)
    assert any("wrongly" in text for island in second.islands for text in island.notes) or any(
        "wrongly" in op.reason for record in second.signatures for op in record.left
    )


def test_an_engine_that_is_wrong_by_now_is_built_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit whose key is right, and whose engine this GPU gets wrong all the same."""
    FakeGpu(lambda nodes: []).install(monkeypatch)
    refimpl.convert(model, tmp_path / "a", RECIPE, cache=tmp_path / "cache")
    again = refimpl.convert(model, tmp_path / "b", RECIPE, cache=tmp_path / "cache")
    assert from_cache(again), "the twin of the fault is a hit"
    real = tensorrt.open

    class Off:
        def __init__(self, path: Path, threads: int = 0) -> None:
            del threads
            self.inner = real(path)

        def close(self) -> None:
            """Nothing is held."""

        def run(self, inputs: list) -> list:
            return [1.5 * value for value in self.inner.run(inputs)]

    monkeypatch.setattr(tensorrt, "open", Off)
    third = refimpl.convert(model, tmp_path / "c", RECIPE, cache=tmp_path / "cache")
    assert not from_cache(third)
    assert "tensorrt" not in kinds(third)


def test_kernels_come_back_with_the_engine(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(lambda nodes: []).install(monkeypatch)

    def keep(engine: Path, calls: object) -> None:
        engine.with_name(engine.name + bundle.KERNELS_SUFFIX).write_bytes(b"kernels")

    monkeypatch.setattr(islands, "_keep_kernels", keep)
    for name in "ab":
        manifest = refimpl.convert(model, tmp_path / name, RECIPE, cache=tmp_path / "cache")
        assert [file for file in manifest.files if file.endswith(bundle.KERNELS_SUFFIX)]
    assert from_cache(manifest)
