"""Every message that a user can meet, read from the source: errors, warnings of the log, exceptions of TF-TRT's API."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.contract.sources import PACKAGE, ROOT, python_files

ANY = "@1"  # in the place of what varies
ERRORS = {"RecipeError", "SourceError", "UnsupportedError", "BuildError", "RunError", "BundleError", "GoldenError"}
BUILTIN = {"ValueError", "TypeError", "RuntimeError", "NotImplementedError"}  # what TF-TRT's API raises
LOGS = {"warning", "error"}


@dataclass(frozen=True)
class Message:
    """A message as it is in the source; ``text`` has ``ANY`` for each part that varies."""

    where: str
    text: str


def messages() -> list[Message]:
    """All of them, in the order of files and lines."""
    return [message for file in python_files(PACKAGE) for message in _in_file(file)]


def strings(file: Path) -> list[str]:
    """Every string of a file, with ``ANY`` for the parts that vary."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    whole = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in parts]
    return [
        *(re.sub(r"%[sdr]", ANY, value) for value in whole if isinstance(value, str)),
        *(
            "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values)
            for node in joined
        ),
    ]


def _in_file(file: Path) -> Iterator[Message]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = file.relative_to(PACKAGE).as_posix()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (argument := _argument(node, inside)) is not None:
            for text in _texts(argument, file):
                yield Message(f"{inside}:{node.lineno}", text)


def _argument(call: ast.Call, inside: str) -> ast.expr | None:
    """What a call says, when it raises an error or logs a warning."""
    if isinstance(call.func, ast.Name):
        name = call.func.id
        if name in ERRORS or (name in BUILTIN and inside.startswith("trt_convert/")):
            return call.args[0] if call.args else None
        return call.args[1] if name == "_warn_once" else None
    if isinstance(call.func, ast.Attribute) and call.func.attr in LOGS:
        of_log = isinstance(call.func.value, ast.Name) and call.func.value.id in {"log", "_log", "logger"}
        return call.args[0] if of_log and call.args else None
    return None


def _texts(node: ast.expr, file: Path) -> list[str]:
    """The texts that an expression can be."""
    if isinstance(node, ast.Constant):
        return [re.sub(r"%[sdr]", ANY, str(node.value))]
    if isinstance(node, ast.JoinedStr):
        parts = [_texts(part, file) for part in node.values]
        found = [""]
        for part in parts:
            found = [before + text for before in found for text in part]
        return found
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value, file) if isinstance(node.value, ast.Name | ast.IfExp) else [ANY]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, file), *_texts(node.orelse, file)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in _texts(value, file)]
    if isinstance(node, ast.BinOp):
        return [left + right for left in _texts(node.left, file) for right in _texts(node.right, file)]
    if isinstance(node, ast.Name):
        value = getattr(_module(file), node.id, None)
        return [value] if isinstance(value, str) else [ANY]
    return [ANY]


def _module(file: Path) -> object:
    return importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
