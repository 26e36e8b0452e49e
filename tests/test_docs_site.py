"""The documentation site builds without a warning, every link in it leads somewhere, and nothing of it is fetched."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import refimpl
from refimpl import cli
from tests.contract.sources import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="the extra docs needs Python 3.11"),
]


def options() -> list[str]:
    """How ``make docs`` calls Sphinx."""
    (line,) = re.findall(r"-m sphinx (.*) docs docs/_build/html$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(line).split()


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build as ``make docs`` does."""
    command = [sys.executable, "-m", "sphinx", *options(), str(source), str(target)]
    home = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
    return subprocess.run(command, cwd=ROOT, env=home, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", target)
    assert done.returncode == 0, done.stderr[-5000:]
    return target


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and where it can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag in {"script", "img", "link", "source", "iframe"} and (found := given.get("src") or given.get("href")):
            self.loads.append(found)


def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def broken_links(site: Path) -> list[str]:
    """Every link within the site that leads to no file, or to no place in one."""
    known, broken = pages(site), []
    for file, page in known.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in known and anchor not in known[target].anchors):
                broken.append(f"{file.relative_to(site)}: {link}")
    return broken


def test_every_page_is_built(site: Path) -> None:
    sources = [file for file in (ROOT / "docs").rglob("*.md") if "_build" not in file.parts]
    built = {file.relative_to(ROOT / "docs").with_suffix(".html") for file in sources}
    assert len(built) > 30
    assert [str(name) for name in sorted(built) if not (site / name).is_file()] == []


def test_every_link_leads_somewhere(site: Path) -> None:
    assert sum(len(page.links) for page in pages(site).values()) > 1000
    assert broken_links(site) == []


def test_the_link_check_would_notice(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="here"><a href="a.html#here"><a href="#gone"><img src="gone.png"></p>')
    assert broken_links(tmp_path) == ["a.html: #gone", "a.html: gone.png"]


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    away = {link for page in pages(site).values() for link in page.loads if urlsplit(link).netloc}
    assert away == set()


def test_the_api_reference_is_whole(site: Path) -> None:
    anchors = Page(site / "api.html").anchors
    missing = {f"refimpl.{name}" for name in refimpl.__all__} - anchors - {"refimpl.__version__"}
    assert missing == set()
    assert {"refimpl.errors.RecipeError", "refimpl.trt_convert.TrtGraphConverterV2.build"} <= anchors


def every_command(group: click.Group, *names: str) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*names, name), command))
        if isinstance(command, click.Group):
            found += every_command(command, *names, name)
    return found


def test_the_reference_of_commands_is_whole(site: Path) -> None:
    anchors = Page(site / "cli.html").anchors
    commands = every_command(cli.group)
    assert {("calibration", "diff"), ("convert",)} <= {names for names, _ in commands}
    for names, command in commands:
        for option in (item for item in command.params if isinstance(item, click.Option) and not item.hidden):
            place = "-".join(["cmdoption", "refimpl", *names, option.opts[0].lstrip("-")])
            assert place in anchors, (names, option.opts)


def test_search_finds_words_of_the_pages(site: Path) -> None:
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    numbers = [index[where].get("baselin", []) for where in ("terms", "titleterms")]  # stemmed, as Sphinx does
    flat = [item for found in numbers for item in (found if isinstance(found, list) else [found])]
    assert {"checking", "ci"} <= {index["docnames"][number] for number in flat}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](#no-such-heading)", "no-such-heading"),
        ("```{eval-rst}\n:py:class:`refimpl.NoSuchClass`\n```", "refimpl.NoSuchClass"),
        ("```{eval-rst}\n.. autofunction:: refimpl.no_such_function\n```", "no_such_function"),
        ("```{literalinclude} gone.py\n```", "gone.py"),
    ],
    ids=["page", "heading", "reference", "function", "example"],
)
def test_a_fault_fails_the_build(text: str, says: str, tmp_path: Path) -> None:
    """Or a build without a warning would prove nothing."""
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", source)
    (source / "_static").mkdir()
    (source / "index.md").write_text(f"# Title\n\n{text}\n", encoding="utf-8")
    done = build(source, tmp_path / "site")
    assert done.returncode != 0
    assert says in done.stderr
