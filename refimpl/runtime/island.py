"""One island in this process: which engine runs it, and when TensorFlow must."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from refimpl import bundle, engines, tftrt_env
from refimpl.bundle import EngineRecord, IslandRecord, Manifest
from refimpl.engines import tensorrt
from refimpl.engines.tensorrt.copies import fetch
from refimpl.errors import RefimplError, RunError
from refimpl.numerics import disagreement, has_nonfinite
from refimpl.runtime.building import GrowingEngine
from refimpl.runtime.probes import read_probe
from refimpl.tolerance import tolerance_for

NATIVE = "native"
# Reasons that are by design, not failures; every other reason to run natively is a fallback that a check reports.
EMPTY = "empty input"
NOT_FINITE = "non-finite values"
MADE_NOT_FINITE = "non-finite values made by its engine"  # of finite ones: an overflow, or TensorFlow makes them too
BY_DESIGN = (EMPTY, NOT_FINITE, MADE_NOT_FINITE)
DISALLOWED = "User disallowed engine native segment execution."  # TF-TRT's words

Array = np.ndarray[Any, Any]
_log = logging.getLogger("refimpl.runtime")
_lock = threading.Lock()


class IslandRun(NamedTuple):
    """What ran an island in one call. A tuple, since every call counts one and a tuple's hash costs next to nothing."""

    island: str
    engine: str  # "tensorrt", "onnxruntime", "numpy", or "native" for TensorFlow itself
    reason: str  # why native; "" otherwise


class Owner(Protocol):
    """What an island needs to know of its bundle."""

    path: Path
    problem: str
    manifest: Manifest | None
    kinds: tuple[str, ...]
    threads: int
    off: bool

    def count(self, run: IslandRun) -> None:
        """Note what ran an island."""


class IslandRuntime:
    """One island: opens the best engine that works here at the first call, and falls back when it cannot run."""

    def __init__(self, owner: Owner, name: str) -> None:
        self._owner = owner
        self._name = name
        self._lock = threading.Lock()
        self._candidates: list[tuple[IslandRun, engines.OpenEngine]] | None = None
        self._problems: list[str] = []
        records = owner.manifest.islands if owner.manifest else ()
        self._record = next((record for record in records if record.name == name), None)

    def call(self, inputs: Sequence[Array]) -> list[Array] | None:
        """The outputs, or None when TensorFlow must run the native segment; either way it is counted."""
        if self._owner.off:
            return None
        found = self.attempt(inputs)
        if isinstance(found, str):
            self._native(found)
            return None
        return found

    def attempt(self, inputs: Sequence[Array]) -> list[Array] | str:
        """The outputs, counted; or why TensorFlow must run the native segment, which is not: its node will say so."""
        record = self._record
        if record is None or self._owner.problem:
            return self._owner.problem or f"the manifest knows no island {self._name}"
        for array in inputs:
            if not array.size:
                return EMPTY
        reasons = []
        for run, engine in self._candidates or self._open(record):
            try:
                outputs = _run(engine, inputs, record.finite_only)
            except engines.NotFiniteError as error:
                return MADE_NOT_FINITE if error.made else NOT_FINITE
            except RunError as error:
                reasons.append(f"{run.engine}: {error.message}")
                continue
            if reasons:
                _warn_once(
                    f"{self._owner.path}/{self._name}/{reasons}",
                    "refimpl: island %s: %s; %s runs instead",
                    self._name,
                    reasons[0],
                    run.engine,
                )
            self._owner.count(run)
            return outputs
        if record.finite_only and any(map(has_nonfinite, inputs)):
            return NOT_FINITE  # whatever engines there were, it was for TensorFlow to answer
        return "; ".join(reasons or self._problems) or "the bundle stores no engine for it"

    def call_device(self, tensors: Sequence[Any]) -> list[Any] | None:
        """Like :meth:`call` for tensors on a GPU; see :meth:`attempt_device`."""
        if self._owner.off:
            return None
        found = self.attempt_device(tensors)
        if isinstance(found, str):
            self._native(found)
            return None
        return found

    def attempt_device(self, tensors: Sequence[Any]) -> list[Any] | str:
        """Like :meth:`attempt` for tensors on a GPU, handed over by DLPack: nothing is copied where that can be.

        Whether values are finite is looked at on the GPU. Through the host goes what has no elements, and what the
        first engine cannot run on the device; what :meth:`attempt` says holds for it then.

        Returns:
            As :meth:`attempt`; of tensors with ``__dlpack__`` when they stayed on the GPU.
        """
        record = self._record
        if record is not None and not self._owner.problem and all(0 not in tuple(item.shape) for item in tensors):
            try:
                run, engine = next(iter(self._candidates or self._open(record)), (None, None))
                if run is None or not isinstance(engine, engines.DeviceEngine):
                    raise RunError("no engine of it runs on the GPU here")
                outputs = engine.run_device(tensors, record.finite_only)
            except engines.NotFiniteError as error:
                return MADE_NOT_FINITE if error.made else NOT_FINITE
            except RunError as error:
                through_host(f"{self._owner.path}/{self._name}", f"island {self._name}", error.message)
            else:
                self._owner.count(run)
                return list(outputs)
        return self.attempt([fetch(item) for item in tensors])

    def problem_of(self, kind: str) -> str:
        """Why a kind of engine does not run it here; "" when it does: it is open, and has given its probe's answers."""
        if self._record is None or self._owner.problem:
            return self._owner.problem or f"the manifest knows no island {self._name}"
        if any(run.engine == kind for run, _ in self._open(self._record)):
            return ""
        return "; ".join(self._problems) or "the bundle stores no engine for it"

    def _native(self, reason: str) -> None:
        """Count that TensorFlow runs it, say why once, and raise where that is forbidden."""
        self._owner.count(IslandRun(self._name, NATIVE, reason))
        if self._owner.problem:
            _warn_once(f"{self._owner.path}/{reason}", "refimpl: TensorFlow runs all islands: %s", reason)
        elif reason not in BY_DESIGN:
            _warn_once(
                f"{self._owner.path}/{self._name}/{reason}",
                "refimpl: TensorFlow runs island %s: %s",
                self._name,
                reason,
            )
        if reason not in BY_DESIGN and not tftrt_env.native_allowed():
            raise RunError(
                DISALLOWED,
                hint=f"it was forbidden by {tftrt_env.NATIVE}, and no engine ran: {reason}",
                island=self._name,
            )

    def _open(self, record: IslandRecord) -> list[tuple[IslandRun, engines.OpenEngine]]:
        if self._candidates is None:
            with self._lock:
                if self._candidates is None:
                    opened = self._opened(record)
                    picked = ", ".join(kind for kind, _ in opened) or NATIVE
                    _log.info(
                        "island %s runs on %s%s", record.name, picked, "".join(f"; {item}" for item in self._problems)
                    )
                    self._candidates = [(IslandRun(self._name, kind, ""), engine) for kind, engine in opened]
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
            if not stored[kind].file and not self._may_build():
                broken.append(f"{kind}: no engine was built, and none is built here (allow_build_at_runtime=False)")
                continue
            try:
                engine = self._engine(record, kind, stored[kind])
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

    def _engine(self, record: IslandRecord, kind: str, stored: EngineRecord) -> engines.OpenEngine:
        """The stored engine, proven; one of TensorRT grows to shapes that it does not take, where that is allowed."""
        engine = None
        grows = kind == "tensorrt" and self._may_build()
        try:
            if stored.file:
                engine = self._checked_and_opened(kind, stored)
                self._prove(record, stored.precision, engine)
        except RefimplError as error:
            if not grows:
                raise
            engine = None
            text = "refimpl: island %s: its stored engine is not used here (%s); another is built"
            _warn_once(f"{self._owner.path}/{self._name}/{error.message}", text, self._name, error.message)
        if engine is not None and not (grows and stored.profiles):
            return engine
        assert self._owner.manifest is not None
        source = next(item for item in record.engines if item.kind == "onnxruntime")
        model = self._checked_engine(source.file)
        return GrowingEngine(record, stored, engine, model, self._owner.manifest.recipe, self._owner.threads)

    def _may_build(self) -> bool:
        return bool(self._owner.manifest and self._owner.manifest.recipe.get("build_at_runtime"))

    def _checked_and_opened(self, kind: str, stored: EngineRecord) -> engines.OpenEngine:
        """An engine whose file, and weights beside it, stayed the same from before the checksum until it was open."""
        file = self._owner.path / stored.file
        watched = (file, file.with_name(file.name + bundle.WEIGHTS_SUFFIX))
        before = [_state(item) for item in watched]
        engine = self._opened_as_recorded(kind, stored, self._checked_engine(stored.file))
        if [_state(item) for item in watched] != before:
            raise RunError(f"{file} was changed while it was opened")
        return engine

    def _opened_as_recorded(self, kind: str, stored: EngineRecord, file: Path) -> engines.OpenEngine:
        """One of TensorRT is opened only where its record says that it may run."""
        if kind != tensorrt.NAME:
            return engines.kind(kind).open(file, self._owner.threads)
        if why := tensorrt.refusal(stored.version, tensorrt.version(), stored.targets):
            raise RunError(why)
        assert self._owner.manifest is not None
        kernels = stored.file + bundle.KERNELS_SUFFIX
        if kernels not in self._owner.manifest.files:
            return tensorrt.open(file)
        return tensorrt.open_with(file, bundle.check_file(self._owner.path, self._owner.manifest, kernels))

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


def _run(engine: engines.OpenEngine, inputs: Sequence[Array], finite_only: bool) -> list[Array]:
    """Run once; whether values are finite is looked at where they are."""
    if not finite_only:
        return engine.run(inputs)
    looks = getattr(engine, "run_finite", None)  # asking for the Protocol takes microseconds in every call
    return list(looks(inputs)) if looks else engines.looked_at(engine.run, inputs)


def _state(file: Path) -> tuple[int, ...]:
    """What changes when a file is written to or replaced; empty when there is none."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def through_host(where: str, what: str, why: str) -> None:
    """Say once that tensors on a GPU are copied to the host and back."""
    _warn_once(f"{where}/{why}", "refimpl: %s goes through the host: %s", what, why)


_warned: set[str] = set()


def _warn_once(cause: str, message: str, *args: object) -> None:
    with _lock:
        known = cause in _warned
        _warned.add(cause)
    if not known:
        _log.warning(message, *args)
