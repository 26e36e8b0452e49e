"""How engines execute, on a fake CUDA driver and a fake TensorRT: what is allocated, replayed, bounded, given back."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from refimpl.engines.tensorrt import cuda, library
from refimpl.engines.tensorrt.cuda import Device
from refimpl.engines.tensorrt.execution import TrtEngine
from refimpl.engines.tensorrt.lanes import DEFAULT, ENQUEUED, FEWER, NO_GRAPH, REPLAYED, Limits
from refimpl.errors import RunError
from tests import fake_tensorrt as fake
from tests.fake_driver import FakeDriver

ANY = {"x": ((1, 2), (4, 2), (64, 2))}


@pytest.fixture
def driver():
    return FakeDriver()


@pytest.fixture
def trt(driver, monkeypatch):
    made = fake.fake_tensorrt(driver)
    monkeypatch.setattr(library, "module", lambda: made)
    monkeypatch.setattr(cuda, "device", lambda index=0: Device(driver, index))
    return made


@pytest.fixture
def opened(driver, trt, tmp_path):
    """Opens an engine, ``y = 2 x`` by default, and closes it in the end; then nothing may be left."""
    engines = []

    def make(computation="twice", inputs=None, outputs=None, profiles=(ANY,), limits=DEFAULT, **more):
        inputs = inputs or {"x": ("float32", (-1, 2))}
        outputs = outputs or {"y": ("float32", (-1, 2))}
        file = fake.engine_file(tmp_path / "e.engine", computation, inputs, outputs, profiles, **more)
        engines.append(TrtEngine(file, Device(driver), limits))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    assert driver.leaks() == {}


def rows(count, start=0.0):
    return np.arange(start, start + 2 * count, dtype=np.float32).reshape(count, 2)


def test_it_computes_and_replays(opened):
    engine = opened()
    for call in range(5):
        (y,) = engine.run([rows(3, call)])
        assert np.array_equal(y, rows(3, call) * 2)
    assert engine.counts() == {ENQUEUED: 2, REPLAYED: 3}


def test_results_are_the_callers_own(opened):
    engine = opened()
    first = engine.run([rows(3)])[0]
    engine.run([rows(3, 7)])
    assert np.array_equal(first, rows(3) * 2)


def test_shapes_take_turns_and_nothing_is_allocated_twice(opened, driver):
    engine = opened()
    for _ in range(3):
        for count in (1, 2, 3):
            engine.run([rows(count)])
    before = driver.calls.count("cuMemAlloc_v2"), driver.calls.count("cuMemHostAlloc"), driver.used
    for call in range(20):
        for count in (1, 2, 3):
            assert np.array_equal(engine.run([rows(count, call)])[0], rows(count, call) * 2)
    assert (driver.calls.count("cuMemAlloc_v2"), driver.calls.count("cuMemHostAlloc"), driver.used) == before
    assert engine.counts() == {ENQUEUED: 6, REPLAYED: 63}


def test_a_graph_has_a_context_of_its_own(opened, trt):
    """Changing a context whose graph is replayed is what TensorRT forbids; the fake fails then."""
    engine = opened()
    for count in (1, 1, 2, 2, 1, 5, 1, 2):
        assert np.array_equal(engine.run([rows(count)])[0], rows(count) * 2)
    assert trt.made == 3, "one for plain calls, and one for each graph"


def test_kept_shapes_are_bounded_in_number(opened, driver):
    engine = opened(limits=Limits(shapes=4))
    for count in range(1, 40):
        engine.run([rows(count)])
        engine.run([rows(count)])
    assert len(driver.graphs) == 4
    assert len(driver.pinned) == 8


def test_kept_shapes_are_bounded_in_bytes(opened, driver):
    engine = opened(limits=Limits(lane_bytes=600))
    for count in range(20, 40):
        engine.run([rows(count)])
        assert driver.used <= fake.WORK_BYTES + max(600, 16 * count)
    assert np.array_equal(engine.run([rows(64)])[0], rows(64) * 2), "what runs is kept, however large"


def test_the_first_profile_that_fits_is_taken(opened, trt):
    small, large = {"x": ((1, 2), (2, 2), (2, 2))}, {"x": ((1, 2), (8, 2), (8, 2))}
    engine = opened(profiles=(small, large), limits=Limits(graphs=False))
    for count in (2, 8, 1):
        engine.run([rows(count)])
    assert trt.profiles == [1, 0], "the context starts with the first, and is switched only when it must be"
    with pytest.raises(RunError, match=r"no profile of the engine takes shapes \[\[9, 2\]\]"):
        engine.run([rows(9)])
    engine.run([rows(8)])


def test_inputs_that_would_be_misread_are_refused(opened):
    engine = opened()
    with pytest.raises(RunError, match="takes x as float32, not float64"):
        engine.run([rows(2).astype(np.float64)])
    with pytest.raises(RunError, match="takes 1 input, not 2"):
        engine.run([rows(2), rows(2)])


def test_inputs_need_not_be_contiguous(opened):
    value = rows(6)[::2]
    assert np.array_equal(opened().run([value])[0], value * 2)


RESHAPE = {
    "computation": "reshape",
    "inputs": {"x": ("float32", (6,)), "target": ("int64", (2,))},
    "outputs": {"y": ("float32", (-1, -1))},
    "profiles": ({"x": ((6,), (6,), (6,)), "target": ((2,), (2,), (2,))},),
    "host": ["target"],
}


def test_values_that_are_shapes_are_read_on_the_host(opened):
    engine = opened(**RESHAPE)
    x = np.arange(6, dtype=np.float32)
    for _ in range(3):
        for target in ((2, 3), (3, 2), (1, 6)):
            (y,) = engine.run([x, np.array(target, np.int64)])
            assert y.shape == target
            assert np.array_equal(y.reshape(-1), x)
    assert engine.counts() == {ENQUEUED: 6, REPLAYED: 3}


def test_values_outside_the_profile_are_refused(opened):
    engine = opened(**RESHAPE, values=[[1, 1], [2, 3], [3, 3]])
    engine.run([np.zeros(6, np.float32), np.array([2, 3], np.int64)])
    with pytest.raises(RunError, match=r"with values \{'target': \[1, 6\]\}"):
        engine.run([np.zeros(6, np.float32), np.array([1, 6], np.int64)])


def test_shapes_that_depend_on_the_data(opened):
    engine = opened("positive", {"x": ("float32", (-1,))}, {"y": ("float32", (-1,))}, ({"x": ((1,), (4,), (64,))},))
    for values in ([1, -2, 3, 4], [-1, -2, -3, -4], [1, 2, 3, 4], [5, -1, -1, -1]):
        x = np.array(values, np.float32)
        assert np.array_equal(engine.run([x])[0], x[x > 0])
    assert engine.counts() == {ENQUEUED: 4, f"{NO_GRAPH}the shape of an output depends on the data": 1}


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda trt, driver: setattr(trt, "capturable", False), "TensorRT says that this engine cannot be captured"),
        (lambda trt, driver: setattr(trt, "refuse_captured", True), "not permitted when stream is capturing"),
        (lambda trt, driver: setattr(trt, "graphs_lie", True), "its replay gave other answers"),
        (lambda trt, driver: driver.fail.update(cuGraphInstantiateWithFlags=[1]), "CUDA_ERROR_INVALID_VALUE"),
        (lambda trt, driver: driver.fail.update(cuStreamBeginCapture_v2=[1]), "CUDA_ERROR_INVALID_VALUE"),
        (lambda trt, driver: setattr(trt, "contexts_left", 0), "cannot create an execution context"),
    ],
)
def test_without_a_graph_calls_go_on_and_the_reason_is_counted(opened, trt, driver, break_it, reason):
    engine = opened()
    break_it(trt, driver)
    for call in range(4):
        assert np.array_equal(engine.run([rows(3, call)])[0], rows(3, call) * 2)
    counts = engine.counts()
    assert counts.pop(ENQUEUED) == 4
    assert list(counts.values()) == [1]
    assert reason in next(iter(counts))


def test_graphs_can_be_off(opened, driver):
    engine = opened(limits=Limits(graphs=False))
    for _ in range(4):
        engine.run([rows(3)])
    assert "cuStreamBeginCapture_v2" not in driver.calls


def test_a_failure_of_tensorrt_is_a_run_error_and_the_next_call_works(opened, trt):
    engine = opened()
    engine.run([rows(3)])
    trt.refuse = "something in the kernel"
    with pytest.raises(RunError, match="something in the kernel"):
        engine.run([rows(3)])
    trt.refuse = ""
    assert np.array_equal(engine.run([rows(3)])[0], rows(3) * 2)


def test_an_exception_of_the_bindings_is_a_run_error(opened, monkeypatch):
    def fail(*_):
        raise TypeError("incompatible function arguments")

    engine = opened()
    with monkeypatch.context() as patch:
        patch.setattr(fake.FakeContext, "set_input_shape", fail)
        with pytest.raises(RunError, match="TensorRT failed: incompatible function arguments"):
            engine.run([rows(3)])
    engine.run([rows(3)])


def test_memory_that_runs_out_frees_what_is_only_kept(opened, driver):
    engine = opened()
    driver.total = fake.WORK_BYTES + 1000
    for count in (40, 20, 60, 30):  # 16 bytes a row: they do not fit together
        assert np.array_equal(engine.run([rows(count)])[0], rows(count) * 2)
    driver.total = fake.WORK_BYTES + 100
    with pytest.raises(RunError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        engine.run([rows(50)])
    assert np.array_equal(engine.run([rows(3)])[0], rows(3) * 2)


def test_a_gpu_that_has_failed_is_not_asked_again(opened, driver):
    engine = opened()
    driver.fail["cuStreamSynchronize"] = [700]
    with pytest.raises(RunError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.run([rows(3)])
    before = len(driver.calls)
    with pytest.raises(RunError, match=r"the GPU failed before: .*ILLEGAL_ADDRESS"):
        engine.run([rows(3)])
    assert len(driver.calls) == before


def in_threads(count, work):
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.fixture
def slow(monkeypatch):
    """Calls take so long that threads meet."""
    real = fake.FakeContext.execute_async_v3

    def execute(context, stream):
        time.sleep(0.002)
        return real(context, stream)

    monkeypatch.setattr(fake.FakeContext, "execute_async_v3", execute)


def test_threads_agree_and_share_a_bounded_pool(opened, driver, slow):
    engine = opened(limits=Limits(contexts=3))

    def work(number):
        for call in range(30):
            count = 1 + (number + call) % 4
            assert np.array_equal(engine.run([rows(count, number)])[0], rows(count, number) * 2)

    in_threads(8, work)
    assert len(driver.streams) == 3
    counts = engine.counts()
    assert counts[ENQUEUED] + counts[REPLAYED] == 240


def test_calls_run_at_once(opened, monkeypatch):
    engine = opened(limits=Limits(contexts=2))
    both = threading.Barrier(2, timeout=20)
    real = fake.FakeContext.execute_async_v3

    def waits(context, stream):
        both.wait()  # passes only when two calls are in here together
        return real(context, stream)

    monkeypatch.setattr(fake.FakeContext, "execute_async_v3", waits)
    in_threads(2, lambda number: engine.run([rows(2)]))


def test_fewer_contexts_where_memory_allows_no_more(opened, driver, slow):
    engine = opened(limits=Limits(contexts=4, graphs=False))
    driver.total = driver.used + 2000
    in_threads(6, lambda number: [engine.run([rows(2)]) for _ in range(10)])
    assert len(driver.streams) == 1
    fewer = [count for key, count in engine.counts().items() if key.startswith(FEWER)]
    assert 1 <= sum(fewer) <= 3, "it is tried once for each further context, and not in every call"


def test_the_first_context_must_be_there(trt, driver, tmp_path):
    trt.contexts_left = 0
    file = fake.engine_file(tmp_path / "e", "twice", {"x": ("float32", (2,))}, {"y": ("float32", (2,))})
    with pytest.raises(RunError, match="cannot create an execution context"):
        TrtEngine(file, Device(driver))
    assert driver.leaks() == {}


def test_a_closed_engine_refuses(opened):
    engine = opened()
    engine.close()
    with pytest.raises(RunError, match="was closed"):
        engine.run([rows(2)])


def test_an_engine_that_nobody_holds_gives_everything_back(driver, trt, tmp_path):
    file = fake.engine_file(tmp_path / "e", "twice", {"x": ("float32", (2,))}, {"y": ("float32", (2,))})
    engine = TrtEngine(file, Device(driver))
    for _ in range(3):
        engine.run([np.ones(2, np.float32)])
    assert driver.leaks()
    del engine
    assert driver.leaks() == {}


def test_layers_are_timed(opened):
    assert opened().layer_milliseconds([rows(2)]) == [("the only layer", 0.25)]
