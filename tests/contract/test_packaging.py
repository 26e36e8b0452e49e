"""The package, its pins, the Makefile and the README agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from setuptools import find_packages

import refimpl
from tests.contract.sources import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PIN = re.compile(r'(?P<name>[a-z0-9-]+)==(?P<version>[\w.]+)(?:; python_version (?P<when>< "3\.11"|>= "3\.11"))?')


def pins() -> list[re.Match[str]]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.strip() and not line.startswith("#")]
    matches = [PIN.fullmatch(row) for row in rows]
    assert all(matches), [row for row, match in zip(rows, matches, strict=True) if not match]
    return [match for match in matches if match]


def test_versions_agree():
    assert PROJECT["project"]["version"] == refimpl.__version__


def test_every_requirement_is_pinned_exactly():
    names = {match["name"] for match in pins()}
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    wanted += [item for extra in project["optional-dependencies"].values() for item in extra]
    required = {re.match(r"[\w-]+", item)[0].lower() for item in wanted}
    assert required <= names, f"constraints.txt has no pin for {sorted(required - names)}"


@pytest.mark.parametrize("old_python", [True, False])
def test_no_package_is_pinned_twice(old_python):
    here = [match["name"] for match in pins() if match["when"] is None or match["when"].startswith("<") == old_python]
    assert len(here) == len(set(here)), sorted({name for name in here if here.count(name) > 1})


def test_only_the_package_is_shipped():
    """Not golden/, tests/ or tools/, which are importable from a checkout."""
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    found = find_packages(str(ROOT), include=include)
    assert {name.split(".")[0] for name in found} == {"refimpl"}
    assert {"golden", "tests", "tools"} <= set(find_packages(str(ROOT)))


def test_the_installed_environment_has_no_conflicts():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_readme_commands_are_make_targets():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = set(re.findall(r"^\s*\$?\s*make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= asked, "the README shows make demo and make test"
    assert asked <= targets


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")


def test_the_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:3] == ["Apache", "License", "Version"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_changelog_names_this_version():
    assert f"\n## [{refimpl.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
