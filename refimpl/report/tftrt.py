"""TF-TRT's reports, in TF-TRT's formats: the summary of a conversion, and what was not converted, as text and CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from refimpl.bundle import LeftOp

MIN_LINE_LENGTH = 160
# Heading and share of the line; the odd capitals are TF-TRT's.
_COLUMNS = (
    ("TRTEngineOP Name", 0.20),
    ("Device", 0.09),
    ("# Nodes", 0.05),
    ("# Inputs", 0.09),
    ("# Outputs", 0.09),
    ("Input DTypes", 0.12),
    ("Output Dtypes", 0.12),
    ("Input Shapes", 0.12),
    ("Output Shapes", 0.12),
)
_MORE = (
    "For more information see "
    "https://docs.nvidia.com/deeplearning/frameworks/tf-trt-user-guide/index.html#supported-ops."
)


@dataclass(frozen=True)
class EngineRow:
    """One engine of the summary.

    Attributes:
        name: ``TRTEngineOp_GGG_SSS``.
        device: the last part of its node's device; "" when it may run anywhere.
        ops: op type -> how many nodes of the native segment are of it, constants included.
        in_dtypes, out_dtypes: TensorFlow's names of dtypes.
        in_shapes, out_shapes: -1 is an unknown dimension.
    """

    name: str
    device: str
    ops: Mapping[str, int]
    in_dtypes: Sequence[str]
    out_dtypes: Sequence[str]
    in_shapes: Sequence[Sequence[int]]
    out_shapes: Sequence[Sequence[int]]


def print_summary(
    rows: Iterable[EngineRow], others: int, *, line_length: int, detailed: bool, print_fn: Callable[..., object]
) -> None:
    """TF-TRT's ``summary()``.

    Args:
        rows: the engines, in any order.
        others: how many nodes of the converted graph are no engines.
        line_length: width; at least ``MIN_LINE_LENGTH``.
        detailed: list the ops of each engine.
        print_fn: called with each piece of text, and once per engine without any when ``detailed``.
    """
    ends = [0]
    for _, share in _COLUMNS:
        ends.append(ends[-1] + int(line_length * share))
    print_fn(_row([heading for heading, _ in _COLUMNS], ends[1:]))
    print_fn("=" * line_length)
    engines = sorted(rows, key=lambda row: row.name)
    converted = 0
    for row in engines:
        count = sum(row.ops.values())
        converted += count
        if len(engines) != 1:
            print_fn("\n" + "-" * 40 + "\n")
        fields = [row.name, row.device, count, len(row.in_dtypes), len(row.out_dtypes)]
        fields += [list(row.in_dtypes), list(row.out_dtypes)]
        fields += [[list(shape) for shape in shapes] for shapes in (row.in_shapes, row.out_shapes)]
        print_fn(_row(fields, ends[1:]))
        if detailed:
            print_fn()
            for op, number in sorted(row.ops.items()):
                print_fn(f"\t- {op}: {number}x")
    total = others + converted
    share = 100 * converted / total if total else 0.0
    print_fn("\n" + "=" * line_length)
    print_fn(f"[*] Total number of TensorRT engines: {len(engines)}")
    print_fn(f"[*] % of OPs Converted: {share:.2f}% [{converted}/{total}]\n")


def _row(fields: Sequence[object], ends: Sequence[int]) -> str:
    line = ""
    for index, (field, end) in enumerate(zip(fields, ends, strict=True)):
        line = f"{line}{' ' if index else ''}{field}".ljust(end)
        if len(line) > end:
            line = f"{line[: end - 4]} ..."
    return line


def non_conversion_report(left: Iterable[LeftOp], *, detailed: bool) -> str:
    """What stayed in TensorFlow, by op type, the most frequent first.

    Args:
        left: the ops, each with its reason; those whose island was too small are among them.
        detailed: also say the reasons.
    """
    reasons = _by_type(left)
    counts = {kind: sum(found.values()) for kind, found in reasons.items()}
    lines = ["\n\n" + "#" * 80, "\nTensorRT unsupported/non-converted OP Report:"]
    for kind in sorted(reasons, key=lambda kind: (-counts[kind], kind)):
        lines.append(f"\n\t- {kind} -> {counts[kind]}x")
        if detailed:
            ordered = sorted(reasons[kind].items(), key=lambda item: (-item[1], item[0]))
            lines += [f"\n\t\t- [Count: {count}x] {reason}" for reason, count in ordered]
            lines.append("\n")
    lines.append("\n" + "-" * 80)
    lines.append(f"\n\t- Total nonconverted OPs: {sum(counts.values())}")
    lines.append(f"\n\t- Total nonconverted OP Types: {len(counts)}")
    lines.append(f"\n{_MORE}\n" + "#" * 80 + "\n")
    return "".join(lines)


def non_conversion_csv(left: Iterable[LeftOp]) -> str:
    """The same as a table: ``OP Name|Reason|Count``, sorted by op type and reason."""
    rows = sorted((kind, reason, count) for kind, found in _by_type(left).items() for reason, count in found.items())
    text = io.StringIO()
    # TF-TRT quotes nothing; a reason may hold the separator, which would make two columns of one.
    writer = csv.writer(text, delimiter="|", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
    writer.writerow(("OP Name", "Reason", "Count"))
    writer.writerows((kind, " ".join(reason.replace("|", "/").split()), count) for kind, reason, count in rows)
    return text.getvalue()


def _by_type(left: Iterable[LeftOp]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for op in left:
        found.setdefault(op.type, Counter())[op.reason] += 1
    return found


@dataclass(frozen=True)
class DotNode:
    """One node of the converted graph, for :func:`dot`."""

    name: str
    op: str
    device: str
    dtype: str  # what it computes in
    inputs: Sequence[str]  # node names
    engine_nodes: int | None = None  # of an engine, how many nodes its native segment has


def dot(nodes: Sequence[DotNode]) -> str:
    """The converted graph for Graphviz, coloured by compute dtype, with a legend."""
    colours: dict[str, int] = {}
    lines = [
        "digraph tftrt_converted_graph {",
        '  graph [fontsize=10 fontname="Verdana"];',
        "  node [style=filled height=0.55 colorscheme=set312 shape=box];",
        "",
        "  subgraph tensorflow_graph {",
        "    node [width=1.35];",
    ]
    for node in nodes:
        colour = colours.setdefault(node.dtype, len(colours) + 1)
        title = node.op if node.engine_nodes is None else f"{node.name} [{node.engine_nodes}]"
        device = node.device.rsplit("/", 1)[-1] or "device:Unspecified"
        label = f"<b>{title}</b>  <br/><i>{device}</i>"
        lines.append(f'    "{node.name}" [label=<{label}> fillcolor={min(colour, 12)}];')
        lines += [f'    "{source}" -> "{node.name}";' for source in node.inputs]
    lines += ["  }", "", "  subgraph cluster_legend {", '    label="Compute Dtype Legend";', '    margin="30";']
    lines.append("    node [width=2];")
    lines += [f"    {dtype} [fillcolor={min(n, 12)} label=<<b>{dtype}</b>>];" for dtype, n in colours.items()]
    lines += ["  }", "", '  edge[style="invisible", dir="none"];']
    roots = [node.name for node in nodes if not node.inputs]
    lines += [f'  "{dtype}" -> "{root}";' for dtype in colours for root in roots]
    return "\n".join([*lines, "}", ""])
