"""docs/supported-ops.md is what its tool writes, and the tool says what the tables and the refusals say."""

from __future__ import annotations

import json
import re

import pytest

from refimpl.converter import refusals
from tools import make_supported_ops as tool

PAGE = tool.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_tool_writes() -> None:
    """Where the libraries that know the ops are those that it was written with."""
    made = tool.page()
    heads = [re.search(r"with tf2onnx (\S+) and TensorFlow (\S+);", text) for text in (PAGE, made)]
    assert all(heads)
    if len({head.groups() for head in heads if head}) > 1:
        pytest.skip("the page was written with other versions of tf2onnx or TensorFlow")
    assert made == PAGE


def test_every_version_that_was_tried_is_in_it() -> None:
    tables = tool.read_tables()
    shipped = json.loads(tool.SHIPPED.read_text(encoding="utf-8"))["made_from"].split()[1]
    assert len(tables) == 4
    assert list(tables)[-1] == shipped
    assert {(table["opset"], table["asked_with"]) for table in tables.values()} == {
        (18, tables[shipped]["asked_with"])
    }, "tables that were asked other questions cannot be compared"


def table(version: str, **ops: dict[str, object]) -> tuple[str, dict[str, object]]:
    return version, {"made_from": f"lib {version} parser", "opset": 18, "ops": ops}


def takes(*dtypes: str, says: str = "") -> dict[str, object]:
    return {"taken": True, "dtypes": {"T": {"taken": list(dtypes), "refused": []}}, "says": says}


def test_rows_tell_versions_apart() -> None:
    no = {"taken": False, "says": "not | supported"}
    old = table("1.4.0.76", Abs=takes("float32"), Gone=takes("float32"), Never=no, Same=takes("int8"))
    new = table("1.10.0.5", Abs=takes("float16", "float32", says="no bool"), Gone=no, Never=no, Same=takes("int8"))
    assert list(tool.onnx_rows(dict([old, new]))) == [
        "| `Abs` | all | float16 (1.10.0), float32 | `no bool` |",
        "| `Gone` | 1.4.0 | float32 | `not / supported` |",
        "| `Never` | none |  | `not / supported` |",
        "| `Same` | all | int8 |  |",
    ]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("StringLower", "strings have no place in TensorRT"),  # by its inputs
        ("FFT", "complex numbers are not computed by TensorRT"),  # by the dtypes that it allows
        ("LookupTableFindV2", "it works on a table, an iterator or another resource that lives in TensorFlow"),
        ("Conv2D", ""),
        ("Cast", ""),
        ("NoSuchOp", ""),
    ],
)
def test_a_type_is_refused_by_dtype_only_when_nothing_else_is_possible(kind: str, reason: str) -> None:
    assert refusals.dtype_of_type(kind) == reason


def test_every_reason_is_that_of_the_judge() -> None:
    section = PAGE.split("## TensorFlow ops that stay")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*`) \| (.+) \|$", section, re.MULTILINE)
    said = {kind: reason for kinds, reason in rows for kind in re.findall(r"`(\w+)`", kinds)}
    assert said.keys() >= refusals.UNFAITHFUL.keys()
    for kind, reason in refusals.UNFAITHFUL.items():
        assert said[kind] == reason
