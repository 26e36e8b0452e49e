"""Render plans and manifests as text that fits 80 columns, and as JSON. Decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from refimpl.bundle import IDLE_OPS, WEIGHTS_SUFFIX, IslandRecord, LeftOp, Manifest, SignatureRecord
from refimpl.specs import Signature

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_MANY = 12  # rows of reasons or islands shown before the rest is only counted


@dataclass(frozen=True)
class PlanSummary:
    """What ``explain`` says of one signature: its islands by op types, and why every other op stays."""

    signature: Signature
    islands: tuple[tuple[tuple[str, str], ...], ...]  # per island, (op name, op type)
    left: tuple[LeftOp, ...]
    ops_total: int

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
        converted = summary.ops_converted
        console.print(_headline(summary.signature, converted, summary.ops_total, len(summary.islands)))
        if summary.islands:
            table = Table("island", "ops", "most of them", box=None, pad_edge=False)
            for index, island in enumerate(summary.islands[:_MANY]):
                table.add_row(str(index), str(len(island)), _types(kind for _, kind in island))
            console.print(table)
            _rest(console, len(summary.islands), "islands")
        _print_left(console, summary.left)
    console.print(f"judged by: {judge}")


def print_manifest(console: Console, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Everything worth knowing of a bundle.

    Args:
        console: where to.
        manifest: the bundle's.
        sizes: bytes of each file, by its name in the manifest.
    """
    console.print(
        f"bundle {manifest.bundle_id}, made {manifest.created} by refimpl {manifest.refimpl} "
        f"from {manifest.source_name}"
    )
    state = "every island verified against TensorFlow" if manifest.verified else "UNVERIFIED"
    console.print(f"precision {manifest.precision}; {state}; judged by: {manifest.judge}")
    for record in manifest.signatures:
        console.print(_signature(record, sizes))
        if record.converted:
            _print_left(console, record.left)
    for note in manifest.notes:
        console.print(f"note: {note}")
    total = sum(sizes.values())
    seconds = sum(manifest.timings.values())
    console.print(f"{len(manifest.files)} files, {_mib(total)}; converted in {seconds:.1f} s")


def _signature(record: SignatureRecord, sizes: Mapping[str, int]) -> RenderableType:
    if not record.converted:
        return Text.assemble("\nsignature ", (record.signature.key, "bold"), f": stays in TensorFlow ({record.reason})")
    head = _headline(record.signature, record.ops_converted, record.ops_total, len(record.islands))
    table = Table("island", "ops", "engine", "precision", "size", "verified", box=None, pad_edge=False)
    for island in record.islands[:_MANY]:
        for index, engine in enumerate(island.engines):
            first = index == 0
            table.add_row(
                island.name if first else "",
                str(len(island.ops)) if first else "",
                engine.kind,
                engine.precision,
                _mib(_size(engine.file, sizes)) if engine.file else "not built",
                (island.verified or "NO") if first else "",
            )
    parts: list[RenderableType] = [head, table]
    if len(record.islands) > _MANY:
        parts.append(f"... and {len(record.islands) - _MANY} more islands")
    parts += [f"{island.name}: {note}" for island in record.islands for note in island.notes]
    if record.tried:
        parts.append(_tried(record.tried))
    return Group(*parts, *_lifted(record.islands))


def _tried(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What ``--precision auto`` measured; costs are estimates."""
    table = Table("tried", "metric", "drop", "cost", "verdict", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["name"], f"{row['metric']:.4f}", f"{row['drop']:.4f}", f"{100 * row['cost']:.0f} %", row["verdict"]
        )
    return table


def _lifted(islands: Sequence[IslandRecord]) -> list[RenderableType]:
    """Products that compute in more than was asked for, by reason."""
    wanted = {island.name: island.precision for island in islands}
    rows = [
        (name, precision, reason)
        for island in islands
        for name, op, precision, reason in island.layers
        if reason and op in _PRODUCTS and precision != wanted[island.name]
    ]
    if not rows:
        return []
    table = Table("products", "in", "why not less", box=None, pad_edge=False)
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, precision, reason in rows:
        grouped.setdefault((precision, reason), []).append(name)
    for (precision, reason), names in sorted(grouped.items(), key=lambda item: -len(item[1]))[:_MANY]:
        shown = _tail(names[0]) if len(names) == 1 else f"{len(names)}: {_tail(names[0])} ..."
        table.add_row(shown, precision, reason)
    found: list[RenderableType] = [table]
    if len(grouped) > _MANY:
        found.append(f"... and {len(grouped) - _MANY} more reasons (all of them with --json)")
    return found


def _tail(name: str) -> str:
    """The end of a long name: TensorFlow's names differ there."""
    return name if len(name) <= 30 else f"...{name[-27:]}"


def _headline(signature: Signature, converted: int, total: int, islands: int) -> Text:
    share = f"{100 * converted / total:.1f} %" if total else "none"
    lines = [
        ("\nsignature ", ""),
        (signature.key, "bold"),
        (f": {converted} of {total} TensorFlow ops ({share}) in {islands} islands\n", ""),
    ]
    lines += [(f"  in  {spec.describe()}\n", "dim") for spec in signature.inputs]
    lines += [(f"  out {spec.describe()}\n", "dim") for spec in signature.outputs]
    return Text.assemble(*lines, end="")


def _print_left(console: Console, left: Sequence[LeftOp]) -> None:
    if not left:
        return
    console.print(f"stay in TensorFlow: {len(left)} ops")
    table = Table("ops", "type", "why", box=None, pad_edge=False)
    counted = Counter((op.type, op.reason) for op in left).most_common()
    for (kind, reason), count in counted[:_MANY]:
        table.add_row(str(count), kind, reason)
    console.print(table)
    _rest(console, len(counted), "reasons (all of them with --json)")


def _rest(console: Console, count: int, what: str) -> None:
    if count > _MANY:
        console.print(f"... and {count - _MANY} more {what}")


def _types(kinds: Iterable[str]) -> str:
    return ", ".join(f"{kind} x{count}" for kind, count in Counter(kinds).most_common(4))


def _size(file: str, sizes: Mapping[str, int]) -> int:
    """Bytes of an engine's file, and of the weights beside it."""
    return sizes.get(file, 0) + sizes.get(file + WEIGHTS_SUFFIX, 0)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 19 else f"{size / 1024:.1f} KiB"
