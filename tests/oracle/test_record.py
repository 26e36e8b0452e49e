"""Recording from real SavedModels, in plain TensorFlow."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import bundle, env
from refimpl.errors import GoldenError, RunError, SourceError
from refimpl.oracle import check, record
from refimpl.oracle.arrays import digest
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden, GoldenCase
from refimpl.oracle.runners import SavedModelRunner, tree_sha256
from tests.oracle import saved_models
from tests.oracle.fakes import FakeBundle, fake_manifest
from tests.oracle.saved_models import spec, tf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_models.several(tmp_path_factory.mktemp("several") / "model")


@pytest.fixture(scope="module")
def recorded(model: Path) -> Golden:
    return record(model, model.parent / "golden")


@pytest.fixture
def runner(model: Path) -> Iterator[SavedModelRunner]:
    opened = SavedModelRunner(model)
    yield opened
    opened.close()


def case(record: Golden, signature: str, name: str) -> GoldenCase:
    return next(item for item in record.cases if (item.signature, item.name) == (signature, name))


def test_every_signature_is_recorded(recorded: Golden) -> None:
    assert list(recorded.signatures) == ["embed", "look_up", "serving_default"]
    names = {(item.signature, item.name) for item in recorded.cases}
    assert {("serving_default", n) for n in ("normal-b1", "normal-b3", "nonfinite", "empty-batch")} <= names
    assert [output.name for output in recorded.signatures["serving_default"].outputs] == [
        "best",
        "logits",
        "output_10",
        "output_2",
    ]


def test_answers_are_tensorflows(recorded: Golden, model: Path) -> None:
    loaded = tf.saved_model.load(str(model))
    for name in ("normal-b1", "normal-b3", "large", "empty-batch"):
        item = case(recorded, "serving_default", name)
        want = loaded.signatures["serving_default"](tf.constant(item.inputs["x"]))
        assert set(want) == set(item.outputs)
        for key, tensor in want.items():
            assert item.outputs[key].dtype == tensor.numpy().dtype
            np.testing.assert_allclose(item.outputs[key], tensor.numpy(), rtol=1e-6, strict=True)


def test_strings_and_tables(recorded: Golden) -> None:
    item = case(recorded, "look_up", "normal-b3")
    words = {b"cat": 1, b"x": 2}
    assert item.outputs["id"].tolist() == [words.get(text, -1) for text in item.inputs["text"]]
    assert item.outputs["upper"].dtype == object


def test_integers_climb_down_until_tensorflow_takes_them(recorded: Golden) -> None:
    """Negative and too large indices are refused: 0 or 1 is what is left."""
    item = case(recorded, "embed", "normal-b3")
    assert item.note == "integers 0..1"
    assert item.outputs["row"].shape == (3, 6, 2)


def test_provenance(recorded: Golden, model: Path) -> None:
    provenance = recorded.provenance
    assert provenance.source_sha256 == tree_sha256(model)
    assert provenance.source_name == "model"
    assert provenance.onednn == ("off" if env.onednn_is_off() else "TensorFlow's default")
    assert set(provenance.versions) == {"python", "tensorflow", "numpy", "refimpl"}
    assert (provenance.threads, provenance.tf32) == (1, "off: no GPU is used")
    assert provenance.processor == env.processor()
    assert provenance.instruction_sets == env.instruction_sets()
    assert provenance.libc
    assert provenance.recorded_on.endswith("+00:00")
    text = (recorded.path / "golden.json").read_text()
    assert str(model.parent) not in text


def test_recording_twice_gives_the_same_arrays(model: Path, tmp_path: Path) -> None:
    """In two fresh processes, where string hashing and memory differ, and where oneDNN can still be turned off."""
    code = "import sys; from refimpl.oracle import record; record(sys.argv[1], sys.argv[2])"
    indexes = []
    for seed in ("1", "77"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": seed}
        environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
        command = [sys.executable, "-c", code, model, tmp_path / seed]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        indexes.append(json.loads((tmp_path / seed / "golden.json").read_text()))
    assert indexes[0]["cases"] == indexes[1]["cases"]
    assert [index["provenance"]["onednn"] for index in indexes] == ["off", "off"]


def test_another_model_of_the_same_signature_is_asked_the_same(tmp_path: Path) -> None:
    """Weights that were trained further change the digest of the SavedModel, and none of the questions."""
    made = []
    for name, factor in (("a", 2.0), ("b", 3.0)):
        model = saved_models.from_function(
            tmp_path / name, lambda x, factor=factor: {"y": x * factor}, spec([None, 4], tf.float32, "x")
        )
        made.append(record(model, tmp_path / f"golden-{name}"))
    assert made[0].provenance.source_sha256 != made[1].provenance.source_sha256
    for first, second in zip(made[0].cases, made[1].cases, strict=True):
        assert digest(first.inputs["x"]) == digest(second.inputs["x"])


def test_the_seed_varies_the_values(recorded: Golden, model: Path, tmp_path: Path) -> None:
    other = record(model, tmp_path / "g", seed=1, signatures=["serving_default"])
    assert list(other.signatures) == ["serving_default"]
    arrays = [case(item, "serving_default", "normal-b3").inputs["x"] for item in (recorded, other)]
    assert digest(arrays[0]) != digest(arrays[1])


def test_the_recorded_model_passes_its_own_check(recorded: Golden) -> None:
    manifest = fake_manifest(source_sha256=recorded.provenance.source_sha256)
    verdict = check("b", recorded.path, open_with=FakeBundle(recorded, manifest=manifest).opener())
    assert verdict.passed
    assert len(verdict.cases) == len(recorded.cases) > 10


def test_tf1_style(tmp_path: Path) -> None:
    made = record(saved_models.tf1_style(tmp_path / "m"), tmp_path / "g")
    item = case(made, "predict", "normal-b3")
    np.testing.assert_array_equal(item.outputs["scaled"], item.inputs["images"] * np.float32([2, 3]), strict=True)


def test_tags(tmp_path: Path) -> None:
    model = saved_models.tf1_style(tmp_path / "m", ("gpu", "mine"))
    with pytest.raises(SourceError, match="no graph with the tag serve") as caught:
        record(model, tmp_path / "g")
    assert "gpu,mine | train" in caught.value.hint
    with pytest.raises(SourceError, match="no graph with the tags mine") as caught:
        record(model, tmp_path / "g", tags=["mine"])
    assert "gpu,mine | train" in caught.value.hint
    assert record(model, tmp_path / "g", tags=["mine", "gpu"]).provenance.tags == ("mine", "gpu")


def test_random_outputs_are_marked_and_wholly_random_models_refused(tmp_path: Path) -> None:
    def half_random(x: Any) -> dict[str, Any]:
        noise = tf.random.uniform([64])
        # So many lengths that two runs agree on one once in 100,000 times.
        some = tf.zeros([tf.random.uniform([], 1, 100_000, tf.int32)])
        return {"double": x * 2, "noise": noise, "some": some}

    model = saved_models.from_function(tmp_path / "m", half_random, spec([64], tf.float32, "x"))
    for item in record(model, tmp_path / "g").cases:
        assert item.unstable["noise"] == "values"
        assert item.unstable["some"] == "shape"
        assert "double" not in item.unstable
    noise = saved_models.from_function(
        tmp_path / "n", lambda x: {"y": x + tf.random.uniform([3])}, spec([3], tf.float32, "x")
    )
    with pytest.raises(GoldenError, match="gives another answer each time"):
        record(noise, tmp_path / "h")


def test_a_model_that_counts_its_calls(tmp_path: Path) -> None:
    class Counter(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.calls = tf.Variable(0)

        @tf.function(input_signature=[spec([2], tf.float32, "x")])
        def call(self, x: Any) -> dict[str, Any]:
            return {"calls": self.calls.assign_add(1), "y": -x}

    counter = Counter()
    tf.saved_model.save(counter, str(tmp_path / "m"), signatures={"serving_default": counter.call})
    assert {tuple(item.unstable) for item in record(tmp_path / "m", tmp_path / "g").cases} == {("calls",)}


def test_useless_answers_are_dropped(tmp_path: Path) -> None:
    """The log of a negative number is NaN: such a case can tell nothing; positive ones remain."""

    def logarithm(x: Any) -> dict[str, Any]:
        return {"y": tf.math.log(tf.reduce_mean(x) - 0.5)}

    model = saved_models.from_function(tmp_path / "m", logarithm, spec([4], tf.float32, "x"))
    made = record(model, tmp_path / "g")
    assert "holds no finite number" in next(lost.reason for lost in made.dropped if lost.name == "zeros")
    assert any(item.name == "ones" for item in made.cases)


def test_no_usable_case_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    model = saved_models.from_function(
        tmp_path / "m", lambda b: {"y": tf.io.decode_png(b, channels=3)}, spec([], tf.string, "b")
    )
    with pytest.raises(GoldenError, match=r"first reason: TensorFlow refused: .*([Ii]mage|Input is empty)") as caught:
        record(model, tmp_path / "g")
    assert "--cases" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    png = tf.io.encode_png(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).numpy()
    np.savez(tmp_path / "image.npz", b=np.array(png))
    (item,) = record(model, tmp_path / "g", cases=str(tmp_path / "image.npz")).cases
    assert (item.name, item.kind) == ("image", CaseKind.USER)
    assert item.outputs["y"].ravel().tolist() == list(range(12))


def test_an_empty_batch_alone_proves_nothing(tmp_path: Path) -> None:
    """Every real batch is refused; the empty one passes, which is no evidence."""

    def picky(b: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_equal(tf.size(b), 0)]):
            return {"y": tf.strings.length(b), "count": tf.size(b)}

    model = saved_models.from_function(tmp_path / "m", picky, spec([None], tf.string, "b"))
    with pytest.raises(GoldenError, match="no usable case"):
        record(model, tmp_path / "g")


def test_a_users_case_that_tensorflow_refuses_is_an_error(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", ids=np.full((1, 6), 99, np.int32))
    with pytest.raises(GoldenError, match="your case cannot be recorded: TensorFlow refused"):
        record(model, tmp_path / "g", cases=str(tmp_path / "bad.npz"))
    assert not (tmp_path / "g").exists()


def test_users_cases_replace_generated_ones_of_their_signature(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", ids=np.full((1, 6), 49, np.int32))
    made = record(model, tmp_path / "g", cases=str(tmp_path / "mine.npz"))
    assert [item.name for item in made.cases if item.signature == "embed"] == ["mine"]
    assert case(made, "serving_default", "normal-b3").outputs["best"].shape == (3,)


def test_shapes(tmp_path: Path) -> None:
    model = saved_models.from_function(
        tmp_path / "m",
        lambda x: {"y": tf.reshape(x, [-1, 7 * 5])},
        spec([None, None, None], tf.float32, "x"),
    )
    with pytest.raises(GoldenError, match="no usable case"):
        record(model, tmp_path / "g")
    made = record(model, tmp_path / "g", shapes={"x": (None, 7, 5)})
    assert case(made, "serving_default", "normal-b3").inputs["x"].shape == (3, 7, 5)
    with pytest.raises(GoldenError, match="no input is called z"):
        record(model, tmp_path / "h", shapes={"z": (1,)})


def test_unknown_sizes_climb(tmp_path: Path) -> None:
    """A network that needs more than 32 pixels."""

    def shrink(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_greater_equal(tf.shape(x)[1], 64)]):
            return {"y": tf.nn.avg_pool2d(x, 64, 64, "VALID")}

    model = saved_models.from_function(tmp_path / "m", shrink, spec([None, None, None, 1], tf.float32, "x"))
    made = record(model, tmp_path / "g")
    assert case(made, "serving_default", "normal-b1").note == "unknown sizes 96"


def test_useless_answers_climb_too(tmp_path: Path) -> None:
    """A network that cuts 40 elements from either side answers 32 elements with none."""
    cut = saved_models.from_function(tmp_path / "m", lambda x: {"y": x[:, 40:-40]}, spec([None, None], tf.float32, "x"))
    made = record(cut, tmp_path / "g")
    item = case(made, "serving_default", "normal-b1")
    assert (item.note, item.outputs["y"].shape) == ("unknown sizes 96", (1, 16))
    assert case(made, "serving_default", "normal-b3").note == "unknown sizes 128"


def test_no_inputs_and_unknown_rank(tmp_path: Path) -> None:
    constant = saved_models.from_function(tmp_path / "m", lambda: {"y": tf.constant([1.0, 2.0])})
    (item,) = record(constant, tmp_path / "g").cases
    assert (item.name, dict(item.inputs), item.outputs["y"].tolist()) == ("no-input", {}, [1.0, 2.0])
    anything = saved_models.from_function(tmp_path / "n", lambda x: {"y": x + 1}, spec(None, tf.float32, "x"))
    assert case(record(anything, tmp_path / "h"), "serving_default", "normal-b3").outputs["y"].shape == (3, 8)


def test_errors_of_the_source(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk/saved_model.pb").write_bytes(b"\xff" * 50)
    (tmp_path / "void").mkdir()
    (tmp_path / "void/saved_model.pb").write_bytes(b"")
    for name, what in [
        ("absent", "does not exist"),
        ("file", "is not a directory"),
        ("folder", "is not a SavedModel"),
        ("junk", "damaged SavedModel"),
        ("void", "holds no graph"),
    ]:
        with pytest.raises(SourceError, match=what) as caught:
            record(tmp_path / name, tmp_path / "g")
        assert not (tmp_path / "g").exists(), caught
    with pytest.raises(SourceError, match="no signature 'predict' in model") as caught:
        record(model, tmp_path / "g", signatures=["predict"])
    assert "embed, look_up, serving_default" in caught.value.hint


@pytest.mark.parametrize("kept", [bundle.POINTER, bundle.MANIFEST])
def test_a_bundle_is_refused(tmp_path: Path, kept: str) -> None:
    """It is a SavedModel too, but it must not be its own judge; a file of it that got lost changes nothing."""
    model = saved_models.several(tmp_path / "m")
    (model / kept).parent.mkdir(exist_ok=True)
    (model / kept).write_text("{}")
    with pytest.raises(SourceError, match="m is a bundle") as caught:
        record(model, tmp_path / "g")
    assert "record the SavedModel it was made from" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_lost_variables_are_the_sources_fault(tmp_path: Path) -> None:
    model = saved_models.several(tmp_path / "m")
    next((model / "variables").glob("*.data*")).unlink()
    with pytest.raises(SourceError, match="TensorFlow cannot load m"):
        record(model, tmp_path / "g")


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"y": np.zeros((1, 4), np.float32)}, r"inputs are \['y'\], the signature wants \['x'\]"),
        ({"x": np.zeros((1, 5), np.float32)}, r"has shape \[1,5\]"),
        ({"x": np.zeros((1, 4), np.float64)}, "is float64"),
    ],
)
def test_inputs_that_do_not_fit(runner: SavedModelRunner, inputs: dict[str, Any], what: str) -> None:
    with pytest.raises(GoldenError, match=what):
        runner.run(inputs, "serving_default")


def test_runner_gives_outputs_in_the_signatures_order(runner: SavedModelRunner) -> None:
    got = runner.run({"x": [[1.0, 2.0, 3.0, 4.0]]}, "serving_default")
    assert list(got) == [output.name for output in runner.signature("serving_default").outputs]
    with pytest.raises(RunError, match="TensorFlow refused"):
        runner.run({"ids": np.full((1, 6), -1, np.int32)}, "embed")


def test_an_interrupted_recording_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if "normal-b3" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model, tmp_path / "g", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    with pytest.raises(GoldenError, match="already exists"):
        record(tmp_path / "absent", tmp_path / "g")


def test_tree_digest_is_the_documented_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z").write_bytes(b"1")
    (tmp_path / "a-b").write_bytes(b"22")
    lines = [("a/z", b"1"), ("a-b", b"22")]
    text = "".join(f"{name}\0{hashlib.sha256(data).hexdigest()}\n" for name, data in lines)
    assert tree_sha256(tmp_path) == hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "a-b").rename(tmp_path / "a-c")
    assert tree_sha256(tmp_path) != hashlib.sha256(text.encode()).hexdigest()
