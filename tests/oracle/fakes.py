"""Bundles that need no engine: they answer from golden outputs, bent by a planted fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.bundle import EngineRecord, IslandRecord, Manifest, SignatureRecord
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import (
    DroppedCase,
    Golden,
    GoldenCase,
    Provenance,
    new_directory,
    read_golden,
    write_case,
    write_index,
)
from refimpl.specs import Signature, TensorSpec

Outputs = dict[str, Any]
Fault = Callable[[Outputs], Outputs]


@dataclass(frozen=True)
class FakeIsland:
    island: str
    engine: str
    reason: str = ""


@dataclass(frozen=True)
class FakeResult:
    outputs: Outputs
    islands: tuple[FakeIsland, ...]


def island(name: str, precision: str = "fp32", *, dtype: str = "float32", op: str = "Relu") -> IslandRecord:
    """An island with an engine for ONNX Runtime, and no file."""
    spec = TensorSpec("t:0", dtype, (None, 4))
    return IslandRecord(
        name=name,
        ops=(("node", op),),
        inputs=(spec,),
        outputs=(spec,),
        engines=(EngineRecord(kind="onnxruntime", file="", version="any 1", precision=precision),),
        probe="",
        finite_only=False,
        precision=precision,
        verified="1 sample",
    )


def fake_manifest(*islands: IslandRecord, **changes: Any) -> Manifest:
    """The manifest of a bundle that has no files."""
    record = SignatureRecord(signature=SIGNATURE, converted=True, reason="", islands=islands, ops_total=2)
    fields: dict[str, Any] = {
        "bundle_id": "0" * 16,
        "created": "2026-01-02T03:04:05+00:00",
        "refimpl": "1",
        "versions": {},
        "source_name": "tiny",
        "source_sha256": "5" * 64,
        "tags": ("serve",),
        "precision": "fp32",
        "judge": "nobody",
        "verified": True,
        "recipe": {},
        "signatures": (record,),
    }
    return Manifest(**{**fields, **changes})


ISLANDS = ("TRTEngineOp_000_000", "TRTEngineOp_000_001")
IN_ENGINE = tuple(FakeIsland(name, "onnxruntime") for name in ISLANDS)


@dataclass
class FakeBundle:
    """Answers every case of a golden record with the golden outputs, after ``fault`` had its way."""

    golden: Golden
    fault: Fault = lambda outputs: outputs
    islands: Callable[[GoldenCase], tuple[FakeIsland, ...]] = lambda case: IN_ENGINE
    manifest: Manifest = field(default_factory=lambda: fake_manifest(*map(island, ISLANDS)))
    native_fault: Fault = lambda outputs: outputs  # of TensorFlow itself
    signatures: Mapping[str, Signature] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.signatures = self.signatures or self.golden.signatures
        self.asked: list[tuple[str, str]] = []
        self.asked_natively: list[tuple[str, str]] = []

    def run(self, inputs: Mapping[str, Any], signature: str) -> FakeResult:
        case = self._case(inputs, signature)
        self.asked.append((signature, case.name))
        return FakeResult(self.fault(copies(case)), self.islands(case))

    def run_native(self, inputs: Mapping[str, Any], signature: str) -> FakeResult:
        case = self._case(inputs, signature)
        self.asked_natively.append((signature, case.name))
        return FakeResult(self.native_fault(copies(case)), ())

    def _case(self, inputs: Mapping[str, Any], signature: str) -> GoldenCase:
        return next(
            case
            for case in self.golden.cases
            if case.signature == signature and all(same(case.inputs[name], inputs[name]) for name in inputs)
        )

    def opener(self) -> Callable[[Any, Any], FakeBundle]:
        return lambda path, engines: self


def copies(case: GoldenCase) -> Outputs:
    return {name: array.copy() for name, array in case.outputs.items()}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and (a.tobytes() == b.tobytes() or a.tolist() == b.tolist())


def strings(*items: bytes) -> np.ndarray:
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


SIGNATURE = Signature(
    "serving_default",
    (TensorSpec("x", "float32", (None, 4)),),
    (
        TensorSpec("classes", "int64", (None,)),
        TensorSpec("labels", "string", (None,)),
        TensorSpec("flags", "bool", (None,)),
        TensorSpec("scores", "float32", (None, 6)),
    ),
)


def outputs_for(x: np.ndarray) -> Outputs:
    """A little model in NumPy, with one output of every sort."""
    scores = (x @ np.random.default_rng(1).standard_normal((4, 6))).astype(np.float32)
    classes = scores.argmax(axis=-1)
    labels = strings(*(b"label-%d" % c for c in classes)) if len(classes) else np.empty(0, object)
    return {"classes": classes, "labels": labels, "flags": scores[:, 0] > 0, "scores": scores}


def write_golden(
    out: Path, cases: list[GoldenCase], signatures: tuple[Signature, ...] = (SIGNATURE,), source: str = "5" * 64
) -> Golden:
    """A golden record without TensorFlow."""
    provenance = Provenance(
        recorded_on="2026-01-02T03:04:05+00:00",
        source_name="tiny",
        source_sha256=source,
        tags=("serve",),
        runner="numpy",
        onednn="off",
        seed=0,
        versions={"numpy": np.__version__},
        machine="any",
    )
    with new_directory(out) as room:
        entries = [write_case(room, number, case) for number, case in enumerate(cases)]
        dropped = [DroppedCase("serving_default", "ones", "TensorFlow refused: no")]
        write_index(room, provenance, {sig.key: sig for sig in signatures}, entries, dropped)
    return read_golden(out)


def make_case(name: str, rows: int, kind: CaseKind = CaseKind.ORDINARY, seed: int = 3) -> GoldenCase:
    x = np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)
    return GoldenCase(
        signature="serving_default", name=name, kind=kind, inputs={"x": x}, outputs=outputs_for(x), unstable={}
    )
