"""Crossing: what a call of an engine costs from within a TensorFlow graph, and what TensorFlow needs for the same ops.

The first is measured with an engine that computes nothing, in the very node that islands become: what is left is the
price of leaving TensorFlow and coming back. The second is measured on the island's probe. An island whose ops take
TensorFlow less time than the crossing alone cannot win, whatever its engine does.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

from refimpl import __version__, bundle, runtime
from refimpl.artifacts import Array
from refimpl.bundle import EngineRecord, IslandRecord, Manifest, SignatureRecord
from refimpl.converter import graphdefs as gd
from refimpl.converter.native import NativeGraph
from refimpl.engines import onnxruntime
from refimpl.specs import Signature, TensorSpec

_BUDGET = 0.25  # seconds for all islands of one signature; the small ones come first, since they are in doubt
_MOST_OPS = 64  # larger islands are in no doubt, and TensorFlow would take long to get ready for them
_RUNS = 100  # the fastest is told: what else the machine does can only slow a call down
_ENOUGH = 0.02  # seconds of runs after which no more are made
_ENOUGH_SMALL = 0.1  # of an empty call, which takes as long as that only where other programs want the processor
_CHANCES = 5  # to see that an engine node takes longer than none
_LARGE = 1 << 20  # floats
_NAME, _ID = "TRTEngineOp_000_000", "crossing"


@dataclass(frozen=True)
class Crossing:
    """What entering and leaving an engine costs: per call, and per byte that goes in or out."""

    call_seconds: float
    byte_seconds: float

    def of(self, size: int) -> float:
        """Seconds of one call that carries so many bytes."""
        return self.call_seconds + self.byte_seconds * size


def timed(record: SignatureRecord, files: Mapping[str, Path], native: NativeGraph) -> SignatureRecord:
    """The record with what was measured of its islands.

    Islands are measured from the smallest on until the time for that is spent; the rest have no measurement. Without a
    probe (``--no-verify``) there is nothing to measure with.

    Args:
        record: of a signature.
        files: by their place in the bundle.
        native: the signature's TensorFlow ops.
    """
    if not any(island.probe and len(island.ops) <= _MOST_OPS for island in record.islands):
        return record
    crossing = measure()
    if crossing is None:
        return record
    found: dict[str, dict[str, float]] = {}
    until = time.perf_counter() + _BUDGET
    for island in sorted(record.islands, key=lambda item: len(item.ops)):
        if time.perf_counter() < until and island.probe and len(island.ops) <= _MOST_OPS:
            with contextlib.suppress(tf.errors.OpError):  # what cannot be measured is not told
                found[island.name] = _timing(island, files[island.probe], native, crossing)
    islands = tuple(replace(island, timing=found.get(island.name)) for island in record.islands)
    return replace(record, islands=islands)


def _timing(island: IslandRecord, probe: Path, native: NativeGraph, crossing: Crossing) -> dict[str, float]:
    inputs, outputs = runtime.read_probe(probe)
    feeds = {spec.name: value for spec, value in zip(island.inputs, inputs, strict=True)}
    seconds = native.seconds(feeds, [spec.name for spec in island.outputs], fastest)
    size = sum(array.nbytes for array in (*inputs, *outputs))
    return {"crossing": round(crossing.of(size), 7), "tensorflow": round(seconds, 7), "bytes": size}


def fastest(call: Callable[[], object], enough: float = _ENOUGH) -> float:
    """Seconds of the fastest of some calls, after one that is not counted.

    Args:
        call: what is measured.
        enough: seconds of runs after which no more are made.
    """
    call()
    best, spent = float("inf"), 0.0
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
        if spent > enough:
            break
    return best


@functools.cache
def measure() -> Crossing | None:
    """What crossing costs on this machine; measured once per process, in about a tenth of a second.

    None where the embedded engine does not run, or the machine is too busy to tell, so that nothing can be said.
    """
    with tempfile.TemporaryDirectory(prefix="refimpl-") as name:
        folder = Path(name)
        _identity_bundle(folder)
        graph = tf.Graph()
        with graph.as_default():
            tf.graph_util.import_graph_def(_graph(str(folder / bundle.POINTER)), name="")
        config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
        with tf.compat.v1.Session(graph=graph, config=config) as session:
            ran = bool(session.run(f"{_NAME}:0", {"x:0": np.ones(1, np.float32)}))
            small, large = (_cost(session, np.ones(size, np.float32)) for size in (1, _LARGE)) if ran else (0.0, 0.0)
        runtime.forget(folder)
    if not ran or not small:
        return None
    return Crossing(small, max(large - small, 0.0) / (2 * 4 * _LARGE))


def _cost(session: Any, value: Array) -> float:
    """Seconds that the engine node adds, over a node that passes the same tensor on.

    Where other work took the processor away from one of them, both get another chance; 0.0 when that did not help.
    """
    calls = [session.make_callable([name], feed_list=["x:0"]) for name in (f"{_NAME}:1", "plain:0")]
    enough = _ENOUGH_SMALL if value.size == 1 else _ENOUGH
    engine = plain = float("inf")
    for _ in range(_CHANCES):
        now = [fastest(functools.partial(call, value), enough) for call in calls]
        engine, plain = min(engine, now[0]), min(plain, now[1])
        if engine > plain:
            return engine - plain
    return 0.0


def _graph(pointer: str) -> Any:
    """A placeholder, an engine node that reads it, and an Identity that reads it."""
    float_type, string, boolean = (kind.as_datatype_enum for kind in (tf.float32, tf.string, tf.bool))
    place = gd.make_node("x", "Placeholder", [], dtype=gd.type_attr(float_type))
    place.attr["shape"].shape.dim.add(size=-1)
    constants = []
    for name, text in (("pointer", pointer), ("name", _NAME), ("bundle", _ID), ("dtypes", "float32")):
        node = gd.make_node(name, "Const", [], dtype=gd.type_attr(string))
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text.encode()))
        constants.append(node)
    engine = gd.make_node(
        _NAME,
        "PyFunc",
        [*(node.name for node in constants), "x"],
        token=runtime.TOKEN,
        Tin=gd.types_attr([string] * 4 + [float_type]),
        Tout=gd.types_attr([boolean, float_type]),
    )
    plain = gd.make_node("plain", "Identity", ["x"], T=gd.type_attr(float_type))
    return gd.new_graph_def(node=[place, *constants, engine, plain])


def _identity_bundle(folder: Path) -> None:
    """A bundle with one island that passes a vector on, as far as the runtime needs one."""
    file = f"{bundle.FOLDER}/islands/{_NAME}.onnx"
    (folder / file).parent.mkdir(parents=True)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in ("in", "out")]
    model = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["in"], ["out"])], "crossing", ends[:1], ends[1:])
    onnxruntime.save(
        onnx.helper.make_model(model, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), folder / file
    )
    spec = TensorSpec("x:0", "float32", (None,))
    version = onnxruntime.version()
    island = IslandRecord(
        name=_NAME,
        ops=(),
        inputs=(spec,),
        outputs=(spec,),
        engines=(EngineRecord(kind=onnxruntime.NAME, file=file, version=version, precision="fp32"),),
        probe="",
        finite_only=False,
        precision="fp32",
        verified="",
    )
    signature = SignatureRecord(
        signature=Signature(_ID, (spec,), (spec,)), converted=True, reason="", islands=(island,)
    )
    manifest = Manifest(
        bundle_id=_ID,
        created="",
        refimpl=__version__,
        versions={},
        source_name="",
        source_sha256="",
        tags=(),
        precision="fp32",
        judge="",
        verified=False,
        recipe={},
        signatures=(signature,),
    )
    bundle.seal(folder, manifest)
