"""Bundles that are open in this process, and the function behind every engine node."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import bundle, engines
from refimpl.bundle import Manifest
from refimpl.engines.tensorrt.copies import fetch
from refimpl.engines.tensorrt.dlpack import is_on_gpu
from refimpl.errors import BundleError
from refimpl.runtime.island import IslandRun, IslandRuntime
from refimpl.specs import TensorSpec

TOKEN = "refimpl.engine.v1"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class IslandCall:
    """Copies of what an island was given in one call and gave back; no outputs when TensorFlow ran it."""

    island: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...] | None


open_bundles: dict[tuple[str, str], BundleRuntime] = {}
_lock = threading.Lock()


def call_engine(asset: bytes, island: bytes, bundle_id: bytes, dtypes: bytes, *inputs: Any) -> list[Any]:
    """What an engine node calls.

    Args:
        asset: path of the bundle's pointer file, as TensorFlow resolved it.
        island: the island's name.
        bundle_id: identity of the bundle that the graph belongs to.
        dtypes: TensorFlow's names of the output dtypes, comma-separated.
        inputs: the island's inputs. TensorFlow copies what is on a GPU to the host before it calls a function of this
            kind; a caller that hands tensors on a GPU over (``__dlpack__``) gets such tensors back.

    Returns:
        Arrays: a bool scalar, True when an engine ran, and the island's outputs, or empty arrays when the native
        segment must. Neither TensorFlow nor ONNX Runtime copies an array on its way here and back.
    """
    owner, name = runtime_of(asset.decode(), bundle_id.decode()), island.decode()
    outputs: Sequence[Any] | None
    on_gpu = all(not isinstance(value, np.ndarray | np.generic) and is_on_gpu(value) for value in inputs)
    if inputs and on_gpu and not owner.recorded:
        outputs = owner.island(name).call_device(inputs)
    else:
        arrays = [_on_host(value) for value in inputs]
        outputs = owner.island(name).call(arrays)
        owner.keep(name, arrays, outputs)
    if outputs is None:
        empty = [np.zeros((0,), TensorSpec("", name, ()).numpy_dtype()) for name in dtypes.decode().split(",")]
        return [np.array(False), *empty]
    return [np.array(True), *outputs]


def _on_host(value: Any) -> Array:
    """An array; TensorFlow hands scalars over as NumPy scalars."""
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) or not is_on_gpu(value) else fetch(value)


def runtime_of(asset: str, bundle_id: str) -> BundleRuntime:
    """The bundle whose pointer lies at ``asset``, opened at the first call."""
    key = (asset, bundle_id)
    found = open_bundles.get(key)
    if found is None:
        with _lock:
            found = open_bundles.get(key)
            if found is None:
                found = open_bundles[key] = BundleRuntime(Path(asset).parent.parent, bundle_id)
    return found


class BundleRuntime:
    """The engines of one bundle in this process."""

    def __init__(self, path: Path, bundle_id: str) -> None:
        self.path = path
        self.problem = ""
        self.off = False  # no engine runs and nothing is counted: see engines_off
        self.trace: list[IslandRun] | None = None  # appended to while somebody listens
        self._tape: list[IslandCall] | None = None  # appended to while somebody records
        self.counts: collections.Counter[IslandRun] = collections.Counter()
        self.manifest: Manifest | None = None
        try:
            self.manifest = bundle.read(path, check_files=False)
            if self.manifest.bundle_id != bundle_id:
                self.problem = f"{path} holds another bundle than the one that was loaded"
        except BundleError as error:
            self.problem = error.message
        self._islands: dict[str, IslandRuntime] = {}
        self._lock = threading.Lock()
        self._listener = threading.Lock()
        self.kinds: tuple[str, ...] = engines.KINDS
        self.threads = 0

    def use(self, kinds: Sequence[str], threads: int = 0) -> None:
        """Allow only these kinds of engines, in this order, with so many CPU threads; open engines are closed."""
        with self._lock:
            self.kinds, self.threads = tuple(kinds), threads
            self._islands.clear()

    def island(self, name: str) -> IslandRuntime:
        found = self._islands.get(name)
        if found is None:
            with self._lock:
                found = self._islands.setdefault(name, IslandRuntime(self, name))
        return found

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[IslandRun]]:
        """What runs meanwhile, one listener at a time."""
        with self._listener:
            trace: list[IslandRun] = []
            with self._lock:
                self.trace = trace
            try:
                yield trace
            finally:
                with self._lock:
                    self.trace = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[IslandCall]]:
        """Every call of an island meanwhile, its arrays copied; for one recorder at a time."""
        tape: list[IslandCall] = []
        self._tape = tape
        try:
            yield tape
        finally:
            self._tape = None

    @property
    def recorded(self) -> bool:
        """Whether somebody records: who does gets arrays, so nothing stays on a GPU meanwhile."""
        return self._tape is not None

    def keep(self, island: str, inputs: Sequence[Array], outputs: Sequence[Array] | None) -> None:
        """Note a call of an island while somebody records."""
        if (tape := self._tape) is not None:
            copied = None if outputs is None else tuple(np.array(value) for value in outputs)
            tape.append(IslandCall(island, tuple(np.array(value) for value in inputs), copied))

    def count(self, run: IslandRun) -> None:
        with self._lock:
            self.counts[run] += 1
            if self.trace is not None:
                self.trace.append(run)


@contextlib.contextmanager
def engines_off(path: Path, bundle_id: str) -> Iterator[None]:
    """Meanwhile TensorFlow runs every island of a bundle, and nothing is counted or said of it."""
    owner = runtime_of(str(path / bundle.POINTER), bundle_id)
    owner.off = True
    try:
        yield
    finally:
        owner.off = False


def forget(path: Path) -> None:
    """Close the engines of every bundle that was opened at ``path``; the next call opens them again."""
    with _lock:
        for key in [key for key, opened in open_bundles.items() if opened.path.absolute() == Path(path).absolute()]:
            del open_bundles[key]
