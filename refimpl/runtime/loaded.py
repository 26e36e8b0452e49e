"""A bundle for people who want names, checks and to know what ran: :func:`load`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import bundle, engines, env
from refimpl.bundle import Manifest
from refimpl.errors import RunError, SourceError, UnsupportedError, first_line
from refimpl.runtime.island import IslandRun
from refimpl.runtime.opened import BundleRuntime, IslandCall, engines_off, runtime_of
from refimpl.specs import Signature, TensorSpec

Array = np.ndarray[Any, Any]


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
        self._runtime = runtime_of(str(path / bundle.POINTER), manifest.bundle_id)
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
        found = runtime_of(str(self.path / bundle.POINTER), self.manifest.bundle_id)
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
