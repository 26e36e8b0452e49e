"""The models themselves: TensorFlow runs each of them, on inputs that make its outputs vary."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import models_trained
from tests.models import MODELS, sample_inputs

v1 = tf.compat.v1
ROWS = [pytest.param(name, marks=pytest.mark.slow if row.expect.slow else ()) for name, row in MODELS.items()]
ALWAYS_THE_SAME = {"version", "count", "noise_shape", "calls", "turns"}  # outputs that are one value or say a size


def run_meta_graph(
    path: Path, key: str, feeds: list[dict[str, np.ndarray]]
) -> tuple[set[str], list[dict[str, np.ndarray]]]:
    """Op types of the whole meta graph, and what a session gives for each feed."""
    with tf.Graph().as_default(), v1.Session() as session:
        meta_graph = v1.saved_model.load(session, ["serve"], str(path))
        signature = meta_graph.signature_def[key]
        outputs = {name: info.name for name, info in signature.outputs.items()}
        results = []
        for feed in feeds:
            assert feed.keys() == signature.inputs.keys()
            results.append(session.run(outputs, {signature.inputs[name].name: value for name, value in feed.items()}))
    functions = meta_graph.graph_def.library.function
    nodes = [*meta_graph.graph_def.node, *(node for function in functions for node in function.node_def)]
    return {node.op for node in nodes}, results


def varies(value: Any) -> bool:
    array = np.asarray(value)
    return array.size < 2 or any(item != array.flat[0] for item in array.flat)


@pytest.mark.parametrize("name", ROWS)
def test_tensorflow_runs_it(name, model):
    expect = MODELS[name].expect
    path = model(name)
    ops, results = run_meta_graph(path, "serving_default", sample_inputs(name))
    assert set(expect.stay) <= ops, "an op that must stay in TensorFlow is not in the model"
    assert len(results) == 1 + len(expect.more)
    for output, value in results[0].items():
        assert output in ALWAYS_THE_SAME or varies(value), f"{output} is the same everywhere"
    for key, inputs in expect.others.items():
        _, (values,) = run_meta_graph(path, key, [inputs(np.random.default_rng(0))])
        assert all(varies(value) for value in values.values())


@pytest.mark.parametrize("name", ["keras2_optimizer_slots", "basic_pitch"])
def test_optimizer_slots_stop_the_object_loader(name, model):
    assert not MODELS[name].expect.loads
    with pytest.raises(AttributeError, match="add_slot"):
        tf.saved_model.load(str(model(name)))


@pytest.mark.parametrize("name", ["several_signatures", "tf1_ref_variables", "tf1_table", "counter"])
def test_the_object_loader_takes_the_others(name, model):
    assert MODELS[name].expect.loads
    assert "serving_default" in tf.saved_model.load(str(model(name))).signatures


def test_a_trained_network_recognises_what_it_was_trained_for(model):
    """The planted exon of the sample input: acceptor before its first base, donor after its last."""
    _, (result,) = run_meta_graph(model("spliceai"), "serving_default", sample_inputs("spliceai"))
    _, acceptor, donor = result["output_0"][0].T
    assert (acceptor.argmax(), donor.argmax()) == (286, 409)
    assert acceptor.max() > 0.99
    assert donor.max() > 0.99


_WRONG_PIN = "ERROR: No matching distribution found for fer"
_OFFLINE = f"WARNING: Retrying after connection broken by 'NewConnectionError'\n{_WRONG_PIN}"


@pytest.mark.parametrize(
    ("said", "required", "outcome"),
    [
        (_OFFLINE, "0", pytest.skip.Exception),
        (_OFFLINE, "1", RuntimeError),
        (_WRONG_PIN, "0", RuntimeError),  # an index answered: it is not for want of one
    ],
)
def test_trained_models_are_skipped_only_without_an_index(monkeypatch, tmp_path, said, required, outcome):
    failed = SimpleNamespace(returncode=1, stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(models_trained, "HERE", tmp_path / "tests")
    monkeypatch.setenv("REFIMPL_REQUIRE_TRAINED", required)
    with pytest.raises(outcome, match="fer"):
        models_trained.package_dir("fer")
