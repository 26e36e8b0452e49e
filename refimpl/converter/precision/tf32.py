"""An island whose float32 products may be rounded to TF32: the same file under a name that engines know it by."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from refimpl import bundle
from refimpl.converter import verify
from refimpl.converter.islands import Lowered
from refimpl.converter.precision.refine import OURS
from refimpl.converter.precision.watch import typical
from refimpl.converter.verify import Finding
from refimpl.engines import onnxruntime
from refimpl.engines.rounding import TF32


def attempt(island: Lowered, ops: Sequence[str], name: str) -> tuple[Path, Finding]:
    """Compare the island with TensorFlow, its products rounded as a GPU would.

    Args:
        island: as lowered, in float32.
        ops: its TensorFlow op types.
        name: of the file to write, without its suffixes.

    Returns:
        The file, and what the comparison said: its problem is "" when the island stands TF32.
    """
    plain = onnxruntime.PLAIN if onnxruntime.PLAIN in island.model.name else "."
    file = island.model.with_name(f"{name}{plain}{TF32.removeprefix('.')}onnx")
    shutil.copyfile(island.model, file)
    weights = island.model.with_name(island.model.name + bundle.WEIGHTS_SUFFIX)
    if weights.exists():
        os.link(weights, file.with_name(file.name + bundle.WEIGHTS_SUFFIX))
    evidence = typical(island)
    if not evidence:
        return file, island.finding
    finding = verify.judge_engine(onnxruntime.open(file), evidence, island.leaving, "tf32", ops, OURS)
    return file, replace(finding, finite_only=island.finding.finite_only)
