"""Engines that are built while a bundle runs: which serves what, how many stay, and what happens when a build fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from refimpl import bundle, runtime
from refimpl import trt_convert as trt
from refimpl.engines import Profile, onnxruntime, tensorrt
from refimpl.errors import BuildError, RunError
from refimpl.profiles import profile_at_runtime
from refimpl.runtime.building import EngineCache, covers
from refimpl.specs import TensorSpec
from tests.bundles import logged
from tests.tftrt.models import assert_same, call, images, saved_model

X = TensorSpec("x", "float32", (None, None))


def batch(*shape: int) -> list[np.ndarray]:
    return [np.zeros(shape, np.float32)]


class Shop:
    """Builds fake engines, and counts them."""

    def __init__(self, strategy: str = "implicit-batch") -> None:
        self.built: list[tuple[int, ...]] = []
        self.broken: set[tuple[int, ...]] = set()
        self.strategy, self.last = strategy, None

    def build(self, inputs: Sequence[np.ndarray]) -> tuple[tuple[Profile, ...], str]:
        shape = inputs[0].shape
        self.built.append(shape)
        if shape in self.broken:
            raise BuildError(f"cannot build {shape}")
        self.last = profile_at_runtime(self.strategy, [X], inputs, self.last)
        return (self.last,), f"engine for {shape}"


def test_the_example_of_tftrts_own_tests():
    """Cache of 4: a batch of 2 serves 1; 3 and 10 need their own; 3 engines in the end."""
    shop = Shop()
    cache = EngineCache(4, shop.build)
    for shape in ((2, 2), (1, 2), (3, 2), (10, 10), (1, 10)):
        cache.get(batch(*shape))
    assert shop.built == [(2, 2), (3, 2), (10, 10)]
    assert len(cache) == 3


def test_the_smallest_batch_that_serves_wins():
    shop = Shop()
    cache = EngineCache(4, shop.build)
    for size in (2, 8, 4):
        cache.get(batch(size, 3))
    assert shop.built == [(2, 3), (8, 3)]
    assert cache.get(batch(1, 3)) == "engine for (2, 3)"
    assert cache.get(batch(3, 3)) == "engine for (8, 3)"


def test_the_least_recently_used_makes_room():
    shop = Shop()
    cache = EngineCache(2, shop.build)
    for width in (1, 2):
        cache.get(batch(1, width))
    cache.get(batch(1, 1))  # used again, so it is the other one that goes
    cache.get(batch(1, 3))
    cache.get(batch(1, 1))
    assert shop.built == [(1, 1), (1, 2), (1, 3)]
    cache.get(batch(1, 2))
    assert len(shop.built) == 4


def test_no_capacity_is_no_limit():
    shop = Shop()
    cache = EngineCache(0, shop.build)
    for width in range(1, 30):
        cache.get(batch(1, width))
    assert len(cache) == 29


def test_failures_take_no_place_and_are_tried_again():
    shop = Shop()
    shop.broken = {(5, 5)}
    cache = EngineCache(1, shop.build)
    cache.get(batch(2, 2))
    for _ in range(8):
        with pytest.raises(RunError, match="cannot build"):
            cache.get(batch(5, 5))
    assert shop.built.count((5, 5)) == 3, "at the 1st, 3rd and 6th call"
    cache.get(batch(2, 2))
    assert shop.built.count((2, 2)) == 1, "a failure evicts nothing"
    shop.broken.clear()
    for _ in range(3):
        try:
            assert cache.get(batch(5, 5)) == "engine for (5, 5)"
        except RunError:
            continue
        break
    assert shop.built.count((5, 5)) == 4


def test_a_range_grows():
    shop = Shop("range")
    cache = EngineCache(1, shop.build)
    for shape in ((2, 8), (4, 3), (3, 5), (2, 3)):
        cache.get(batch(*shape))
    assert shop.built == [(2, 8), (4, 3)], "the second engine takes all between both"
    assert shop.last.min == ((2, 3),)
    assert shop.last.max == ((4, 8),)


def test_values_that_are_shapes_must_fit_too():
    profile = Profile(((2,),), ((2,),), ((2,),), ((0, (1, 4), (2, 4), (3, 4)),))
    assert covers(profile, [np.array([2, 4], np.int32)])
    assert not covers(profile, [np.array([4, 4], np.int32)])
    assert not covers(profile, [np.array([2, 4, 1], np.int32)])


# In a bundle, with an engine in the place of TensorRT's that knows profiles and computes with ONNX Runtime.


class FakeEngine:
    """What ``tensorrt.open`` gives: refuses shapes outside its profiles."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        data = json.loads(path.read_text())
        self.profiles = [
            Profile(*(tuple(tuple(shape) for shape in item[key]) for key in ("min", "opt", "max")))
            for item in data["profiles"]
        ]
        self.inner = onnxruntime.open(Path(data["model"]))
        self.off_by = data["off_by"]

    def run(self, inputs):
        if self.profiles and not any(covers(profile, inputs) for profile in self.profiles):
            raise RunError("no profile of the engine takes these shapes")
        return [value + value.dtype.type(self.off_by) for value in self.inner.run(inputs)]


@pytest.fixture
def machine(monkeypatch):
    """A machine on which TensorRT builds and executes; ``builds`` says what was built."""

    class Machine:
        def __init__(self) -> None:
            self.builds: list[list[Profile]] = []
            self.error, self.off_by = "", 0

        def build(self, model, target, profiles, options):
            self.builds.append(list(profiles))
            if self.error:
                raise BuildError(self.error)
            kept = shutil.copyfile(model, Path(folder) / f"{len(self.builds)}{''.join(model.suffixes)}")
            listed = [{"min": item.min, "opt": item.opt, "max": item.max} for item in profiles]
            target.write_text(json.dumps({"profiles": listed, "model": str(kept), "off_by": self.off_by}))

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = Machine()
        monkeypatch.setattr(tensorrt, "version", lambda: "tensorrt 99")
        monkeypatch.setattr(tensorrt, "why_not_here", lambda: "")
        monkeypatch.setattr(tensorrt, "build", made.build)
        monkeypatch.setattr(tensorrt, "open", FakeEngine)
        yield made


def saved(folder: Path, *sizes: int, **options: object) -> Path:
    """``digits``, converted, built for batches of these sizes, and saved."""
    made = trt.TrtGraphConverterV2(input_saved_model_dir=str(saved_model("digits")), **options)
    made.convert()
    if sizes:
        made.build(input_fn=lambda: iter([images(size) for size in sizes]))
    made.save(str(folder / "out"))
    return folder / "out"


def ran(folder: Path, size: int) -> list[str]:
    """What ran the islands in one call with a batch of this size, whose answers must be TensorFlow's."""
    owner = runtime._runtime(str(folder / bundle.POINTER), bundle.read(folder).bundle_id)
    with owner.listening() as trace:
        got = call(folder, image=images(size))
    assert_same(got, call(saved_model("digits"), image=images(size)))
    return sorted({run.engine for run in trace})


def test_an_engine_for_n_serves_up_to_n(machine, tmp_path):
    folder = saved(tmp_path, 2, 4)
    assert len(machine.builds) == 1
    assert [profile.max[0][0] for profile in machine.builds[0]] == [2, 4]
    for size in (1, 2, 3, 4):
        assert ran(folder, size) == ["tensorrt"]
    assert len(machine.builds) == 1


def test_a_larger_batch_builds_once(machine, tmp_path):
    folder = saved(tmp_path, 2)
    for size in (6, 5, 6, 2):
        assert ran(folder, size) == ["tensorrt"]
    assert [profile.max[0][0] for build in machine.builds for profile in build] == [2, 6]
    assert machine.builds[1][0].min[0][0] == 1


def test_without_permission_the_next_engine_runs_and_is_told(machine, tmp_path):
    folder = saved(tmp_path, 2, allow_build_at_runtime=False)
    with logged() as lines:
        for _ in range(3):
            assert ran(folder, 6) == ["onnxruntime"]
    assert len(machine.builds) == 1
    assert len([line for line in lines if "no profile" in line]) == 1, "once per cause"


def test_nothing_was_built_ahead(machine, tmp_path):
    folder = saved(tmp_path)
    assert machine.builds == []
    assert ran(folder, 3) == ["tensorrt"]
    assert ran(folder, 2) == ["tensorrt"]
    assert len(machine.builds) == 1


def test_another_gpu_builds_for_the_profiles_that_were_recorded(machine, tmp_path):
    made = trt.TrtGraphConverterV2(input_saved_model_dir=str(saved_model("digits")), use_dynamic_shape=True)
    made.convert()
    made.build(input_fn=lambda: iter([images(2), images(8)]))
    made.save(str(tmp_path / "out"), save_gpu_specific_engines=False)
    assert ran(tmp_path / "out", 3) == ["tensorrt"]
    assert machine.builds[0] == machine.builds[1]
    assert (machine.builds[1][0].min[0][0], machine.builds[1][0].max[0][0]) == (2, 8)


def test_a_build_that_fails_leaves_the_embedded_engine(machine, tmp_path):
    folder = saved(tmp_path, 2)
    machine.error = "out of memory"
    with logged() as lines:
        for _ in range(4):
            assert ran(folder, 6) == ["onnxruntime"]
    assert len([line for line in lines if "out of memory" in line]) == 1
    assert len(machine.builds) == 3, "it is tried again, but not each time"
    assert ran(folder, 2) == ["tensorrt"]


def test_no_engine_and_no_permission_to_build_one_is_told(machine, tmp_path):
    folder = saved(tmp_path, allow_build_at_runtime=False)
    with logged() as lines:
        for size in (2, 3):
            assert ran(folder, size) == ["onnxruntime"]
    assert machine.builds == []
    assert len([line for line in lines if "allow_build_at_runtime=False" in line]) == 1


@pytest.mark.parametrize("error", [OSError("No space left on device"), ValueError("from inside a library")])
def test_a_build_that_fails_in_its_own_way_does_not_fail_the_call(machine, tmp_path, monkeypatch, error):
    folder = saved(tmp_path, 2)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(tensorrt, "build", fail)
    with logged() as lines:
        assert ran(folder, 6) == ["onnxruntime"]
    assert f"{type(error).__name__}: {error}" in "".join(lines)


def test_a_function_from_before_the_build_runs_what_was_built(machine):
    made = trt.TrtGraphConverterV2(input_saved_model_dir=str(saved_model("digits")), allow_build_at_runtime=False)
    function = made.convert()
    function(images(3))
    made.build(input_fn=lambda: iter([images(4)]))
    owner = runtime._runtime(str(made._folder / bundle.POINTER), made._manifest.bundle_id)
    with owner.listening() as trace:
        assert_same(function(images(3)), call(saved_model("digits"), image=images(3)))
    assert {run.engine for run in trace} == {"tensorrt"}


def test_an_engine_built_here_that_is_wrong_is_not_used(machine, tmp_path):
    folder = saved(tmp_path, 2)
    machine.off_by = 3
    with logged() as lines:
        assert ran(folder, 6) == ["onnxruntime"]
    assert "disagrees with the embedded one" in "".join(lines)


def test_an_engine_of_another_machine_is_built_anew_for_the_same_shapes(machine, tmp_path, monkeypatch):
    folder = saved(tmp_path, 2, 4)

    def refuse(path, threads=0):
        if path.name.startswith("trt-serialized-engine"):
            raise RunError("built for another GPU")
        return FakeEngine(path)

    monkeypatch.setattr(tensorrt, "open", refuse)
    with logged() as lines:
        for size in (2, 3):
            assert ran(folder, size) == ["tensorrt"]
    assert machine.builds[1:] == machine.builds[:1], "with the profiles that were recorded"
    assert len([line for line in lines if "built for another GPU" in line]) == 1


def test_an_engine_of_another_machine_is_not_built_anew_without_permission(machine, tmp_path, monkeypatch):
    folder = saved(tmp_path, 2, allow_build_at_runtime=False)

    def refuse(path, threads=0):
        raise RunError("built for another GPU")

    monkeypatch.setattr(tensorrt, "open", refuse)
    assert ran(folder, 2) == ["onnxruntime"]
    assert len(machine.builds) == 1


def test_builds_can_be_aborted(machine, tmp_path, monkeypatch):
    folder = saved(tmp_path, 2)
    monkeypatch.setenv("TF_TRT_ABORT_CUDA_ENGINE_BUILD", "1")
    with logged() as lines:
        assert ran(folder, 6) == ["onnxruntime"]
    assert "Engine creation aborted by TF_TRT_ABORT_CUDA_ENGINE_BUILD variable" in "".join(lines)
    assert len(machine.builds) == 1


def test_capacity_is_the_converters(machine, tmp_path):
    made = trt.TrtGraphConverterV2(
        input_saved_model_dir=str(saved_model("two")), maximum_cached_engines=2, use_dynamic_shape=True,
        dynamic_shape_profile_strategy="Optimal",
    )  # fmt: skip
    made.convert()
    made.save(str(tmp_path / "out"))
    function = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_default"]

    def run(length):
        function(query=tf.ones([1, length, 6]), key=tf.ones([1, length, 6]))

    run(2)
    run(3)
    count = len(machine.builds)
    run(2)
    run(3)
    assert len(machine.builds) == count, "both are kept"
    run(4)
    grown = len(machine.builds)
    run(3)
    assert len(machine.builds) == grown
    run(2)
    assert len(machine.builds) > grown, "the oldest made room"
