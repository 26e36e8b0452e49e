"""``auto``: what is measured is what the bundle computes, a sensitive layer is found, and the drop allowed is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl.converter.precision import choose as choose_module
from refimpl.converter.precision.choose import Chooser, run_order
from refimpl.converter.samples import Sample
from refimpl.errors import RecipeError
from refimpl.metrics import metric_of
from tests.models_ops import normal, spec
from tests.precision.helpers import (
    Tiny,
    batches,
    convert,
    error,
    images,
    in_tensorflow,
    layers_of,
    outputs_of,
    small_cnn,
)

SCALES = np.geomspace(0.2, 2, 16).astype(np.float32)


def graph_of(**reads: str) -> Any:
    """Ops in order, each with what it reads."""
    ops = {
        name: SimpleNamespace(inputs=tuple(f"{item}:0" for item in text.split()), controls=())
        for name, text in reads.items()
    }
    return SimpleNamespace(ops=ops)


def order(islands: list[str], **reads: str) -> list[int]:
    return run_order(graph_of(**reads), [item.split() for item in islands])


def test_islands_run_after_those_that_they_need() -> None:
    assert order(["b", "a"], a="x", b="a") == [1, 0]
    assert order(["a", "b", "c"], a="x", b="x", c="a b")[-1] == 2
    assert order(["c", "b", "a"], a="x", t="a", b="t", u="b", c="u") == [2, 1, 0]
    assert order([], a="x") == []


def test_an_island_runs_as_a_whole() -> None:
    """The last island reads an op of the second that needs nothing, but the second as a whole needs the first."""
    reads = {"b": "x", "a1": "b", "a2": "x", "c": "a2"}
    assert order(["c", "a1 a2", "b"], **reads) == [2, 1, 0]


def test_needs_are_found_through_several_islands() -> None:
    reads = {"a1": "x", "b1": "a1", "b2": "x", "c1": "b2", "c2": "x", "d": "c2"}
    assert order(["d", "c1 c2", "b1 b2", "a1"], **reads) == [3, 2, 1, 0]


def test_controls_count() -> None:
    graph = graph_of(a="x", b="x")
    graph.ops["b"].controls = ("a",)
    assert run_order(graph, [["b"], ["a"]]) == [1, 0]


# Metrics.


def sample(**extras: Any) -> Sample:
    return Sample("s", {"x": np.zeros((4, 2), np.float32)}, extras)


def test_agreement_is_one_minus_the_worst_error() -> None:
    want = {"y": np.array([[3.0, 4.0]]), "i": np.array([1, 2, 3, 4])}
    agreement = metric_of("agreement")
    assert agreement(want, want, sample()) == 1
    assert agreement({**want, "y": want["y"] * 1.1}, want, sample()) == pytest.approx(0.9)
    assert agreement({**want, "i": np.array([1, 2, 3, 5])}, want, sample()) == pytest.approx(0.75)


def test_top1_is_of_the_first_output_with_columns() -> None:
    top1 = metric_of("top1")
    want = {"n": np.arange(4), "one": np.ones((4, 1)), "y": np.eye(4)[:, :3]}
    got = {**want, "y": want["y"].copy()}
    assert top1(got, want, sample()) == 1
    got["y"][0] = [0, 0, 1]
    assert top1(got, want, sample()) == 0.75
    with pytest.raises(RecipeError, match="at least two columns"):
        top1({"n": want["n"]}, {"n": want["n"]}, sample())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_metric_of_ones_own_sees_labels(place: Path) -> None:
    (place / "metric_with_labels.py").write_text(
        "def right(outputs, sample):\n    return (outputs['y'] == sample['label']).mean()\n"
    )
    metric = metric_of("metric_with_labels:right")
    y = np.array([1, 2, 3, 4])
    assert metric({"y": y}, {}, sample(label=np.array([1, 2, 0, 0]))) == 0.5


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 1 / 0", "fails on sample s: ZeroDivisionError"),
        ("return sample['label']", "fails on sample s: KeyError"),
        ("return None", "fails on sample s: TypeError"),
        ("return 'good'", "fails on sample s: ValueError"),
        ("return outputs['y']", "fails on sample s: TypeError"),
        ("return float('nan')", "gives nan on sample s"),
    ],
)
def test_a_metric_that_is_none(body: str, says: str, place: Path) -> None:
    module = f"metric_{abs(hash(body))}"
    (place / f"{module}.py").write_text(f"def f(outputs, sample):\n    {body}\n")
    with pytest.raises(RecipeError) as caught:
        metric_of(f"{module}:f")({"y": np.zeros(4)}, {}, sample())
    assert says in caught.value.message


# Whole conversions.


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cnn(tmp_path_factory.mktemp("cnn") / "model")


def sensitive(target: Path) -> Path:
    """Four products; the third reads a channel a hundred times the others that counts for nothing much."""
    kernels = [normal(16, 16, seed=seed, scale=0.3) for seed in (1, 2, 3, 4)]
    kernels[1][:, 5] *= 60
    kernels[2][5] *= 1e-4
    held = [tf.Variable(value) for value in kernels]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        for number, kernel in enumerate(held):
            x = tf.nn.relu(tf.matmul(x, kernel, name=f"dense{number}"))
        return {"y": x}

    return Tiny(call, spec((None, 16), name="x"), holds=held).save(target)


def rows(count: int, number: int = 32) -> Callable[[], list[dict[str, np.ndarray]]]:
    return lambda: [{"x": normal(number, 16, seed=50 + seed)} for seed in range(count)]


def short(found: dict[str, tuple[str, str]], word: str) -> dict[str, str]:
    return {name[name.index(word) :].split("/")[0]: kind for name, (kind, _) in found.items() if word in name}


@pytest.mark.parametrize("metric", ["agreement", "user"])
def test_a_sensitive_layer_is_found_and_exactly_it_is_lifted(metric: str, place: Path) -> None:
    model = sensitive(place / "model")
    (place / "metric_of_test_choose.py").write_text(
        "import numpy as np\n"
        "def near(outputs, sample):\n"
        "    return 1 - np.linalg.norm(outputs['y'] - sample['truth']) / np.linalg.norm(sample['truth'])\n"
    )

    def labelled() -> Iterator[dict[str, np.ndarray]]:
        for item in rows(3)():
            yield {**item, "truth": in_tensorflow(model, item)["y"]}

    name = "metric_of_test_choose:near" if metric == "user" else "agreement"
    samples = list(labelled())
    manifest = convert(
        model, place / "b", samples=samples, precision="auto", max_drop=0.04, metric=name, calibrator="minmax"
    )
    assert short(layers_of(manifest), "dense") == {
        "dense0": "int8",
        "dense1": "int8",
        "dense2": "fp16",
        "dense3": "int8",
    }
    tried = {row["name"]: row for row in manifest.signatures[0].tried}
    assert list(tried)[:2] == ["fp32", "int8"]
    assert tried["int8"]["drop"] > 0.04
    assert tried["int8"]["verdict"].startswith(("loses", "disagrees"))
    best = tried["int8, 1 layer in fp16"]
    assert best["verdict"] == "chosen"
    assert best["drop"] <= 0.04
    assert best["cost"] == pytest.approx((3 * 8 + 16) / 4 / 32)
    assert tried["fp16"]["cost"] == 0.5
    assert tried["fp32"]["cost"] == 1.0
    assert [row["verdict"] for row in tried.values()].count("chosen") == 1
    json.dumps(manifest.to_json(), allow_nan=False)


def test_what_was_measured_is_what_the_bundle_computes(place: Path) -> None:
    """Two islands with TensorFlow's ops between, beside and behind them."""
    kernels = [tf.Variable(normal(16, 16, seed=seed, scale=0.3)) for seed in (1, 2, 3)]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        a = tf.nn.relu(tf.matmul(x, kernels[0]))
        b = tf.math.asinh(a)
        c = tf.nn.relu(tf.matmul(b, kernels[1]) + tf.math.acosh(1 + a))
        return {"y": tf.math.asinh(tf.matmul(c, kernels[2])), "z": a}

    model = Tiny(call, spec((None, 16), name="x"), holds=kernels).save(place / "model")
    manifest = convert(
        model,
        place / "b",
        samples=rows(2),
        precision="auto",
        max_drop=0.1,
        keep_in_tf=("Asinh", "Acosh"),
        min_segment_size=1,
    )
    assert len(manifest.islands) >= 2
    (best,) = [row for row in manifest.signatures[0].tried if row["verdict"] == "chosen"]
    assert best["name"] == "int8"
    found = []
    for item in rows(2)():
        want = in_tensorflow(model, item)
        got, engines = outputs_of(place / "b", item)
        assert engines == {"onnxruntime"}
        found.append(1 - max(error(want[name], got[name]) for name in want))
    assert best["metric"] == pytest.approx(np.mean(found), abs=1e-6)


def test_nothing_may_be_lost(cnn: Path, place: Path) -> None:
    manifest = convert(cnn, place / "b", samples=batches(2), precision="auto", max_drop=1e-6)
    assert {kind for kind, _ in layers_of(manifest).values()} <= {"fp32"}
    assert manifest.precision == "fp32"
    tried = {row["name"]: row["verdict"] for row in manifest.signatures[0].tried}
    assert tried["fp32"] == "chosen"
    assert all("loses" in verdict for name, verdict in tried.items() if name != "fp32")


def test_what_the_user_keeps_stays_in_every_candidate(cnn: Path, place: Path) -> None:
    manifest = convert(cnn, place / "b", samples=batches(2), precision="auto", max_drop=0.1, keep_fp32=("*conv1*",))
    assert short(layers_of(manifest), "conv") == {"conv0": "int8", "conv1": "fp32", "conv2": "int8"}


def test_an_empty_batch_among_the_samples(place: Path) -> None:
    samples = [*rows(2)(), *rows(1, number=0)()]
    manifest = convert(sensitive(place / "model"), place / "b", samples=samples, precision="auto", max_drop=0.9)
    tried = manifest.signatures[0].tried
    assert "chosen" in [row["verdict"] for row in tried if row["name"] != "fp32"]
    assert all(np.isfinite(row["metric"]) for row in tried)


def test_top1_counts_rows(cnn: Path, place: Path) -> None:
    """Batches of different sizes weigh as many rows as they have."""
    samples = [images(1, seed=1), images(15, seed=2)]
    manifest = convert(cnn, place / "b", samples=samples, precision="auto", max_drop=0.5, metric="top1")
    assert manifest.signatures[0].tried[0]["metric"] == 1
    for row in manifest.signatures[0].tried:
        assert (row["metric"] * 16) == pytest.approx(round(row["metric"] * 16))


def refused(model: Path, place: Path, samples: Any, **choices: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        convert(model, place / "b", samples=samples, precision="auto", **choices)
    assert not (place / "b").exists()
    return caught.value


def test_samples_that_change_between_readings(cnn: Path, place: Path) -> None:
    rng = np.random.default_rng(1)

    def unseeded() -> Iterator[dict[str, np.ndarray]]:
        for _ in range(2):
            yield {"x": rng.standard_normal((4, 8, 8, 4)).astype(np.float32)}

    assert "is another one than when the samples were first read" in refused(cnn, place, unseeded).message


@pytest.mark.parametrize("change", [1, -1])
def test_samples_that_grow_or_shrink_between_readings(change: int, cnn: Path, place: Path, monkeypatch: Any) -> None:
    inside: list[int] = []
    begin = Chooser.choose
    monkeypatch.setattr(Chooser, "choose", lambda self: (inside.append(0), begin(self))[1])

    def shifting() -> list[dict[str, np.ndarray]]:
        inside.extend([0] if inside else [])
        return batches(3 + change * max(0, len(inside) - 2))()

    assert "first read" in refused(cnn, place, shifting).message


def test_a_metric_that_the_model_itself_fails(cnn: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.converter.precision.stage.metric_of", lambda name: lambda *args: float("nan"))
    assert "the metric of the model itself" in refused(cnn, place, batches(2)).message


def test_an_engine_that_overflows_is_measured_as_tensorflow(place: Path) -> None:
    """As in the bundle: what is not finite there is answered by TensorFlow."""
    kernel = tf.Variable(normal(16, 16, seed=1, scale=0.3))
    model = Tiny(
        lambda x: {"y": tf.matmul(tf.nn.relu(tf.matmul(x, kernel)), kernel)}, spec((None, 16), name="x"), holds=[kernel]
    ).save(place / "model")
    calls: list[bool] = []
    run = Chooser._island

    def island(self: Chooser, option: Any, engine: Any, known: Any) -> Any:
        broken = SimpleNamespace(run=lambda inputs: [np.full_like(value, np.inf) for value in engine.run(inputs)])
        calls.append(True)
        return run(self, option, broken, known)

    patch = pytest.MonkeyPatch()
    patch.setattr(choose_module.Chooser, "_island", island)
    try:
        manifest = convert(model, place / "b", samples=rows(1), precision="auto")
    finally:
        patch.undo()
    assert calls
    assert [row["drop"] for row in manifest.signatures[0].tried] == pytest.approx([0, 0, 0], abs=1e-6)
    assert refimpl.load(place / "b").manifest.precision == "int8"


def test_a_sample_that_verification_does_not_reach_is_still_watched(cnn: Path, place: Path) -> None:
    """The last of twenty batches is a thousand times larger: where it arrives, float16 is too coarse."""
    samples = [*batches(19)(), images(2, seed=1, scale=1000.0)]
    small = layers_of(convert(cnn, place / "a", samples=samples[:-1], precision="fp16"))
    large = layers_of(convert(cnn, place / "b", samples=samples, precision="fp16"))
    assert short(small, "conv") == dict.fromkeys(("conv0", "conv1", "conv2"), "fp16")
    assert short(large, "conv").get("conv0") != "fp16"
