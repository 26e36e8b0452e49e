"""Modules stay small, public functions say what they do, and no file names a machine."""

from __future__ import annotations

import ast
import re

import pytest

from tests.contract.sources import PACKAGE, ROOT, project_files, python_files

MAX_LINES = 400
TEXT = {"", ".cfg", ".css", ".html", ".json", ".md", ".py", ".pyi", ".sh", ".toml", ".txt", ".yaml", ".yml"}
PRIVATE = re.compile(
    r"(?<![\w.~-])/(?:work|opt|root|home|Users|mnt|srv)/\w"  # a path of somebody's machine
    r"|\b(?:pypi|files\.pythonhosted|registry\.npmjs|deb\.debian|proxy\.golang)\.(?:org|com|net)\b"
    r"|\bpypi\.nvidia\.com\b|[.]library/|[.]pyenv\b"
)


@pytest.mark.parametrize(
    "file", python_files(ROOT / "refimpl", ROOT / "tests", ROOT / "tools"), ids=lambda f: str(f.relative_to(ROOT))
)
def test_no_module_is_long(file):
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; {MAX_LINES} are the limit: find the two ideas in it"


def test_no_file_names_a_machine_or_a_registry():
    found = []
    for file in project_files():
        if file.suffix in TEXT:
            for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                found += [f"{file.relative_to(ROOT)}:{number}: {line.strip()}"] if PRIVATE.search(line) else []
    assert found == []


@pytest.mark.parametrize("text", ["see /" + "home/me/x", "PATH=/" + "opt/x", "https://pypi." + "org/simple"])
def test_the_search_would_notice(text):
    assert PRIVATE.search(text)


def _documented_in_protocols() -> set[str]:
    """Names that the Protocols of the engines document; a module that follows one need not say it again."""
    tree = ast.parse((PACKAGE / "engines" / "__init__.py").read_text(encoding="utf-8"))
    protocols = [node for node in tree.body if isinstance(node, ast.ClassDef) and "Protocol" in ast.dump(node)]
    return {item.name for node in protocols for item in node.body if isinstance(item, ast.FunctionDef)}


@pytest.mark.parametrize("file", python_files(PACKAGE), ids=lambda f: str(f.relative_to(ROOT)))
def test_public_functions_and_classes_are_documented(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    said_elsewhere = _documented_in_protocols() if file.parent.name == "engines" else set()
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and node.name not in said_elsewhere
        and not ast.get_docstring(node)
    ]
    assert silent == []
