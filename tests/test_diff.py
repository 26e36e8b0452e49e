"""Two conversions compared: hand-made records for every kind of change, and real bundles and plans."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from refimpl import bundle, cli
from refimpl.bundle import EngineRecord, IslandRecord
from refimpl.diff import difference, side_of_bundle, side_of_plan
from refimpl.diff.sides import SignatureSide
from refimpl.graph_record import read_graphs
from refimpl.recipe import Recipe
from refimpl.report.diff import print_difference
from tests.advice.graphs import FLOAT64, STRINGS, chain, graph_of
from tests.bundles import copy_of, make_bundle, reseal
from tests.models import saved_model

ONE = {**chain("a", "I0", []), "x": (STRINGS, ["a2"]), **chain("b", "I1", ["x"])}
MERGED = {name: ("I0", reads) for name, (_, reads) in ONE.items()}


def plan(rows, name="a plan"):
    return side_of_plan(name, "judge", {}, [graph_of(rows)])


def changes(before, after):
    """The difference of the one signature of two sides, and of everything."""
    found = difference(before, after)
    return found.signatures[0], found


def test_equal_plans_do_not_differ():
    item, found = changes(plan(ONE), plan(ONE, "the other"))
    assert (found.same, item.same) == (True, True)
    assert "no difference" in shown(found)


def test_an_op_that_enters_merges_islands():
    item, found = changes(plan(ONE), plan(MERGED))
    assert [(op.name, op.before.reason, op.after.island) for op in item.entered] == [("x", STRINGS, "I0")]
    assert (item.left, item.merged, item.split) == ((), ((("I0", "I1"), "I0"),), ())
    assert item.share == ((6, 7), (7, 7))
    assert not found.same
    assert "merged: I0, I1 are one island now, I0" in shown(found)


def test_an_op_that_leaves_splits_an_island():
    item, found = changes(plan(MERGED), plan(ONE))
    assert [(op.name, op.before.island, op.after.reason) for op in item.left] == [("x", "I0", STRINGS)]
    assert (item.entered, item.merged, item.split) == ((), (), (("I0", ("I0", "I1")),))
    assert "split: I0 is 2 islands now, I0, I1" in shown(found)


def test_islands_are_matched_by_ops_and_not_by_name():
    renamed = {name: ({"I0": "I1", "I1": "I0"}.get(where, where), reads) for name, (where, reads) in ONE.items()}
    assert changes(plan(ONE), plan(renamed))[1].same


def test_another_reason_is_told():
    other = {**ONE, "x": (FLOAT64, ["a2"])}
    item, found = changes(plan(ONE), plan(other))
    assert [(op.before.reason, op.after.reason) for op in item.reasons] == [(STRINGS, FLOAT64)]
    assert not found.same


def test_ops_of_one_side_are_counted():
    more = {**ONE, "new": (STRINGS, ["b2"])}
    assert changes(plan(ONE), plan(more))[0].only_after == ("new",)
    assert changes(plan(more), plan(ONE))[0].only_before == ("new",)


def test_a_signature_of_one_side_is_named():
    other = side_of_plan("b", "judge", {}, [graph_of(ONE), replace(graph_of(ONE), key="second")])
    assert difference(plan(ONE), other).missing == ((), ("second",))
    assert "signature second is there only after" in shown(difference(plan(ONE), other))


def island(name: str, ops: str, **changed) -> IslandRecord:
    engine = EngineRecord(kind="onnxruntime", file=f"{name}.onnx", version="1", precision="fp32")
    usual = {
        "name": name,
        "ops": tuple((op, "Relu") for op in ops.split()),
        "inputs": (),
        "outputs": (),
        "engines": (engine,),
        "probe": "p",
        "finite_only": False,
        "precision": "fp32",
        "verified": "2 samples agree with TensorFlow",
        "layers": (("conv", "Conv", "fp16", ""),),
    }
    return IslandRecord(**{**usual, **changed})


def built(*islands: IslandRecord, sizes=None, reason="", **changed):
    """A bundle of hand-made records."""
    manifest = bundle.read(make_bundle("odd_ops"))
    total = sum(len(item.ops) for item in islands)
    record = replace(
        manifest.signatures[0], islands=islands, left=(), ops_total=total, converted=bool(islands), reason=reason
    )
    manifest = replace(manifest, **{"signatures": (record,), "notes": (), **changed})
    return side_of_bundle("a bundle", manifest, {}, sizes if sizes is not None else {"I0.onnx": 10_000})


def engines(*kinds: str, **changed) -> tuple[EngineRecord, ...]:
    usual = {"version": "1", "precision": "fp32"}
    return tuple(EngineRecord(kind=kind, file=f"I0.{kind}", **{**usual, **changed}) for kind in kinds)


USUAL = island("I0", "a b c")


@pytest.mark.parametrize(
    ("after", "row"),
    [
        (island("I0", "a b c", precision="fp16"), ("I0", "precision", "fp32", "fp16")),
        (island("I0", "a b c", finite_only=True), ("I0", "finite values only", "False", "True")),
        (island("I0", "a b c", verified=""), ("I0", "verified", "2 samples agree with TensorFlow", "no")),
        (
            island("I0", "a b c", engines=engines("onnxruntime", version="2")),
            ("I0", "onnxruntime engine", "fp32, 9.8 KiB, 1", "fp32, 2"),
        ),
        (
            island("I0", "a b c", engines=(*USUAL.engines, *engines("tensorrt", targets=("sm86",)))),
            ("I0", "tensorrt engine", "none", "fp32, 1, for sm86"),
        ),
    ],
)
def test_what_changed_of_an_island(after, row):
    item, found = changes(built(USUAL), built(after))
    assert item.islands == (row,)
    assert row[1] in shown(found)


def test_of_islands_that_merged_the_nearest_is_compared():
    before = built(island("I0", "a b c"), island("I1", "d e"))
    item, _ = changes(before, built(island("I0", "a b c d e", precision="fp16")))
    assert item.merged == ((("I0", "I1"), "I0"),)
    assert [row for row in item.islands if row[1] == "precision"] == [("I0", "precision", "fp32", "fp16")]


def test_sizes_of_engines_may_differ_by_a_little():
    assert changes(built(USUAL), built(USUAL, sizes={"I0.onnx": 10_050}))[1].same
    item, _ = changes(built(USUAL), built(USUAL, sizes={"I0.onnx": 20_000}))
    assert item.islands == (("I0", "onnxruntime engine", "fp32, 9.8 KiB, 1", "fp32, 19.5 KiB, 1"),)


def test_layers_are_compared_one_by_one():
    lifted = island("I0", "a b c", layers=(("conv", "Conv", "fp32", "it overflows"), ("new", "Gemm", "fp16", "")))
    item, found = changes(built(USUAL), built(lifted))
    assert item.layers == (("conv", "fp16", "fp32", "it overflows"),)
    assert "1 layer in another precision" in shown(found)


def test_a_plan_lacks_no_signature_that_nobody_converted():
    unasked = SignatureSide("not asked for (--signature)", {})
    built = replace(plan(ONE), is_plan=False)
    built = replace(built, signatures={**built.signatures, "second": unasked})
    assert difference(plan(ONE), built).missing == ((), ())
    assert difference(built, plan(ONE)).missing == ((), ())
    assert difference(replace(plan(ONE), is_plan=False), built).missing == ((), ("second",))


def test_a_signature_that_is_no_longer_converted_says_why():
    item, found = changes(built(USUAL), built(reason="TF1 control flow"))
    assert (item.reason, item.same) == (("", "TF1 control flow"), False)
    assert "why not converted, after: TF1 control flow" in shown(found)


def test_versions_choices_and_notes_are_compared_and_times_are_no_difference():
    before = built(
        USUAL, versions={"onnx": "1"}, recipe={"precision": "fp32"}, notes=("old", "both"), timings={"load": 1.0}
    )
    after = built(
        USUAL, versions={"onnx": "2"}, recipe={"precision": "fp16"}, notes=("both", "new"), timings={"load": 2.0}
    )
    _, found = changes(before, after)
    assert ("version of onnx", "1", "2") in found.facts
    assert ("recipe: precision", '"fp32"', '"fp16"') in found.facts
    assert found.notes == (("old",), ("new",))
    assert found.timings == (("load", 1.0, 2.0),)
    text = shown(found)
    assert "note, only after: new" in text
    assert "2.0 s" in text
    slower = built(USUAL, timings={"load": 2.0})
    assert difference(built(USUAL, timings={"load": 1.0}), slower).same


def test_of_a_plan_only_what_a_plan_knows_is_compared():
    side = built(USUAL, notes=("something",))
    known = side_of_plan("plan", side.facts["judge"], {}, [graph_of({name: ("I0", []) for name in "abc"})])
    known = replace(known, signatures=dict.fromkeys(side.signatures, known.signatures["serving_default"]))
    assert difference(known, side).same
    assert "no difference in what both say" in shown(difference(known, side))


def shown(found) -> str:
    """The text, its lines checked."""
    stream = StringIO()
    print_difference(Console(file=stream, width=80), found)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return " ".join(" ".join(line.split()) for line in lines)


def run(capsys, *argv: str) -> str:
    assert cli.main(["-q", "explain", "--diff", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_two_real_bundles(capsys, monkeypatch):
    before, after = make_bundle("odd_ops"), make_bundle("odd_ops", Recipe(keep_in_tf=("Softmax",), min_segment_size=4))
    data = json.loads(run(capsys, before, after, "--json"))
    (signature,) = data["signatures"]
    moved = {op["type"]: op["after"]["reason"] for op in signature["left"]}
    assert moved["Softmax"] == "kept in TensorFlow as asked (Softmax)"
    assert data["same"] is False
    names = {row["name"] for row in data["facts"]}
    assert {"recipe: keep_in_tf", "recipe: min_segment_size"} <= names
    text = run(capsys, before, after)
    assert "back to TensorFlow" in text
    assert "into an engine" in run(capsys, after, before)
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run(capsys, before, after).splitlines())) <= 80


def test_a_bundle_and_itself_moved_elsewhere(capsys, tmp_path):
    text = run(capsys, make_bundle("odd_ops"), copy_of("odd_ops", tmp_path))
    assert "no difference" in text
    assert json.loads(run(capsys, tmp_path / "bundle", make_bundle("odd_ops"), "--json"))["same"] is True


def test_a_model_is_planned_first(capsys):
    text = run(capsys, saved_model("odd_ops"), make_bundle("odd_ops"))
    assert "a plan: nothing was built" in text
    assert "no difference in what both say" in " ".join(text.split())
    kept = run(capsys, saved_model("odd_ops"), make_bundle("odd_ops"), "--keep-in-tf", "Tanh")
    assert "into an engine" in kept


def test_bundles_without_graphs_are_compared_by_their_manifests(capsys, tmp_path):
    old = copy_of("odd_ops", tmp_path)
    (old / "refimpl" / "graph.json").unlink()
    reseal(old)
    assert read_graphs(old) == {}
    assert "no difference" in run(capsys, old, make_bundle("odd_ops"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["explain"], "explain needs a SavedModel"),
        (["explain", "m", "--diff", "a", "b"], "explain --diff compares two conversions, and m is a third"),
        (["explain", "--diff", "nowhere", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_refused(capsys, argv, says):
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err
