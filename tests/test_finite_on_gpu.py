"""The kernels that look on the GPU whether values are finite: their text, and a GPU that gets them wrong."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time

import numpy as np
import pytest

from refimpl.engines import NotFiniteError
from refimpl.engines.tensorrt import finite, memory, slots
from refimpl.engines.tensorrt.cuda import Device
from refimpl.engines.tensorrt.lanes import ENQUEUED, REPLAYED
from refimpl.errors import RunError
from tests.fake_driver import FakeDriver
from tests.fake_ptx import run_kernel
from tests.test_dlpack import OnHost, Producer
from tests.test_tensorrt_execution import driver, opened, rows, trt  # noqa: F401  (fixtures)

BITS = {"float32": (32, 0x7F800000), "float16": (16, 0x7C00)}


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 21])
def test_the_text_of_the_kernel_sees_every_element_and_no_other(dtype, count):
    """Run as it is written: 2 blocks of 4 threads look at up to three elements each."""
    bits, mask = BITS[dtype]
    plain = np.random.default_rng(count).standard_normal(count).astype(dtype)
    plain[0] = np.finfo(dtype).max
    for index in (None, *range(count)):
        for special in (np.nan, np.inf, -np.inf):
            values = np.append(plain, np.nan).astype(dtype)  # one behind the end, which is not its business
            if index is not None:
                values[index] = special
            flag = np.zeros(1, np.uint32)
            given = {"data": values.ctypes.data, "count": count, "mask": mask, "flag": flag.ctypes.data}
            run_kernel(finite.PTX, f"nonfinite{bits}", (2, 4), given)
            assert flag[0] == (index is not None)


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="NVIDIA's assembler is not installed")
@pytest.mark.parametrize("gpu", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_the_text_assembles(gpu, tmp_path):
    (tmp_path / "k.ptx").write_text(finite.PTX)
    command = ["ptxas", f"-arch={gpu}", "k.ptx", "-o", "k.cubin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_kernels_are_proven_where_they_run(driver):  # noqa: F811
    assert finite.Looker(Device(driver)).problem == ""
    assert driver.leaks() == {}
    blind = FakeDriver()
    blind.blind = True
    assert finite.Looker(Device(blind)).problem == "a kernel does not see inf in a tensor of float32"
    old = FakeDriver()
    old.fail["cuModuleLoadData"] = [1]
    assert "cuModuleLoadData failed" in finite.Looker(Device(old)).problem


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told_apart(opened, special):  # noqa: F811
    engine = opened()
    for call in range(5):  # plain, captured, replayed
        (y,) = engine.run_device([Producer(value := rows(3, call))], finite_only=True)
        assert np.array_equal(np.from_dlpack(OnHost(y)), value * 2)
        del y
    spoiled, large = rows(3), np.full((3, 2), 3e38, np.float32)
    spoiled[2, 1] = special
    for value, made in ((spoiled, False), (large, True)):
        with pytest.raises(NotFiniteError) as caught, np.errstate(over="ignore"):
            engine.run_device([Producer(value)], finite_only=True)
        assert caught.value.made is made
        del caught
    (y,) = engine.run_device([Producer(spoiled)])
    assert not np.isfinite(np.from_dlpack(OnHost(y))).all(), "where it does not matter nobody looks"


def test_a_replay_looks_as_well(opened):  # noqa: F811
    engine, value = opened(), rows(3)
    source = Producer(value)
    for _ in range(4):
        engine.run_device([source], finite_only=True)
    assert engine.counts() == {ENQUEUED: 2, REPLAYED: 2}
    value[1, 1] = np.nan
    with pytest.raises(NotFiniteError):
        engine.run_device([source], finite_only=True)
    value[1, 1] = 1
    engine.run_device([source], finite_only=True)
    assert engine.counts() == {ENQUEUED: 2, REPLAYED: 4}


def test_a_graph_that_does_not_look_is_not_replayed_for_who_must_know(opened):  # noqa: F811
    engine, value = opened(), rows(3)
    source = Producer(value)
    for _ in range(4):
        engine.run_device([source])
    value[0, 0] = np.inf
    with pytest.raises(NotFiniteError):
        engine.run_device([source], finite_only=True)


def test_a_gpu_whose_kernels_are_blind_is_not_believed(opened, driver):  # noqa: F811
    driver.blind = True
    engine = opened()
    with pytest.raises(RunError, match="cannot be seen on this GPU: a kernel does not see inf"):
        engine.run_device([Producer(rows(2))], finite_only=True)
    engine.run_device([Producer(rows(2))])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_arrays_of_the_host_are_looked_at_on_the_gpu(opened, special, monkeypatch):  # noqa: F811
    monkeypatch.setattr(slots, "has_nonfinite", lambda value: pytest.fail("looked at on the host"))
    engine = opened()
    spoiled, large = rows(3), np.full((3, 2), 3e38, np.float32)
    spoiled[2, 1] = special
    for call in range(4):  # plain, captured, replayed, replayed
        assert np.array_equal(engine.run_finite([rows(3, call)])[0], rows(3, call) * 2)
        for value, made in ((spoiled, False), (large, True)):
            with pytest.raises(NotFiniteError) as caught, np.errstate(over="ignore"):
                engine.run_finite([value])
            assert caught.value.made is made
    assert not np.isfinite(engine.run([spoiled])[0]).all(), "where it does not matter nobody looks"
    assert engine.counts()[REPLAYED] > 0


def test_a_first_call_that_is_not_finite_costs_no_graph(opened):  # noqa: F811
    engine, spoiled = opened(), np.full((3, 2), np.nan, np.float32)
    for _ in range(2):
        with pytest.raises(NotFiniteError):
            engine.run_finite([spoiled])
    for call in range(3):
        assert np.array_equal(engine.run_finite([rows(3, call)])[0], rows(3, call) * 2)
    assert engine.counts() == {ENQUEUED: 3, REPLAYED: 2}


def test_outputs_of_unknown_size_are_looked_at_when_they_are_there(opened):  # noqa: F811
    engine = opened("positive", {"x": ("float32", (-1,))}, {"y": ("float32", (-1,))}, ({"x": ((1,), (4,), (64,))},))
    assert engine.run_finite([np.array([1, -1, 2], np.float32)])[0].tolist() == [1, 2]
    with pytest.raises(NotFiniteError) as caught:
        engine.run_finite([np.array([1, np.nan], np.float32)])
    assert not caught.value.made
    slot = next(iter(engine._idle[0]._slots.values()))
    slot.flags.bytes[:] = 0  # as if only the output were not
    with pytest.raises(NotFiniteError) as caught:
        slot.judge([np.array([np.inf], np.float32)])
    assert caught.value.made


def test_on_a_gpu_whose_kernels_are_blind_arrays_are_looked_at_on_the_host(opened, driver):  # noqa: F811
    driver.blind = True
    engine = opened()
    assert np.array_equal(engine.run_finite([rows(3)])[0], rows(3) * 2)
    for value, made in ((np.full((1, 2), np.nan, np.float32), False), (np.full((1, 2), 3e38, np.float32), True)):
        with pytest.raises(NotFiniteError) as caught, np.errstate(over="ignore"):
            engine.run_finite([value])
        assert caught.value.made is made


@pytest.mark.parametrize("count", [1, (8 << 20) // 4, (9 << 20) // 4 + 3])
def test_large_arrays_are_copied_whole(count):
    source = np.arange(count, dtype=np.float32)
    target = np.full(count, -1, np.float32)
    memory.copy(target, source)
    assert np.array_equal(target, source)
    square = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    memory.copy(target := np.empty((2, count), np.float32), square.T)
    assert np.array_equal(target, square.T)


@pytest.mark.parametrize("shape", [(0, 3), (5,), (1 << 15, 3)])
def test_large_results_begin_where_tensorflow_does_not_copy_them(shape):
    made = memory.empty(shape, np.dtype(np.float32))
    assert made.shape == shape
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    assert made.flags.writeable
    if made.nbytes > 1 << 16:
        assert [memory.empty(shape, made.dtype).ctypes.data % 64 for _ in range(3)] == [0, 0, 0]


def test_a_copy_that_is_interrupted_has_ended_when_it_is_left(monkeypatch):
    """What still wrote would write to memory of the next call."""
    go, left = threading.Event(), []

    def slow(target, source):
        if not left:
            left.append(True)
            raise KeyboardInterrupt
        time.sleep(0.1)
        target[...] = source
        go.set()

    source, target = np.ones(3 << 20, np.float32), np.zeros(3 << 20, np.float32)
    monkeypatch.setattr(memory.np, "copyto", slow)
    with pytest.raises(KeyboardInterrupt):
        memory.copy(target, source)
    assert go.is_set()
    before = target.copy()
    time.sleep(0.3)
    assert np.array_equal(target, before)


def test_large_arrays_are_copied_while_python_ends(monkeypatch):
    def refuses():
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(memory, "_copiers", refuses)
    source = np.arange(3 << 20, dtype=np.float32)
    memory.copy(target := np.zeros_like(source), source)
    assert np.array_equal(target, source)
