"""Advice on what is larger than an op: islands that cost more than they can win, signatures that were not converted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from refimpl.advice.records import Advice
from refimpl.advice.traffic import traffic_of
from refimpl.advice.what_if import Partitioner
from refimpl.bundle import IslandRecord, SignatureRecord
from refimpl.graph_record import format_tensor
from refimpl.text import counted

SLOW, WHOLE = "slow-islands", "signature"
_MARGIN = 2.0  # times TensorFlow's own time; two measurements of a busy machine may differ that much
_SIGNATURES = (  # what stays whole, why, and what to do
    (r"not asked for", "name it with --signature, or take all of them with --signature '*'", False),
    (r"TF1 control flow", "export the model again with tf.compat.v1.enable_control_flow_v2()", True),
    (r".* is a .* tensor", "export it with dense tensors: sparse and ragged ones cannot be cut", True),
    (r".* works on a TF1 reference variable", "export the model again with resource variables", True),
    (
        r"input .* names .*, which is not in the graph",
        "export the model again; its signature names what is not there",
        True,
    ),
)


def slow_islands(
    record: SignatureRecord, partitioner: Partitioner | None, others: Sequence[Partitioner | None] = ()
) -> tuple[Advice, ...]:
    """Islands whose crossing takes longer than TensorFlow takes for their ops: they cannot win, whatever the engine.

    Args:
        record: of the signature; what was measured when it was converted is in its islands.
        partitioner: of its graph, which knows how large its islands count; None where there is no graph.
        others: of the other signatures with islands: a smallest size would hold for them, too.
    """
    slow = [island for island in record.islands if _is_slow(island)]
    if not slow:
        return ()
    crossing, native = (sum(_timing(island)[key] for island in slow) for key in ("crossing", "tensorflow"))
    which = ", ".join(island.name for island in slow[:3]) + (", ..." if len(slow) > 3 else "")
    cuts = [format_tensor(spec.dtype, spec.shape) for item in slow for spec in (*item.inputs, *item.outputs)]
    verb = "costs" if len(slow) == 1 else "cost"
    return (
        Advice(
            signature=record.signature.key,
            family=SLOW,
            title=f"{counted(len(slow), 'island')} {verb} more to enter and leave than TensorFlow needs for the ops "
            f"({which})",
            action=_remedy(slow, partitioner, others),
            needed=True,
            reasons=(),
            ops=(),
            types={},
            place="",
            merged=None,
            splits_alone=None,
            splitters=(),
            gained=None,
            traffic=traffic_of(cuts),
            islands=tuple(island.name for island in slow),
            seconds={"crossing": crossing, "tensorflow": native},
        ),
    )


def _timing(island: IslandRecord) -> Mapping[str, float]:
    return island.timing or {}


def _is_slow(island: IslandRecord) -> bool:
    found = _timing(island)
    return bool(found) and found["crossing"] > _MARGIN * found["tensorflow"]


def _remedy(slow: Sequence[IslandRecord], partitioner: Partitioner | None, others: Sequence[Partitioner | None]) -> str:
    """``--min-segment-size`` where it hits these islands alone, else the ops to keep."""
    names = {island.name for island in slow}
    if partitioner is not None and partitioner.exact:
        sizes = partitioner.sizes()
        least = 1 + max(sizes[name] for name in names)
        spared = [size for name, size in sizes.items() if name not in names]
        spared += [size for other in others for size in ([0] if other is None else other.sizes().values())]
        if all(size >= least for size in spared):
            return f"keep them in TensorFlow: --min-segment-size {least} (which counts their constants, too)"
    ops = [name for island in slow for name, _ in island.ops]
    if len(ops) <= 3:
        return "keep them in TensorFlow: " + " ".join(f"--keep-in-tf {name}" for name in ops)
    return "remove what cuts them off from larger islands, or keep their ops in TensorFlow with --keep-in-tf"


def whole_signature(record: SignatureRecord) -> tuple[Advice, ...]:
    """A signature that stays in TensorFlow as a whole, where there is something to say of it."""
    if record.converted:
        return ()
    for pattern, action, needed in _SIGNATURES:
        if re.match(pattern, record.reason):
            return (
                Advice(
                    signature=record.signature.key,
                    family=WHOLE,
                    title=f"signature {record.signature.key} stays in TensorFlow: {record.reason}",
                    action=action,
                    needed=needed,
                    reasons=(record.reason,),
                    ops=(),
                    types={},
                    place="",
                    merged=None,
                    splits_alone=None,
                    splitters=(),
                    gained=None,
                    traffic=traffic_of(()),
                ),
            )
    return ()
