"""What a conversion does, counted: expensive things happen once, whatever the clock of this machine says."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tensorflow as tf
import tf2onnx.tf_loader
from tf2onnx.graph import Graph

import refimpl
from refimpl import bundle
from refimpl.converter import atoms, crossing, drafts, lower
from refimpl.converter.native import NativeGraph
from refimpl.converter.plan import signature_source
from refimpl.converter.refusals import refuse_statically
from refimpl.converter.source import Source
from tests.converter.small import ALL, default, write_model
from tests.models_ops import normal

Counts = collections.Counter[str]


@pytest.fixture(scope="module", autouse=True)
def _measured() -> None:
    """What is done once per process was done by an earlier test, or is done now."""
    crossing.measure()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution, a batch normalization, whose constants are computed, and a Dense layer."""
    kernel, dense = (tf.Variable(normal(*shape, seed=5, scale=0.2)) for shape in ((3, 3, 3, 64), (64, 32)))
    variance = tf.Variable(np.linspace(0.5, 1.5, 64, dtype=np.float32))

    def call(x: Any) -> dict[str, Any]:
        y = tf.nn.conv2d(x, kernel, 1, "SAME") * tf.math.rsqrt(variance + 1e-3)
        return {"y": tf.nn.relu(tf.reduce_mean(tf.nn.relu(y), (1, 2)) @ dense)}

    spec = tf.TensorSpec((None, 8, 8, 3), tf.float32, name="x")
    folder = tmp_path_factory.mktemp("cost")
    return write_model(folder / "network", call, spec, holds=[kernel, dense, variance])


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, counts: Counts, what: str = "") -> None:
    """Count calls of ``owner.name``."""
    original = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        counts[what or name] += 1
        return original(*args, **options)

    monkeypatch.setattr(owner, name, call)


def test_every_expensive_step_happens_once(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counts = collections.Counter()
    counted(monkeypatch, lower, "to_onnx", counts)
    counted(monkeypatch, drafts, "lower_atoms", counts)
    counted(monkeypatch, ort, "InferenceSession", counts)
    counted(monkeypatch, tf2onnx.tf_loader, "tf_session", counts)
    manifest = refimpl.convert(network, tmp_path / "bundle", ALL)
    assert default(manifest).share == 1.0
    assert counts["to_onnx"] == 1  # what was judged is what ships
    assert counts["lower_atoms"] == 0  # nobody was to blame
    assert counts["tf_session"] == 0  # tf2onnx found no constant to fold
    assert counts["InferenceSession"] == 3  # to optimize, to verify, and in the finished bundle


def test_tensorflow_is_asked_nothing_twice(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    original = NativeGraph.run

    def run(self: NativeGraph, feeds: Any, fetches: Any) -> Any:
        asked.append((tuple(fetches), tuple((name, value.tobytes()) for name, value in sorted(feeds.items()))))
        return original(self, feeds, fetches)

    monkeypatch.setattr(NativeGraph, "run", run)
    refimpl.convert(network, tmp_path / "bundle", ALL)
    assert len(asked) >= 8  # two samples of the whole model, and what is drawn at the cut
    feeds = [fed for _, fed in asked]
    assert len(set(feeds)) == len(feeds)


def test_files_are_hashed_once(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counts = collections.Counter()
    original = bundle.file_sha256

    def file_sha256(file: Path) -> str:
        read[file.name] += 1
        return original(file)

    monkeypatch.setattr(bundle, "file_sha256", file_sha256)
    manifest = refimpl.convert(network, tmp_path / "bundle", ALL)
    assert read["variables.data-00000-of-00001"] == read["variables.index"] == 1
    assert read["TRTEngineOp_000_000.onnx"] == 2  # once more by the last gate, which opens the bundle as anyone does
    monkeypatch.undo()
    assert bundle.read(tmp_path / "bundle").files == manifest.files  # and every checksum is right


def test_the_manifest_tells_time_and_memory_of_every_stage(network: Path, tmp_path: Path) -> None:
    manifest = refimpl.convert(network, tmp_path / "bundle", ALL)
    assert manifest.peak_megabytes.keys() == manifest.timings.keys() >= {"load", "plan", "build", "check"}
    peaks = manifest.peak_megabytes
    assert 50 < peaks["plan"] <= peaks["build"] <= peaks["check"]


def chain(target: Path, length: int) -> Path:
    def call(x: Any) -> dict[str, Any]:
        for _ in range(length):
            x = tf.nn.relu(tf.tanh(x))
        return {"y": x}

    return write_model(target, call, tf.TensorSpec((None, 4), tf.float32, name="x"))


def test_walks_over_the_marked_graph_do_not_grow_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    for length in (10, 30):
        with Source(chain(tmp_path / str(length), length)) as source:
            _, graph = signature_source(source, "serving_default", frozenset())
        counts: Counts = collections.Counter()
        with monkeypatch.context() as patch:
            counted(patch, Graph, "_extract_sub_graph_nodes", counts)
            found = atoms.lower_atoms(graph, refuse_statically(graph, (), frozenset()), tmp_path)
        assert len(found.nodes) == len(graph.ops) >= 2 * length
        assert all(found.nodes.values())
        walks.append(counts["_extract_sub_graph_nodes"])
    assert walks[0] == walks[1] > 0


# --- a draft is as careful as atoms are

ZOO = """bert lstm fully_convolutional while_loop cond tensor_array detector odd_ops integer_division integer_matmul
    resizes argmax_gather float64 half many_dtypes unknown_rank counter""".split()


def plan_of(model: Path) -> list[tuple[Any, ...]]:
    explained = refimpl.explain(model, refimpl.Recipe(min_segment_size=1, signatures=("*",)))
    return [
        (plan.signature.key, plan.islands, tuple(sorted(op.name for op in plan.left))) for plan in explained.signatures
    ]


@pytest.mark.parametrize("name", ZOO)
def test_drafts_and_atoms_plan_alike(name: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with_drafts = plan_of(model(name))
    monkeypatch.setattr(drafts.Inspection, "_draft", lambda self, ops: None)
    assert plan_of(model(name)) == with_drafts


def test_a_draft_that_rounds_integers_is_not_taken(tmp_path: Path) -> None:
    """TensorRT takes it: tf2onnx sorts integers as float32, where 2^24 and 2^24 + 1 are the same."""
    target = write_model(
        tmp_path / "m", lambda x: {"y": tf.math.top_k(x, 2)[0] * 1}, tf.TensorSpec((None, 4), tf.int32, name="x")
    )
    (plan,) = refimpl.explain(target, refimpl.Recipe(min_segment_size=1)).signatures
    assert [(op.type, "2^24" in op.reason) for op in plan.left] == [("TopKV2", True)]
