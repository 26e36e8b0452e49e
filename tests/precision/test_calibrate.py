"""Observing islands: against ONNX Runtime's calibrators and NumPy, many batches, data that is none."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    create_calibrator,
)

from refimpl.calibration import METHODS
from refimpl.converter.precision.calibrate import InputCheck, Observer, check_batch, warnings_of
from refimpl.converter.precision.histogram import STEPS
from refimpl.errors import InternalError, RecipeError, RunError
from refimpl.specs import Signature, TensorSpec
from tests.onnx_models import dense, info, make_model, node, saved
from tests.precision.test_ranges import error_of

rng = np.random.default_rng(11)
TENSORS = ("x", "product", "sum", "active", "y")
BATCHES = [rng.standard_normal((size, 8)).astype(np.float32) for size in (5, 1, 17, 5)]


def observed(folder, tensors, batches, model=None):
    observer = Observer(saved(folder, model or dense(weights_are_inputs=False)), tensors)
    for batch in batches:
        assert observer.add([batch])
    return observer


def by_numpy(batches):
    """Every tensor of the dense model over all batches, computed by NumPy."""
    model = dense(weights_are_inputs=False)
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    x = np.concatenate(batches)
    product = x @ weights["w"]
    total = product + weights["b"]
    return {"x": x, "product": product, "sum": total, "active": np.maximum(total, 0), "y": np.maximum(total, 0).T}


# Observers


def test_ranges_are_those_of_numpy(tmp_path):
    want = by_numpy(BATCHES)
    found = observed(tmp_path, TENSORS, BATCHES).ranges("minmax")
    assert tuple(found) == TENSORS
    for name, values in want.items():
        assert found[name].values == values.size
        np.testing.assert_allclose([found[name].low, found[name].high], [values.min(), values.max()], rtol=1e-5)
    assert found["active"].low == 0.0


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(({"x": batch} for batch in self.batches), None)


def by_onnxruntime(folder, method, batches, **options):
    model = saved(folder, dense(weights_are_inputs=False), "theirs.onnx")
    calibrator = create_calibrator(
        model,
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=method,
        extra_options={"symmetric": True, **options},
    )
    calibrator.collect_data(Reader(batches))
    return {name: np.abs(item.range_value).max() for name, item in calibrator.compute_data().data.items()}


def test_minmax_is_onnxruntimes(tmp_path):
    theirs = by_onnxruntime(tmp_path, CalibrationMethod.MinMax, BATCHES)
    ours = observed(tmp_path, TENSORS, BATCHES).ranges("minmax")
    for name in TENSORS:
        assert ours[name].threshold == pytest.approx(float(theirs[name]), rel=1e-6), name


def test_percentile_is_onnxruntimes_to_a_bin(tmp_path):
    batches = [batch for batch in BATCHES if len(batch) == 5] * 4  # it wants batches of one shape
    theirs = by_onnxruntime(tmp_path, CalibrationMethod.Percentile, batches, num_bins=2048, percentile=99.0)
    ours = observed(tmp_path, ("x", "product", "sum"), batches).ranges("percentile", 99.0)
    for name, found in ours.items():
        one_bin = found.largest / 2048
        assert abs(found.threshold - float(theirs[name])) <= 1.01 * one_bin + found.threshold / STEPS, name


def test_entropy_is_as_good_as_onnxruntimes(tmp_path):
    """Its candidates are parts of the largest value, ours of a power of two, so thresholds differ, but not the loss."""
    batches = [rng.standard_normal((50, 8)).astype(np.float32)] * 2
    theirs = by_onnxruntime(tmp_path, CalibrationMethod.Entropy, batches, num_bins=1024, num_quantized_bins=128)
    ours = observed(tmp_path, ("product", "sum", "active"), batches).ranges("entropy")
    for name, found in ours.items():
        values = by_numpy(batches)[name]
        assert error_of(values, found.threshold) <= 1.1 * error_of(values, float(theirs[name])), name


def test_batches_of_any_shape_are_one_data_set(tmp_path):
    apart = observed(tmp_path, TENSORS, BATCHES)
    joined = observed(tmp_path, TENSORS, [np.concatenate(BATCHES)])
    assert apart.batches == 4
    for method in METHODS:
        others = apart.ranges(method)
        for name, found in joined.ranges(method).items():
            other = others[name]
            assert other.threshold == pytest.approx(found.threshold, rel=1e-5)
            assert other.values == found.values


def test_empty_batches_are_skipped(tmp_path):
    observer = observed(tmp_path, TENSORS, BATCHES)
    before = observer.ranges("minmax")
    assert not observer.add([np.zeros((0, 8), np.float32)])
    assert observer.batches == 4
    assert observer.ranges("minmax") == before


def test_a_thousand_batches_need_no_more_memory(tmp_path):
    observer = observed(tmp_path, TENSORS, BATCHES)
    tracemalloc.start()
    try:
        for batch in BATCHES:
            observer.add([batch])
        size = observer.nbytes
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1000):
            observer.add([BATCHES[number % 4]])
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert observer.nbytes == size
    assert after - before < 1e5, "histograms are replaced, never added"
    assert peak - before < 5e6, "one batch and its temporaries"
    assert observer.ranges("minmax")["x"].values == 8 * 7 * 1008


def test_weights_may_lie_beside_the_model_and_nothing_is_written(tmp_path):
    onnx.save(
        dense(weights_are_inputs=False),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    files = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    observer = Observer(tmp_path / "m.onnx", TENSORS)
    observer.add([BATCHES[0]])
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == files
    assert observer.ranges("minmax")["sum"].high == pytest.approx(by_numpy(BATCHES[:1])["sum"].max(), rel=1e-5)


def test_inputs_need_no_session_output(tmp_path):
    found = observed(tmp_path, ("x", "x"), BATCHES).ranges("minmax")
    assert tuple(found) == ("x",)
    assert found["x"].values == 8 * 28


def test_nan_inside_an_island_is_reported_by_name(tmp_path):
    model = make_model(
        [node("Log", "x", "log"), node("Relu", "log", "y")], [info("x", ("n", 3))], [info("y", ("n", 3))]
    )
    found = observed(tmp_path, ("x", "log", "y"), [np.float32([[0, 1, 2], [-1, 2, 3]])], model).ranges("minmax")
    assert found["x"].nonfinite == 0
    assert (found["log"].nonfinite, found["log"].values) == (2, 4)
    assert found["log"].threshold == np.log(np.float32(3))
    said = warnings_of(found, "minmax")
    assert said[0].startswith("log held 2 NaN or infinite values")
    assert not any(line.startswith("x ") for line in said)


def test_tensors_that_cannot_be_observed(tmp_path):
    model = make_model(
        [node("Shape", "x", "s"), node("Relu", "x", "y")],
        [info("x", ("n", 3))],
        [info("y", ("n", 3)), info("s", (2,), TensorProto.INT64)],
    )
    file = saved(tmp_path, model)
    with pytest.raises(InternalError, match="s is tensor"):
        Observer(file, ["y", "s"])
    with pytest.raises(InternalError, match="nothing is None"):
        Observer(file, ["nothing"])
    (tmp_path / "bad.onnx").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot load bad\.onnx"):
        Observer(tmp_path / "bad.onnx", [])


def test_a_batch_that_the_island_refuses(tmp_path):
    observer = observed(tmp_path, TENSORS, BATCHES)
    with pytest.raises(RunError, match=r"while calibrating m\.onnx"):
        observer.add([np.zeros((2, 9), np.float32)])
    assert observer.batches == 4


def test_without_data_there_are_no_ranges(tmp_path):
    with pytest.raises(RecipeError, match="no data to calibrate with"):
        observed(tmp_path, TENSORS, []).ranges("minmax")


def test_progress_goes_to_the_caller_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("refimpl.converter.precision.calibrate._SECONDS", -1.0)
    observer = observed(tmp_path, TENSORS, BATCHES)
    lines = []
    for method in METHODS:
        observer.ranges(method, tell=lines.append)
    assert "calibrate: ranges by percentile, 3 of 5 tensors" in lines
    assert capsys.readouterr() == ("", "")


# Samples

SIGNATURE = Signature(
    "serving_default",
    (TensorSpec("image", "float32", (None, 2)), TensorSpec("ids", "int32", (None,)), TensorSpec("rate", "float32", ())),
    (),
)


def sample(image, ids=(1, 1), rate=0.5):
    return {"image": np.float32(image), "ids": np.int32(ids), "rate": np.asarray(rate, np.float32)}


def test_varied_samples_pass():
    check = InputCheck(SIGNATURE)
    assert check.add("a", sample([[1, 1], [1, 1]]))
    assert check.add("b", sample([[2, 2], [2, 2]])), "constant in each sample, but not over both"
    check.check_varied()
    assert check.batches == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_in_a_sample_is_refused(bad):
    with pytest.raises(RecipeError, match=r"sample b\.npz: 1 of the 4 values of input 'image' are NaN or infinite"):
        check_batch("b.npz", sample([[1, bad], [1, 1]]), SIGNATURE)
    with pytest.raises(RecipeError, match="input 'rate'"):
        InputCheck(SIGNATURE).add("b.npz", sample([[1, 2], [1, 1]], rate=bad))


def test_a_constant_input_is_refused_by_name():
    check = InputCheck(SIGNATURE)
    for name in "ab":
        check.add(name, sample(np.zeros((3, 2))))
    with pytest.raises(RecipeError, match="input 'image' was 0 everywhere in all 2 samples"):
        check.check_varied()


def test_empty_samples_are_no_data():
    check = InputCheck(SIGNATURE)
    assert not check.add("a", sample(np.zeros((0, 2)), ids=()))
    with pytest.raises(RecipeError, match="no data to calibrate with"):
        check.check_varied()


def test_bfloat16_inputs_are_data():
    spec = TensorSpec("x", "bfloat16", (None,))
    check = InputCheck(Signature("s", (spec,), ()))
    check.add("a", {"x": np.array([1.5, 2.0]).astype(spec.numpy_dtype())})
    check.check_varied()
    with pytest.raises(RecipeError, match="1 of the 2 values"):
        check.add("b", {"x": np.array([1.5, np.nan]).astype(spec.numpy_dtype())})
