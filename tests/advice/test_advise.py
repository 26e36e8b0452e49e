"""Which causes are named, in which order, with which remedy; on graphs made by hand and on real conversions."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from refimpl import bundle
from refimpl.advice import advise, advise_all, advise_bundle
from refimpl.advice.advise import _rank
from refimpl.advice.alternatives import ALTERNATIVES
from refimpl.advice.traffic import Traffic
from refimpl.graph_record import read_graphs
from tests.advice.graphs import FLOAT64, SMALL, STRINGS, chain, graph_of
from tests.bundles import make_bundle

SPLIT = {**chain("a", "I0", []), "x": (FLOAT64, ["a2"]), **chain("b", "I1", ["x"])}
TAIL = {f"s{index}": (STRINGS, [f"s{index - 1}" if index else "b2"]) for index in range(9)}


def test_one_op_that_splits_comes_before_many_that_do_not():
    first, second = advise(graph_of({**SPLIT, **TAIL}))
    assert (first.family, first.splits, first.merged, first.splitters) == ("float64", 1, (("I0", "I1"),), ("x",))
    assert (first.gained, first.place, first.traffic.size) == (1, "between", 2 * 40)
    assert (second.family, second.splits, len(second.ops), second.gained) == ("strings", 0, 9, 9)
    assert "cast to float32" in first.action
    assert first.cost == "keeps 1 op out, splits 1 island into 2, 80 bytes per row a call pass between it and islands"


def test_the_order_is_what_the_docs_say():
    usual = replace(advise(graph_of(SPLIT))[0], merged=(), splits_alone=0, gained=1)
    rows = [
        replace(usual, title="splits", merged=(("I0", "I1"),), splits_alone=1),
        replace(usual, title="an island not worth having", islands=("I0",), splits_alone=None, gained=None),
        replace(usual, title="splits with others", splits_alone=3),
        replace(usual, title="keeps many out", gained=50),
        replace(usual, title="much traffic", traffic=Traffic(size=10**9)),
        usual,
        replace(usual, title="harmless", needed=False, merged=(("I0", "I1", "I2"),)),
    ]
    assert sorted([*rows[4:], *rows[:4]], key=_rank) == rows


def test_what_splits_nothing_at_an_end_needs_nothing():
    (only,) = advise(graph_of({**chain("a", "I0", [], 40), "x": (STRINGS, ["a39"])}))
    assert (only.needed, only.place) == (False, "end")
    assert only.action == "nothing: at the end of the model it splits no island"
    many = graph_of({**chain("a", "I0", [], 40), **{f"s{i}": (STRINGS, ["a39"]) for i in range(9)}})
    assert advise(many)[0].needed, "a fifth of the model is no trifle"


def test_an_end_that_others_make_is_none():
    """Only float64 keeps islands from standing behind x: once that is mended, x splits."""
    rows = {**chain("a", "I0", [], 80), "x": (STRINGS, ["a79"]), **{f"y{i}": (FLOAT64, ["x"]) for i in range(3)}}
    rows["z"] = (FLOAT64, ["y0", "y1", "y2"])
    found = {item.family: item for item in advise(graph_of(rows))}
    assert (found["strings"].place, found["strings"].splits_alone, found["strings"].needed) == ("end", 1, True)


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ({"x": (STRINGS, []), **chain("a", "I0", ["x"])}, "start"),
        ({**chain("a", "I0", []), "x": (STRINGS, [])}, "apart"),
        (SPLIT, "between"),
    ],
)
def test_where_ops_stand(rows, place):
    assert advise(graph_of(rows))[0].place == place


def test_the_well_known_alternative_is_named():
    rows = {name: (STRINGS if name == "x" else where, reads) for name, (where, reads) in SPLIT.items()}
    (only,) = advise(graph_of(rows, types={"x": "DecodeJpeg"}))
    assert only.action == ALTERNATIVES["DecodeJpeg"]
    assert only.title == f"DecodeJpeg: {STRINGS}"
    both = {**rows, "y": (STRINGS, ["x"])}
    (mixed,) = advise(graph_of(both, types={"x": "DecodeJpeg", "y": "AsString"}))
    assert mixed.action.startswith("DecodeJpeg: ")
    assert "; the others: move strings out" in mixed.action


def test_a_reason_that_nobody_knows_is_shown_as_it_is():
    rows = {**SPLIT, "x": ("nobody has said this yet", ["a2"]), "y": ("nor that ever", ["b2"])}
    found = advise(graph_of(rows))
    assert [(item.family, item.title) for item in found] == [
        ("unknown", "Relu: nobody has said this yet"),
        ("unknown", "Relu: nor that ever"),
    ]
    assert found[0].action == "no advice is known for this reason"
    assert found[0].splits == 1


def test_what_is_too_small_is_told_with_what_would_be_gained():
    rows = {**SPLIT, "small": (SMALL, ["x"])}
    found = {item.family: item for item in advise(graph_of(rows))}
    assert found["small-islands"].title == "1 convertible op in no island, since what is connected is too small for one"
    assert (found["small-islands"].gained, found["small-islands"].splits) == (1, 0)
    assert found["float64"].gained == 2, "it would join as well"


def test_nothing_is_said_of_splits_that_cannot_be_computed():
    torn = {**chain("a", "I0", []), **chain("b", "I1", ["a2"]), "x": (STRINGS, ["b2"])}
    (only,) = advise(graph_of(torn))
    assert (only.merged, only.gained, only.needed) == (None, None, True)
    assert only.to_json()["splits"] is None


def test_ops_that_compute_nothing_are_no_matter():
    graph = graph_of({**chain("a", "I0", []), "x": (STRINGS, ["a2"])}, types={"x": "Identity"})
    assert advise(graph) == ()
    split = graph_of(SPLIT, types={"x": "Identity"})
    assert advise(split)[0].splits == 1, "unless they keep islands apart"


def test_causes_side_by_side_are_told_to_split_together():
    rows = {**chain("a", "I0", []), "x": (FLOAT64, ["a2"]), "y": (STRINGS, ["a2"]), "b0": ("I1", ["x"])}
    rows |= {"b1": ("I1", ["b0", "y"]), "b2": ("I1", ["b1"]), "b3": ("I1", ["b2"])}
    found = advise(graph_of({**rows, "aside": ("nobody has said this yet", ["a0"])}))
    assert [(item.splits, item.splits_alone) for item in found] == [(0, 1), (0, 1), (0, 0)]
    assert "with other causes keeps 2 islands apart" in found[0].cost
    assert found[2].family == "unknown"


def test_all_signatures_are_ranked_together():
    one, two = graph_of({**chain("a", "I0", []), **TAIL, "s0": (STRINGS, ["a2"])}), graph_of(SPLIT)
    found = advise_all([one, replace(two, key="other")])
    assert [item.signature for item in found] == ["other", "serving_default"]
    json.dumps([item.to_json() for item in found])


@pytest.mark.parametrize(
    ("model", "family", "op_type", "needed"),
    [
        ("odd_ops", "no-lowering", "Svd", True),
        ("stateful_random", "random", "RandomStandardNormal", True),
        ("decode_and_label", "checks", "StatelessWhile", True),
        ("detector", "no-lowering", "CombinedNonMaxSuppression", False),
        ("float64", "float64", "AddV2", True),
    ],
)
def test_real_models_get_advice(model, family, op_type, needed):
    folder = make_bundle(model)
    manifest = bundle.read(folder)
    found = advise_bundle(manifest, read_graphs(folder))
    named = [item for item in found if item.family == family and op_type in item.types]
    assert len(named) == 1
    assert named[0].needed is needed
    assert bool(named[0].splits or named[0].splits_alone) is needed
    left = {op.name for record in manifest.signatures for op in record.left}
    assert {name for item in found for name in item.ops} == left, "every op that stays is somebody's"


def test_a_very_large_model_gets_an_answer_soon():
    """Twelve thousand ops, sixty causes: the few that can be afforded are answered, the others are known not to be."""
    rows = {"o0": ("I0", [])}
    for index in range(1, 12_000):
        number, last = divmod(index, 40)
        where = f"tf2onnx has no lowering for Odd{number % 60}" if last == 39 else f"I{number}"
        rows[f"o{index}"] = (where, [f"o{index - 1}"])
    types = {name: where.split()[-1] for name, (where, _) in rows.items() if " " in where}
    start = time.process_time()
    found = advise(graph_of(rows, types=types))
    assert time.process_time() - start < 10
    assert len(found) == 60
    known = [item for item in found if item.merged is not None]
    assert 3 < len(known) < 30
    assert found[: len(known)] == tuple(known), "what is known to split comes first"
    assert all(item.splits == len(item.ops) for item in known)
    assert len(known[0].splitters) > 1


def test_without_graphs_little_is_said():
    folder = make_bundle("odd_ops")
    assert [item.family for item in advise_bundle(bundle.read(folder), {})] in ([], ["slow-islands"])
