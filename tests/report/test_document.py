"""What a report says: every part comes from the records, nothing is left out, hostile names are text."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest

import refimpl
from refimpl import graph_record
from refimpl.bundle import IDLE_OPS, EngineRecord
from refimpl.engines import tensorrt
from refimpl.errors import RecipeError
from refimpl.graph_record import GraphOp, SignatureGraph
from refimpl.recipe import Recipe
from refimpl.report.cuts import measure_cuts
from refimpl.report.html.command import reproduction
from refimpl.report.html.document import make_document
from refimpl.report.html.graph import signature_data
from refimpl.report.html.ranges import HEIGHT, WIDTH, histogram_path
from refimpl.report.html.render import format_percent, format_sentence, safe_json
from refimpl.specs import TensorSpec
from tests.bundles import copy_of, main, make_bundle, reseal
from tests.report.pages import HOSTILE, hostile_material, material_of, page_text
from tools.report.synthetic import synthetic

# The command that makes a bundle again

OTHER = {  # for each field of a recipe a value that is not the default
    "signatures": ("first", "a b;$(x)"),
    "tags": ("serve", "gpu"),
    "precision": "int8",
    "engines": ("onnxruntime", "tensorrt"),
    "min_segment_size": 1,
    "max_engines": 2,
    "keep_in_tf": ("Soft*", "*/head/*"),
    "shapes": (("image", (1, 8, 8, 3)), ("image", (4, 8, 8, 3)), ("scalar", ())),
    "profile": "optimal",
    "calibration": "my batches/",
    "verify": False,
    "workspace_bytes": 1 << 20,
    "tf32": True,
    "keep_fp32": ("MatMul",),
    "calibrator": "minmax",
    "percentile": 99.5,
    "use_calibration": False,
    "calibration_table": "ranges.json",
    "max_drop": 0.01,
    "metric": "top1",
    "op_set": "tf-trt",
    "max_cached_engines": 3,
    "targets": ("sm86", "sm89"),
    "build_at_runtime": True,
}


def given_by(recipe: Recipe, monkeypatch, folder) -> Recipe:
    """The recipe that the command in a report hands to ``refimpl.convert``."""
    again = reproduction("model", recipe.to_json(), "bundle")
    monkeypatch.chdir(folder)
    if again.recipe:
        (folder / "recipe.toml").write_text(again.recipe, encoding="utf-8")
    got = []

    def convert(source, target, given, **_):
        assert (str(source), str(target)) == ("model", "bundle")
        got.append(given)
        raise RecipeError("enough")

    monkeypatch.setattr(refimpl, "convert", convert)
    words = shlex.split(again.command)
    assert words[0] == "refimpl"
    assert main(*words[1:]) == 2
    return got[0]


def test_every_choice_is_tried():
    assert OTHER.keys() == {item.name for item in fields(Recipe)}
    assert all(value != getattr(Recipe(), name) for name, value in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
def test_the_command_repeats_every_choice(name, monkeypatch, tmp_path):
    wanted = replace(Recipe(), **{name: OTHER[name]})
    in_file = reproduction("model", wanted.to_json(), "bundle").recipe
    assert bool(in_file) == (name in {"workspace_bytes", "op_set", "max_cached_engines", "build_at_runtime"})
    assert given_by(wanted, monkeypatch, tmp_path) == wanted


def test_the_command_repeats_all_choices_at_once(monkeypatch, tmp_path):
    wanted = Recipe(**OTHER)
    assert given_by(wanted, monkeypatch, tmp_path) == wanted


def test_the_command_of_the_default_is_short():
    assert reproduction("model", Recipe().to_json(), "bundle").command == "refimpl convert model bundle"


def test_the_manifest_of_a_bundle_is_enough(monkeypatch, tmp_path):
    wanted = Recipe(min_segment_size=1, shapes=(("x", (2, 12)),))
    manifest = material_of(make_bundle("odd_ops", wanted)).manifest
    again = reproduction("model", json.loads(json.dumps(manifest.to_json()))["recipe"], "bundle")
    assert again.command == "refimpl convert model bundle --min-segment-size 1 --shape x=2x12"


# The graph


def chain() -> SignatureGraph:
    """Input -> A -> B -> C -> output, and A -> C; B stays in TensorFlow."""
    spec = TensorSpec("x", "float32", (None,))
    tensor = ("float32[?]",)
    ops = (
        GraphOp("scope/a", "Relu", "one", "", (), tensor, feeds=("x",)),
        GraphOp("scope/b", "AsString", "", "no strings", (0,), tensor, slots=(0,)),
        GraphOp("scope/c", "AddV2", "two", "", (0, 1), tensor, slots=(0, 0)),
    )
    return SignatureGraph("main", ops, (spec,), (replace(spec, name="y"),), ((2, 0),))


def record_like(graph: SignatureGraph):
    (record,) = synthetic(3, cut_every=2).manifest.signatures
    islands = tuple(replace(record.islands[0], name=name) for name in graph.islands)
    return replace(record, signature=replace(record.signature, key=graph.key), islands=islands)


def test_the_graph_has_every_op_edge_and_end():
    graph = chain()
    data = signature_data(record_like(graph), graph)
    assert data["names"] == ["scope/a", "scope/b", "scope/c", "x", "y"]
    assert data["count"] == 3
    assert [data["texts"][index] for index in data["types"][:3]] == ["Relu", "AsString", "AddV2"]
    assert [data["islands"][index] if index >= 0 else "" for index in data["island"]] == ["one", "", "two", "", ""]
    assert [data["texts"][index] if index >= 0 else "" for index in data["reasons"]][:3] == ["", "no strings", ""]
    assert sorted(map(tuple, data["all"]["edges"])) == [(0, 1), (0, 2), (1, 2), (2, 4), (3, 0)]


def test_every_op_is_in_the_group_that_the_overview_shows():
    graph = chain()
    data = signature_data(record_like(graph), graph)
    groups = data["overview"]["groups"]
    titles = [groups[number]["title"] for number in data["group"]]
    assert titles == ["one", "TensorFlow: 1 op", "two", "input x", "output y"]
    assert groups[data["group"][1]]["reasons"] == ["no strings"]
    flows = {(groups[source]["title"], groups[target]["title"]) for source, target, _, _ in data["overview"]["flows"]}
    assert flows == {
        ("input x", "one"),
        ("one", "TensorFlow: 1 op"),
        ("one", "two"),
        ("TensorFlow: 1 op", "two"),
        ("two", "output y"),
    }


def test_boxes_do_not_overlap():
    data = signature_data(record_like(chain()), chain())
    places = list(zip(data["all"]["x"], data["all"]["y"], strict=True))
    width, height = data["all"]["size"]
    for index, (x, y) in enumerate(places):
        for other_x, other_y in places[:index]:
            assert abs(x - other_x) >= width or abs(y - other_y) >= height


def test_an_output_that_is_an_input_has_no_maker():
    graph = replace(chain(), results=((-1, 0),))
    assert (2, 4) not in map(tuple, signature_data(record_like(graph), graph)["all"]["edges"])


def test_a_bundle_without_a_graph_can_still_be_searched(tmp_path):
    folder = copy_of("odd_ops", tmp_path)
    (folder / graph_record.GRAPH).unlink()
    reseal(folder)
    document = make_document(material_of(folder))
    (graph,) = document["graph"]
    assert document["has_graph"] is False
    assert "overview" not in graph
    left = {op.name for record in material_of(folder).manifest.signatures for op in record.left}
    assert left
    assert left <= set(graph["names"])


# The document


def test_advice_on_islands_does_not_hide_that_the_graph_is_missing(tmp_path):
    folder = copy_of("odd_ops", tmp_path)
    (folder / graph_record.GRAPH).unlink()
    reseal(folder)
    slow = {"family": "slow-islands", "signature": "s", "title": "slow", "action": "keep", "needed": True, "cost": ""}
    slow |= {"islands": [], "merged": [], "splitters": [], "ops": []}
    without, with_graph = (replace(material_of(place), advice=(slow,)) for place in (folder, make_bundle("odd_ops")))
    says = "worked out from the graph, which this bundle does not have"
    assert says in page_text(without)
    assert says in page_text(replace(without, advice=()))
    assert says not in page_text(with_graph)


def test_the_document_counts_what_the_manifest_has():
    material = material_of(make_bundle("decode_and_label"))
    document = make_document(material)
    (record,) = material.manifest.signatures
    assert document["headline"]["ops_converted"] == record.ops_converted
    assert document["headline"]["islands"] == len(record.islands) == 2
    (signature,) = document["signatures"]
    assert sum(row["count"] for row in signature["left"]) == len(record.left)
    assert [island["ops"] for island in signature["islands"]] == [
        sum(kind not in IDLE_OPS for _, kind in island.ops) for island in record.islands
    ]
    assert document["bytes"] == sum(material.sizes.values())
    assert {row["name"] for row in document["stages"]} == set(material.manifest.timings)
    json.dumps(document, allow_nan=False)


def test_signatures_that_were_not_converted_are_not_nothing():
    """The share counts the ops of the others alone."""
    page = page_text(material_of(make_bundle("several_signatures")), library=False)
    lead = " ".join(re.sub("<[^>]*>", "", page.partition('<p class="lead">')[2].partition("</p>")[0]).split())
    assert lead.endswith(
        "each of which one engine replaces. The 2 signatures that were not converted stay in TensorFlow."
    )
    whole = page_text(material_of(make_bundle("several_signatures", Recipe(signatures=("*",)))), library=False)
    assert "Nothing stays in TensorFlow." in whole


def test_probes_are_run_and_a_wrong_engine_shows(tmp_path):
    folder = copy_of("odd_ops", tmp_path)
    manifest = material_of(folder).manifest
    assert {(row.engine, row.problem) for row in measure_cuts(folder, manifest)} == {("onnxruntime", "")}
    islands = manifest.islands
    assert [row.tensor for row in measure_cuts(folder, manifest)] == [s.name for i in islands for s in i.outputs]
    swapped = folder / islands[0].engines[0].file
    swapped.write_bytes(b"no engine")
    problems = [row.problem for row in measure_cuts(folder, manifest) if row.island == islands[0].name]
    assert problems
    assert all(problem.startswith("not run: ") for problem in problems)


@pytest.mark.parametrize("version", ["tensorrt 1.0", ""])
def test_an_engine_of_tensorrt_runs_only_where_its_record_allows_it(version, monkeypatch):
    """And a library that fails in its own way is a row of the table, no end of the report."""
    folder = make_bundle("odd_ops")
    manifest = material_of(folder).manifest
    (record, *_), island = manifest.signatures, manifest.islands[0]
    engine = replace(island.engines[0], kind="tensorrt", version=version or tensorrt.version())
    islands = (replace(island, engines=(engine,)),)

    def fail(_):
        assert not version, "it was opened"
        raise OSError("the library's own")

    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "")
    monkeypatch.setattr(tensorrt, "open", fail)
    rows = measure_cuts(folder, replace(manifest, signatures=(replace(record, islands=islands),)))
    expected = "not run here: it was built by tensorrt 1.0, and " if version else "not run: OSError: the library's own"
    assert rows
    assert all(row.problem.startswith(expected) for row in rows)


def test_an_error_of_an_engine_is_measured(tmp_path):
    from refimpl.runtime import read_probe, write_probe

    folder = copy_of("odd_ops", tmp_path)
    manifest = material_of(folder).manifest
    island = manifest.islands[0]
    inputs, outputs = read_probe(folder / island.probe)
    write_probe(folder / island.probe, inputs, [output + 1 for output in outputs])
    row = next(row for row in measure_cuts(folder, manifest) if row.island == island.name)
    assert row.max_abs == pytest.approx(1, abs=1e-3)
    assert "beyond tolerance" in row.problem


def test_histograms_keep_their_shape():
    path = histogram_path([4, 0, 1, 0])
    tops = [float(text) for text in re.findall(r"V([\d.]+)H", path)]
    assert tops == [0.0, HEIGHT, HEIGHT / 2, HEIGHT]
    assert path.endswith(f"H{WIDTH:.1f}V{HEIGHT}Z")
    assert histogram_path([0, 0]) == ""
    rare = [float(text) for text in re.findall(r"V([\d.]+)H", histogram_path([10**9, 1]))]
    assert rare[1] <= HEIGHT - 1, "one value among many is still seen"


def test_an_older_engine_record_has_no_build_time():
    record = EngineRecord(kind="tensorrt", file="x", version="1", precision="fp32", build_seconds=1.5)
    assert EngineRecord.from_json(record.to_json()) == record
    older = {name: value for name, value in record.to_json().items() if name != "build_seconds"}
    assert EngineRecord.from_json(older).build_seconds is None


@pytest.mark.skipif(not tensorrt.version(), reason="no TensorRT is installed")
def test_the_time_of_a_build_is_kept():
    document = make_document(material_of(make_bundle("odd_ops", Recipe(engines=("onnxruntime", "tensorrt")))))
    engines = [engine for island in document["signatures"][0]["islands"] for engine in island["engines"]]
    assert {engine["kind"] for engine in engines} == {"onnxruntime", "tensorrt"}
    assert all((engine["seconds"] or 0) > 0 for engine in engines if engine["kind"] == "tensorrt")
    assert all(engine["seconds"] is None for engine in engines if engine["kind"] == "onnxruntime")
    assert all(engine["bytes"] > 0 for engine in engines)


# The page as text


class Elements(HTMLParser):
    """Element names and ids of a page, as a browser without scripts would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]


@pytest.mark.parametrize("library", [True, False])
def test_hostile_names_are_text(library):
    page = page_text(hostile_material(), library=library)
    elements = Elements(page)
    assert "hacked" not in elements.ids
    assert "<b id=hacked>" not in page
    assert elements.names.count("script") == (5 if library else 4), "the data, the library, and three of ours"
    assert page.count("{{ 7*7 }}") > 20, "no template is made of a name"


def test_hostile_names_survive_as_data():
    page = page_text(hostile_material())
    (data,) = re.findall(r'<script type="application/json" id="graph-data">(.*?)</script>', page, re.DOTALL)
    (graph,) = json.loads(data)
    assert graph["key"] == HOSTILE
    assert all(name.endswith(HOSTILE) for name in graph["names"])


def test_nothing_is_fetched():
    page = page_text(material_of(make_bundle("odd_ops")))
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("text", ["</script>", "<!--", "&lt;", "\u2028"])
def test_safe_json_is_json_and_safe(text):
    written = safe_json([text])
    assert json.loads(written) == [text]
    assert not set("<>&\u2028") & set(written)


def test_words_and_numbers():
    assert format_percent(1.0) == "100\N{NO-BREAK SPACE}%"
    assert format_percent(0.00001) == "0.001\N{NO-BREAK SPACE}%"
    assert format_percent("Infinity") == "Infinity"
    assert format_sentence("give a shape") == "Give a shape."
    assert format_sentence("it is (a.b)", False) == "It is (a.b)"
