"""TF-TRT's reports of a bundle on disk, for ``refimpl inspect``: what the facade tells after a conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from refimpl.bundle import LeftOp, Manifest, SignatureRecord
from refimpl.report import tftrt as report
from refimpl.trt_convert import view


def print_summary(folder: Path, manifest: Manifest, *, detailed: bool, print_fn: Callable[..., object]) -> None:
    """``summary()`` of every signature that was converted.

    Args:
        folder: the bundle.
        manifest: the bundle's.
        detailed: list the ops of each engine.
        print_fn: called with each piece of text, or without any for an empty line.
    """
    for record in _converted(manifest):
        print_fn(f"signature {record.signature.key}")
        graph = view.converted_graph(folder, manifest, record, None)
        report.print_summary(
            view.rows(graph, record),
            len(view.other_nodes(graph, record)),
            line_length=report.MIN_LINE_LENGTH,
            detailed=detailed,
            print_fn=print_fn,
        )


def non_conversion(manifest: Manifest, *, form: str, detailed: bool) -> str:
    """What stayed in TensorFlow, in all signatures that were converted.

    Args:
        manifest: the bundle's.
        form: ``text`` or ``csv``.
        detailed: of the text, say the reasons, too.
    """
    left: list[LeftOp] = [op for record in _converted(manifest) for op in record.left]
    return report.non_conversion_csv(left) if form == "csv" else report.non_conversion_report(left, detailed=detailed)


def _converted(manifest: Manifest) -> Iterator[SignatureRecord]:
    return (record for record in manifest.signatures if record.converted)
