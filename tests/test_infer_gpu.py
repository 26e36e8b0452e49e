"""``infer`` with tensors on a GPU: they stay there where an engine can take them, and come back there anyway."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import refimpl
from refimpl import runtime
from refimpl.engines import NotFiniteError, looked_at
from refimpl.engines.tensorrt import cuda
from refimpl.engines.tensorrt.copies import fetch, place
from refimpl.engines.tensorrt.cuda import Device
from refimpl.errors import RunError, SourceError
from refimpl.numerics import has_nonfinite
from tests.bundles import assert_same, feeds_of, logged, make_bundle
from tests.fake_driver import FakeDriver
from tests.test_dlpack import OnHost, Producer
from tests.test_infer import ISLAND, converted, feeds, folder, islands_of, model, wanted  # noqa: F401  (fixtures)


class Tensor(Producer):
    """As a tensor of PyTorch: its dtype is none of NumPy's, and NumPy cannot have its values."""

    shape = property(lambda self: self.array.shape)
    dtype = property(lambda self: _TorchDtype(self.array.dtype))

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class _TorchDtype:
    def __init__(self, dtype) -> None:
        self._text = f"torch.{dtype}"

    def __str__(self) -> str:
        return self._text


class OnDevice:
    """The embedded engine, on tensors of the fake GPU."""

    def __init__(self, engine) -> None:
        self.engine, self.watched, self.problem = engine, [], ""

    def run(self, inputs):
        return self.engine.run(inputs)

    def run_finite(self, inputs):
        return looked_at(self.run, inputs)

    def run_device(self, inputs, finite_only=False):
        if self.problem:
            raise RunError(self.problem)
        self.watched.append(finite_only)
        arrays = [fetch(item) for item in inputs]
        outputs = self.engine.run(arrays)
        for made, values in ((False, arrays), (True, outputs)):
            if finite_only and any(map(has_nonfinite, values)):
                raise NotFiniteError(made=made)
        return [place(value, 0) for value in outputs]


@pytest.fixture
def driver(monkeypatch):
    made = FakeDriver()
    monkeypatch.setattr(cuda, "device", lambda index=0: Device(made, index))
    yield made
    gc.collect()
    assert made.leaks() == {}


def loaded_with(folder, island=ISLAND) -> tuple[refimpl.runtime.LoadedBundle, OnDevice]:  # noqa: F811
    """A bundle whose island has an engine on the GPU, and the embedded one behind it."""
    loaded = refimpl.load(folder)
    found = loaded._current().island(island)
    ((run, embedded),) = found._open(found._record)
    engine = OnDevice(embedded)
    found._candidates = [(runtime.IslandRun(island, "tensorrt", ""), engine), (run, embedded)]
    return loaded, engine


def on_gpu(inputs, number=0) -> dict[str, Tensor]:
    return {name: Tensor(value, number=number) for name, value in inputs.items()}


def on_host(outputs) -> dict[str, np.ndarray]:
    assert all(value.__dlpack_device__()[0] == 2 for value in outputs.values())
    return {name: np.from_dlpack(OnHost(value)).copy() for name, value in outputs.items()}


def counted(loaded) -> dict[tuple[str, str], int]:
    return {(run.engine, run.reason): count for run, count in loaded.counts().items()}


def test_they_stay_there_and_are_counted(folder, driver):  # noqa: F811
    loaded, engine = loaded_with(folder)
    with logged() as lines:
        for seed in range(3):
            inputs = feeds(seed=seed)
            got = loaded.infer(on_gpu(inputs))
            assert list(got) == [spec.name for spec in loaded.signature().outputs]
            assert_same(on_host(got), wanted(inputs))
    assert lines == []
    assert counted(loaded) == {("tensorrt", ""): 3}
    assert len(engine.watched) == 3
    assert loaded._model is None, "TensorFlow took no part"


def test_an_engine_for_finite_values_is_told_so(folder, driver):  # noqa: F811
    islands_of(folder, finite_only=True)
    loaded, engine = loaded_with(folder)
    assert_same(on_host(loaded.infer(on_gpu(feeds()))), wanted(feeds()))
    assert engine.watched == [True]
    inputs = feeds()
    inputs["y"][1, 1] = np.nan
    assert_same(on_host(loaded.infer(on_gpu(inputs))), wanted(inputs))
    assert counted(loaded) == {("tensorrt", ""): 1, ("native", runtime.NOT_FINITE): 1}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "input 'y' is missing"),
        (feeds() | {"w": np.zeros(3)}, "unknown input 'w'"),
        (feeds() | {"x": np.zeros((2, 3))}, "input 'x' is float64"),
        (feeds() | {"x": np.zeros((2, 4), np.float32)}, r"input 'x' has shape \[2, 4\]"),
        (feeds() | {"x": np.zeros(6, np.float32)}, r"input 'x' has shape \[6\]"),
    ],
)
def test_they_are_checked_as_arrays_are(inputs, says, folder, driver):  # noqa: F811
    loaded, engine = loaded_with(folder)
    for given in (inputs, on_gpu(inputs)):
        with pytest.raises(SourceError, match=says):
            loaded.infer(given)
    assert engine.watched == []
    assert counted(loaded) == {}


def test_inputs_in_different_places_are_refused(folder, driver):  # noqa: F811
    loaded, engine = loaded_with(folder)
    mixed = feeds() | {"y": Tensor(feeds()["y"])}
    with pytest.raises(SourceError, match="different places: x on the host, y on GPU 0, z on the host") as caught:
        loaded.infer(mixed)
    assert caught.value.hint
    with pytest.raises(SourceError, match="x on GPU 0, y on GPU 1"):
        loaded.infer(on_gpu(feeds()) | {"y": Tensor(feeds()["y"], number=1)})
    assert engine.watched == []


def test_what_the_engine_cannot_run_there_goes_through_the_host_and_back(folder, driver):  # noqa: F811
    loaded, engine = loaded_with(folder)
    engine.problem = "no profile of the engine takes shapes [[2, 3]]"
    with logged() as lines:
        for _ in range(2):
            assert_same(on_host(loaded.infer(on_gpu(feeds()))), wanted(feeds()))
    assert len(lines) == 1
    assert f"island {ISLAND} goes through the host: no profile" in lines[0]
    assert counted(loaded) == {("tensorrt", ""): 2}


def test_without_an_engine_for_gpus_the_embedded_one_answers(folder, driver):  # noqa: F811
    loaded = refimpl.load(folder)
    with logged() as lines:
        assert_same(on_host(loaded.infer(on_gpu(feeds()))), wanted(feeds()))
    assert "goes through the host: no engine of it runs on the GPU here" in "".join(lines)
    assert counted(loaded) == {("onnxruntime", ""): 1}


def test_outputs_are_on_the_gpu_of_the_inputs(folder, driver):  # noqa: F811
    loaded, engine = loaded_with(folder)
    engine.problem = "an input is on another GPU than the engine, which is on GPU 0"
    got = loaded.infer(on_gpu(feeds(), number=1))
    assert {value.__dlpack_device__() for value in got.values()} == {(2, 1)}


def test_what_is_empty_is_answered_by_tensorflow(folder, driver):  # noqa: F811
    loaded, engine = loaded_with(folder)
    inputs = feeds(rows=0)
    assert_same(on_host(loaded.infer(on_gpu(inputs))), wanted(inputs))
    assert counted(loaded) == {("native", runtime.EMPTY): 1}
    assert engine.watched == []


def test_a_signature_of_several_islands_goes_through_the_host(driver):
    inputs = feeds_of("odd_ops")
    loaded = refimpl.load(make_bundle("odd_ops"))
    told = loaded.run(inputs).outputs
    with logged() as lines:
        got = loaded.infer({name: Tensor(np.asarray(value)) for name, value in inputs.items()})
    assert_same(on_host(got), told)
    assert "signature serving_default goes through the host: TensorFlow runs a part of it" in "".join(lines)


def test_one_tensor_is_enough_for_one_input(driver):
    loaded = refimpl.load(make_bundle("several_signatures"))
    ((name, value),) = feeds_of("several_signatures").items()
    assert_same(on_host(loaded.infer(Tensor(value))), loaded.run({name: value}).outputs)


def test_run_takes_them_too(folder, driver):  # noqa: F811
    loaded, _ = loaded_with(folder)
    result = loaded.run(on_gpu(feeds()))
    assert_same(result.outputs, wanted(feeds()))
    assert [run.engine for run in result.islands] == ["tensorrt"]


def test_a_recording_sees_their_values(folder, driver):  # noqa: F811
    loaded, engine = loaded_with(folder)
    with loaded.recording() as tape:
        assert_same(on_host(loaded.infer(on_gpu(feeds()))), wanted(feeds()))
    ((name, inputs, outputs),) = [(item.island, item.inputs, item.outputs) for item in tape]
    assert (name, len(inputs), len(outputs)) == (ISLAND, 3, 3)
    assert engine.watched == []


def test_numpy_does_not_make_an_array_of_one_object(driver):
    with pytest.raises(TypeError, match=r"DeviceTensor\(float32\[2, 3\] on GPU 0\) is not on the host"):
        np.asarray(place(np.zeros((2, 3), np.float32), 0))


@pytest.mark.parametrize("value", [np.zeros((0, 3), np.float32), np.array(5, np.int64), np.array([True, False])])
def test_copies_go_there_and_back(value, driver):
    back = fetch(place(value, 0))
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    assert np.array_equal(back, value)
    words = np.array([b"a"], object)
    assert place(words, 0) is words
