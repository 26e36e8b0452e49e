"""Tensors that stay on the GPU: DLPack in and out, with a producer and a consumer that are made of C structures."""

from __future__ import annotations

import ctypes
import gc
import sys

import numpy as np
import pytest

from refimpl.engines.tensorrt import dlpack, execution
from refimpl.engines.tensorrt.dlpack import CUDA, DeviceTensor, borrow, is_on_gpu
from refimpl.errors import RunError
from tests.test_tensorrt_execution import driver, opened, rows, trt  # noqa: F401  (fixtures)


class Producer:
    """A tensor of another library "on the GPU": NumPy's capsule with the device's kind changed."""

    def __init__(self, array, kind=CUDA, number=0) -> None:
        self.array, self.kind, self.number, self.streams = array, kind, number, []

    def __dlpack_device__(self):
        return self.kind, self.number

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        managed = ctypes.cast(dlpack._pointer_of(capsule, b"dltensor"), ctypes.POINTER(dlpack._Managed))
        managed.contents.tensor.device_type, managed.contents.tensor.device_id = self.kind, self.number
        return capsule


class OnHost:
    """A consumer: what NumPy makes of a tensor of the fake GPU, whose memory is the host's."""

    def __init__(self, tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        capsule = self.tensor.__dlpack__(stream=1)
        managed = ctypes.cast(dlpack._pointer_of(capsule, b"dltensor"), ctypes.POINTER(dlpack._Managed))
        managed.contents.tensor.device_type = 1
        return capsule


def test_what_is_on_a_gpu():
    assert is_on_gpu(Producer(rows(1)))
    assert not is_on_gpu(rows(1))
    assert not is_on_gpu(3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_what_comes_in(dtype):
    value = np.arange(6).reshape(2, 3).astype(dtype)
    got = borrow(Producer(value), 5)
    assert (got.address, got.shape, got.dtype) == (value.ctypes.data, (2, 3), value.dtype)
    got.release()


def test_the_owner_is_told_when_it_is_no_longer_read():
    value = rows(3)
    before = sys.getrefcount(value)
    got = borrow(Producer(value), 5)
    assert sys.getrefcount(value) > before
    got.release()
    gc.collect()
    assert sys.getrefcount(value) <= before + 1


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (rows(4)[::2], CUDA, "not contiguous"),
        (rows(4), 10, "device of kind 10"),
        (np.ones(3, np.complex64), CUDA, "dtype code 5"),
    ],
)
def test_what_cannot_be_taken_is_refused(value, kind, message):
    with pytest.raises(RunError, match=message):
        borrow(Producer(value, kind), 5)


def test_an_owner_that_refuses_is_quoted():
    class Refusing(Producer):
        def __dlpack__(self, *, stream=None):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(RunError, match="not handed over by DLPack: Can't export tensors that require gradient"):
        borrow(Refusing(rows(2)), 5)


def test_a_tensor_goes_out_and_comes_back_and_its_memory_is_freed_once():
    freed = []
    value = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensor = DeviceTensor(value.ctypes.data, (2, 3), value.dtype, 0, lambda readers: freed.append(set(readers)))
    seen = np.from_dlpack(OnHost(tensor))
    assert np.array_equal(seen, value)
    assert np.shares_memory(seen, value)
    tensor.__dlpack__()  # a capsule that nobody takes
    del tensor
    gc.collect()
    assert freed == [], "the consumer still holds it"
    del seen
    gc.collect()
    assert freed == [{1}]
    assert dlpack._lent == {}


def test_engines_run_on_the_device_without_a_copy(opened, driver):  # noqa: F811
    engine = opened()
    source = Producer(rows(3))
    held = sys.getrefcount(source.array)
    before = [call for call in driver.calls if "Memcpy" in call]
    (y,) = engine.run_device([source])
    assert [call for call in driver.calls if "Memcpy" in call] == before
    after = sys.getrefcount(source.array)  # not in the assert, which holds what it looks at
    assert after == held, "the input went back to its owner"
    assert source.streams[0] in driver.streams, "the producer makes its contents ready for the engine's stream"
    assert y.__dlpack_device__() == (CUDA, 0)
    assert (y.shape, y.dtype) == ((3, 2), np.float32)
    assert np.array_equal(np.from_dlpack(OnHost(y)), rows(3) * 2)


def test_memory_of_outputs_is_used_again(opened, driver):  # noqa: F811
    engine = opened()
    engine.run_device([Producer(rows(3))])
    count = driver.calls.count("cuMemAlloc_v2")
    for _ in range(5):
        engine.run_device([Producer(rows(3))])
    assert driver.calls.count("cuMemAlloc_v2") == count


def test_outputs_outlive_their_engine(opened, driver):  # noqa: F811
    engine = opened()
    (y,) = engine.run_device([Producer(rows(3))])
    engine.close()
    assert np.array_equal(np.from_dlpack(OnHost(y)), rows(3) * 2)
    del y
    gc.collect()
    assert driver.leaks() == {}


def test_host_and_device_calls_take_turns(opened):  # noqa: F811
    engine = opened()
    for call in range(4):
        assert np.array_equal(engine.run([rows(3, call)])[0], rows(3, call) * 2)
        (y,) = engine.run_device([Producer(rows(2, call))])
        assert np.array_equal(np.from_dlpack(OnHost(y)), rows(2, call) * 2)
        del y


def test_the_device_path_refuses_what_it_cannot(opened):  # noqa: F811
    engine = opened()
    with pytest.raises(RunError, match="float32, not float64"):
        engine.run_device([Producer(rows(2).astype(np.float64))])
    with pytest.raises(RunError, match="another GPU"):
        engine.run_device([Producer(rows(2), number=3)])
    with pytest.raises(RunError, match="no profile"):
        engine.run_device([Producer(rows(200))])


def test_a_failure_waits_before_inputs_go_back(opened, trt, driver, monkeypatch):  # noqa: F811
    engine = opened()
    trt.refuse = "something in the kernel"
    waited = []

    def watched(value, stream, real=dlpack.borrow):
        item = real(value, stream)
        release, item.release = item.release, lambda: (waited.append("cuStreamSynchronize" in driver.calls), release())
        return item

    monkeypatch.setattr(execution, "borrow", watched)
    driver.calls.clear()
    with pytest.raises(RunError, match="something in the kernel"):
        engine.run_device([Producer(rows(2))])
    assert waited == [True]
    trt.refuse = ""
    engine.run_device([Producer(rows(2))])


def test_shapes_on_the_host_are_refused(opened):  # noqa: F811
    from tests.test_tensorrt_execution import RESHAPE

    engine = opened(**RESHAPE)
    with pytest.raises(RunError, match="TensorRT has target on the host"):
        engine.run_device([Producer(np.zeros(6, np.float32)), Producer(np.array([2, 3]))])
    data = opened("positive", {"x": ("float32", (-1,))}, {"y": ("float32", (-1,))}, ({"x": ((1,), (4,), (64,))},))
    with pytest.raises(RunError, match="output y depends on the data"):
        data.run_device([Producer(np.ones(4, np.float32))])
