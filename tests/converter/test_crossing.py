"""What crossing costs is measured, in the node that islands become, and told of islands that can be measured."""

from __future__ import annotations

import time

import pytest

import refimpl
from refimpl import bundle, runtime
from refimpl.converter import crossing
from refimpl.recipe import Recipe
from refimpl.runtime.island import IslandRuntime
from tests.bundles import make_bundle
from tests.models import saved_model


def test_an_empty_call_costs_something_and_not_much():
    found = crossing.measure()
    assert 1e-6 < found.call_seconds < 0.05
    assert 0.0 <= found.byte_seconds < 1e-6
    assert found.of(1000) == found.call_seconds + 1000 * found.byte_seconds


def test_what_slows_the_node_down_is_seen(monkeypatch):
    call = IslandRuntime.call

    def slow(self, inputs):
        time.sleep(0.01)
        return call(self, inputs)

    monkeypatch.setattr(IslandRuntime, "call", slow)
    assert crossing.measure.__wrapped__().call_seconds > 0.009


def test_without_an_engine_nothing_is_told(monkeypatch):
    monkeypatch.setattr(IslandRuntime, "call", lambda self, inputs: None)
    assert crossing.measure.__wrapped__() is None
    monkeypatch.setattr(crossing, "measure", lambda: None)
    record = bundle.read(make_bundle("odd_ops")).signatures[0]
    assert crossing.timed(record, {}, None) is record


def test_nothing_of_it_is_left_behind():
    crossing.measure.__wrapped__()
    assert not [key for key in runtime._open_bundles if key[1] == crossing._ID]


def test_the_fastest_call_counts():
    pauses = iter([0.0, 0.008, 0.002, 0.008])  # the first is not counted
    assert 0.002 <= crossing.fastest(lambda: time.sleep(next(pauses, 0.008))) < 0.008


def test_a_busy_machine_is_given_time_for_one_call_that_is_not_disturbed():
    pauses = iter([0.0, *[0.003] * 15, 0.0])  # more than the usual time is over before it comes
    assert crossing.fastest(lambda: time.sleep(next(pauses, 0.003)), crossing._ENOUGH_SMALL) < 0.002


def test_an_empty_call_is_given_that_time(monkeypatch):
    given = []
    monkeypatch.setattr(crossing, "fastest", lambda call, enough: given.append(enough) or 1e-4 / len(given))
    crossing.measure.__wrapped__()
    assert given == [crossing._ENOUGH_SMALL] * 2 + [crossing._ENOUGH] * 2


def test_a_disturbed_measurement_is_tried_again(monkeypatch):
    """Other work slowed the plain node down the first time."""
    times = iter([3e-4, 4e-4, 2e-4, 1.5e-4, 9e-4, 1e-4])
    monkeypatch.setattr(crossing, "fastest", lambda call, enough: next(times))
    found = crossing.measure.__wrapped__()
    assert found.call_seconds == pytest.approx(0.5e-4)
    assert found.byte_seconds > 0


def test_where_nothing_can_be_told_apart_nothing_is_told(monkeypatch):
    asked = []
    monkeypatch.setattr(crossing, "fastest", lambda call, enough: asked.append(enough) or 1e-4)
    assert crossing.measure.__wrapped__() is None
    assert len(asked) == 4 * crossing._CHANCES


def test_small_islands_are_measured_the_first_ones_first():
    (record,) = bundle.read(make_bundle("decode_and_label")).signatures
    for island in record.islands:
        assert set(island.timing) == {"crossing", "tensorflow", "bytes"}
        assert island.timing["crossing"] > 0
        assert island.timing["tensorflow"] >= 0
    assert record.islands[0].timing["bytes"] == 8  # a shape of one number goes in, the number comes out


def test_the_time_that_tensorflow_takes_is_its_own(monkeypatch, tmp_path):
    """A larger island on more data takes it longer than a tiny one."""
    small, large = bundle.read(make_bundle("decode_and_label")).islands
    assert len(small.ops) < len(large.ops)
    assert small.timing["tensorflow"] < large.timing["tensorflow"]


def test_large_islands_and_unverified_ones_are_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(crossing, "_MOST_OPS", 10)
    refimpl.convert(saved_model("odd_ops"), tmp_path / "bundle")
    assert [bool(island.timing) for island in bundle.read(tmp_path / "bundle").islands] == [
        len(island.ops) <= 10 for island in bundle.read(tmp_path / "bundle").islands
    ]
    unverified = make_bundle("odd_ops", Recipe(verify=False))
    assert [island.timing for island in bundle.read(unverified).islands] == [None, None]


def test_no_more_is_measured_when_the_time_is_spent(monkeypatch, tmp_path):
    monkeypatch.setattr(crossing, "_BUDGET", 0.0)
    refimpl.convert(saved_model("odd_ops"), tmp_path / "bundle")
    assert [island.timing for island in bundle.read(tmp_path / "bundle").islands] == [None, None]


@pytest.mark.parametrize("missing", [True, False])
def test_bundles_without_measurements_are_read(missing):
    data = bundle.read(make_bundle("odd_ops")).islands[0].to_json()
    if missing:
        del data["timing"]
    else:
        data["timing"] = None
    assert bundle.IslandRecord.from_json(data).timing is None
