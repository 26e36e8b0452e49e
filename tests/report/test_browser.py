"""Reports in Chromium: what a reader sees, searches and taps, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import os

import pytest

from refimpl import graph_record, vendoring
from refimpl.recipe import Recipe
from tests.bundles import copy_of, golden_of, make_bundle, reseal
from tests.report.pages import hostile_material, material_of, page_text, report_of, written
from tools.report import browser as browsing
from tools.report.browser import Watched, open_report
from tools.report.synthetic import synthetic

PHONE = 360  # CSS pixels
NODES = "document.getElementById('canvas')._cyreg.cy"  # Cytoscape leaves itself with its container


@pytest.fixture(scope="module")
def chromium():
    if not browsing.chromium_path() and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed: apt-get install chromium")
    if vendoring.library() is None and not os.environ.get("CI"):
        pytest.skip("the library that draws graphs was not fetched: python -m refimpl.vendoring")
    with browsing.browser() as opened:
        yield opened


@pytest.fixture
def look(chromium):
    """Open a report; afterwards it must not have complained, nor asked for anything."""
    watched: list[Watched] = []

    def opening(file, **how):
        watched.append(open_report(chromium, file, **how))
        return watched[-1].page

    yield opening
    for item in watched:
        item.page.close()
        assert item.complaints == []
        assert item.requests == []


def checked_detector():
    from refimpl import oracle

    verdict = oracle.judge(make_bundle("detector"), golden_of("detector")).to_json()
    return report_of("detector", verdict=verdict)


def search(page, words: str) -> list[str]:
    """What the list of results says."""
    page.fill("#search", words)
    page.wait_for_timeout(200)
    return page.locator("#results li").all_inner_texts()


def painted(page) -> int:
    """How many pixels of the picture are not empty."""
    return page.evaluate(
        """[...document.querySelectorAll('#canvas canvas')].reduce((sum, canvas) => {
             const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
             for (let i = 3; i < data.length; i += 4) sum += data[i] > 0;
             return sum; }, 0)"""
    )


# What must be found in the reports of three models


@pytest.mark.slow
def test_resnet50(look):
    page = look(report_of("resnet50"))
    assert "100\N{NO-BREAK SPACE}%" in page.inner_text(".lead")
    assert "TRTEngineOp_000_000" in page.inner_text("#islands")
    assert "Nothing needs to be done" in page.inner_text("#advice")
    assert len(search(page, "Conv2D")) == 53
    page.click("#view-all")
    ops = material_of(make_bundle("resnet50")).graphs["serving_default"].ops
    assert page.evaluate(f"{NODES}.nodes().length") == len(ops) + 2, "one input, one output"
    assert painted(page) > 5000


def test_a_detector_with_a_fallback(look):
    page = look(checked_detector())
    assert "CombinedNonMaxSuppression" in page.inner_text("#advice")
    assert "no lowering" in page.inner_text("#left")
    assert "check passed" in page.inner_text("#summary")
    outputs = page.locator("#accuracy table").first.locator("tbody tr").all_inner_texts()
    assert [row.split()[0] for row in outputs] == ["boxes", "classes", "count", "scores"]
    (found,) = search(page, "no lowering")
    assert "CombinedNonMaxSuppression" in found


def test_strings_that_split_the_graph_and_what_to_do(look):
    """A person who never saw the project finds which op split the graph, and what helps."""
    page = look(report_of("decode_and_label"))
    advice = page.locator("#advice li > div").first.inner_text()
    assert "TensorListFromTensor" in advice
    assert "What to do:" in advice
    assert "TRTEngineOp_000_000 and TRTEngineOp_000_001 would be one island" in advice
    assert page.evaluate("document.getElementById('advice').offsetTop < document.getElementById('graph').offsetTop")
    op = page.locator("#advice [data-op]").first
    name = op.inner_text()
    op.click()
    assert name in page.inner_text("#panel")
    assert "strings have no place" in page.inner_text("#panel")


# The graph


def test_the_overview_shows_islands_and_reasons(look):
    page = look(report_of("decode_and_label"))
    labels = page.evaluate(f"{NODES}.nodes().map((node) => node.data('label'))")
    assert {"TRTEngineOp_000_000\n1 op", "TRTEngineOp_000_001\n15 ops"} <= set(labels)
    assert any("strings have no place" in label for label in labels)
    colours = page.evaluate(f"{NODES}.nodes('.island').map((node) => node.style('background-color'))")
    assert len(set(colours)) == 2
    assert painted(page) > 5000


def test_a_tap_shows_details_and_a_double_tap_opens(look):
    page = look(report_of("decode_and_label"))
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    at = page.evaluate(f"{NODES}.nodes('.island')[1].renderedPosition()")
    page.mouse.click(box["x"] + at["x"], box["y"] + at["y"])
    page.wait_for_timeout(300)
    assert "Conv2D" in page.inner_text("#panel")
    page.mouse.dblclick(box["x"] + at["x"], box["y"] + at["y"])
    page.wait_for_timeout(300)
    assert page.inner_text("#crumbs") == "Overview > TRTEngineOp_000_001"
    inside = page.evaluate(f"{NODES}.nodes('.island').not('.near').length")
    assert inside == 15
    page.click("#view-overview")
    assert page.inner_text("#crumbs") == "Overview"


def test_search_marks_and_finds(look):
    page = look(report_of("decode_and_label"))
    assert len(search(page, "strings have no place")) == 7
    assert page.evaluate(f"{NODES}.nodes('.hit').length") > 0
    assert page.evaluate(f"{NODES}.nodes('.missed').length") > 0
    assert len(search(page, "trtengineop_000_001 conv2d")) == 3, "every word counts, in any field"
    assert search(page, "nothing like this") == []
    assert page.inner_text("#search-status") == "0 ops found"
    search(page, "")
    assert page.evaluate(f"{NODES}.nodes('.hit, .missed').length") == 0


def test_neighbours_lead_through_the_graph(look):
    page = look(report_of("decode_and_label"))
    search(page, "StatelessWhile")
    page.locator("#results button").first.click()
    page.locator("#panel h4:has-text('Read by') + ul button").first.click()
    assert "TensorListStack" in page.inner_text("#panel h3")


def test_the_keyboard_is_enough(look):
    page = look(report_of("decode_and_label"))
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("StringJoin")
    page.wait_for_timeout(300)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert "StringJoin" in page.inner_text("#panel h3")
    page.focus("#canvas")
    before = page.evaluate(f"{NODES}.pan().y")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(f"{NODES}.pan().y") < before


# Pages of every kind


@pytest.mark.parametrize("width", [PHONE, 1200])
@pytest.mark.parametrize("name", ["detector", "decode_and_label"])
def test_nothing_sticks_out_sideways(look, name, width):
    page = look(report_of(name), width=width, height=740)
    page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light(look):
    file = report_of("detector")
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = look(file), look(file, dark=True)
    assert light.evaluate(ground) == "rgb(246, 247, 249)"
    assert dark.evaluate(ground) == "rgb(18, 22, 28)"
    box = f"{NODES}.nodes('.tensorflow')[0].style('background-color')"
    assert light.evaluate(box) != dark.evaluate(box)
    light.click("#theme")
    assert light.evaluate(ground) == dark.evaluate(ground)
    assert light.evaluate(box) == dark.evaluate(box)


def test_without_scripts_all_but_the_search_is_there(chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_of("decode_and_label").as_uri())
    assert "TRTEngineOp_000_001" in page.text_content("noscript svg")
    assert page.locator("#search").is_hidden()
    assert "strings have no place" in page.inner_text("#left")
    context.close()


def test_on_paper_everything_is_open(look):
    page = look(report_of("detector"))
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_without_the_library_there_is_a_still_picture(look):
    page = look(written("still", page_text(material_of(make_bundle("decode_and_label")), library=False)))
    assert "TRTEngineOp_000_001" in page.text_content("#still svg")
    assert "python -m refimpl.vendoring" in page.inner_text("#graph")
    search(page, "StringJoin")
    page.locator("#results button").first.click()
    assert "strings have no place" in page.inner_text("#panel")


def test_a_bundle_without_a_graph(look, tmp_path):
    folder = copy_of("odd_ops", tmp_path)
    (folder / graph_record.GRAPH).unlink()
    reseal(folder)
    page = look(written("old", page_text(material_of(folder))))
    assert "before graphs were stored" in page.inner_text("#graph")
    assert len(search(page, "Svd")) == 1


def test_no_islands(look):
    page = look(report_of("no_input"))
    assert "Nothing was converted" in page.inner_text("#summary")
    assert "There are none" in page.inner_text("#islands")


def test_several_signatures(look):
    page = look(report_of("several_signatures", Recipe(signatures=("*",))))
    keys = page.locator("#signature option").all_inner_texts()
    assert len(keys) > 1
    graphs = material_of(make_bundle("several_signatures", Recipe(signatures=("*",)))).graphs
    assert set(keys) == set(graphs)
    for key in keys:
        page.select_option("#signature", key)
        shown = page.evaluate(f"{NODES}.nodes('.input, .output').map((node) => node.data('label'))")
        ends = [f"{side} {spec.name}" for side in ("input", "output") for spec in getattr(graphs[key], f"{side}s")]
        assert sorted(label.split("\n")[0] for label in shown) == sorted(ends)


def test_unverified_is_said_first(look):
    page = look(report_of("odd_ops", Recipe(verify=False)))
    assert "UNVERIFIED" in page.inner_text(".badges")
    assert "no island was verified" in page.inner_text("#accuracy")


def test_hostile_names_do_nothing(look):
    page = look(written("hostile", page_text(hostile_material())))
    assert page.locator("#hacked").count() == 0
    assert "</script><b id=hacked>" in page.inner_text("h1")
    assert len(search(page, "<b id=hacked>")) >= 12
    page.locator("#results button").first.click()
    page.click("#view-all")
    assert page.locator("#hacked").count() == 0


def test_ten_thousand_ops(look):
    """``python -m tools.report.figures`` has the exact figure; this only keeps it from getting out of hand."""
    page = look(written("large", page_text(synthetic(10_000))))
    page.wait_for_selector("#canvas[data-boxes]", timeout=10_000)
    assert len(search(page, "AsString_4499")) == 1
    page.locator("#results button").first.click()
    assert "strings have no place" in page.inner_text("#panel")
