"""Parts of a model without state are run in a session of their own, and give what they give in the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from refimpl.converter import native as module
from refimpl.converter.load import signature_graph
from refimpl.converter.native import NativeGraph
from refimpl.converter.source import Source
from refimpl.errors import RunError
from tests.converter.small import write_model
from tests.models_ops import normal

X = normal(3, 4, seed=1)
ENDS = ("tanh", "split", "dense", "dice", "big")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = tf.Variable(normal(4, 4, seed=2))

    def call(x):
        y = tf.tanh(tf.nn.relu(x) * 2.0, name="tanh")
        left, right = tf.split(tf.exp(y), 2, axis=1, name="split")
        dense = tf.matmul(y, weight, name="dense")
        dice = tf.add(tf.random.uniform((2,)), tf.reduce_sum(y), name="dice")
        big = tf.add(y[:, :1], tf.constant(normal(1, 300_000, seed=3)), name="big")
        return {"y": right + left * 3.0, "dense": dense, "dice": dice, "big": tf.reduce_sum(big)}

    return write_model(
        tmp_path_factory.mktemp("native") / "m", call, tf.TensorSpec((None, 4), tf.float32, name="x"), holds=[weight]
    )


class Opened:
    def __init__(self, source: Source) -> None:
        self.source, self.graph = source, signature_graph(source, "serving_default")
        self.native = NativeGraph(source, self.graph)
        names = [node.name for node in self.graph.graph_def.node]
        self.at = {end: next(name for name in names if name.split("/")[-1] == end) for end in ENDS}
        (self.x,) = (f"{arg.name}:0" for arg in self.graph.args if arg.kind == "input")

    def apart(self) -> bool:
        return self.native._last[1].session is not self.source.session


@pytest.fixture
def opened(model: Path) -> Iterator[Opened]:
    with Source(model) as source:
        yield Opened(source)


def test_a_part_without_state_is_in_a_graph_of_its_own(opened: Opened) -> None:
    name = f"{opened.at['tanh']}:0"
    (got,) = opened.native.run({opened.x: X}, [name])
    assert opened.apart()
    np.testing.assert_allclose(got, np.tanh(np.maximum(X, 0) * 2), rtol=1e-5)
    graph = opened.native._last[1].session.graph
    assert {op.type for op in graph.get_operations()} == {"Placeholder", "Relu", "Const", "Mul", "Tanh"}
    assert graph.get_operations()[0].outputs[0].shape.as_list() == [None, 4]


def test_it_gives_what_it_gives_in_the_whole(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the second output of an op is fed, and where more is fed than is read."""
    split = opened.at["split"]
    results = [f"{opened.graph.results[index]}" for index in range(len(opened.graph.results))]
    (y,) = (name for spec, name in zip(opened.graph.signature.outputs, results, strict=True) if spec.name == "y")
    half = normal(3, 2, seed=5)
    cases = [
        ({f"{split}:1": half, opened.x: X}, y),
        ({f"{split}:0": half, f"{split}:1": half + 1}, y),
        ({opened.x: X}, y),
    ]
    apart = []
    for feeds, fetch in cases:
        apart.append(opened.native.run(feeds, [fetch])[0])
        assert opened.apart()
    monkeypatch.setattr(NativeGraph, "_stateless", lambda self, feeds, fetches: [])
    for (feeds, fetch), got in zip(cases, apart, strict=True):
        assert np.array_equal(opened.native.run(feeds, [fetch])[0], got)
        assert not opened.apart()
    assert np.array_equal(apart[1], half * 3 + half + 1)


@pytest.mark.parametrize("end", ["dense", "dice", "big"])
def test_state_and_large_constants_stay_where_they_are(opened: Opened, end: str) -> None:
    """A variable has its value in one session only; random numbers go on; a frozen model's weights are not copied."""
    opened.native.run({opened.x: X}, [f"{opened.at[end]}:0"])
    assert not opened.apart()


def test_what_is_fed_may_be_fetched(opened: Opened) -> None:
    (got,) = opened.native.run({opened.x: X}, [opened.x])
    assert np.array_equal(got, X)


def test_nothing_is_computed_from_an_input_that_is_missing(opened: Opened) -> None:
    with pytest.raises(RunError):
        opened.native.run({}, [f"{opened.at['tanh']}:0"])


def test_values_of_another_shape_are_refused_as_in_the_whole(opened: Opened) -> None:
    with pytest.raises(RunError):
        opened.native.run({opened.x: X[:, :3]}, [f"{opened.at['tanh']}:0"])
    assert opened.apart()


def test_a_session_is_made_once_for_all_runs_between_the_same_tensors(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = tf.compat.v1.Session

    def counted(*args, **more):
        made.append(real(*args, **more))
        return made[-1]

    monkeypatch.setattr(module.tf.compat.v1, "Session", counted)
    names = [f"{opened.at['tanh']}:0"]
    for value in (X, X + 1, X - 1):
        opened.native.run({opened.x: value}, names)
    assert len(made) == 1
    opened.native.run({opened.x: X}, [f"{opened.at['split']}:0"])
    assert len(made) == 2
    with pytest.raises(RuntimeError, match="closed"):
        made[0].run(made[0].graph.get_operations()[0].outputs)
