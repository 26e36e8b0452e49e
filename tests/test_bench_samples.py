"""The arithmetic of benchmarks, on samples that are made up: ratios, spreads, growth, promises, what a report says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.contract.sources import ROOT
from tools.bench import record, report
from tools.bench.__main__ import PARTS
from tools.bench.conversion import BOTH, ENGINE, OURS, TF2ONNX, one_after_the_other
from tools.bench.growth import growths
from tools.bench.inference import GRAPH, INFER, SESSION, TENSORFLOW
from tools.bench.promises import PROMISES
from tools.bench.samples import BUSY, Round, Row, fit, short, spread
from tools.bench.scale import LOADED

WRITTEN = ROOT / "docs" / "benchmarks"
MACHINE = {"processor": "a processor", "cores": 2, "code": "abc", "versions": {"python": "3.11"}}


def row(subject: str, *samples: dict[str, dict[str, float]], beside: float = 0.1, **more: Any) -> Row:
    rounds = tuple(Round(sample, beside, 1.0) for sample in samples)
    return Row(subject=subject, rounds=rounds, machine=MACHINE, date="2026-01-02", commands={"a": "do it"}, **more)


def conversion(subject: str, *pairs: tuple[float, float], beside: float = 0.1) -> Row:
    """Seconds of tf2onnx and of refimpl; memory is a hundred times that."""
    peers = [{TF2ONNX: theirs, ENGINE: 1.0, BOTH: theirs + 1, OURS: ours} for theirs, ours in pairs]
    samples = [{name: {"wall s": t, "cpu s": t, "peak MiB": 100 * t} for name, t in peer.items()} for peer in peers]
    return row(subject, *samples, beside=beside)


def sized(axis: str, size: str, pairs: list[tuple[float, float]]) -> dict[str, Row]:
    """Rows of ``scale`` whose costs are given by size."""
    return {
        f"{axis}: {n}": row(
            f"{axis}: {n}",
            {
                LOADED: {"wall s": 1.0, "cpu s": 1.0, "peak MiB": 9.0},
                OURS: {"wall s": cost, "cpu s": cost, "peak MiB": 300.0, size: n},
            },
        )
        for n, cost in pairs
    }


def test_ratios_are_taken_round_by_round() -> None:
    """The second round was twice as slow for both: the ratio of medians would be 0.4, and no round was."""
    found = conversion("m", (10, 2), (20, 10), (40, 8))
    assert found.ratios(OURS, TF2ONNX, "wall s") == [0.2, 0.5, 0.2]
    assert found.differences(OURS, TF2ONNX, "wall s") == [-8, -10, -32]
    assert spread(found.ratios(OURS, TF2ONNX, "wall s")).median == 0.2


def test_spreads() -> None:
    found = spread([3, 1, 2, 10])
    assert (found.low, found.median, found.high) == (1, 2.5, 10)
    assert str(spread([0.123456, 0.2, 1234.5])) == "0.2 (0.123 to 1234)"
    with pytest.raises(ValueError, match="no samples"):
        spread([])
    assert [short(value) for value in (99.96, 100.4, 0.00012345)] == ["100", "100", "0.000123"]


def test_two_processes_take_the_time_of_both_and_the_higher_peak() -> None:
    first, second = {"wall s": 1.0, "peak MiB": 7.0}, {"wall s": 2.0, "peak MiB": 5.0}
    assert one_after_the_other(first, second) == {"wall s": 3.0, "peak MiB": 7.0}


@pytest.mark.parametrize("power", [1, 2])
def test_the_exponent_is_found_behind_a_fixed_start(power: int) -> None:
    sizes = [1, 1000, 2000, 4000, 8000]
    found = fit(sizes, [9 + 3e-3 * (size - 1) ** power for size in sizes])
    assert found.exponent == pytest.approx(power)
    assert (found.off < 1e-9) == (power == 1)
    if power == 1:
        assert (found.slope, found.start) == (pytest.approx(3e-3), pytest.approx(9 - 3e-3))


def test_growth_needs_three_sizes_and_something_that_grows() -> None:
    with pytest.raises(ValueError, match="2 sizes and 3 costs"):
        fit([1, 2, 2], [1, 2, 3])
    assert fit([1, 2, 3], [5, 4, 6]).exponent is None


def test_growth_is_read_from_rows() -> None:
    rows = sized("ops", "ops", [(4000, 17.0), (1, 5.0), (1000, 8.0), (2000, 11.0)]) | sized(
        "weights", "weights MiB", [(1, 2.0)]
    )
    found = {item.cost: item for item in growths(rows)}
    assert set(found) == {"wall s", "cpu s", "peak MiB"}
    assert found["wall s"].sizes == (1, 1000, 2000, 4000)
    assert found["wall s"].costs == (5, 8, 11, 17)
    assert found["wall s"].fit.exponent == pytest.approx(1, abs=0.01)
    assert found["peak MiB"].fit.exponent is None


def test_rows_survive_json() -> None:
    found = conversion("m", (10, 2), beside=BUSY + 0.1)
    data = json.loads(json.dumps(found.to_json()))
    assert data["rounds"][0]["busy"] is True
    assert Row.from_json(data) == found


@pytest.mark.parametrize("promise", PROMISES, ids=lambda item: item.what)
def test_promises_are_about_what_is_measured(promise: Any) -> None:
    assert promise.subject in {subject.name for subject in PARTS[promise.part].full}
    assert (promise.at_most is None) != (promise.at_least is None)
    limit = float(promise.target().split()[1])
    assert promise.holds(limit)
    assert not promise.holds(limit * (1.01 if promise.at_most else 0.99))


def seeded() -> dict[str, dict[str, Row]]:
    """Of every kind of promise one that is kept, and one that is not."""
    four = {TENSORFLOW: 40.0, SESSION: 20.0, GRAPH: 20.8, INFER: 24.0}
    relu = {TENSORFLOW: 50.0, SESSION: 5.0, GRAPH: 171.0, INFER: 24.0}
    return {
        "conversion": {
            "resnet50": conversion("resnet50", (10, 2), (10, 2.4), (10, 9)),
            "bert_base": conversion("bert_base", (10, 2), (10, 2.6), (10, 2.7), beside=BUSY + 0.1),
        },
        "inference": {
            "resnet50, batch 1": row("resnet50, batch 1", {name: {"ms": value} for name, value in four.items()}),
            "one Relu": row("one Relu", {name: {"µs": value} for name, value in relu.items()}),
        },
        "scale": sized("ops", "ops", [(1, 5.0), (1000, 6.0), (2000, 9.0), (4000, 21.0)]),
    }


def told(data: dict[str, Any], start: str) -> dict[str, Any]:
    (found,) = [item for item in data["promises"] if item["what"].startswith(start)]
    return found


def test_promises_are_held_against_the_samples() -> None:
    data = report.figures(tuple(PARTS.values()), seeded())
    kept = {
        "resnet50: wall time": (0.24, True),
        "bert_base: wall time": (0.26, False),
        "resnet50, batch 1: speed of the bundle, called through TensorFlow": (40 / 20.8, True),
        "resnet50, batch 1: speed of the bundle, called by `infer`": (40 / 24, False),
        "resnet50, batch 1: time of the bundle, called through TensorFlow": (1.04, True),
        "resnet50, batch 1: time of the bundle, called by `infer`": (1.2, False),
        "an engine node's overhead": (121, False),
        "an engine's overhead": (19, True),
        "exponent": (2, False),
    }
    for start, (median, met) in kept.items():
        item = told(data, start)
        assert item["spread"]["median"] == pytest.approx(median, rel=0.02)
        assert item["met"] is met
    assert told(data, "bert_base: wall time")["busy"] is True
    assert told(data, "resnet50: wall time")["busy"] is False
    assert told(data, "efficientnetb0: wall time") | {"what": ""} == {
        "what": "",
        "target": "≤ 0.25",
        "spread": None,
        "met": None,
        "busy": False,
        "part": "conversion",
        "rounds": 0,
    }


def test_markdown_says_what_the_json_says() -> None:
    data = json.loads(json.dumps(report.figures(tuple(PARTS.values()), seeded())))
    text = report.markdown(data, ["a-plot.svg"])
    lines = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    head = lines.index(["promised", "target", "measured", "rounds", "met"])
    said = {line[0]: line[1:] for line in lines[head + 2 : head + 2 + len(data["promises"])]}
    for item in data["promises"]:
        target, measured, rounds, met = said[item["what"]]
        assert (target, rounds) == (item["target"], str(item["rounds"]))
        if item["spread"] is None:
            assert (measured, met) == ("-", f"not measured: `{item['part']}`")
        else:
            assert measured.split()[0] == short(item["spread"]["median"])
            assert met.startswith("yes" if item["met"] else "**no**")
            assert ("busy" in met) == item["busy"]
    assert ["resnet50", "refimpl / tf2onnx", "0.24 (0.2 to 0.9)", "0.24 (0.2 to 0.9)", "0.24 (0.2 to 0.9)"] in lines
    assert ["one Relu", "infer - ONNX Runtime", "19"] in lines
    assert "**busy** in 3 of 3 rounds" in text
    assert text.count("**busy** in") == 1
    assert "* machine 1: a processor, cores 2, code abc; python 3.11\n" in text
    assert "![a plot](a-plot.svg)" in text
    assert "Not measured: `python -m tools.bench start`." in text


def test_machines_are_told_apart() -> None:
    rows = seeded()
    other = rows["inference"]["one Relu"].to_json() | {"machine": {**MACHINE, "cores": 64}}
    rows["inference"]["one Relu"] = Row.from_json(other)
    text = report.markdown(report.figures(tuple(PARTS.values()), rows))
    assert "* machine 2: a processor, cores 64" in text
    assert "* one Relu: rounds 1, machine 2, 2026-01-02" in text


def test_plots_are_small_light_and_the_same_each_time(tmp_path: Path) -> None:
    from tools.bench import plots

    data = report.figures(tuple(PARTS.values()), seeded())
    names = plots.draw(data, tmp_path)
    assert names == list(report.PLOTS)
    for name in names:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert len(text) < 100_000
        assert "fill: #ffffff" in text
    assert "exponent 2.0" in (tmp_path / names[1]).read_text(encoding="utf-8")
    again = tmp_path / "again"
    plots.draw(data, again)
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert plots.draw(report.figures(tuple(PARTS.values()), {}), tmp_path) == []
    assert list(tmp_path.glob("*.svg")) == []


def test_a_bar_ends_where_the_promise_does() -> None:
    from tools.bench import plots

    assert plots.share({"target": "≤ 0.25"}, 0.5) == 2
    assert plots.share({"target": "≥ 1.8"}, 3.6) == 0.5
    assert plots.share({"target": "≤ 120 µs"}, 60) == 0.5


def test_the_docs_hold_what_the_samples_say() -> None:
    data = report.figures(tuple(PARTS.values()), {name: record.read(WRITTEN, name) for name in PARTS})
    assert any(part["rows"] for part in data["parts"]), "measure: python -m tools.bench"
    assert json.loads((WRITTEN / "performance.json").read_text(encoding="utf-8")) == json.loads(json.dumps(data))
    drawn = [name for name in report.PLOTS if (WRITTEN / name).exists()]
    assert (WRITTEN / "performance.md").read_text(encoding="utf-8") == report.markdown(data, drawn)
    assert all((WRITTEN / name).stat().st_size < 100_000 for name in drawn)
