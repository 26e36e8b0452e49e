"""The last gate: load the finished bundle as a user will, and compare it with the model it was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from refimpl import bundle, runtime
from refimpl.bundle import Manifest, SignatureRecord
from refimpl.converter.plan import Seen
from refimpl.converter.source import Source
from refimpl.errors import BuildError, InternalError, first_line
from refimpl.numerics import disagreement
from refimpl.tolerance import tolerance_for

Run = Callable[[str, Mapping[str, Any]], dict[str, Any]]  # signature key, inputs -> outputs


def prove(
    folder: Path, source: Source, manifest: Manifest, samples: Mapping[str, Seen], *, has_state: bool
) -> tuple[str, ...]:
    """Load the bundle with ``tf.saved_model.load`` and run every converted signature on its samples.

    Args:
        folder: the bundle.
        source: the model.
        manifest: the bundle's.
        samples: by signature.
        has_state: whether a signature assigns variables; ``source`` ran and has other values by now, so that the
            model is loaded anew.

    Returns:
        Notes for the manifest.

    Raises:
        BuildError: the bundle does not give TensorFlow's answers; it must not ship.
    """
    run, notes = _load(folder, manifest)
    with Source(source.path, source.tags) if has_state else contextlib.nullcontext(source) as truth:
        for record in manifest.signatures:
            key = record.signature.key
            for sample in samples[key].samples[:1] if record.converted and key in samples else ():
                _compare(record, truth, run, sample.values, manifest.precision, verified=manifest.verified)
                if record.direct is not None:
                    _compare_direct(folder, manifest, record, sample.values, run)
    runtime.forget(folder)
    return notes


def _compare(
    record: SignatureRecord, truth: Source, run: Run, values: Mapping[str, Any], precision: str, *, verified: bool
) -> None:
    """Two calls of each side, so that their variables stay in step; random ops and counters are not compared."""
    key = record.signature.key
    (want, got), (again, _) = ((_native(truth, key, values), run(key, values)) for _ in range(2))
    if any(disagreement(want[name], again[name], tolerance_for("fp32", _dtype(want[name]))) for name in want):
        return
    for spec in record.signature.outputs:
        if why := disagreement(want[spec.name], got[spec.name], tolerance_for(precision, spec.dtype)):
            raise BuildError(
                f"every island agrees with TensorFlow, but the whole does not: {spec.name}: {why}"
                if verified
                else f"nothing was verified (--no-verify), and the whole disagrees with TensorFlow: {spec.name}: {why}",
                hint="an op may decide between nearly equal values: keep it or the ops before it in TensorFlow "
                "(--keep-in-tf), or verify with real samples (--calibration)",
                signature=key,
            )


def _compare_direct(
    folder: Path, manifest: Manifest, record: SignatureRecord, values: Mapping[str, Any], run: Run
) -> None:
    """What an engine answers without TensorFlow is what it answers in the graph: no name may lead elsewhere."""
    key = record.signature.key
    owner = runtime.runtime_of(str(folder / bundle.POINTER), manifest.bundle_id)
    got = runtime.direct_answer(record, lambda: owner)({name: np.asarray(value) for name, value in values.items()})
    for name, want in run(key, values).items():
        if got is not None and (why := disagreement(want, got[name], tolerance_for(manifest.precision, _dtype(want)))):
            raise InternalError(f"signature {key}: without TensorFlow, {name} is another: {why}")


def _load(folder: Path, manifest: Manifest) -> tuple[Run, tuple[str, ...]]:
    """Load as users do; what TensorFlow cannot restore is dropped (signatures need no Python objects)."""
    try:
        return _eager(folder, manifest), ()
    except Exception as error:  # noqa: BLE001  restoring runs arbitrary Keras code, which fails in its own ways
        reason = first_line(error)
    file = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString(file.read_bytes())
    for meta_graph in proto.meta_graphs:
        meta_graph.ClearField("object_graph_def")
    file.write_bytes(proto.SerializeToString())
    note = (
        f"the model's Python objects cannot be restored by TensorFlow {tf.__version__} ({reason}); "
        "the bundle keeps its signatures and leaves the objects out"
    )
    try:
        return _eager(folder, manifest), (note,)
    except Exception as error:  # noqa: BLE001  as above
        reason = first_line(error)
    note = (
        f"tf.saved_model.load of TensorFlow {tf.__version__} cannot load this model or its bundle ({reason}); "
        "load it with tf.compat.v1.saved_model.load in a session"
    )
    return _in_session(folder, manifest), (note,)


def _eager(folder: Path, manifest: Manifest) -> Run:
    loaded = tf.saved_model.load(str(folder), tags=list(manifest.tags))

    def run(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        outputs = loaded.signatures[key](**{name: tf.constant(value) for name, value in values.items()})
        return {name: _array(value.numpy()) for name, value in outputs.items()}

    return run


def _in_session(folder: Path, manifest: Manifest) -> Run:
    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph)
        definitions = tf.compat.v1.saved_model.load(session, list(manifest.tags), str(folder)).signature_def

    def run(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        definition = definitions[key]
        feeds = {definition.inputs[name].name: value for name, value in values.items()}
        outputs = session.run({name: info.name for name, info in definition.outputs.items()}, feeds)
        return {name: _array(value) for name, value in outputs.items()}

    return run


def _native(source: Source, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    definition = source.meta_graph.signature_def[key]
    feeds = {definition.inputs[name].name: value for name, value in values.items()}
    fetches = {name: info.name for name, info in definition.outputs.items()}
    result = source.session.run(fetches, feeds)
    return {name: _array(value) for name, value in result.items()}


def _array(value: Any) -> Any:
    """TensorFlow hands out scalar strings as bare bytes."""
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)


def _dtype(array: Any) -> str:
    return "string" if array.dtype == object else str(array.dtype.name)
