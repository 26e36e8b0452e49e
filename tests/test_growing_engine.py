"""An engine that grows: tensors on the GPU meet what is built already, and the embedded engine keeps to its threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refimpl import engine_cache
from refimpl.bundle import EngineRecord, IslandRecord
from refimpl.engines import DeviceEngine, NotFiniteError, Profile, onnxruntime, tensorrt
from refimpl.errors import RunError
from refimpl.runtime.building import GrowingEngine
from refimpl.specs import TensorSpec

X = TensorSpec("x", "float32", (None, None))


class OnDevice:
    """A tensor whose values are out of reach."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape


class DeviceOnly:
    """An engine that answers tensors on the device with its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *_):
        raise AssertionError("nothing may go through the host")

    def run_finite(self, *_):
        return [self.name]

    def run_device(self, *_):
        return [self.name]


def growing(*engines: tuple[Profile, str], stored: Profile | None = None, threads: int = 0) -> GrowingEngine:
    """An island with engines that were built for some profiles, and one that is stored."""
    profiles = [] if stored is None else [vars_of(stored)]
    record = EngineRecord(kind="tensorrt", file="", version="", precision="fp32", profiles=tuple(profiles))
    island = IslandRecord(
        name="i", ops=(), inputs=(X,), outputs=(X,), engines=(), probe="", finite_only=False, precision="fp32",
        verified="",
    )  # fmt: skip
    found = GrowingEngine(
        island,
        record,
        DeviceOnly("stored") if stored else None,
        Path("i.onnx"),
        {"max_cached_engines": 4, "tf32": False, "workspace_bytes": 0, "profile": "range"},
        threads,
    )
    found.cache._entries = [((profile,), DeviceOnly(name)) for profile, name in engines]
    return found


def vars_of(profile: Profile) -> dict[str, object]:
    return {"min": profile.min, "opt": profile.opt, "max": profile.max, "values": profile.values}


def upto(rows: int, **more: object) -> Profile:
    return Profile(((1, 3),), ((rows, 3),), ((rows, 3),), **more)


def test_tensors_on_the_gpu_meet_the_stored_engine_or_one_that_was_built():
    engine = growing((upto(64), "large"), (upto(16), "small"), stored=upto(8))
    assert isinstance(engine, DeviceEngine)
    assert engine.run_device([OnDevice(8, 3)]) == ["stored"]
    assert engine.run_device([OnDevice(9, 3)]) == ["small"], "the one with the smallest reach"
    assert engine.run_device([OnDevice(17, 3)]) == ["large"]


def test_whether_arrays_are_finite_is_for_the_engine_that_takes_them_to_see():
    engine = growing((upto(16), "built"), stored=upto(8))
    assert engine.run_finite([np.zeros((8, 3), np.float32)]) == ["stored"]
    assert engine.run_finite([np.zeros((9, 3), np.float32)]) == ["built"]


def test_nothing_is_built_for_what_is_not_finite(monkeypatch):
    monkeypatch.setattr(engine_cache, "build", lambda *given: pytest.fail("built"))
    with pytest.raises(NotFiniteError):
        growing(stored=upto(8)).run_finite([np.full((9, 3), np.nan, np.float32)])


def test_nothing_is_built_for_tensors_on_the_gpu():
    with pytest.raises(RunError, match="no engine is built yet that takes these shapes"):
        growing((upto(16), "small"), stored=upto(8)).run_device([OnDevice(17, 3)])
    valued = upto(16, values=((0, (1,), (2,), (3,)),))
    with pytest.raises(RunError, match="no engine is built yet"):
        growing((valued, "by values")).run_device([OnDevice(2, 3)])


def test_the_engine_that_proves_others_takes_as_many_threads_as_it_may(monkeypatch):
    seen = []

    class Doubles:
        def run(self, inputs):
            return [inputs[0] * 2]

    def opened(path, threads=0):
        seen.append(threads)
        return Doubles()

    monkeypatch.setattr(onnxruntime, "open", opened)
    monkeypatch.setattr(tensorrt, "open", lambda path: Doubles())
    monkeypatch.setattr(engine_cache, "build", lambda *given: None)
    engine = growing(threads=3)
    assert engine.run([np.zeros((2, 3), np.float32)])[0].shape == (2, 3)
    assert seen == [3]
