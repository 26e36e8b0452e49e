"""The key of a converted signature: everything that matters changes it, and nothing else."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import engine_cache, env, gpus
from refimpl.cache import Cache, Key, open_cache
from refimpl.converter import reuse
from refimpl.converter.reuse import common_parts, reuse_of
from refimpl.converter.samples import WatchedSamples
from refimpl.converter.source import Source
from refimpl.engines import onnxruntime, tensorrt
from refimpl.recipe import Recipe
from tests.converter.reused import from_cache, signatures, two_islands
from tests.converter.small import ALL
from tests.test_recipe import OTHER


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return two_islands(tmp_path_factory.mktemp("reuse") / "model")


@pytest.fixture
def cache(tmp_path) -> Cache:
    return open_cache(tmp_path / "cache")


def unopened(model: Path, tags: str = "serve") -> Source:
    """What a key needs of a model, without a session."""
    source = Source.__new__(Source)
    source.path, source.tags = model, (tags,)
    return source


def parts(
    model: Path, recipe: Recipe = ALL, samples: Any = None, table: str = "", tags: str = "serve"
) -> dict[str, Any]:
    source = unopened(model, tags)
    return common_parts(source, recipe, None if samples is None else WatchedSamples(samples), table)


def digest(found: dict[str, Any]) -> str:
    return Key("signature", found).digest


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Recipe)])
def test_every_field_of_a_recipe_changes_the_key_or_says_why_not(model, name):
    changed = dataclasses.replace(Recipe(), **{name: OTHER[name]})
    same = digest(parts(model, Recipe())) == digest(parts(model, changed))
    assert same == (name in Recipe().outside_key())


def test_these_fields_are_outside_and_why():
    outside = Recipe().outside_key()
    by_content = {"calibration", "calibration_table", "signatures", "tags"}
    assert set(outside) == by_content | {"max_cached_engines", "build_at_runtime"}
    assert all("in the key" in outside[name] or "key of its own" in outside[name] for name in by_content)
    assert all(len(why) > 20 for why in outside.values())


def test_fields_outside_are_right_in_the_new_manifest(model, cache, tmp_path):
    refimpl.convert(model, tmp_path / "a", ALL, cache=cache)
    other = dataclasses.replace(ALL, max_cached_engines=4, build_at_runtime=True, signatures=("serving_default",))
    manifest = refimpl.convert(model, tmp_path / "b", dataclasses.replace(other, tags=("serve",)), cache=cache)
    assert from_cache(manifest)
    assert (manifest.recipe["max_cached_engines"], manifest.recipe["build_at_runtime"]) == (4, True)


WORLD: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "refimpl": lambda patch: patch.setattr(env, "code_digest", lambda: "edited"),
    "environment": lambda patch: patch.setattr(env, "fingerprint", lambda: {"processor": "another"}),
    "tensorflow": lambda patch: patch.setattr(tf, "__version__", "2.99"),
    "onnxruntime": lambda patch: patch.setattr(onnxruntime, "version", lambda: "onnxruntime 99"),
    "tensorrt": lambda patch: patch.setattr(tensorrt, "version", lambda: "tensorrt 99"),
    "judge": lambda patch: patch.setattr(reuse, "pick_judge", lambda: SimpleNamespace(name="another")),
}


@pytest.mark.parametrize("name", WORLD)
def test_another_world_is_another_key(model, monkeypatch, name):
    before = digest(parts(model))
    WORLD[name](monkeypatch)
    assert digest(parts(model)) != before


def test_another_gpu_is_another_key_where_engines_depend_on_it(model, monkeypatch):
    with_tensorrt = dataclasses.replace(ALL, engines=("onnxruntime", "tensorrt"))
    before = [digest(parts(model, recipe)) for recipe in (ALL, with_tensorrt)]
    monkeypatch.setattr(gpus, "list_gpus", lambda: ("13.0", (gpus.Gpu("NVIDIA H100", "9.0", 80 << 30),)))
    after = [digest(parts(model, recipe)) for recipe in (ALL, with_tensorrt)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_the_model_counts_by_its_content(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "of another name")
    assert digest(parts(copy)) == digest(parts(model))
    variables = next((copy / "variables").glob("*.data*"))
    variables.write_bytes(variables.read_bytes()[:-1] + b"x")
    assert digest(parts(copy)) != digest(parts(model))


def test_tags_table_signature_and_number_count(model, cache):
    base = parts(model)
    assert len({digest(found) for found in (base, parts(model, tags="gpu"), parts(model, table="0"))}) == 3
    found = reuse.Reuse(cache, base, None)
    assert len({found.key(name, index).digest for name in ("a", "b") for index in (0, 1)}) == 4


def test_these_are_all_parts_of_the_key(model):
    named = {"model", "tags", "recipe", "samples", "table", "refimpl", "environment", "libraries"}
    assert set(parts(model)) == named
    with_tensorrt = dataclasses.replace(ALL, engines=("onnxruntime", "tensorrt"))
    assert set(parts(model, with_tensorrt)) == named | set(engine_cache.machine()) | {"executes"}


def test_engines_that_could_not_be_proven_have_another_key(model, monkeypatch):
    with_tensorrt = dataclasses.replace(ALL, engines=("onnxruntime", "tensorrt"))
    was, found = tensorrt.why_not_here(), [parts(model, with_tensorrt)]
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "" if was else "no GPU")
    found.append(parts(model, with_tensorrt))
    assert found[0] != found[1]


def sample(value: Any, **labels: Any) -> dict[str, Any]:
    return {"x": np.full((2, 8), value, np.float32), **labels}


DIFFERENT: list[list[dict[str, Any]]] = [
    [sample(1.0)],
    [sample(2.0)],
    [sample(1.0), sample(1.0)],
    [sample(1.0), sample(2.0)],
    [sample(2.0), sample(1.0)],
    [sample(1.0, label=np.array([1]))],
    [sample(1.0, label=np.array([2]))],
    [sample(1.0, label=np.array(["a", "b"], object))],
    [sample(1.0, label=np.array(["ab", ""], object))],
    [sample(1.0, label=np.array([b"a", b"b"], object))],
    [{"x": np.full((8, 2), 1.0, np.float32)}],
    [{"x": np.full((2, 8), 1.0, np.float64)}],
    [{"y": np.full((2, 8), 1.0, np.float32)}],
]


def test_samples_count_by_their_content(model):
    assert len({digest(parts(model, samples=given)) for given in DIFFERENT}) == len(DIFFERENT)
    assert digest(parts(model, samples=[sample(1.0)])) == digest(parts(model, samples=lambda: iter([sample(1.0)])))
    assert digest(parts(model, samples=[sample(1.0)])) != digest(parts(model))


def test_samples_are_never_trusted_by_name(model, cache, tmp_path):
    def convert(name: str, value: float, bundle_name: str) -> bool:
        np.savez(tmp_path / name, **sample(value))
        recipe = dataclasses.replace(ALL, calibration=str(tmp_path / name))
        return from_cache(refimpl.convert(model, tmp_path / bundle_name, recipe, cache=cache))

    assert not convert("a.npz", 1.0, "1")
    assert convert("b.npz", 1.0, "2")
    assert not convert("a.npz", 2.0, "3")


def test_samples_that_change_from_reading_to_reading_store_nothing(model, cache, tmp_path):
    rng = np.random.default_rng(0)

    def unseeded() -> Iterator[dict[str, Any]]:
        yield sample(rng.standard_normal())

    for name in "ab":
        assert not from_cache(refimpl.convert(model, tmp_path / name, ALL, samples=unseeded, cache=cache))
    assert signatures(cache) == []


@pytest.mark.parametrize("given", [[sample(1.0)], [sample(1.0), sample(2.0), sample(3.0)]])
def test_fewer_and_more_samples_are_noticed(given):
    now = [sample(1.0), sample(2.0)]
    watched = WatchedSamples(lambda: list(now))
    list(watched.read())
    assert not watched.changed
    now = given
    list(watched.read())
    assert watched.changed


def test_what_no_key_can_hold_is_told_and_not_reused(model, cache):
    source, said = unopened(model), []
    auto = Recipe(precision="auto", metric="code:metric")
    assert reuse_of(cache, source, auto, [sample(1.0)], said.append) is None
    assert reuse_of(cache, source, ALL, [sample(1.0, label=np.array([object()]))], said.append) is None
    assert reuse_of(cache, source, dataclasses.replace(ALL, calibration_table="none"), None, said.append) is None
    assert reuse_of(cache, source, ALL, "missing.npz", said.append) is None
    assert [any(word in line for word in ("code:metric", "digested", "read")) for line in said] == [True] * 4
    assert reuse_of(cache, source, dataclasses.replace(auto, metric="top1"), [sample(1.0)], said.append)
    assert reuse_of(None, source, auto, None, said.append) is None
    assert len(said) == 4
