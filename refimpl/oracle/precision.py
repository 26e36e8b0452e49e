"""Which row of the tolerance table a case is judged by: what the islands that ran in it computed in, and no more.

A bundle's least precise engine may not run here, or not in this signature; its tolerance would then hide errors of
those that did. The loosest of what ran counts for every output of the case, since an output may depend on any of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from refimpl.bundle import IslandRecord, Manifest
from refimpl.oracle.verdict import NATIVE, IslandNote
from refimpl.tolerance import loosest

_ROUNDS = ("FakeQuant", "QuantizeAndDequantize")  # op types that round to steps in TensorFlow, too
_FILE_OF = {"numpy": "onnxruntime"}  # an engine that runs what is stored for another


def precision_of_run(manifest: Manifest, signature: str, runs: Iterable[IslandNote]) -> str:
    """The precision (a key of :data:`refimpl.tolerance.TABLE`) that the answers of one call must meet.

    Islands that ran in TensorFlow, and a call without islands, count with the model's own precision: ``half`` where it
    computes in float16 itself, ``quantized`` where it rounds to steps itself, else ``fp32``.
    """
    record = next((item for item in manifest.signatures if item.signature.key == signature), None)
    islands = {island.name: island for island in record.islands} if record else {}
    found = {_own(island) for island in islands.values()} or {"fp32"}
    for run in runs:
        if run.engine == NATIVE:
            continue
        kind = _FILE_OF.get(run.engine, run.engine)
        engines = islands[run.island].engines if run.island in islands else ()
        found.add(next((engine.precision for engine in engines if engine.kind == kind), manifest.precision))
    return loosest(found)


def _own(island: IslandRecord) -> str:
    if any(op.startswith(_ROUNDS) for _, op in island.ops):
        return "quantized"
    dtypes = {spec.dtype for spec in (*island.inputs, *island.outputs)}
    return "half" if island.precision == "half" or "float16" in dtypes else "fp32"
