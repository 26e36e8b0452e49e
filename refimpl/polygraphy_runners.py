"""Runners for Polygraphy's ``Comparator``: a TensorFlow 2 SavedModel, and a bundle.

    from polygraphy.comparator import Comparator
    from refimpl.polygraphy_runners import BundleRunner, TfRunner

    results = Comparator.run([BundleRunner("my_bundle"), TfRunner("my_model")])
    assert Comparator.compare_accuracy(results)

Put TensorFlow last: Polygraphy measures relative errors against the second of two. ``docs/exporting.md`` lists what its
comparer passes over; ``refimpl check`` passes over nothing.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy import util
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from refimpl import bundle, engines, env, runtime
from refimpl.errors import RunError, SourceError, UnsupportedError, first_line
from refimpl.oracle.runners import SavedModelRunner
from refimpl.runtime.opened import runtime_of
from refimpl.specs import Signature, TensorSpec, as_array

Array = np.ndarray[Any, Any]
StrPath = str | os.PathLike[str]
# What both NumPy and Polygraphy have: no strings, no bfloat16, no complex numbers.
_DTYPES = frozenset("float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split())

__all__ = ["BundleRunner", "TfRunner"]


class _SignatureRunner(BaseRunner):  # type: ignore[misc]
    """What both runners share: one signature, its metadata, and the clock.

    A subclass opens its model in ``_open``, which gives the signature; it answers in ``_call``, and forgets in
    ``_close``.
    """

    def __init__(self, path: StrPath, signature: str, outputs: Sequence[str] | None, name: str | None) -> None:
        super().__init__(name=name, prefix=type(self).__name__)
        self._path = Path(path)
        self._key = signature
        self._wanted = tuple(outputs) if outputs is not None else None
        self._spec: Signature | None = None

    def _open(self) -> Signature:
        raise NotImplementedError

    def _call(self, inputs: Mapping[str, Array], spec: Signature) -> Mapping[str, Array]:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def activate_impl(self) -> None:
        """Load the model; Polygraphy calls it."""
        spec = self._open()
        try:
            self._spec = Signature(spec.key, spec.inputs, _chosen(spec, self._wanted))
            _check_representable(self._spec)
        except Exception:
            self.deactivate_impl()
            raise

    def get_input_metadata_impl(self) -> Any:
        """Names, dtypes and shapes of the inputs, with None for an unknown dimension; Polygraphy calls it."""
        assert self._spec is not None
        metadata = TensorMetadata()
        for item in self._spec.inputs:
            metadata.add(item.name, dtype=item.numpy_dtype(), shape=item.shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Any]) -> OrderedDict[str, Array]:
        """Run once; Polygraphy calls it. Takes arrays or PyTorch tensors, gives arrays by output name."""
        assert self._spec is not None
        inputs = {name: util.array.to_numpy(value) for name, value in feed_dict.items()}
        start = time.perf_counter()
        outputs = self._call(inputs, self._spec)
        self.inference_time = time.perf_counter() - start
        return OrderedDict((item.name, outputs[item.name]) for item in self._spec.outputs)

    def deactivate_impl(self) -> None:
        """Let the model go; Polygraphy calls it."""
        self._spec = None
        self._close()


class TfRunner(_SignatureRunner):
    """A SavedModel in TensorFlow.

    Args:
        saved_model: its directory.
        signature: the key of the signature to run; by default ``serving_default``, or the only one.
        tags: of the meta graph; by default ``serve``, or the only one.
        reference: run as ``refimpl record`` does: on the CPU, in one thread, without Grappler, and without oneDNN where
            that can still be chosen. It also takes SavedModels that ``tf.saved_model.load`` does not. Otherwise
            TensorFlow runs as it does for anybody.
        outputs: names of the outputs to return; by default all.
        name: for Polygraphy's messages.

    Activation raises:
        SourceError: no such SavedModel, tags, signature or output.
        UnsupportedError: TensorFlow is not installed, or Polygraphy cannot hold a tensor (strings).
    """

    def __init__(
        self,
        saved_model: StrPath,
        signature: str = "",
        *,
        tags: Sequence[str] | None = None,
        reference: bool = False,
        outputs: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(saved_model, signature, outputs, name)
        self._tags = tuple(tags) if tags is not None else None
        self._reference = reference
        self._model: Any = None

    def _open(self) -> Signature:
        if not self._reference:
            env.require_tensorflow()  # first: the session below would import it without oneDNN
        # The session's reader says in plain words what is wrong with a SavedModel, and knows every dtype and shape.
        session = SavedModelRunner(self._path, self._tags)
        spec = session.signature(_pick(self._key, tuple(session.signatures)))
        if self._reference:
            self._model = session
            return spec
        with closing(session):
            import tensorflow as tf

            try:
                self._model = tf.saved_model.load(str(self._path), tags=list(session.tags))
            except Exception as error:  # TensorFlow's loaders fail with anything, from KeyError to ValueError
                raise SourceError(
                    f"TensorFlow cannot load {self._path.name}: {first_line(error)}", hint="reference=True may"
                ) from error
        return spec

    def _call(self, inputs: Mapping[str, Array], spec: Signature) -> Mapping[str, Array]:
        if self._reference:
            return dict(self._model.run(inputs, spec.key))
        import tensorflow as tf

        feeds = {item.name: tf.constant(inputs[item.name], dtype=item.dtype) for item in spec.inputs}
        try:
            got = self._model.signatures[spec.key](**feeds)
        except tf.errors.OpError as error:
            raise RunError(f"TensorFlow fails on these inputs: {first_line(error)}", signature=spec.key) from error
        return {name: as_array(value.numpy()) for name, value in got.items()}

    def _close(self) -> None:
        if self._reference and self._model is not None:
            self._model.close()
        self._model = None


class BundleRunner(_SignatureRunner):
    """A bundle, its islands in engines.

    Args:
        bundle: its directory.
        signature: the key of the signature to run; by default ``serving_default``, or the only one.
        engines: kinds of engines that may run, in order of preference; by default all.
        outputs: names of the outputs to return; by default all.
        name: for Polygraphy's messages.

    Activation raises:
        BundleError: not a bundle, or damaged.
        SourceError: no such signature or output.
        UnsupportedError: an unknown kind of engine, no TensorFlow, or Polygraphy cannot hold a tensor (strings).

    Attributes:
        runs: for every call since the activation, what ran each island: read it, since a runner whose islands all ran
            in TensorFlow agrees with TensorFlow.
    """

    def __init__(
        self,
        bundle: StrPath,
        signature: str = "",
        *,
        engines: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(bundle, signature, outputs, name)
        self._engines = tuple(engines or ())
        self._loaded: runtime.LoadedBundle | None = None
        self.runs: list[tuple[runtime.IslandRun, ...]] = []

    def _open(self) -> Signature:
        self.runs.clear()
        self._loaded = runtime.load(self._path, engines=self._engines)
        return self._loaded.signature(self._key)

    def _call(self, inputs: Mapping[str, Array], spec: Signature) -> Mapping[str, Array]:
        assert self._loaded is not None
        # Engines belong to a bundle in a process, and another runner of it may have chosen others meanwhile.
        owner = runtime_of(str(self._loaded.path / bundle.POINTER), self._loaded.manifest.bundle_id)
        if owner.kinds != (kinds := self._engines or engines.KINDS):
            owner.use(kinds)
        result = self._loaded.run(inputs, spec.key)
        self.runs.append(result.islands)
        return result.outputs

    def _close(self) -> None:
        self._loaded = None


def _pick(key: str, known: Sequence[str]) -> str:
    if key:
        return key
    if "serving_default" in known or len(known) != 1:
        return "serving_default"
    return known[0]


def _chosen(spec: Signature, wanted: Sequence[str] | None) -> tuple[TensorSpec, ...]:
    known = {item.name: item for item in spec.outputs}
    for name in wanted or ():
        if name not in known:
            raise SourceError(f"no output {name!r}", hint=f"outputs: {', '.join(known)}", signature=spec.key)
    return tuple(known[name] for name in wanted) if wanted is not None else spec.outputs


def _check_representable(spec: Signature) -> None:
    """Refuse what Polygraphy has no dtype for, before it fails somewhere inside."""
    for side, items in (("input", spec.inputs), ("output", spec.outputs)):
        for item in items:
            if item.dtype not in _DTYPES:
                hint = (
                    "leave it out: outputs=[...]" if side == "output" else "use refimpl check, which takes all dtypes"
                )
                raise UnsupportedError(
                    f"Polygraphy cannot hold {side} {item.name!r}: it is {item.dtype}", hint=hint, signature=spec.key
                )
