"""Run a bundle: the function behind every engine node, and :func:`load` for people who want names, traces and checks.

``import refimpl`` registers :func:`call_engine` with TensorFlow; from then on ``tf.saved_model.load`` on a bundle is
enough.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import bundle, engines, env
from refimpl.bundle import IslandRecord, Manifest
from refimpl.errors import BundleError, RefimplError, RunError, SourceError, UnsupportedError, first_line
from refimpl.numerics import disagreement, has_nonfinite
from refimpl.specs import Signature, TensorSpec
from refimpl.tolerance import tolerance_for

TOKEN = "refimpl.engine.v1"
NATIVE = "native"
# Reasons that are by design, not failures; every other reason to run natively is a fallback that a check reports.
EMPTY = "empty input"
NOT_FINITE = "non-finite values"

Array = np.ndarray[Any, Any]
_log = logging.getLogger("refimpl.runtime")
_open_bundles: dict[tuple[str, str], BundleRuntime] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class IslandRun:
    """What ran an island in one call."""

    island: str
    engine: str  # "tensorrt", "onnxruntime", "numpy", or "native" for TensorFlow itself
    reason: str  # why native; "" otherwise


def call_engine(asset: bytes, island: bytes, bundle_id: bytes, dtypes: bytes, *inputs: Array) -> list[Any]:
    """What an engine node calls.

    Args:
        asset: path of the bundle's pointer file, as TensorFlow resolved it.
        island: the island's name.
        bundle_id: identity of the bundle that the graph belongs to.
        dtypes: TensorFlow's names of the output dtypes, comma-separated.
        inputs: the island's inputs.

    Returns:
        A bool scalar, True when an engine ran, and the island's outputs, or empty arrays when the native segment must.
    """
    arrays = [np.asarray(value) for value in inputs]  # TensorFlow hands scalars over as NumPy scalars
    outputs = _runtime(asset.decode(), bundle_id.decode()).island(island.decode()).call(arrays)
    if outputs is None:
        return [
            np.False_,
            *(np.zeros((0,), TensorSpec("", name, ()).numpy_dtype()) for name in dtypes.decode().split(",")),
        ]
    return [np.True_, *outputs]


def _runtime(asset: str, bundle_id: str) -> BundleRuntime:
    key = (asset, bundle_id)
    found = _open_bundles.get(key)
    if found is None:
        with _lock:
            found = _open_bundles.get(key)
            if found is None:
                found = _open_bundles[key] = BundleRuntime(Path(asset).parent.parent, bundle_id)
    return found


class BundleRuntime:
    """The engines of one bundle in this process."""

    def __init__(self, path: Path, bundle_id: str) -> None:
        self.path = path
        self.problem = ""
        self.trace: list[IslandRun] | None = None  # appended to while somebody listens
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

    def use(self, kinds: Sequence[str]) -> None:
        """Allow only these kinds of engines, in this order; engines already open are closed."""
        with self._lock:
            self.kinds = tuple(kinds)
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

    def count(self, run: IslandRun) -> None:
        with self._lock:
            self.counts[run] += 1
            if self.trace is not None:
                self.trace.append(run)


class IslandRuntime:
    """One island: opens the best engine that works here at the first call, and falls back when it cannot run."""

    def __init__(self, owner: BundleRuntime, name: str) -> None:
        self._owner = owner
        self._name = name
        self._lock = threading.Lock()
        self._candidates: list[tuple[str, engines.OpenEngine]] | None = None
        self._problems: list[str] = []
        records = owner.manifest.islands if owner.manifest else ()
        self._record = next((record for record in records if record.name == name), None)

    def call(self, inputs: Sequence[Array]) -> list[Array] | None:
        """The outputs, or None when TensorFlow must run the native segment; either way it is counted."""
        record = self._record
        if record is None or self._owner.problem:
            return self._native(self._owner.problem or f"the manifest knows no island {self._name}")
        if any(array.size == 0 for array in inputs):
            return self._native(EMPTY)
        if record.finite_only and any(map(has_nonfinite, inputs)):
            return self._native(NOT_FINITE)
        reasons = []
        for kind, engine in self._open(record):
            try:
                outputs = engine.run(inputs)
            except RunError as error:
                reasons.append(f"{kind}: {error.message}")
                continue
            if record.finite_only and any(map(has_nonfinite, outputs)):
                return self._native(NOT_FINITE)
            if reasons:
                _warn_once(
                    f"{self._owner.path}/{self._name}/{reasons}",
                    "refimpl: island %s: %s; %s runs instead",
                    self._name,
                    reasons[0],
                    kind,
                )
            self._owner.count(IslandRun(self._name, kind, ""))
            return outputs
        return self._native("; ".join(reasons or self._problems) or "the bundle stores no engine for it")

    def _native(self, reason: str) -> list[Array] | None:
        self._owner.count(IslandRun(self._name, NATIVE, reason))
        if self._owner.problem:
            _warn_once(f"{self._owner.path}/{reason}", "refimpl: TensorFlow runs all islands: %s", reason)
        elif reason not in (EMPTY, NOT_FINITE):
            _warn_once(
                f"{self._owner.path}/{self._name}/{reason}",
                "refimpl: TensorFlow runs island %s: %s",
                self._name,
                reason,
            )
        return None

    def _open(self, record: IslandRecord) -> list[tuple[str, engines.OpenEngine]]:
        if self._candidates is None:
            with self._lock:
                if self._candidates is None:
                    self._candidates = list(self._opened(record))
                    picked = ", ".join(kind for kind, _ in self._candidates) or NATIVE
                    _log.info(
                        "island %s runs on %s%s", record.name, picked, "".join(f"; {item}" for item in self._problems)
                    )
        return self._candidates

    def _opened(self, record: IslandRecord) -> list[tuple[str, engines.OpenEngine]]:
        stored = {engine.kind: engine for engine in record.engines}
        if "onnxruntime" in stored:
            stored["numpy"] = stored["onnxruntime"]  # the same ONNX file
        opened, broken = [], []
        for kind in self._owner.kinds:
            if kind not in stored:
                continue
            module = engines.kind(kind)
            if reason := module.why_not_here():
                self._problems.append(f"{kind}: {reason}")
                continue
            try:
                engine = module.open(self._checked_engine(stored[kind].file))
                self._prove(record, stored[kind].precision, engine)
            except Exception as error:  # noqa: BLE001  (a library may fail in its own ways: TensorFlow still answers)
                why = error.message if isinstance(error, RefimplError) else f"{type(error).__name__}: {error}"
                broken.append(f"{kind}: {why}")
                continue
            opened.append((kind, engine))
        self._problems += broken
        if opened and broken:
            _warn_once(
                f"{self._owner.path}/{self._name}/{broken}",
                "refimpl: island %s: %s; %s runs instead",
                self._name,
                "; ".join(broken),
                opened[0][0],
            )
        return opened

    def _checked_engine(self, name: str) -> Path:
        """An engine's file and the weights that may lie beside it, their checksums compared."""
        assert self._owner.manifest is not None
        if (weights := name + bundle.WEIGHTS_SUFFIX) in self._owner.manifest.files:
            bundle.check_file(self._owner.path, self._owner.manifest, weights)
        return bundle.check_file(self._owner.path, self._owner.manifest, name)

    def _prove(self, record: IslandRecord, precision: str, engine: engines.OpenEngine) -> None:
        """Run the stored probe on the real device; an engine that disagrees with TensorFlow is never used.

        Raises:
            RunError: it disagrees, or cannot run.
        """
        if not record.probe:
            return
        assert self._owner.manifest is not None
        inputs, wanted = read_probe(bundle.check_file(self._owner.path, self._owner.manifest, record.probe))
        for spec, want, got in zip(record.outputs, wanted, engine.run(inputs), strict=True):
            if why := disagreement(want, got, tolerance_for(precision, spec.dtype)):
                raise RunError(f"its engine disagrees with TensorFlow on this machine: {why}")


def write_probe(file: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
    """Store inputs of an island and the outputs that TensorFlow gives for them."""
    arrays = {f"input_{i}": array for i, array in enumerate(inputs)} | {
        f"output_{i}": array for i, array in enumerate(outputs)
    }
    np.savez(file, **arrays)  # type: ignore[arg-type]


def read_probe(file: Path) -> tuple[list[Array], list[Array]]:
    """The inputs and outputs that :func:`write_probe` stored."""
    with np.load(file, allow_pickle=False) as data:
        sides = []
        for side in ("input_", "output_"):
            count = sum(name.startswith(side) for name in data.files)
            sides.append([data[f"{side}{index}"] for index in range(count)])
    return sides[0], sides[1]


_warned: set[str] = set()


def _warn_once(cause: str, message: str, *args: object) -> None:
    with _lock:
        known = cause in _warned
        _warned.add(cause)
    if not known:
        _log.warning(message, *args)


@dataclass(frozen=True)
class RunResult:
    """Outputs of a run by name, in the signature's order, and what ran each island."""

    outputs: dict[str, Array]
    islands: tuple[IslandRun, ...]


class LoadedBundle:
    """A bundle ready to run; made by :func:`load`."""

    def __init__(self, path: Path, manifest: Manifest, engine_kinds: Sequence[str] | None) -> None:
        import tensorflow as tf

        self.path = path
        self.manifest = manifest
        self.model = tf.saved_model.load(str(path), tags=list(manifest.tags) or None)
        self._kinds = tuple(engine_kinds or engines.KINDS)
        self._runtime = _runtime(str(path / bundle.POINTER), manifest.bundle_id)
        self._runtime.use(self._kinds)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every signature by key, converted or not."""
        return {record.signature.key: record.signature for record in self.manifest.signatures}

    def run(self, inputs: Mapping[str, Any], signature: str = "") -> RunResult:
        """Run one signature.

        Args:
            inputs: arrays by input name; dtypes and shapes as the signature says.
            signature: its key; may be left out when there is ``serving_default`` or only one.

        Raises:
            SourceError: no such signature, or an input is missing, unknown, or of the wrong dtype or shape.
            RunError: TensorFlow fails on these inputs.
        """
        import tensorflow as tf

        spec = self.signature(signature)
        feeds = {item.name: tf.constant(_checked(item, inputs, spec), dtype=item.dtype) for item in spec.inputs}
        if unknown := sorted(set(inputs) - set(feeds)):
            raise SourceError(
                f"unknown input {unknown[0]!r}", hint=f"inputs: {', '.join(feeds) or 'none'}", signature=spec.key
            )
        with self._current().listening() as trace:
            try:
                raw = self.model.signatures[spec.key](**feeds)
            except tf.errors.OpError as error:
                text = first_line(error)
                raise RunError(f"TensorFlow fails on these inputs: {text}", signature=spec.key) from error
        return RunResult({item.name: raw[item.name].numpy() for item in spec.outputs}, tuple(trace))

    def counts(self) -> dict[IslandRun, int]:
        """How often each island ran where since the bundle was first used in this process."""
        return dict(self._current().counts)

    def _current(self) -> BundleRuntime:
        """What the engine nodes of the graph call: another one after :func:`forget`."""
        found = _runtime(str(self.path / bundle.POINTER), self.manifest.bundle_id)
        if found is not self._runtime:
            found.use(self._kinds)
            self._runtime = found
        return found

    def signature(self, key: str = "") -> Signature:
        """The signature of this key; without one, ``serving_default`` or the only one.

        Raises:
            SourceError: no such signature.
        """
        known = self.signatures
        if not key:
            key = "serving_default" if "serving_default" in known or len(known) != 1 else next(iter(known))
        if key not in known:
            raise SourceError(
                f"no signature {key!r} in {self.path}", hint=f"this bundle has: {', '.join(known) or 'none'}"
            )
        return known[key]


def _checked(spec: TensorSpec, inputs: Mapping[str, Any], signature: Signature) -> Array:
    if spec.name not in inputs:
        hint = "inputs: " + ", ".join(item.describe() for item in signature.inputs)
        raise SourceError(f"input {spec.name!r} is missing", hint=hint, signature=signature.key)
    try:
        return spec.fit(inputs[spec.name])
    except ValueError as error:
        raise SourceError(f"input {error}", hint=f"expected {spec.describe()}", signature=signature.key) from None


def load(path: str | os.PathLike[str], *, engines: Sequence[str] | None = None) -> LoadedBundle:
    """Load a bundle, every file checked against its SHA-256 first.

    Args:
        path: the bundle's directory.
        engines: kinds of engines that may run, in order of preference; ``()`` or None means all of them. The choice
            holds for this bundle in this process.

    Raises:
        BundleError: not a bundle, damaged, or of a newer format.
        UnsupportedError: an unknown kind of engine, or TensorFlow is not installed.
    """
    for kind in engines or ():
        if kind not in ("tensorrt", "onnxruntime", "numpy"):
            raise UnsupportedError(f"engine {kind!r} is not known", hint="choose from tensorrt, onnxruntime, numpy")
    folder = Path(path).absolute()
    manifest = bundle.read(folder)
    env.require_tensorflow()
    return LoadedBundle(folder, manifest, engines)


def forget(path: Path) -> None:
    """Close the engines of every bundle that was opened at ``path``; the next call opens them again."""
    with _lock:
        for key in [key for key, opened in _open_bundles.items() if opened.path.absolute() == Path(path).absolute()]:
            del _open_bundles[key]
