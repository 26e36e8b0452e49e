"""The last gate: load the finished bundle as a user will, and compare it with the model it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from refimpl import runtime
from refimpl.bundle import Manifest
from refimpl.converter.plan import Seen
from refimpl.converter.source import Source
from refimpl.errors import InternalError, first_line
from refimpl.numerics import disagreement
from refimpl.tolerance import tolerance_for


def prove(folder: Path, source: Source, manifest: Manifest, samples: Mapping[str, Seen]) -> tuple[str, ...]:
    """Load the bundle with ``tf.saved_model.load`` and run every converted signature on its samples.

    Returns:
        Notes for the manifest.

    Raises:
        InternalError: the bundle does not load or does not give TensorFlow's answers; it must not ship.
    """
    loaded, notes = _load(folder, manifest)
    for record in manifest.signatures:
        key = record.signature.key
        if not record.converted:
            continue
        for sample in samples[key].samples[:1] if key in samples else ():
            if not _is_repeatable(source, key, sample.values):
                continue
            want = _native(source, key, sample.values)
            got = loaded.signatures[key](**{name: tf.constant(value) for name, value in sample.values.items()})
            for spec in record.signature.outputs:
                tolerance = tolerance_for(manifest.precision, spec.dtype)
                if why := disagreement(want[spec.name], _array(got[spec.name].numpy()), tolerance):
                    raise InternalError(f"the finished bundle disagrees with TensorFlow: {key}/{spec.name}: {why}")
    runtime.forget(folder)
    return notes


def _load(folder: Path, manifest: Manifest) -> tuple[Any, tuple[str, ...]]:
    """Load as users do; the Python object graph is dropped if TensorFlow cannot restore it (signatures need none)."""
    try:
        return tf.saved_model.load(str(folder), tags=list(manifest.tags)), ()
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
    return tf.saved_model.load(str(folder), tags=list(manifest.tags)), (note,)


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


def _is_repeatable(source: Source, key: str, values: Mapping[str, Any]) -> bool:
    """Whether TensorFlow gives the same answer twice (random ops and counters do not)."""
    first, second = _native(source, key, values), _native(source, key, values)
    return all(
        not disagreement(first[name], second[name], tolerance_for("fp32", _dtype(first[name]))) for name in first
    )
