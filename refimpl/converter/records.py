"""Records: what the manifest says of a signature and its islands, and where their files go in the bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from refimpl import bundle, runtime
from refimpl.bundle import EngineRecord, IslandRecord, LeftOp, SignatureRecord
from refimpl.converter.islands import Island
from refimpl.converter.plan import Plan
from refimpl.engines import onnxruntime
from refimpl.specs import TensorSpec

_LOOSEST_FIRST = ("int8", "bf16", "fp16", "quantized", "tf32", "half", "fp32")
MODES = {
    "int8": "INT8",
    "bf16": "BF16",
    "fp16": "FP16",
    "half": "FP16",
    "quantized": "FP32",
    "tf32": "FP32",
    "fp32": "FP32",
}


def loosest(found: Iterable[str]) -> str:
    """What the least precise engine computes in: a model that is float16 itself is no FP32 bundle."""
    kinds = set(found)
    return next((loose for loose in _LOOSEST_FIRST if loose in kinds), "fp32")


def record_of(plan: Plan, named: Mapping[str, Island]) -> tuple[SignatureRecord, dict[str, Path]]:
    """The record of a signature, and its files.

    Args:
        plan: what became of its ops.
        named: its islands, by their names in the graph.

    Returns:
        The record, and by its place in the bundle each file as it lies now.
    """
    files: dict[str, Path] = {}
    records = []
    for name, island in named.items():
        built = []
        for item in island.built:
            stored = f"{bundle.FOLDER}/islands/{name}{''.join(Path(item.file.name).suffixes)}"
            files[stored] = item.file
            data = item.file.with_name(item.file.name + bundle.WEIGHTS_SUFFIX)
            if data.exists():
                files[stored + bundle.WEIGHTS_SUFFIX] = data
                onnxruntime.move_weights(item.file, Path(stored).name + bundle.WEIGHTS_SUFFIX)
            kernels = item.file.with_name(item.file.name + bundle.KERNELS_SUFFIX)
            if kernels.exists():
                files[stored + bundle.KERNELS_SUFFIX] = kernels
            profiles = tuple({"min": p.min, "opt": p.opt, "max": p.max, "values": p.values} for p in item.profiles)
            built.append(
                EngineRecord(
                    kind=item.kind,
                    file=stored,
                    version=item.version,
                    precision=item.precision,
                    profiles=profiles,
                    targets=item.targets,
                )
            )
        shipped, finding = island.shipped, island.shipped.finding
        probe = f"{bundle.FOLDER}/islands/{name}.probe.npz" if finding.probe else ""
        if finding.probe:
            file = island.built[0].file.with_suffix(".probe.npz")
            runtime.write_probe(file, finding.probe.inputs, finding.probe.outputs)
            files[probe] = file
        records.append(
            IslandRecord(
                name=name,
                ops=tuple((op, plan.graph.ops[op].type) for op in island.ops),
                inputs=_specs(plan, island.entering),
                outputs=_specs(plan, island.leaving),
                engines=tuple(built),
                probe=probe,
                finite_only=finding.finite_only,
                precision=shipped.precision,
                verified=f"{finding.compared} samples agree with TensorFlow" if finding.compared else "",
                notes=shipped.notes,
                layers=tuple((item.name, item.op, item.precision, item.reason) for item in shipped.layers),
                accuracy=shipped.accuracy.to_json() if shipped.accuracy else None,
            )
        )
    reasons = plan.reasons
    ops = plan.graph.ops
    left = tuple(
        LeftOp(name=name, type=ops[name].type, reason=reason)
        for name, reason in reasons.items()
        if ops[name].type not in bundle.IDLE_OPS
    )
    total = sum(op.type not in bundle.IDLE_OPS for op in ops.values())
    signature = plan.graph.source.signature
    why = "" if records else "no island could be made; every op stays in TensorFlow"
    return SignatureRecord(
        signature=signature, converted=bool(records), reason=why, islands=tuple(records), left=left, ops_total=total
    ), files


def _specs(plan: Plan, tensors: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(plan.graph.specs[tensor] for tensor in tensors)
