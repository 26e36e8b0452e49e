"""Whether the inputs of a case lie within what an int8 bundle was calibrated for.

A bundle keeps its ranges in ``refimpl/calibration.json``, by the names of tensors in the islands' ONNX. Only the
model's own inputs are looked at: what a tensor inside an island reaches is known when it is too late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from refimpl import bundle, calibration
from refimpl.calibration import CalibrationTable
from refimpl.errors import RecipeError
from refimpl.oracle.arrays import Array
from refimpl.specs import Signature

BEYOND = 1.25  # the extremes of two samples of one population differ; a quarter more is another population
STEPS = 127  # from zero to the end of a range


def tables_of(path: Path) -> tuple[CalibrationTable, ...]:
    """The ranges that a bundle was made with; empty when it has none.

    Raises:
        RecipeError: the table is damaged, although its checksum is right.
    """
    file = path / bundle.CALIBRATION
    return calibration.load(file) if file.is_file() else ()


def outside(signature: Signature, inputs: Mapping[str, Array], tables: Sequence[CalibrationTable]) -> str:
    """Which input goes beyond its range, or vanishes in it, and how far; "" when none does, or nothing is known."""
    found = []
    for name, largest in _ranges(signature, tables).items():
        values = inputs[name].astype(np.float64)
        reaches = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        if reaches > BEYOND * largest:
            found.append(f"input {name!r} goes to {reaches:.3g}, it was calibrated to {largest:.3g}: int8 clips")
        elif 0 < reaches < largest / STEPS:
            step = largest / STEPS
            found.append(f"input {name!r} stays within {reaches:.3g}, a step of int8 is {step:.3g}: it is lost")
    return "; ".join(found)


def _ranges(signature: Signature, tables: Sequence[CalibrationTable]) -> dict[str, float]:
    """The largest magnitude that calibration kept, of every input of the signature that an int8 layer reads.

    The n-th input of a signature is the tensor ``mk/arg/n/0:0`` of every island that reads it.
    """
    try:
        table = calibration.table_for(tables, signature.key)
    except RecipeError:
        return {}
    found = {}
    for number, spec in enumerate(signature.inputs):
        kept = [item.threshold for key, item in table.ranges.items() if key.endswith(f"/mk/arg/{number}/0:0")]
        if kept and spec.dtype.startswith("float"):
            found[spec.name] = min(kept)
    return found
