"""Advice on the terminal: the costliest first, in 80 columns, all of it with --json."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from refimpl import cli
from refimpl.advice import advise
from refimpl.report.advice import print_advice
from tests.advice.graphs import FLOAT64, STRINGS, chain, graph_of
from tests.bundles import make_bundle
from tests.models import saved_model

SPLIT = {**chain("a", "I0", []), "x": (FLOAT64, ["a2"]), **chain("b", "I1", ["x"])}


def shown(found, limit: int = 3) -> str:
    stream = StringIO()
    print_advice(Console(file=stream, width=80), found, limit)
    assert max(map(len, stream.getvalue().splitlines()), default=0) <= 80
    return stream.getvalue()


def test_a_cause_has_its_cost_its_culprit_and_its_remedy():
    text = shown(advise(graph_of(SPLIT)))
    assert text.splitlines() == [
        "what to do, the costliest first:",
        "1. Relu: float64 is not computed by TensorRT (it would be rounded to float32)",
        "   cost: keeps 1 op out, splits 1 island into 2, 80 bytes per row a call pass",
        "     between it and islands",
        "   split by: x",
        "   do: cast to float32 (tf.cast) before these ops, or build the model with",
        "     tf.float32, if the digits are not needed",
    ]


def test_nothing_is_printed_where_nothing_need_be_done():
    assert shown(advise(graph_of({**chain("a", "I0", [], 40), "x": (STRINGS, ["a39"])}))) == ""
    assert shown(()) == ""


def test_the_rest_is_counted():
    (one,) = advise(graph_of(SPLIT))
    text = shown([replace(one, title=f"cause {number}") for number in range(5)], 2)
    assert "1. cause 0" in text
    assert "cause 2" not in text
    assert "... and 3 more (all of it with --json)" in text


def test_signatures_are_named_where_there_are_several():
    (one,) = advise(graph_of(SPLIT))
    assert "[" not in shown([one])
    assert "[other]" in shown([one, replace(one, signature="other")])


def test_long_words_of_libraries_and_long_names_are_cut():
    (one,) = advise(graph_of(SPLIT))
    text = shown([replace(one, title="x" * 900, splitters=("scope/" * 40 + "op",))])
    assert len(text) < 1000
    assert "..." in text


@pytest.mark.parametrize("command", ["explain", "inspect"])
def test_both_commands_end_with_it(command, capsys, monkeypatch):
    path = saved_model("odd_ops") if command == "explain" else make_bundle("odd_ops")
    assert cli.main(["-q", command, str(path)]) == 0
    text = capsys.readouterr().out
    assert "what to do, the costliest first:" in text
    assert "Svd: tf2onnx has no lowering for Svd" in text
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["-q", command, str(path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert cli.main(["-q", command, str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["advice"]
    assert {"no-lowering", "random"} <= {item["family"] for item in found}
    assert all(item["ops"] or item["islands"] for item in found)
