"""What a search found: where a bundle leaves TensorFlow, and which layers cost most. Renders nothing."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass
from typing import Any

from refimpl.oracle.compare import TensorDiff


class Place(enum.Enum):
    """Where the first wrong value was made."""

    ENVIRONMENT = "environment"  # TensorFlow itself answers otherwise here than when golden was recorded
    ISLAND = "island"  # an ONNX node of an island
    ENGINE = "engine"  # the ONNX is right, what a library makes of it is not
    RUNTIME = "runtime"  # the engine is right when it runs alone
    TENSORFLOW = "tensorflow"  # an op that stays in TensorFlow, fed by islands


class Origin(enum.Enum):
    """How an error came about, as far as the place tells."""

    BORN = "born"  # from TensorFlow's own operands
    AMPLIFIED = "amplified"  # only from operands that were off already, each within its tolerance
    UNKNOWN = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The first place where a bundle leaves TensorFlow on one case.

    Attributes:
        place: where.
        origin: whether the error was born there.
        signature: of the case.
        case: its name.
        island: its name; "" outside of islands.
        engine: the kind that was looked at.
        cut: the first tensor beyond its tolerance among those that enter or leave islands.
        tensor: the first TensorFlow tensor beyond it.
        op: the TensorFlow op to blame, and its type.
        ops: all ops that the ONNX nodes do the work of, with their types.
        nodes: the ONNX nodes, with their types; the last one makes the tensor.
        share: the error as a share of the tolerance.
        difference: of the tensor.
        remarks: sentences: what was tried, and what it tells.
    """

    place: Place
    origin: Origin = Origin.UNKNOWN
    signature: str
    case: str
    island: str = ""
    engine: str = ""
    cut: str = ""
    tensor: str = ""
    op: tuple[str, str] = ("", "")
    ops: tuple[tuple[str, str], ...] = ()
    nodes: tuple[tuple[str, str], ...] = ()
    share: float = math.nan
    difference: TensorDiff | None = None
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["place"], data["origin"] = self.place.value, self.origin.value
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedLayer:
    """A layer in a reduced precision, and what it costs by itself."""

    island: str
    layer: str  # ONNX node
    op: tuple[str, str]  # TensorFlow op, and its type
    precision: str
    local: float  # relative error of what it makes of TensorFlow's operands
    output: float | None  # relative error of the signature's outputs when this alone is wrong; None: not tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Layers in a reduced precision, the one that costs most first, and which of them to keep in float32.

    Attributes:
        case: that they were measured with.
        signature: its signature.
        layers: ranked.
        before: error of the islands' outputs, the worst one, as a share of the tolerance.
        after: the same with ``keep`` in float32, by simulation.
        keep: patterns for ``--keep-fp32``; empty when nothing needs it, or when nothing would help.
        command: the command that converts the model with them.
    """

    signature: str
    case: str
    layers: tuple[RankedLayer, ...]
    before: float
    after: float
    keep: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of ``refimpl bisect``."""

    bundle: str
    golden: str
    precision: str
    cases: tuple[str, ...]  # SIGNATURE/CASE, as far as the search went
    finding: Finding | None
    ranking: Ranking | None = None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 when there is nothing to find, 1 when a place was found."""
        return 0 if self.finding is None else 1

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that is not finite becomes a string."""
        data = {
            "format": "refimpl-bisect",
            "format_version": 1,
            "bundle": self.bundle,
            "golden": self.golden,
            "precision": self.precision,
            "cases": list(self.cases),
            "finding": self.finding.to_json() if self.finding else None,
            "ranking": asdict(self.ranking) if self.ranking else None,
            "notes": list(self.notes),
        }
        strict: dict[str, Any] = _strict(data)
        return strict


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
