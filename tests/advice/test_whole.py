"""Islands that cost more than they can win, and signatures that stay whole."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import refimpl
from refimpl import bundle
from refimpl.advice import advise_bundle
from refimpl.bundle import SignatureRecord
from refimpl.graph_record import read_graphs
from refimpl.recipe import Recipe
from refimpl.specs import Signature
from tests.bundles import make_bundle
from tests.models import saved_model


def timed_bundle(name: str, timings: dict[str, tuple[float, float] | None], **choices):
    """A bundle's manifest with other measurements than its own, (crossing, TensorFlow) in µs, and its graphs."""
    folder = make_bundle(name, Recipe(**choices))
    manifest = bundle.read(folder)
    (record,) = manifest.signatures
    islands = []
    for island in record.islands:
        pair = timings.get(island.name)
        timing = pair and {"crossing": pair[0] * 1e-6, "tensorflow": pair[1] * 1e-6, "bytes": 8}
        islands.append(replace(island, timing=timing))
    return replace(manifest, signatures=(replace(record, islands=tuple(islands)),)), read_graphs(folder)


def slow_of(manifest, graphs):
    return [item for item in advise_bundle(manifest, graphs) if item.family == "slow-islands"]


def test_an_island_whose_crossing_takes_longer_than_tensorflow_is_named():
    timings = {"TRTEngineOp_000_000": (90.0, 20.0), "TRTEngineOp_000_001": (90.0, 400.0)}
    (found,) = slow_of(*timed_bundle("decode_and_label", timings))
    assert found.islands == ("TRTEngineOp_000_000",)
    assert found.cost == "90 µs a call for crossing alone, where TensorFlow takes 20 µs (measured when converted)"
    assert found.title.startswith("1 island costs more to enter and leave than TensorFlow needs for the ops (TRT")
    json.dumps(found.to_json())


@pytest.mark.parametrize("pair", [(90.0, 100.0), (90.0, 50.0), None])
def test_nothing_is_said_within_the_noise_or_without_a_measurement(pair):
    assert slow_of(*timed_bundle("decode_and_label", {"TRTEngineOp_000_000": pair})) == []


def test_the_remedy_removes_these_islands_and_no_others(tmp_path):
    timings = {"TRTEngineOp_000_000": (90.0, 20.0), "TRTEngineOp_000_001": (90.0, 400.0)}
    (found,) = slow_of(*timed_bundle("decode_and_label", timings))
    option, size = found.action.removesuffix(" (which counts their constants, too)").rsplit(" ", 2)[-2:]
    assert option == "--min-segment-size"
    before = make_bundle("decode_and_label")
    refimpl.convert(saved_model("decode_and_label"), tmp_path / "after", Recipe(min_segment_size=int(size)))
    kept = [island.ops for island in bundle.read(tmp_path / "after").islands]
    assert kept == [island.ops for island in bundle.read(before).islands if island.name not in found.islands]


def test_where_a_size_would_hit_others_too_the_ops_are_named():
    timings = {"TRTEngineOp_000_000": (90.0, 400.0), "TRTEngineOp_000_001": (90.0, 20.0)}
    (found,) = slow_of(*timed_bundle("decode_and_label", timings))  # the slow one is the larger one
    assert "--min-segment-size" not in found.action
    assert "--keep-in-tf" in found.action


@pytest.mark.parametrize(
    ("reason", "needed", "says"),
    [
        ("not asked for (--signature)", False, "--signature"),
        ("TF1 control flow (Enter, Switch) cannot be cut", True, "enable_control_flow_v2"),
        ("'words' is a coo_sparse tensor", True, "dense"),
        ("Assign global_step works on a TF1 reference variable", True, "resource variables"),
    ],
)
def test_a_signature_that_stays_whole_has_its_remedy(reason, needed, says):
    manifest, _ = timed_bundle("odd_ops", {})
    record = SignatureRecord(signature=Signature("other", (), ()), converted=False, reason=reason)
    found = advise_bundle(replace(manifest, signatures=(record,)), {})
    assert [(item.family, item.signature, item.needed) for item in found] == [("signature", "other", needed)]
    assert says in found[0].action
