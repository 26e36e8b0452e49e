"""Render plans and manifests as text that fits 80 columns, and as JSON. Decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from refimpl.bundle import IDLE_OPS, IslandRecord, LeftOp, Manifest, SignatureRecord
from refimpl.graph_record import SignatureGraph
from refimpl.specs import Signature
from refimpl.tables import Column
from refimpl.terminal import print_line, print_table
from refimpl.text import counted, plural

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_MANY = 12  # rows of reasons or islands shown before the rest is only counted
_LEFT = (Column("ops", "number"), Column("type", "name"), Column("why", "text"))
_PLANNED = (Column("island", "number"), Column("ops", "number"), Column("most of them", "text"))
_ISLANDS = (
    Column("island", "name"),
    Column("ops", "number"),
    Column("engine"),
    Column("precision"),
    Column("size", "number"),
    Column("verified", "text"),
)
_TRIED = (
    Column("tried", "text"),
    Column("metric", "number"),
    Column("drop", "number"),
    Column("cost", "number"),
    Column("verdict", "text"),
)
_LIFTED = (Column("products", "number"), Column("such as", "name"), Column("in"), Column("why not less", "text"))


@dataclass(frozen=True)
class PlanSummary:
    """What ``explain`` says of one signature: its islands by op types, and why every other op stays."""

    signature: Signature
    islands: tuple[tuple[tuple[str, str], ...], ...]  # per island, (op name, op type)
    left: tuple[LeftOp, ...]
    ops_total: int
    graph: SignatureGraph | None = None  # of its ops; not in the JSON

    @property
    def ops_converted(self) -> int:
        """TensorFlow ops in islands, those that compute nothing left out."""
        return sum(kind not in IDLE_OPS for island in self.islands for _, kind in island)

    def to_json(self) -> dict[str, Any]:
        """Plain data: names, types, reasons, counts."""
        return {
            "signature": self.signature.to_json(),
            "ops_total": self.ops_total,
            "ops_converted": self.ops_converted,
            "islands": [{"ops": [list(op) for op in island]} for island in self.islands],
            "left": [{"name": op.name, "type": op.type, "reason": op.reason} for op in self.left],
        }


def print_plan(console: Console, summaries: Sequence[PlanSummary], judge: str) -> None:
    """The plan of each signature, and who judged."""
    for summary in summaries:
        _headline(console, summary.signature, summary.ops_converted, summary.ops_total, len(summary.islands))
        if summary.islands:
            rows = [
                (str(index), str(len(island)), _types(kind for _, kind in island))
                for index, island in enumerate(summary.islands[:_MANY])
            ]
            print_table(console, _PLANNED, rows)
            _rest(console, len(summary.islands), "island")
        _print_left(console, summary.left)
    print_line(console, f"judged by: {judge}")


def print_manifest(console: Console, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Everything worth knowing of a bundle.

    Args:
        console: where to.
        manifest: the bundle's.
        sizes: bytes of each file, by its name in the manifest.
    """
    made = f"made {manifest.created} by refimpl {manifest.refimpl} from {manifest.source_name}"
    print_line(console, f"bundle {manifest.bundle_id}, {made}")
    state = "every island verified against TensorFlow" if manifest.verified else "UNVERIFIED"
    print_line(console, f"precision {manifest.precision}; {state}; judged by: {manifest.judge}")
    for record in manifest.signatures:
        _print_signature(console, record, sizes)
        if record.converted:
            _print_left(console, record.left)
    for note in manifest.notes:
        print_line(console, f"note: {note}")
    total = sum(sizes.values())
    seconds = sum(manifest.timings.values())
    print_line(console, f"{counted(len(manifest.files), 'file')}, {_mib(total)}; converted in {seconds:.1f} s")


def _print_signature(console: Console, record: SignatureRecord, sizes: Mapping[str, int]) -> None:
    if not record.converted:
        console.print()
        print_line(console, f"signature {record.signature.key}: stays in TensorFlow ({record.reason})")
        return
    islands = record.islands
    _headline(console, record.signature, record.ops_converted, record.ops_total, len(islands))
    print_table(console, _ISLANDS, [row for island in islands[:_MANY] for row in _rows(island, sizes)])
    _rest(console, len(islands), "island")
    for island in islands:
        for note in island.notes:
            print_line(console, f"{island.name}: {note}")
    if record.tried:
        print_table(console, _TRIED, [_tried(row) for row in record.tried])
    _print_lifted(console, islands)


def _rows(island: IslandRecord, sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """A row for each engine of an island; what is the island's own stands in the first."""
    found: list[tuple[str, ...]] = []
    for index, engine in enumerate(island.engines):
        size = _mib(engine.nbytes(sizes)) if engine.file else "not built"
        name, ops, verified = island.name, str(len(island.ops)), island.verified or "NO"
        first, last = ((name, ops), verified) if index == 0 else (("", ""), "")
        found.append((*first, engine.kind, engine.precision, size, last))
    return found


def _tried(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What ``--precision auto`` measured; costs are estimates."""
    numbers = (f"{row['metric']:.4f}", f"{row['drop']:.4f}", f"{100 * row['cost']:.0f} %")
    return (row["name"], *numbers, row["verdict"])


def _print_lifted(console: Console, islands: Sequence[IslandRecord]) -> None:
    """Products that compute in more than was asked for, by reason."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for island in islands:
        for name, op, precision, reason in island.layers:
            if reason and op in _PRODUCTS and precision != island.precision:
                grouped.setdefault((precision, reason), []).append(name)
    if not grouped:
        return
    ordered = sorted(grouped.items(), key=lambda item: -len(item[1]))
    rows = [(str(len(names)), names[0], precision, reason) for (precision, reason), names in ordered[:_MANY]]
    print_table(console, _LIFTED, rows)
    _rest(console, len(grouped), "reason", " (all of them with --json)")


def _headline(console: Console, signature: Signature, converted: int, total: int, islands: int) -> None:
    share = f"{100 * converted / total:.1f} %" if total else "none"
    console.print()
    whole = f"{converted} of {counted(total, 'TensorFlow op')} ({share})"
    print_line(console, f"signature {signature.key}: {whole} in {counted(islands, 'island')}", style="bold")
    for spec in signature.inputs:
        print_line(console, f"  in  {spec.describe()}")
    for spec in signature.outputs:
        print_line(console, f"  out {spec.describe()}")


def _print_left(console: Console, left: Sequence[LeftOp]) -> None:
    if not left:
        return
    print_line(console, f"stay in TensorFlow: {counted(len(left), 'op')}")
    grouped = Counter((op.type, op.reason) for op in left).most_common()
    print_table(console, _LEFT, [(str(count), kind, reason) for (kind, reason), count in grouped[:_MANY]])
    _rest(console, len(grouped), "reason", " (all of them with --json)")


def _rest(console: Console, count: int, noun: str, where: str = "") -> None:
    if (more := count - _MANY) > 0:
        print_line(console, f"... and {more} more {noun if more == 1 else plural(noun)}{where}")


def _types(kinds: Iterable[str]) -> str:
    return ", ".join(f"{kind} x{count}" for kind, count in Counter(kinds).most_common(4))


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 19 else f"{size / 1024:.1f} KiB"
