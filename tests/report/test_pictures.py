"""Pictures: what they say, that hostile names are harmless in them, that Graphviz and XML parsers read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from refimpl import cli
from refimpl.graph_record import SignatureGraph
from refimpl.report.dot import quoted, to_dot
from refimpl.report.drawing import draw_ops, draw_overview
from refimpl.report.svg import to_svg
from tests.bundles import make_bundle
from tests.models import saved_model
from tests.report.drawn import HOSTILE, graph

SVG = "{http://www.w3.org/2000/svg}"
SMALL = graph(("-strings have no place", "Split", ()), ("A", "MatMul", (0,)), ("A", "Relu", (1,)))


def hostile() -> SignatureGraph:
    """Every name and reason is an attack, where a bundle could hold one."""
    ops = [replace(op, name=HOSTILE, type=HOSTILE, reason=op.reason and HOSTILE) for op in SMALL.ops]
    ops = [replace(op, feeds=tuple(HOSTILE for _ in op.feeds), outputs=(HOSTILE,)) for op in ops]
    ends = [replace(spec, name=HOSTILE) for spec in (*SMALL.inputs, *SMALL.outputs)]
    return SignatureGraph(HOSTILE, tuple(ops), tuple(ends[:1]), tuple(ends[1:]), SMALL.results)


def texts(svg: str) -> list[str]:
    return ["".join(item.itertext()) for item in ET.fromstring(svg).iter(f"{SVG}text")]


def test_the_overview_says_what_runs_where_and_why() -> None:
    svg = to_svg(draw_overview(SMALL))
    shown = texts(svg)
    assert "serving_default: 1 island, 2 of 3 ops in islands" in shown
    for text in (
        "A",
        "2 ops",
        "MatMul, Relu",
        "TensorFlow: 1 op",
        "Split",
        "strings have no place",
        "input x",
        "output y",
    ):
        assert text in shown, text
    root = ET.fromstring(svg)
    kinds = [item.get("class", "").split()[0] for item in root.iter(f"{SVG}g") if item.find(f"{SVG}title") is not None]
    assert sorted(kinds) == ["input", "island", "output", "tensorflow"], "told apart by more than colour"
    assert len(root.findall(f".//{SVG}path[@class='arrow']")) == 3


def test_every_op_is_drawn_with_its_name_and_its_island() -> None:
    root = ET.fromstring(to_svg(draw_ops(SMALL)))
    titles = [item.text or "" for item in root.iter(f"{SVG}title")]
    assert {"Split", "MatMul", "Relu"} <= set(texts(ET.tostring(root, encoding="unicode")))
    assert sum(title.startswith("A\n") for title in titles) == 2
    assert "in TensorFlow\nstrings have no place\nfloat32[?,0]" in titles


@pytest.mark.parametrize("draw", [draw_overview, draw_ops])
def test_hostile_names_are_text(draw) -> None:
    svg = to_svg(draw(hostile()))
    root = ET.fromstring(svg)
    tags = {item.tag.removeprefix(SVG) for item in root.iter()}
    assert tags == {"svg", "style", "rect", "text", "g", "title", "path"}
    assert "<script" not in svg
    assert not [name for item in root.iter() for name in item.attrib if name.startswith("on") or "href" in name]
    assert float(root.get("width", "0")) < 3000


def test_a_picture_fits_what_is_in_it() -> None:
    root = ET.fromstring(to_svg(draw_overview(SMALL)))
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    assert root.get("viewBox") == f"0 0 {width:.0f} {height:.0f}"
    for box in root.findall(f".//{SVG}rect[@class='box']"):
        assert -0.05 <= float(box.get("x", "-1")) <= width - float(box.get("width", "0"))


def test_the_style_can_be_left_to_the_page() -> None:
    assert "prefers-color-scheme: dark" in to_svg(draw_overview(SMALL))
    assert "<style" not in to_svg(draw_overview(SMALL), style="")


def test_dot_has_islands_as_clusters_and_reasons_as_tooltips() -> None:
    dot = to_dot(draw_ops(SMALL))
    cluster = re.search(r"subgraph cluster_0 \{(.*?)\}\n", dot, re.DOTALL)
    assert cluster is not None
    assert 'label="A"' in cluster[1]
    assert re.findall(r"\bn(\d+) \[", cluster[1]) == ["1", "2"]
    assert 'tooltip="in TensorFlow\\nstrings have no place\\nfloat32[?,0]"' in dot
    assert {(int(one), int(other)) for one, other in re.findall(r"n(\d+) -> n(\d+)", dot)} == {
        (0, 1),
        (1, 2),
        (3, 0),
        (2, 4),
    }


def test_quoting() -> None:
    assert quoted(['a "b"', "\\N", "&lt;", "<b>"]) == r'"a \"b\"\n\\N\n&amp;lt;\n<b>"'
    assert quoted(["ends in \\"]) == r'"ends in \\"'


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("draw", [draw_overview, draw_ops])
def test_graphviz_reads_it_and_shows_the_names_as_they_are(draw) -> None:
    for made in (SMALL, hostile()):
        drawing = draw(made)
        done = subprocess.run(["dot", "-Tsvg"], input=to_dot(drawing), capture_output=True, text=True, check=True)
        assert "rror" not in done.stderr
        assert drawing.title in texts(done.stdout)


# The command


def run(*argv: str) -> int:
    return cli.main(["picture", *argv])


def test_a_bundle_and_its_model_are_drawn_alike(tmp_path: Path) -> None:
    bundle, model = make_bundle("detector"), saved_model("detector")
    assert run(str(bundle), "--output", str(tmp_path / "bundle.svg")) == 0
    assert run(str(model), "--output", str(tmp_path / "model.svg")) == 0
    drawn = texts((tmp_path / "bundle.svg").read_text())
    assert "CombinedNonMaxSuppression" in drawn
    assert texts((tmp_path / "model.svg").read_text()) == drawn
    assert run(str(bundle), "--ops", "--output", str(tmp_path / "bundle.dot")) == 0
    assert "CombinedNonMaxSuppression" in (tmp_path / "bundle.dot").read_text()


def test_what_cannot_be_drawn_is_said(tmp_path: Path, capsys) -> None:
    bundle, there = str(make_bundle("detector")), tmp_path / "there.svg"
    there.write_text("mine")
    for argv, message in (
        ([bundle, "--output", str(tmp_path / "x.png")], "a picture in .png cannot be made"),
        ([bundle, "--output", str(there)], "exists already"),
        ([bundle, "--output", str(tmp_path / "none" / "x.svg")], "lies in no folder that exists"),
        ([bundle, "--output", str(tmp_path / "x.svg"), "--signature", "other"], "no signature 'other'"),
        ([str(tmp_path), "--output", str(tmp_path.parent / "x.svg")], "is not a refimpl bundle"),
        ([bundle, "--output", f"{bundle}/x.svg"], "whose files have checksums"),
    ):
        assert run(*argv) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "more: refimpl help " in err
    assert there.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [there]
