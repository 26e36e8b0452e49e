"""The project's own files, and what they import."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "refimpl"
_NOT_OURS = {"__pycache__", "build", "dist", "demo_out"}


def python_files(*folders: Path) -> list[Path]:
    """All Python files below these folders."""
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def project_files() -> list[Path]:
    """Every file that belongs to the project: what git tracks or would track, or else all that is not hidden."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    return [file for file in sorted(ROOT.rglob("*")) if file.is_file() and not _hidden(file)]


def _hidden(file: Path) -> bool:
    parts = file.relative_to(ROOT).parts
    return any(part in _NOT_OURS or (part.startswith(".") and part != ".ci") for part in parts)


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, as ``package.module`` or ``package.module.name``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
