"""Make ``docs/supported-ops.md`` from what the judge knows: the refusals, and the tables of TensorRT's parsers.

    python tools/make_supported_ops.py            writes the page
    python tools/make_supported_ops.py --check    writes nothing; exits 1 when the page is stale

The table of the version that is pinned ships with refimpl; those of other versions are in docs/support-tables/, each
made by ``tools/make_support_table.py --output FILE`` with that version installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the refimpl of this checkout, installed or not

PAGE = ROOT / "docs" / "supported-ops.md"
SHIPPED = ROOT / "refimpl" / "converter" / "support_table.json"
OTHERS = ROOT / "docs" / "support-tables"
# What a graph is made of without computing anything; a lowering of them says nothing.
_PLUMBING = frozenset("Const Placeholder PlaceholderV2 PlaceholderWithDefault NoOp".split())

Table = Mapping[str, Any]

HEAD = """# Supported ops

Written by `python tools/make_supported_ops.py`, with tf2onnx {tf2onnx} and TensorFlow {tensorflow}; do not edit.

An op goes into an engine when it has a lowering to ONNX that refimpl trusts (the first two sections), when TensorRT
takes that ONNX (the third), and when the island around it then agrees with TensorFlow ([verify](concepts/verify.md)).
This page knows types of ops only. Attributes, dtypes, ranks and what is constant matter too:
`refimpl explain my_model` asks about your ops.

## TensorFlow ops that have a lowering

{lowered}

Not where a tensor of theirs is float64, complex, bfloat16, a string or a resource, or of unknown rank.
[Limits](limits.md) has more conditions.

## TensorFlow ops that stay, although tf2onnx translates them

| ops | why |
|---|---|
{refused}

Every other type of op has no lowering, and stays.

## ONNX ops that TensorRT takes

What the parser of each version says to the node tests of the onnx package at opset {opset}: {count} ops, each in every
dtype that its schema allows. *Taken by* names versions of {library}: all are {versions}.
A dtype that only some of them take has those in brackets.

| ONNX op | taken by | dtypes | TensorRT says of the rest |
|---|---|---|---|
{rows}
"""


def page() -> str:
    """The page's text."""
    from refimpl.converter import refusals, rewrites

    types = (refusals.lowered_types() | set(rewrites.RULES)) - _PLUMBING
    reasons = {kind: _why_it_stays(kind) for kind in sorted(types) if _is_tensorflows(kind)}
    tables = read_tables()
    newest = next(reversed(tables.values()))
    return HEAD.format(
        tf2onnx=importlib.metadata.version("tf2onnx"),
        tensorflow=_version("tensorflow-cpu", "tensorflow"),
        lowered=", ".join(f"`{kind}`" for kind, reason in reasons.items() if not reason),
        refused="\n".join(_rows_by_reason(reasons)),
        opset=newest["opset"],
        count=len(newest["ops"]),
        library=", ".join(sorted({table["made_from"].split()[0] for table in tables.values()})),
        versions=", ".join(map(_short, tables)),
        rows="\n".join(onnx_rows(tables)),
    )


def _rows_by_reason(reasons: Mapping[str, str]) -> Iterator[str]:
    for reason in sorted(set(reasons.values()) - {""}):
        kinds = ", ".join(f"`{kind}`" for kind, why in reasons.items() if why == reason)
        yield f"| {kinds} | {reason} |"


def _version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ModuleNotFoundError(f"none of {names} is installed")


def _is_tensorflows(kind: str) -> bool:
    """Whether TensorFlow has such an op; tf2onnx also knows names of TFLite, of ONNX and of old fused layers."""
    from refimpl import tf_private

    return tf_private.op_def(kind) is not None


def _why_it_stays(kind: str) -> str:
    """Why every op of this type stays; "" when it depends on more than the type."""
    from refimpl.converter import refusals

    return refusals.UNFAITHFUL.get(kind, "") or refusals.random_type(kind) or refusals.dtype_of_type(kind)


def read_tables() -> dict[str, Table]:
    """Every table that is kept, by version, the oldest first."""
    tables = [json.loads(file.read_text(encoding="utf-8")) for file in [SHIPPED, *OTHERS.glob("*.json")]]
    by_version = {table["made_from"].split()[1]: table for table in tables}
    return dict(sorted(by_version.items(), key=lambda item: tuple(map(int, item[0].split(".")))))


def onnx_rows(tables: Mapping[str, Table]) -> Iterator[str]:
    """A row of the Markdown table for every ONNX op that any version was asked about."""
    for op in sorted({op for table in tables.values() for op in table["ops"]}):
        rows = {version: table["ops"][op] for version, table in tables.items() if op in table["ops"]}
        taken = {version: row for version, row in rows.items() if row["taken"]}
        says = rows[list(rows)[-1]].get("says", "")
        cells = (f"`{op}`", _versions(list(taken), tables) or "none", _dtypes(taken, tables), _in_cell(says))
        yield "| " + " | ".join(cells) + " |"


def _versions(some: Sequence[str], tables: Mapping[str, Table]) -> str:
    """Short names of versions: ``all``, or ``1.4.0, 1.5.0``."""
    return "all" if len(some) == len(tables) else ", ".join(_short(version) for version in some)


def _short(version: str) -> str:
    return ".".join(version.split(".")[:3])


def _dtypes(rows: Mapping[str, Any], tables: Mapping[str, Table]) -> str:
    parameters = sorted({name for row in rows.values() for name in row["dtypes"]})
    texts = []
    for name in parameters:
        by_dtype: dict[str, list[str]] = {}
        for version, row in rows.items():
            for dtype in row["dtypes"].get(name, {}).get("taken", ()):
                by_dtype.setdefault(dtype, []).append(version)
        listed = [
            dtype if len(found) == len(rows) else f"{dtype} ({_versions(found, tables)})"
            for dtype, found in sorted(by_dtype.items())
        ]
        texts.append((f"{name}: " if len(parameters) > 1 else "") + ", ".join(listed))
    return "; ".join(texts)


def _in_cell(text: str) -> str:
    """TensorRT's words, with nothing in them that Markdown would take for its own."""
    return f"`{' '.join(text.split())}`".replace("|", "/") if text else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make docs/supported-ops.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is stale")
    options = parser.parse_args()
    text = page()
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is stale: run tools/make_supported_ops.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
