"""A bundle for people who want names, checks and to know what ran: :func:`load`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import bundle, engines, env
from refimpl.bundle import Manifest
from refimpl.engines.tensorrt.copies import fetch, place
from refimpl.engines.tensorrt.dlpack import is_on_gpu
from refimpl.errors import RecipeError, RunError, SourceError, UnsupportedError, first_line
from refimpl.runtime.direct import direct_answer
from refimpl.runtime.island import IslandRun, through_host
from refimpl.runtime.on_gpu import gpu_of, misfit
from refimpl.runtime.opened import BundleRuntime, IslandCall, engines_off, runtime_of
from refimpl.specs import Signature, TensorSpec, as_array
from refimpl.text import counted

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RunResult:
    """Outputs of a run by name, in the signature's order, and what ran each island."""

    outputs: dict[str, Array]
    islands: tuple[IslandRun, ...]


class LoadedBundle:
    """A bundle ready to run; made by :func:`load`. Its methods may be called from several threads at once."""

    def __init__(self, path: Path, manifest: Manifest, engine_kinds: Sequence[str] | None, threads: int = 0) -> None:
        self.path = path
        self.manifest = manifest
        self._kinds, self._threads = tuple(engine_kinds or engines.KINDS), threads
        self._pointer = str(path / bundle.POINTER)
        self._runtime = runtime_of(self._pointer, manifest.bundle_id)
        self._runtime.use(self._kinds, threads)
        self._signatures = {record.signature.key: record.signature for record in manifest.signatures}
        self._direct = {
            record.signature.key: direct_answer(record, self._current)
            for record in manifest.signatures
            if record.direct is not None
        }
        self._on_gpu = {
            record.signature.key: direct_answer(record, self._current, on_gpu=True)
            for record in manifest.signatures
            if record.direct is not None
        }
        self._lock = threading.Lock()
        self._model: Any = None if self._direct else self._load_model()

    @property
    def model(self) -> Any:
        """What ``tf.saved_model.load`` gives. Where engines answer a whole signature, it is loaded when first needed.

        Raises:
            BundleError: a file of the SavedModel was changed since :func:`load` compared it.
            UnsupportedError: TensorFlow is not installed.
        """
        if self._model is None:
            with self._lock:
                if self._model is None:
                    for name in self.manifest.files:
                        if not name.startswith(f"{bundle.FOLDER}/"):
                            bundle.check_file(self.path, self.manifest, name)
                    self._model = self._load_model()
        return self._model

    def _load_model(self) -> Any:
        env.require_tensorflow()
        import tensorflow as tf

        return tf.saved_model.load(str(self.path), tags=list(self.manifest.tags) or None)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every signature by key, converted or not."""
        return self._signatures

    def infer(self, inputs: Mapping[str, Any] | Any, signature: str = "") -> dict[str, Any]:
        """The outputs by name, as fast as they can be had.

        A signature that is one island is answered by its engine: TensorFlow takes no part, and is not even imported.
        Where the engine cannot answer (an empty input, NaN where the island is for finite values, a failure), and for
        every other signature, TensorFlow runs the graph. Use :meth:`run` to be told which.

        Tensors on a GPU are answered with tensors on that GPU. Where one TensorRT engine is the whole signature,
        nothing is copied; everything else goes through the host and back, which is said once as a warning.

        Args:
            inputs: as for :meth:`run`; or the array itself where the signature has one input. All on the host, or all
                on one GPU: contiguous, with ``__dlpack__``, ``__dlpack_device__``, ``dtype`` and ``shape``, as those of
                PyTorch, CuPy, JAX and TensorFlow.
            signature: as for :meth:`run`.

        Returns:
            Arrays in the signature's order. They may be views of memory that an engine handed over. For inputs on a
            GPU, tensors that have ``__dlpack__`` (``torch.from_dlpack``); strings stay arrays.

        Raises:
            SourceError, RunError: as :meth:`run`; SourceError also for inputs in different places.
            BundleError, UnsupportedError: TensorFlow is needed, and cannot be had (see :attr:`model`).
        """
        spec = self.signature(signature)
        given = inputs if isinstance(inputs, Mapping) else _only(inputs, spec)
        if (gpu := gpu_of(given, spec)) is not None:
            return self._infer_on(gpu, given, spec)
        arrays = _checked(given, spec)
        answer = self._direct.get(spec.key)
        if answer is not None and (found := answer(arrays)) is not None:
            return found
        return self._tensorflow(arrays, spec)

    def _infer_on(self, gpu: int, inputs: Mapping[str, Any], spec: Signature) -> dict[str, Any]:
        """Answer tensors on a GPU there."""
        tensors = _checked(inputs, spec, _fit_on_gpu)
        answer = self._on_gpu.get(spec.key)
        found = None if answer is None else answer(tensors)
        if found is None:
            if answer is None:
                through_host(f"{self.path}", f"signature {spec.key}", "TensorFlow runs a part of it")
            found = self._tensorflow({name: fetch(value) for name, value in tensors.items()}, spec)
        return {name: place(value, gpu) if isinstance(value, np.ndarray) else value for name, value in found.items()}

    def run(self, inputs: Mapping[str, Any], signature: str = "") -> RunResult:
        """Run one signature in TensorFlow, and say what ran each island.

        Only one call of a bundle listens to its islands at a time; the others wait for it. :meth:`infer` never waits.

        Args:
            inputs: arrays by input name; dtypes and shapes as the signature says.
            signature: its key; may be left out when there is ``serving_default`` or only one.

        Raises:
            SourceError: no such signature, or an input is missing, unknown, or of the wrong dtype or shape.
            RunError: TensorFlow fails on these inputs.
        """
        spec = self.signature(signature)
        arrays = _checked(inputs, spec)
        with self._current().listening() as trace:
            outputs = self._tensorflow(arrays, spec)
        return RunResult(outputs, tuple(trace))

    def _tensorflow(self, arrays: Mapping[str, Array], spec: Signature) -> dict[str, Array]:
        function = self.model.signatures[spec.key]
        import tensorflow as tf

        feeds = {item.name: tf.constant(arrays[item.name], dtype=item.dtype) for item in spec.inputs}
        try:
            raw = function(**feeds)
        except tf.errors.OpError as error:
            text = first_line(error)
            raise RunError(f"TensorFlow fails on these inputs: {text}", signature=spec.key) from error
        return {item.name: as_array(raw[item.name].numpy()) for item in spec.outputs}

    def run_native(self, inputs: Mapping[str, Any], signature: str = "") -> RunResult:
        """As :meth:`run`, with every island in TensorFlow: what the model's own ops answer in this process.

        No island is listed in the result. Other calls of this bundle meanwhile run without engines too.
        """
        with engines_off(self.path, self.manifest.bundle_id):
            return self.run(inputs, signature)

    def counts(self) -> dict[IslandRun, int]:
        """How often each island ran where since the bundle was first used in this process."""
        return dict(self._current().counts)

    def recording(self) -> AbstractContextManager[list[IslandCall]]:
        """A context that collects what every island is given, and gives back, while the bundle runs."""
        return self._current().recording()

    def _current(self) -> BundleRuntime:
        """What the engine nodes of the graph call: another one after :func:`forget`."""
        found = runtime_of(self._pointer, self.manifest.bundle_id)
        if found is not self._runtime:
            found.use(self._kinds, self._threads)
            self._runtime = found
        return found

    def signature(self, key: str = "") -> Signature:
        """The signature of this key; without one, ``serving_default`` or the only one.

        Raises:
            SourceError: no such signature.
        """
        known = self._signatures
        if not key:
            key = "serving_default" if "serving_default" in known or len(known) != 1 else next(iter(known))
        if key not in known:
            raise SourceError(
                f"no signature {key!r} in {self.path}", hint=f"this bundle has: {', '.join(known) or 'none'}"
            )
        return known[key]


def _only(value: Any, signature: Signature) -> dict[str, Any]:
    """The inputs of a signature that has one, from its value."""
    if len(signature.inputs) != 1:
        hint = "give a mapping of " + (", ".join(item.describe() for item in signature.inputs) or "nothing")
        raise SourceError(
            f"it takes {counted(len(signature.inputs), 'input')}, not an array", hint=hint, signature=signature.key
        )
    return {signature.inputs[0].name: value}


def _fit_array(spec: TensorSpec, value: Any) -> Array:
    return np.asarray(spec.fit(fetch(value) if is_on_gpu(value) else value), order="C")


def _fit_on_gpu(spec: TensorSpec, value: Any) -> Any:
    if why := misfit(spec, value):
        raise ValueError(why)
    return value


def _checked(
    inputs: Mapping[str, Any], signature: Signature, fit: Callable[[TensorSpec, Any], Any] = _fit_array
) -> dict[str, Any]:
    """C-contiguous arrays of the right names, dtypes and shapes; or what another ``fit`` makes of the values."""
    arrays = {item.name: _fit(item, inputs, signature, fit) for item in signature.inputs}
    if len(inputs) != len(arrays):
        unknown = min(set(inputs) - set(arrays))
        hint = f"inputs: {', '.join(arrays) or 'none'}"
        raise SourceError(f"unknown input {unknown!r}", hint=hint, signature=signature.key)
    return arrays


def _fit(
    spec: TensorSpec, inputs: Mapping[str, Any], signature: Signature, fit: Callable[[TensorSpec, Any], Any]
) -> Any:
    if spec.name not in inputs:
        hint = "inputs: " + ", ".join(item.describe() for item in signature.inputs)
        raise SourceError(f"input {spec.name!r} is missing", hint=hint, signature=signature.key)
    try:
        return fit(spec, inputs[spec.name])
    except ValueError as error:
        raise SourceError(f"input {error}", hint=f"expected {spec.describe()}", signature=signature.key) from None


def load(
    path: str | os.PathLike[str], *, engines: Sequence[str] | None = None, intra_op_threads: int = 0
) -> LoadedBundle:
    """Load a bundle, every file checked against its SHA-256 first.

    Args:
        path: the bundle's directory.
        engines: kinds of engines that may run, in order of preference; ``()`` or None means all of them. The choice
            holds for this bundle in this process, as does the next.
        intra_op_threads: how many CPU threads may share one op of an engine; 0 leaves it to ONNX Runtime, which takes
            one for each core. TensorFlow's own threads are set with ``tf.config.threading``.

    Raises:
        BundleError: not a bundle, damaged, or of a newer format.
        RecipeError: ``intra_op_threads`` is no number of threads.
        UnsupportedError: an unknown kind of engine, or TensorFlow is not installed and no engine answers a signature.
    """
    for kind in engines or ():
        if kind not in ("tensorrt", "onnxruntime", "numpy"):
            raise UnsupportedError(f"engine {kind!r} is not known", hint="choose from tensorrt, onnxruntime, numpy")
    if isinstance(intra_op_threads, bool) or not isinstance(intra_op_threads, int) or intra_op_threads < 0:
        raise RecipeError(
            f"intra_op_threads is {intra_op_threads!r}", hint="give a number of threads; 0 takes one for each core"
        )
    folder = Path(path).absolute()
    return LoadedBundle(folder, bundle.read(folder), engines, intra_op_threads)
