"""How far each island's outputs are from TensorFlow's on this machine: its probe, run in every engine that runs here.

The same comparison guards an island where a bundle runs; here its numbers are kept for people. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import engines
from refimpl.accuracy import accuracy
from refimpl.bundle import EngineRecord, IslandRecord, Manifest
from refimpl.engines import tensorrt
from refimpl.errors import RefimplError
from refimpl.numerics import disagreement
from refimpl.runtime import read_probe
from refimpl.specs import TensorSpec
from refimpl.tolerance import tolerance_for

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutAccuracy:
    """One tensor that leaves an island, by one engine, on the island's probe.

    Attributes:
        island, tensor, engine: names.
        max_abs: the largest difference from TensorFlow's over the elements that are finite in both; None where nothing
            was compared.
        relative: norm of the error over the norm of TensorFlow's; of integers, the share that differs.
        cosine: between the two; None where it has no meaning.
        problem: why it disagrees, or why the engine did not run; "" when it agrees.
    """

    island: str
    tensor: str
    engine: str
    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_cuts(bundle: Path, manifest: Manifest) -> tuple[CutAccuracy, ...]:
    """Run the probe of every island that has one.

    Args:
        bundle: its directory; its checksums were compared already.
        manifest: the bundle's.
    """
    return tuple(row for island in manifest.islands if island.probe for row in _of_island(bundle, island))


def _of_island(bundle: Path, island: IslandRecord) -> Iterator[CutAccuracy]:
    inputs, wanted = read_probe(bundle / island.probe)
    for record in island.engines:
        outputs = _run(bundle, record, inputs)
        for spec, number in zip(island.outputs, range(len(wanted)), strict=True):
            if isinstance(outputs, str):
                yield CutAccuracy(island=island.name, tensor=spec.name, engine=record.kind, problem=outputs)
            else:
                yield _compare(island, record, spec, wanted[number], outputs[number])


def _run(bundle: Path, record: EngineRecord, inputs: list[Array]) -> list[Array] | str:
    """The engine's outputs, or why there are none."""
    kind = engines.kind(record.kind)
    if problem := kind.why_not_here():
        return f"not run here: {problem}"
    if not record.file:
        return "not run: it is yet to be built"
    if record.kind == tensorrt.NAME and (why := tensorrt.refusal(record.version, tensorrt.version(), record.targets)):
        return f"not run here: {why}"
    try:
        return kind.open(bundle / record.file).run(inputs)
    except RefimplError as error:
        return f"not run: {error.message}"
    except Exception as error:  # noqa: BLE001  a library may fail in its own ways: the rest can be told all the same
        return f"not run: {type(error).__name__}: {error}"


def _compare(island: IslandRecord, record: EngineRecord, spec: TensorSpec, want: Array, got: Array) -> CutAccuracy:
    problem = disagreement(want, got, tolerance_for(record.precision, spec.dtype))
    if want.shape != got.shape or want.dtype != got.dtype:
        return CutAccuracy(island=island.name, tensor=spec.name, engine=record.kind, problem=problem)
    found = accuracy([want], [got])
    floats = want.dtype.kind == "f" or want.dtype.name == "bfloat16"
    return CutAccuracy(
        island=island.name,
        tensor=spec.name,
        engine=record.kind,
        max_abs=_max_abs(want, got),
        relative=found.relative if np.isfinite(found.relative) else None,
        cosine=found.cosine if floats and np.isfinite(found.cosine) else None,
        problem=problem,
    )


def _max_abs(want: Array, got: Array) -> float | None:
    if want.dtype.kind not in "fiub" and want.dtype.name != "bfloat16":
        return None
    a, b = want.astype(np.float64), got.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.max(np.abs(a[both] - b[both]))) if both.any() else None
