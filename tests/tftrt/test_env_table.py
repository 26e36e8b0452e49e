"""The table of TF_TRT_* variables: values, defaults, warnings, and the docs that show it."""

from __future__ import annotations

import pytest

from refimpl import tftrt_env
from refimpl.errors import RecipeError
from refimpl.tftrt_env import Settings, read, warnings
from tests.contract.sources import ROOT

NATIVE = "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION"


def test_the_defaults_are_tftrts():
    assert read({}) == Settings()
    assert Settings().max_engines == 20
    assert Settings().native_allowed


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        (NATIVE, "False", "native_allowed", False),
        (NATIVE, "0", "native_allowed", False),
        (NATIVE, "TRUE", "native_allowed", True),
        ("TF_TRT_ABORT_CUDA_ENGINE_BUILD", "1", "abort_builds", True),
        ("TF_TRT_MAX_ALLOWED_ENGINES", "3", "max_engines", 3),
        ("TF_TRT_MAX_ALLOWED_ENGINES", "0", "max_engines", 0),
        ("TF_TRT_MAX_ALLOWED_ENGINES", "-1", "max_engines", 0),
        ("TF_TRT_OP_DENYLIST", "Conv2D,MatMul", "denylist", ("Conv2D", "MatMul")),
        ("TF_TRT_SHOW_DETAILED_REPORT", "1", "detailed_report", True),
        ("TF_TRT_SHOW_DETAILED_REPORT", "0", "detailed_report", False),
        ("TF_TRT_SHOW_DETAILED_REPORT", "-2", "detailed_report", False),
        ("TF_TRT_SHOW_DETAILED_REPORT", "report.csv", "detailed_report", True),
        ("TF_TRT_SHOW_DETAILED_REPORT", "report.csv", "csv_path", "report.csv"),
        ("TF_TRT_SHOW_DETAILED_REPORT", "2", "csv_path", ""),
        ("TF_TRT_EXPORT_TRT_ENGINES_PATH", "plans", "engines_path", "plans"),
        ("TF_TRT_EXPORT_GRAPH_VIZ_PATH", "g.dot", "dot_path", "g.dot"),
        ("TF_TRT_EXPERIMENTAL_FEATURES", "disable_graph_freezing", "features", ("disable_graph_freezing",)),
    ],
)
def test_values(name, value, field, expected):
    assert getattr(read({name: value}), field) == expected


@pytest.mark.parametrize(("name", "value"), [(NATIVE, "no"), ("TF_TRT_MAX_ALLOWED_ENGINES", "many")])
def test_values_that_mean_nothing(name, value):
    with pytest.raises(RecipeError, match=name) as caught:
        read({name: value})
    assert caught.value.hint


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_value_is_none(empty):
    names = [row.name for row in tftrt_env.TABLE]
    assert read(dict.fromkeys(names, empty)) == Settings()
    assert warnings(dict.fromkeys(names, empty)) == ()


@pytest.mark.parametrize("feature", ["remove_native_segments", "disable_logger_filtering"])
def test_features_without_effect_are_told(feature):
    (text,) = warnings({"TF_TRT_EXPERIMENTAL_FEATURES": f"reject_all_fp_cast_ops,{feature}"})
    assert text.startswith(f"TF_TRT_EXPERIMENTAL_FEATURES: {feature} has no effect: ")
    assert warnings({"TF_TRT_EXPERIMENTAL_FEATURES": "reject_all_fp_cast_ops,disable_graph_freezing"}) == ()


def test_what_is_asked_while_a_model_runs_is_read_alone(monkeypatch):
    """A typing error in another variable is an error of the next conversion, not of every call."""
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "many")
    monkeypatch.setenv(tftrt_env.ABORT, "true")
    assert tftrt_env.native_allowed()
    assert tftrt_env.abort_builds()


@pytest.mark.parametrize("name", sorted(tftrt_env.MISTAKEN))
def test_names_that_nothing_ever_read(name):
    (text,) = warnings({name: "1"})
    assert name in text
    assert tftrt_env.MISTAKEN[name] in text


def test_a_misspelt_name_gets_the_right_one():
    (text,) = warnings({"TF_TRT_MAX_ALOWED_ENGINES": "3"})
    assert text.endswith("did you mean TF_TRT_MAX_ALLOWED_ENGINES?")


@pytest.mark.parametrize("row", [row for row in tftrt_env.TABLE if not row.ours], ids=lambda row: row.name)
def test_variables_without_effect_are_told_unless_they_say_the_default(row):
    (text,) = warnings({row.name: "7"})
    assert row.meaning in text
    assert warnings({row.name: row.default}) == ()


def test_variables_with_effect_are_not_told():
    assert warnings({row.name: "1" for row in tftrt_env.TABLE if row.ours and "FEATURES" not in row.name}) == ()
    (text,) = warnings({"TF_TRT_EXPERIMENTAL_FEATURES": "fast_mode"})
    assert "fast_mode" in text


def test_they_are_read_anew_each_time(monkeypatch):
    monkeypatch.setenv(NATIVE, "0")
    assert not tftrt_env.native_allowed()
    monkeypatch.setenv(NATIVE, "1")
    assert tftrt_env.native_allowed()
    monkeypatch.delenv(NATIVE)
    assert tftrt_env.native_allowed()


def test_the_docs_show_the_table():
    text = (ROOT / "docs" / "migrating-from-tf-trt.md").read_text(encoding="utf-8")
    for row in tftrt_env.TABLE:
        ours = f"`{row.ours}`" if row.ours else "none"
        assert f"| `{row.name}` | {row.kind} | {row.default or 'unset'} | {ours} | {row.meaning} |" in text
    for name, right in tftrt_env.MISTAKEN.items():
        assert f"| `{name}` | {right} |" in text
