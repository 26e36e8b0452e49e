"""The last gate: load the finished bundle as a user will, and compare it with the model it was made from."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from refimpl import bundle, runtime
from refimpl.bundle import Manifest, SignatureRecord
from refimpl.converter.plan import Seen
from refimpl.converter.source import Source
from refimpl.engines import onnxruntime
from refimpl.errors import BuildError, InternalError, first_line
from refimpl.numerics import disagreement
from refimpl.specs import as_array
from refimpl.tolerance import tolerance_for

Answers = Mapping[str, Any]  # output -> value
Run = Callable[[str, Mapping[str, Any]], Answers]  # signature key, inputs -> outputs


def prove(
    folder: Path, source: Source, manifest: Manifest, samples: Mapping[str, Seen], *, has_state: bool
) -> tuple[str, ...]:
    """Load the bundle with ``tf.saved_model.load`` and run every converted signature on its samples.

    Args:
        folder: the bundle.
        source: the model; it is closed, and its variables are gone.
        manifest: the bundle's.
        samples: by signature.
        has_state: whether a signature assigns variables; ``source`` ran and has other values by now, so that the
            model is loaded anew.

    Returns:
        Notes for the manifest.

    Raises:
        BuildError: the bundle does not give TensorFlow's answers; it must not ship.
        InternalError: nor must one with an island that no engine runs.
    """
    cases = [
        (record, sample.values)
        for record in manifest.signatures
        for sample in (samples[record.signature.key].samples[:1] if record.signature.key in samples else ())
        if record.converted
    ]
    with contextlib.ExitStack() as stack:
        truth: Source | None = None
        if has_state:  # the two are called in turn, so that their variables stay in step
            truth = stack.enter_context(Source(source.path, source.tags))
        answers = {} if truth else {record.signature.key: _native(source, record, values) for record, values in cases}
        source.close()  # the model goes before the bundle comes, or every weight would be in memory twice
        run, notes = _load(folder, manifest)
        for record, values in cases:
            key = record.signature.key
            want = _native(truth, record, values) if truth else answers[key]
            got = run(key, values)
            if why := _disagreement(record, want, got, manifest.precision):
                again = _asked_again(truth, source, record, values)
                run(key, values)
                if not _random([want, *again]):
                    raise _disagrees(key, why, verified=manifest.verified)
            if record.direct is not None:
                _compare_direct(folder, manifest, record, values, got)
    _require_engines(folder, manifest)
    runtime.forget(folder)
    return notes


def _require_engines(folder: Path, manifest: Manifest) -> None:
    """Every island runs in the embedded engine, as its file lies in the bundle: it changed after it was verified.

    The answers do not tell. Where no engine stands, TensorFlow gives them.

    Raises:
        InternalError: one cannot be opened, or does not give its probe's answers.
    """
    owner = runtime.runtime_of(str(folder / bundle.POINTER), manifest.bundle_id)
    for island in manifest.islands:
        if problem := owner.island(island.name).problem_of(onnxruntime.NAME):
            raise InternalError(f"no engine runs island {island.name} in the finished bundle: {problem}")


def _disagreement(record: SignatureRecord, want: Answers, got: Answers, precision: str) -> str:
    """Which output disagrees, and why; "" when none does."""
    for spec in record.signature.outputs:
        if why := disagreement(want[spec.name], got[spec.name], tolerance_for(precision, spec.dtype)):
            return f"{spec.name}: {why}"
    return ""


def _asked_again(
    truth: Source | None, source: Source, record: SignatureRecord, values: Mapping[str, Any]
) -> list[Answers]:
    """What TensorFlow answers to the same inputs once more: the model that is open, or one loaded anew, twice."""
    if truth is not None:
        return [_native(truth, record, values)]
    with Source(source.path, source.tags) as fresh:
        return [_native(fresh, record, values) for _ in range(2)]


def _random(answers: Sequence[Answers]) -> bool:
    """Whether TensorFlow's own answers differ from call to call: of random ops and counters nothing can be said."""
    return any(
        disagreement(first[name], second[name], tolerance_for("fp32", _dtype(first[name])))
        for first, second in itertools.pairwise(answers)
        for name in first
    )


def _disagrees(key: str, why: str, *, verified: bool) -> BuildError:
    return BuildError(
        f"every island agrees with TensorFlow, but the whole does not: {why}"
        if verified
        else f"nothing was verified (--no-verify), and the whole disagrees with TensorFlow: {why}",
        hint="an op may decide between nearly equal values: keep it or the ops before it in TensorFlow "
        "(--keep-in-tf), or verify with real samples (--calibration)",
        signature=key,
    )


def _compare_direct(
    folder: Path, manifest: Manifest, record: SignatureRecord, values: Mapping[str, Any], wants: Answers
) -> None:
    """What an engine answers without TensorFlow is what it answers in the graph: no name may lead elsewhere."""
    key = record.signature.key
    owner = runtime.runtime_of(str(folder / bundle.POINTER), manifest.bundle_id)
    got = runtime.direct_answer(record, lambda: owner)({name: np.asarray(value) for name, value in values.items()})
    for name, want in wants.items():
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
        return {name: as_array(value.numpy()) for name, value in outputs.items()}

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
        return {name: as_array(value) for name, value in outputs.items()}

    return run


def _native(source: Source, record: SignatureRecord, values: Mapping[str, Any]) -> dict[str, Any]:
    definition = source.meta_graph.signature_def[record.signature.key]
    feeds = {definition.inputs[name].name: value for name, value in values.items()}
    fetches = {name: info.name for name, info in definition.outputs.items()}
    result = source.session.run(fetches, feeds)
    return {name: as_array(value) for name, value in result.items()}


def _dtype(array: Any) -> str:
    return "string" if array.dtype == object else str(array.dtype.name)
