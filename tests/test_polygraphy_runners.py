"""refimpl's runners among Polygraphy's own, in its Comparator and by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, CompareFunc
from polygraphy.exception import PolygraphyException

import refimpl
from refimpl import bundle
from refimpl.errors import BundleError, RunError, SourceError, UnsupportedError
from refimpl.polygraphy_runners import BundleRunner, TfRunner
from refimpl.recipe import Recipe
from tests.bundles import reseal
from tests.models_ops import save

SPEC = tf.TensorSpec((None, 6), name="x")
WEIGHT = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
pytestmark = [  # Polygraphy's: of itself, and of integers that are 0
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:polygraphy"),
]


def numbers(x: tf.Tensor) -> dict[str, tf.Tensor]:
    product = tf.linalg.matmul(tf.nn.relu(x), WEIGHT)
    return {"zeta": tf.nn.tanh(product), "alpha": tf.argmax(product, 1)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runners") / "model"
    save(place, numbers, SPEC)
    return place


@pytest.fixture(scope="module")
def converted(model: Path) -> Path:
    refimpl.convert(model, model.parent / "bundle")
    return model.parent / "bundle"


@pytest.fixture(scope="module")
def with_strings(model: Path) -> Path:
    place = model.parent / "strings"
    save(place, lambda x: {"y": tf.nn.relu(x), "text": tf.strings.as_string(x)}, SPEC)
    return place


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(batch, 6)).astype(np.float32)} for batch in (1, 3)]


def spoiled(source: Path, target: Path) -> Path:
    """A bundle whose island has another weight, with checksums and without a probe that would notice."""
    shutil.copytree(source, target)
    manifest = bundle.read(target)
    file = target / manifest.islands[0].engines[0].file
    proto = onnx.load(file)
    weight = max(proto.graph.initializer, key=lambda item: len(item.raw_data))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(0.1), weight.name))
    onnx.save(proto, file)
    (record,) = manifest.signatures
    island = bundle.IslandRecord(**{**vars(record.islands[0]), "probe": ""})
    reseal(target, signatures=(bundle.SignatureRecord(**{**vars(record), "islands": (island,)}),))
    return target


@pytest.mark.parametrize("streaming", [False, True])
def test_they_compare_with_each_other(model: Path, converted: Path, streaming: bool) -> None:
    runner = BundleRunner(converted)
    runners = [runner, TfRunner(model), TfRunner(model, reference=True)]
    results = Comparator.run(runners, data_loader=feeds(), streaming=streaming)
    compared = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(rtol=1e-4, atol=1e-5))
    assert bool(compared)
    assert [len(rows) for rows in compared[0].values()] == [2, 2], "two iterations of two pairs"
    assert [sorted(row) for row in next(iter(compared[0].values()))] == [["alpha", "zeta"]] * 2
    assert [[run.engine for run in runs] for runs in runner.runs] == [["onnxruntime"]] * 2


def test_a_wrong_bundle_fails_the_comparison(tmp_path: Path, model: Path, converted: Path) -> None:
    wrong = spoiled(converted, tmp_path / "wrong")
    results = Comparator.run([BundleRunner(wrong), TfRunner(model)], data_loader=feeds())
    assert not bool(Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(rtol=1e-4, atol=1e-5)))


def test_they_stand_beside_polygraphys_own(model: Path, converted: Path) -> None:
    """An exported island that is the whole model, but for the names of its tensors."""
    (island,) = bundle.read(converted).islands
    session = OnnxrtRunner(SessionFromOnnx(str(converted / island.engines[0].file)))
    with session as ours, TfRunner(model) as theirs:
        (name,) = ours.get_input_metadata(use_numpy_dtypes=False)
        got = list(ours.infer({name: feeds()[1]["x"]}).values())
        want = theirs.infer(feeds()[1])
    assert {value.dtype for value in got} == {value.dtype for value in want.values()}
    np.testing.assert_allclose(max(got, key=np.ndim), want["zeta"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [TfRunner, lambda path: TfRunner(path, reference=True), BundleRunner])
def test_metadata_order_dtypes_and_time(model: Path, converted: Path, make: Any) -> None:
    with make(converted if make is BundleRunner else model) as runner:
        metadata = runner.get_input_metadata(use_numpy_dtypes=False)
        assert list(metadata) == ["x"]
        assert (tuple(metadata["x"].shape), str(metadata["x"].dtype)) == ((None, 6), "float32")
        outputs = runner.infer(feeds()[1])
        assert {name: (value.dtype, value.shape) for name, value in outputs.items()} == {
            "zeta": (np.float32, (3, 4)),
            "alpha": (np.int64, (3,)),
        }
        assert 0 < runner.last_inference_time() < 60
    assert not runner.is_active


def test_the_state_is_as_before_after_deactivation(
    model: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polygraphy's own check of its runners."""
    from polygraphy import config

    monkeypatch.setattr(config, "INTERNAL_CORRECTNESS_CHECKS", True)
    for runner in (TfRunner(model), TfRunner(model, reference=True), BundleRunner(converted)):
        for _ in range(2):
            with runner:
                runner.infer(feeds()[0])
        if isinstance(runner, BundleRunner):
            assert len(runner.runs) == 1, "those of the last activation, to be read after it"


def test_two_runners_of_one_bundle_keep_their_engines(converted: Path) -> None:
    """Engines are chosen per bundle and process, and the runner activated last would win."""
    first, second = BundleRunner(converted), BundleRunner(converted, engines=["numpy"])
    with first, second:
        for _ in range(2):
            first.infer(feeds()[0])
            second.infer(feeds()[0])
    assert [runs[0].engine for runs in first.runs] == ["onnxruntime"] * 2
    assert [runs[0].engine for runs in second.runs] == ["numpy"] * 2


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        ({"y": np.zeros((1, 6), np.float32)}, "not found in input data"),
        ({"x": np.zeros((1, 6))}, "unexpected dtype"),
        ({"x": np.zeros((1, 7), np.float32)}, "incompatible shape"),
    ],
)
def test_wrong_inputs(model: Path, converted: Path, feed: dict[str, np.ndarray], says: str) -> None:
    for runner in (TfRunner(model), TfRunner(model, reference=True), BundleRunner(converted)):
        with runner, pytest.raises(PolygraphyException, match=says):
            runner.infer(feed)


def test_strings_are_refused_unless_left_out(with_strings: Path, tmp_path: Path) -> None:
    refimpl.convert(with_strings, tmp_path / "bundle", Recipe(min_segment_size=1))
    for make, path in ((TfRunner, with_strings), (BundleRunner, tmp_path / "bundle")):
        runner = make(path)
        with pytest.raises(UnsupportedError, match="cannot hold output 'text': it is string"):
            runner.activate()
        assert not runner.is_active
        assert (runner._model if make is TfRunner else runner._loaded) is None, "the model was let go"
        with make(path, outputs=["y"]) as chosen:
            assert list(chosen.infer(feeds()[0])) == ["y"]


def test_what_is_not_there(model: Path, converted: Path, tmp_path: Path) -> None:
    for runner, error, says in (
        (TfRunner(tmp_path / "none"), SourceError, "does not exist"),
        (TfRunner(model, signature="none"), SourceError, "no signature 'none'"),
        (TfRunner(model, outputs=["none"]), SourceError, "no output 'none'"),
        (BundleRunner(model), BundleError, "is not a refimpl bundle"),
        (BundleRunner(converted, signature="none"), SourceError, "no signature 'none'"),
        (BundleRunner(converted, engines=["gpu"]), UnsupportedError, "engine 'gpu'"),
    ):
        with pytest.raises(error, match=says):
            runner.activate()
        assert not runner.is_active


def test_what_tensorflow_refuses(tmp_path: Path) -> None:
    save(tmp_path / "model", lambda x: {"y": tf.linalg.matmul(x, x)}, SPEC)
    for reference in (False, True):
        with TfRunner(tmp_path / "model", reference=reference) as runner, pytest.raises(RunError, match="TensorFlow"):
            runner.infer(feeds()[1])
