"""Graphs over tensors that belong to somebody else: replayed where every address repeats, never over what is held."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from refimpl.engines.tensorrt.lanes import ENQUEUED, NO_GRAPH, REPLAYED, Limits
from refimpl.errors import RunError
from tests import fake_tensorrt as fake
from tests.test_dlpack import OnHost, Producer
from tests.test_tensorrt_execution import driver, in_threads, opened, rows, trt  # noqa: F401  (fixtures)


def seen(tensor) -> np.ndarray:
    return np.from_dlpack(OnHost(tensor)).copy()


def test_what_repeats_is_replayed(opened, driver):  # noqa: F811
    engine, value = opened(), rows(3)
    source = Producer(value)
    for call in range(6):
        value[:] = rows(3, call)
        (y,) = engine.run_device([source])
        assert np.array_equal(seen(y), rows(3, call) * 2)
        del y
    assert engine.counts() == {ENQUEUED: 2, REPLAYED: 4}
    assert len(driver.graphs) == 1


def test_another_address_is_not_replayed(opened):  # noqa: F811
    """A graph reads what lies at its own addresses, so each value would come out as the first."""
    engine = opened()
    values = [rows(3, call) for call in range(6)]  # alive together: six addresses
    for value in values:
        (y,) = engine.run_device([Producer(value)])
        assert np.array_equal(seen(y), value * 2)
        del y
    assert engine.counts() == {ENQUEUED: 6}


def test_what_is_still_held_is_not_overwritten(opened, driver):  # noqa: F811
    engine, value = opened(), rows(3)
    source, held = Producer(value), []
    for call in range(8):
        value[:] = rows(3, call)
        held.append(engine.run_device([source])[0])
        held = held[-2:]  # the last two calls' outputs
        for back, y in enumerate(reversed(held)):
            assert np.array_equal(seen(y), rows(3, call - back) * 2)
    assert engine.counts()[REPLAYED] >= 2, "its outputs take turns in few blocks, and each has its graph"
    assert len({y.address for y in held}) == 2
    assert len(driver.graphs) <= 3


STREAM = 0xABC  # of a consumer


@pytest.mark.parametrize(("named", "everything"), [(STREAM, 0), (None, 0), (-1, 1), (2, 1)])
def test_a_block_is_used_again_only_when_its_readers_are_done(opened, driver, named, everything):  # noqa: F811
    """Who lets go of a tensor may have work in a stream that reads it: the next answer must not be written over it."""
    engine, source = opened(), Producer(rows(3))
    (y,) = engine.run_device([source])
    address = y.address
    capsule = y.__dlpack__(stream=named)
    del y, capsule
    gc.collect()
    driver.calls.clear()
    driver.waited.clear()
    (y,) = engine.run_device([source])
    assert y.address == address
    ran = driver.calls.index("cuStreamSynchronize" if not everything else "cuCtxSynchronize")
    assert driver.calls.count("cuCtxSynchronize") == everything
    assert driver.waited[0] == (named or 1) or everything
    assert ran == 1, "the first thing after the GPU was made the thread's"


def test_a_reader_that_cannot_be_waited_for_costs_its_block(opened, driver):  # noqa: F811
    engine, source = opened(), Producer(rows(3))
    (y,) = engine.run_device([source])
    capsule = y.__dlpack__(stream=STREAM)
    del y, capsule
    gc.collect()
    driver.fail["cuStreamSynchronize"] = [1]
    freed = driver.calls.count("cuMemFree_v2")
    (y,) = engine.run_device([source])
    assert driver.calls.count("cuMemFree_v2") == freed + 1, "freeing waits for everything"
    assert np.array_equal(seen(y), rows(3) * 2)


def test_kept_graphs_are_bounded_and_given_back(opened, driver):  # noqa: F811
    engine = opened(limits=Limits(shapes=4))
    values = [rows(count) for count in range(1, 12)]
    for value in values:
        for _ in range(3):
            engine.run_device([Producer(value)])
    assert len(driver.graphs) == 4
    (lane,) = engine._idle
    assert len(engine._lent[lane]._shapes) == 4
    assert np.array_equal(seen(engine.run_device([Producer(values[0])])[0]), values[0] * 2)


def test_host_calls_between_replays_change_nothing(opened):  # noqa: F811
    """The graph has a context of its own: the fake fails when one is changed whose graph is replayed."""
    engine, value = opened(), rows(3)
    for call in range(6):
        value[:] = rows(3, call)
        (y,) = engine.run_device([Producer(value)])
        assert np.array_equal(seen(y), value * 2)
        del y
        assert np.array_equal(engine.run([rows(2, call)])[0], rows(2, call) * 2)
    assert engine.counts() == {ENQUEUED: 4, REPLAYED: 8}


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda t, d: setattr(t, "capturable", False), "TensorRT says that this engine cannot be captured"),
        (lambda t, d: setattr(t, "refuse_captured", True), "not permitted when stream is capturing"),
        (lambda t, d: setattr(t, "graphs_lie", True), "its replay gave other answers"),
        (lambda t, d: d.fail.update(cuGraphInstantiateWithFlags=[1]), "CUDA_ERROR_INVALID_VALUE"),
        (lambda t, d: setattr(t, "contexts_left", 0), "cannot create an execution context"),
    ],
)
def test_without_a_graph_the_answers_stand_and_the_reason_is_counted(opened, trt, driver, break_it, reason):  # noqa: F811
    engine, value = opened(), rows(3)
    break_it(trt, driver)
    for call in range(4):
        value[:] = rows(3, call)
        (y,) = engine.run_device([Producer(value)])
        assert np.array_equal(seen(y), rows(3, call) * 2)
        del y
    counts = engine.counts()
    assert counts.pop(ENQUEUED) == 4
    ((key, count),) = counts.items()
    assert (count, key.startswith(NO_GRAPH), reason in key) == (1, True, True)
    assert driver.graphs == {}


def test_graphs_can_be_off(opened, driver):  # noqa: F811
    engine, source = opened(limits=Limits(graphs=False)), Producer(rows(3))
    for _ in range(4):
        engine.run_device([source])
    assert "cuStreamBeginCapture_v2" not in driver.calls


def test_memory_that_runs_out_takes_the_graphs_too(opened, driver):  # noqa: F811
    engine, source = opened(), Producer(rows(3))
    for _ in range(4):
        engine.run_device([source], finite_only=True)
        engine.run([rows(40)])
    assert driver.graphs
    driver.total = fake.WORK_BYTES + 600
    (y,) = engine.run_device([Producer(rows(60))], finite_only=True)
    assert np.array_equal(seen(y), rows(60) * 2)
    assert driver.graphs == {}
    del y
    gc.collect()
    for _ in range(3):
        (y,) = engine.run_device([source], finite_only=True)
        assert np.array_equal(seen(y), rows(3) * 2)
        del y


def test_threads_share_lanes_and_their_graphs(opened, driver):  # noqa: F811
    engine = opened(limits=Limits(contexts=3))

    def work(number):
        value = rows(1 + number % 3, number)
        source = Producer(value)
        for _ in range(40):
            (y,) = engine.run_device([source], finite_only=number % 2 == 0)
            assert np.array_equal(seen(y), value * 2)
            del y

    in_threads(8, work)
    counts = engine.counts()
    assert counts[ENQUEUED] + counts[REPLAYED] == 320
    assert len(driver.streams) <= 3


def test_a_failure_leaves_no_graph_behind(opened, trt):  # noqa: F811
    engine, source = opened(), Producer(rows(3))
    engine.run_device([source])
    trt.refuse = "something in the kernel"
    for _ in range(3):
        with pytest.raises(RunError, match="something in the kernel"):
            engine.run_device([source])
    trt.refuse = ""
    for _ in range(3):
        (y,) = engine.run_device([source])
        assert np.array_equal(seen(y), rows(3) * 2)
        del y
