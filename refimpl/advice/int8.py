"""Advice on layers that were to compute in int8, and that the TensorRT at hand could not build so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from refimpl.advice.records import Advice
from refimpl.advice.traffic import traffic_of
from refimpl.bundle import CALIBRATION, IslandRecord, SignatureRecord
from refimpl.text import counted

NOT_BUILT = "int8-not-built"
_REASON = re.compile(r"(?P<library>tensorrt\S* \S+) builds no int8 (?P<op>\w+)")  # the converter's words
_KNOWN = "TensorRT for RTX builds convolutions in int8 from 1.7 on"


def not_built(
    record: SignatureRecord, recipe: Mapping[str, Any], here: Callable[[str], str] | None = None
) -> tuple[Advice, ...]:
    """What another TensorRT would build in int8, with the command that completes the bundle: same ranges, same model.

    Args:
        record: of the signature.
        recipe: the bundle's.
        here: why the TensorRT that is installed builds no int8 layer of an ONNX op type, "" when it does; None when
            nobody can be asked.
    """
    found = {island.name: layers for island in record.islands if (layers := _held_back(island))}
    kinds: Counter[tuple[str, str]] = sum(found.values(), Counter())
    if not kinds:
        return ()
    reasons = tuple(sorted(f"{library} builds no int8 {op}" for library, op in kinds))
    compute = f"{counted(kinds.total(), 'layer')} {'computes' if kinds.total() == 1 else 'compute'}"
    return (
        Advice(
            signature=record.signature.key,
            family=NOT_BUILT,
            title=f"{compute} in fp16, not in int8: {'; '.join(reasons)}",
            action=f"{_where(sorted({op for _, op in kinds}), here)}: {_command(record.signature.key, recipe)}",
            needed=True,
            reasons=reasons,
            ops=(),
            types={},
            place="",
            merged=None,
            splits_alone=None,
            splitters=(),
            gained=None,
            traffic=traffic_of(()),
            islands=tuple(found),
        ),
    )


def _held_back(island: IslandRecord) -> Counter[tuple[str, str]]:
    """How many layers of an island, by the library that could not build them and their op type."""
    matches = (_REASON.match(reason) for _, _, _, reason in island.layers)
    return Counter((match["library"], match["op"]) for match in matches if match)


def _where(ops: list[str], here: Callable[[str], str] | None) -> str:
    said = {op: here(op) for op in ops} if here is not None else {}
    if said and not any(said.values()):
        return "the TensorRT that is installed here builds them; convert again"
    return f"convert again where a newer TensorRT is ({_KNOWN})"


def _command(key: str, recipe: Mapping[str, Any]) -> str:
    """Placeholders stand for what no bundle knows: where the model is, and samples."""
    ranges = "--no-calibration"
    if recipe.get("use_calibration", True):
        ranges = f"--calibration-table BUNDLE/{CALIBRATION} --calibration A_FEW_SAMPLES"
    signature = "" if key == "serving_default" else f" --signature {key}"
    return f"refimpl convert MODEL NEW_BUNDLE --precision int8 --engine tensorrt{signature} {ranges}"
