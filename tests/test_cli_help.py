"""``refimpl help``, and the last line of an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refimpl import cli, troubleshooting

COPY_PACKAGE_DATA = """
import sys
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

distribution = apply_configuration(Distribution(), "pyproject.toml")
distribution.packages, distribution.include_package_data = ["refimpl"], False
build = distribution.get_command_obj("build_py")
build.build_lib = sys.argv[1]
build.ensure_finalized()
build.build_package_data()
"""


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_an_error_names_its_entry_and_the_entry_is_shown(capsys, tmp_path: Path) -> None:
    code, out, err = said(capsys, "inspect", str(tmp_path / "nothing"))
    assert (code, out) == (2, "")
    first, hint, more = err.splitlines()
    assert first.startswith("error: no such bundle: ")
    assert hint.startswith("hint: ")
    assert more.startswith("more: refimpl help ")
    code, out, err = said(capsys, *more.removeprefix("more: refimpl ").split())
    assert (code, err) == (0, "")
    assert "`no such bundle: ...`" in out
    assert "refimpl convert" in out


@pytest.mark.parametrize(
    ("words", "anchor"),
    [
        (("cannot write /x: No space left on device",), "cannot-write"),
        (("cannot", "write", "/x:", "full"), "cannot-write"),
        (("error: cannot write /x: full",), "cannot-write"),
        (("fallback-used",), "fallback-used"),
        (("strings have no place in TensorRT",), "strings-and-resources"),
    ],
)
def test_a_message_leads_to_its_entry(capsys, words: tuple[str, ...], anchor: str) -> None:
    code, out, _ = said(capsys, "help", *words)
    assert code == 0
    assert out.startswith(f"{anchor} (")


def test_without_words_all_are_listed(capsys) -> None:
    code, out, _ = said(capsys, "help")
    assert code == 0
    assert all(f"\n  {entry.anchor}" in out for entry in troubleshooting.entries())
    assert max(map(len, out.splitlines())) <= 80


def test_unknown_words_lead_to_the_nearest(capsys) -> None:
    code, out, err = said(capsys, "help", "no-such-bundel")
    assert (code, out) == (2, "")
    assert "no-such-bundle" in err.splitlines()[1]
    assert said(capsys, "help", "zzzzzz")[2].splitlines()[1] == "hint: refimpl help without words lists all entries"


def test_the_page_is_part_of_the_package(tmp_path: Path) -> None:
    """A wheel holds a file, not the link of the checkout."""
    root = Path(troubleshooting.__file__).parent.parent
    subprocess.run([sys.executable, "-c", COPY_PACKAGE_DATA, str(tmp_path)], cwd=root, check=True, capture_output=True)
    shipped = tmp_path / "refimpl" / "troubleshooting.md"
    assert shipped.read_text(encoding="utf-8").startswith("# Troubleshooting\n")
    assert not shipped.is_symlink()
