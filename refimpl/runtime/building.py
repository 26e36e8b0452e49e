"""TensorRT engines that are built while a bundle runs, and how many of them are kept."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import cache, engine_cache, tftrt_env
from refimpl.bundle import EngineRecord, IslandRecord
from refimpl.engines import BuildOptions, DeviceEngine, OpenEngine, Profile, kind, looked_at
from refimpl.errors import BuildError, RefimplError, RunError, first_line
from refimpl.numerics import disagreement
from refimpl.profiles import profile_at_runtime
from refimpl.tolerance import tolerance_for

Array = np.ndarray[Any, Any]
Entry = tuple[tuple[Profile, ...], OpenEngine]  # what an engine takes, and the engine
Build = Callable[[Sequence[Array]], Entry]
ABORTED = "Engine creation aborted by TF_TRT_ABORT_CUDA_ENGINE_BUILD variable"  # TF-TRT's words


def covers(profile: Profile, inputs: Sequence[Array]) -> bool:
    """Whether an engine takes these inputs by this profile: every shape, and every value that is used as a shape."""
    shapes = zip(profile.min, profile.max, inputs, strict=True)
    if not all(_between(low, value.shape, high) for low, high, value in shapes):
        return False
    return all(_between(low, inputs[index].reshape(-1).tolist(), high) for index, low, _, high in profile.values)


def covers_shapes(profile: Profile, inputs: Sequence[Any]) -> bool:
    """As :func:`covers`, of tensors whose values are out of reach; never where values are used as shapes."""
    shapes = zip(profile.min, profile.max, inputs, strict=True)
    return not profile.values and all(_between(low, tuple(value.shape), high) for low, high, value in shapes)


def _between(low: Sequence[int], value: Sequence[int], high: Sequence[int]) -> bool:
    return len(low) == len(value) and all(a <= b <= c for a, b, c in zip(low, value, high, strict=True))


def _reach(
    profiles: Sequence[Profile], inputs: Sequence[Any], fits: Callable[[Profile, Sequence[Any]], bool]
) -> list[int] | None:
    """How large the largest shapes are of the smallest profile that takes these inputs; None when none does."""
    found = [profile for profile in profiles if fits(profile, inputs)]
    return min(([math.prod(shape) for shape in profile.max] for profile in found), default=None)


@dataclass
class _Failure:
    why: str
    tries: int = 1
    wait: int = 1  # calls until the next try


class EngineCache:
    """Engines of one island by the shapes that they take; the least recently used one makes room.

    A failed build takes no place, and is tried again after 1, 2, 4, ... more calls with these shapes.

    Args:
        capacity: how many engines to keep; 0 keeps all.
        build: makes an engine that takes certain inputs, and says which others it takes.
    """

    def __init__(self, capacity: int, build: Build) -> None:
        self._capacity, self._build = capacity, build
        self._entries: list[Entry] = []  # the most recently used last
        self._failures: dict[tuple[tuple[int, ...], ...], _Failure] = {}
        self._lock = threading.Lock()  # other callers of the island wait for a build, as they do in TF-TRT

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, inputs: Sequence[Array]) -> OpenEngine:
        """The engine for these inputs: the one with the smallest reach among those kept, or a new one.

        Raises:
            RunError: it cannot be built; the message says why.
        """
        with self._lock:
            if (kept := self._kept(inputs, covers)) is not None:
                return kept
            found = self._built(inputs)
            while self._capacity and len(self._entries) >= self._capacity:
                del self._entries[0]
            self._entries.append(found)
            return found[1]

    def peek(self, inputs: Sequence[Any]) -> OpenEngine | None:
        """The engine among those kept for tensors of these shapes, wherever they lie; nothing is built."""
        with self._lock:
            return self._kept(inputs, covers_shapes)

    def _kept(self, inputs: Sequence[Any], fits: Callable[[Profile, Sequence[Any]], bool]) -> OpenEngine | None:
        """The engine with the smallest reach, which becomes the most recently used one; None when none fits."""
        able = [(reach, entry) for entry in self._entries if (reach := _reach(entry[0], inputs, fits)) is not None]
        if not able:
            return None
        found = min(able, key=lambda item: item[0])[1]
        self._entries.remove(found)
        self._entries.append(found)
        return found[1]

    def _built(self, inputs: Sequence[Array]) -> Entry:
        shapes = tuple(value.shape for value in inputs)
        failure = self._failures.get(shapes)
        if failure and failure.wait:
            failure.wait -= 1
            raise RunError(failure.why)
        try:
            found = self._build(inputs)
        except Exception as error:  # a full disk, a library's own error: the next kind of engine still answers
            why = error.message if isinstance(error, RefimplError) else f"{type(error).__name__}: {first_line(error)}"
            tries = failure.tries + 1 if failure else 1
            self._failures[shapes] = _Failure(why, tries, 1 << (tries - 1))
            raise RunError(why) from error
        self._failures.pop(shapes, None)
        return found


class GrowingEngine:
    """A stored TensorRT engine, and those that are built here for inputs that it does not take.

    Args:
        island: the island's record.
        record: the engine's; no file in it means that nothing was built ahead of time.
        stored: the open engine, proven; None without a file.
        model: the island as ONNX, its checksum compared: what engines are built from.
        recipe: the bundle's.
        threads: how many CPU threads may share one op of the embedded engine; 0 leaves it to ONNX Runtime.
    """

    def __init__(
        self,
        island: IslandRecord,
        record: EngineRecord,
        stored: OpenEngine | None,
        model: Path,
        recipe: Mapping[str, Any],
        threads: int = 0,
    ) -> None:
        self._island, self._stored, self._model, self._recipe = island, stored, model, recipe
        self._threads = threads
        self._profiles = tuple(profile_of(item) for item in record.profiles)
        self._precision = record.precision
        self._reference: OpenEngine | None = None
        self._last: Profile | None = None
        self.cache = EngineCache(int(recipe.get("max_cached_engines", 1)), self._build)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the stored engine, or one for these shapes.

        Raises:
            RunError: none can be built, or it fails.
        """
        if self._stored is not None and any(covers(profile, inputs) for profile in self._profiles):
            return self._stored.run(inputs)
        return self.cache.get(inputs).run(inputs)

    def run_finite(self, inputs: Sequence[Array]) -> list[Array]:
        """Run, looking whether values are finite: before anything is built for them, too.

        Raises:
            NotFiniteError: a value is not.
            RunError: no engine can be built, or it fails.
        """
        takes = self._stored is not None and any(covers(profile, inputs) for profile in self._profiles)
        engine = self._stored if takes else self.cache.peek(inputs)
        return engine.run_finite(inputs) if isinstance(engine, DeviceEngine) else looked_at(self.run, inputs)

    def run_device(self, inputs: Sequence[Any], finite_only: bool = False) -> Sequence[Any]:
        """Run, on tensors on the GPU, an engine that is there already: what is built is proven on the host first.

        Raises:
            NotFiniteError: ``finite_only``, and a value is not.
            RunError: no engine takes these shapes, or the shapes depend on values; or it fails.
        """
        engine: OpenEngine | None = self._stored
        if engine is None or not any(covers_shapes(profile, inputs) for profile in self._profiles):
            engine = self.cache.peek(inputs)
        if not isinstance(engine, DeviceEngine):
            raise RunError("no engine is built yet that takes these shapes on the device")
        return engine.run_device(inputs, finite_only)

    def _build(self, inputs: Sequence[Array]) -> Entry:
        """Build for these inputs, and let it agree with the embedded engine, which TensorFlow has proven."""
        if tftrt_env.abort_builds():
            raise BuildError(ABORTED)
        module = kind("tensorrt")
        recipe = self._recipe
        profiles = self._wanted(inputs)
        tf32 = self._precision == "tf32" or (recipe["tf32"] and self._precision != "fp32")
        with tempfile.TemporaryDirectory(prefix="refimpl-engine-") as folder:
            file = Path(folder) / f"{self._island.name}{module.SUFFIX}"
            options = BuildOptions(tf32, recipe["workspace_bytes"])
            label = {"island": self._island.name, "precision": self._precision}
            store = cache.from_environment_if_usable()
            engine_cache.build(store, module.NAME, self._model, file, profiles, options, label)
            engine = module.open(file)
        if self._reference is None:
            self._reference = kind("onnxruntime").open(self._model, self._threads)
        wanted, got = self._reference.run(inputs), engine.run(inputs)
        for spec, want, value in zip(self._island.outputs, wanted, got, strict=True):
            if why := disagreement(want, value, tolerance_for(self._precision, spec.dtype)):
                raise RunError(f"the engine that was built here disagrees with the embedded one: {why}")
        self._last = next(profile for profile in profiles if covers(profile, inputs))
        return profiles, engine

    def _wanted(self, inputs: Sequence[Array]) -> tuple[Profile, ...]:
        """The profiles that were recorded when they take these inputs, else one made for them."""
        if self._stored is None and any(covers(profile, inputs) for profile in self._profiles):
            return self._profiles
        return (profile_at_runtime(self._recipe["profile"], self._island.inputs, inputs, self._last),)


def profile_of(data: Mapping[str, Any]) -> Profile:
    """A profile as the manifest holds it."""
    low, opt, high = (tuple(tuple(shape) for shape in data[key]) for key in ("min", "opt", "max"))
    values = tuple((item[0], *(tuple(part) for part in item[1:])) for item in data["values"])
    return Profile(low, opt, high, values)
