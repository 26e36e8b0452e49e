"""Engines from the cache: built once of the same things, built again when anything that matters is another."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from refimpl import engine_cache, engines, env, gpus
from refimpl.cache import Cache, open_cache
from refimpl.engines import BuildOptions, Profile
from refimpl.engines.tensorrt import building
from refimpl.errors import BuildError

PROFILE = Profile(((1, 3),), ((2, 3),), ((8, 3),))
OPTIONS = BuildOptions(tf32=False, workspace_bytes=0)


REAL_GPUS = gpus.list_gpus


class Library:
    """A kind of engine whose builds are counted, and which keeps timings if it is told to."""

    def __init__(self) -> None:
        self.builds = 0
        self.saw: list[bytes] = []  # timings at the beginning of each build
        self.name = "library 1"
        self.keeps = True
        self.fails = False

    def version(self) -> str:
        return self.name

    def build(self, model: Path, target: Path, profiles: tuple[Profile, ...], options: BuildOptions) -> None:
        if self.fails:
            raise BuildError("no")
        self.builds += 1
        target.write_bytes(model.read_bytes() + f" {profiles} {options.tf32} {self.builds}".encode())
        if options.timings is not None and self.keeps:
            self.saw.append(options.timings.read_bytes() if options.timings.exists() else b"")
            options.timings.write_bytes(f"timed {self.builds}".encode())


@pytest.fixture
def library(monkeypatch) -> Library:
    found = Library()
    monkeypatch.setattr(engines, "kind", lambda name: found)
    return found


@pytest.fixture
def cache(tmp_path) -> Cache:
    return open_cache(tmp_path / "cache")


def model(folder: Path, content: bytes = b"model", weights: bytes = b"", name: str = "m.onnx") -> Path:
    file = folder / name
    file.write_bytes(content)
    if weights:
        (folder / f"{name}.data").write_bytes(weights)
    return file


def build(cache: Cache | None, folder: Path, file: Path | None = None, kind: str = "tensorrt", **changes) -> bytes:
    options = dataclasses.replace(OPTIONS, **{key: changes[key] for key in changes if key != "profiles"})
    target = folder / "engine"
    engine_cache.build(cache, kind, file or model(folder), target, changes.get("profiles", (PROFILE,)), options)
    assert sorted(item.name for item in folder.iterdir() if item.name.startswith("refimpl-cache-")) == []
    return target.read_bytes()


def test_the_same_engine_is_built_once(tmp_path, library, cache):
    first = build(cache, tmp_path)
    assert build(cache, tmp_path, model(tmp_path, name="other name.onnx")) == first
    assert library.builds == 1


def test_without_a_cache_and_for_kinds_that_copy_it_is_built_each_time(tmp_path, library, cache):
    for _ in range(2):
        build(None, tmp_path)
        build(cache, tmp_path, kind="onnxruntime")
    assert library.builds == 4
    assert cache.entries() == ()


def other_gpu() -> tuple[str, tuple[gpus.Gpu, ...]]:
    driver, _ = REAL_GPUS()
    return driver, (gpus.Gpu("NVIDIA H100", "9.0", 80 << 30),)


MATTERS = {
    "model": lambda folder, _, __: model(folder, b"another"),
    "weights": lambda folder, _, __: model(folder, weights=b"other weights"),
    "library": lambda _, library, __: setattr(library, "name", "library 2"),
    "refimpl": lambda _, __, patch: patch.setattr(env, "code_digest", lambda: "edited"),
    "gpus": lambda _, __, patch: patch.setattr(gpus, "list_gpus", other_gpu),
    "driver": lambda _, __, patch: patch.setattr(gpus, "list_gpus", lambda: ("12.0", ())),
    "system": lambda _, __, patch: patch.setattr(env, "fingerprint", lambda: {"system": "x", "machine": "x86_64"}),
    "machine": lambda _, __, patch: patch.setattr(env, "fingerprint", lambda: {"system": "Linux", "machine": "arm"}),
}
BY_ARGUMENT = {
    "engine": {"kind": "tensorrt2"},
    "profiles": {"profiles": (dataclasses.replace(PROFILE, max=((9, 3),)),)},
    "tf32": {"tf32": True},
    "workspace_bytes": {"workspace_bytes": 1 << 20},
    "targets": {"targets": ("sm86",)},
}


def test_these_are_all_parts_of_the_key(tmp_path, library):
    parts = engine_cache.engine_key("tensorrt", model(tmp_path), (PROFILE,), OPTIONS).parts
    assert set(parts) == {*MATTERS, *BY_ARGUMENT}
    options = {item.name for item in dataclasses.fields(BuildOptions)}
    assert options - set(parts) == {"timings"}, "it makes builds faster and changes nothing that counts"
    whole = [dataclasses.asdict(PROFILE)]
    assert parts["profiles"] == whole, "every field of a profile"


@pytest.mark.parametrize("part", [*MATTERS, *BY_ARGUMENT])
def test_whatever_matters_builds_anew(tmp_path, library, cache, monkeypatch, part):
    monkeypatch.setattr(engine_cache, "_COMPILED", ("tensorrt", "tensorrt2"))
    before = build(cache, tmp_path, model(tmp_path, weights=b"weights"))
    file = model(tmp_path, weights=b"weights")
    if part in MATTERS:
        MATTERS[part](tmp_path, library, monkeypatch)
    after = build(cache, tmp_path, file, **BY_ARGUMENT.get(part, {}))
    assert library.builds == 2
    assert after != before


def test_a_tampered_engine_is_built_anew(tmp_path, library, cache):
    build(cache, tmp_path)
    (entry,) = (item for item in cache.entries() if item.kind == engine_cache.KIND)
    (cache.folder / "entries" / entry.key / engine_cache.KIND).write_bytes(b"evil")
    assert b"evil" not in build(cache, tmp_path)
    assert library.builds == 2


def test_what_cannot_be_built_is_not_stored(tmp_path, library, cache):
    library.fails = True
    with pytest.raises(BuildError):
        build(cache, tmp_path)
    assert cache.entries() == ()
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith("refimpl-cache-")] == []


# Timings.


def test_timings_go_on_from_build_to_build_until_the_library_or_the_gpu_is_another(
    tmp_path, library, cache, monkeypatch
):
    build(cache, tmp_path)
    build(cache, tmp_path, tf32=True)
    library.name = "library 2"
    build(cache, tmp_path)
    library.name = "library 1"
    monkeypatch.setattr(gpus, "list_gpus", other_gpu)
    build(cache, tmp_path)
    assert library.saw == [b"", b"timed 1", b"", b""]
    kinds = [item.kind for item in cache.entries()]
    assert (kinds.count("timings"), kinds.count("engine")) == (3, 4)


def test_a_library_that_keeps_no_timings_stores_none(tmp_path, library, cache):
    library.keeps = False
    build(cache, tmp_path)
    assert [item.kind for item in cache.entries()] == ["engine"]


class Config:
    """TensorRT's builder configuration, as far as timings go."""

    def __init__(self, *, deprecated: bool = False) -> None:
        self.deprecated = deprecated
        self.taken: bytes | None = None

    def create_timing_cache(self, blob: bytes) -> bytes | None:
        return None if blob == b"of another version" else b"<" + blob

    def set_timing_cache(self, found: bytes, ignore_mismatch: bool) -> bool:
        if self.deprecated:
            warnings.warn("Timing cache operations are no-ops", DeprecationWarning, stacklevel=2)
        assert not ignore_mismatch, "timings of another GPU are no good"
        self.taken = found
        return True


def test_timings_are_handed_to_a_library_that_keeps_them(tmp_path):
    file = tmp_path / "timings"
    for content, taken in ((None, b"<"), (b"known", b"<known"), (b"of another version", b"<")):
        if content is not None:
            file.write_bytes(content)
        config = Config()
        assert building._with_timings(config, file)
        assert config.taken == taken


def test_a_library_that_keeps_none_is_found_out_by_asking(tmp_path):
    assert not building._with_timings(Config(deprecated=True), tmp_path / "timings")
    assert not building._with_timings(SimpleNamespace(), tmp_path / "timings")
    assert not building._with_timings(Config(), None)


def test_the_digest_of_the_code_changes_with_any_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "__file__", str(tmp_path / "env.py"))
    digests = set()
    for name, content in (
        ("env.py", "a"),
        ("env.py", "b"),
        ("sub/table.json", "{}"),
        ("sub/table.json", "[]"),
        ("c.py", "b"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
        digests.add(env.code_digest.__wrapped__())
    assert len(digests) == 5
    (tmp_path / "env.pyc").write_bytes(b"compiled")
    assert env.code_digest.__wrapped__() in digests
