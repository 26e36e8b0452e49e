"""The tools that time and harass engines on a GPU: their own checks can fail, and what of them needs none is run."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl.engines import onnxruntime, tensorrt
from refimpl.engines.tensorrt import cuda, library
from refimpl.engines.tensorrt.cuda import Device
from refimpl.errors import BuildError, RunError
from tests import fake_tensorrt as fake
from tests.fake_driver import FakeDriver
from tests.test_tensorrt import needs_tensorrt
from tools.gpu import crash, peers, record, robustness, speed
from tools.gpu.bare import Bare
from tools.gpu.models import WIDTH, boxes_of, suppression
from tools.gpu.speed import Row


class Engine:
    """Doubles; ``fault`` is called with the count of calls and may spoil the answer."""

    def __init__(self, fault=lambda number, y: y) -> None:
        self.calls, self.fault = 0, fault

    def run(self, inputs):
        self.calls += 1
        return [self.fault(self.calls, inputs[0] * 2)]

    def counts(self):
        return {"enqueued": self.calls}


def late(number, y):
    return y + 1 if number > 900 else y


def test_leaks_are_seen():
    assert robustness.leaks(Engine(), lambda: 5, lambda: 5).holds
    free = iter([1 << 30, (1 << 30) - (3 << 20)])
    assert not robustness.leaks(Engine(), lambda: next(free), lambda: 5).holds
    size = iter([0, 1 << 26])
    assert not robustness.leaks(Engine(), lambda: 5, lambda: next(size)).holds
    assert not robustness.leaks(Engine(late), lambda: 5, lambda: 5).holds


def fails(number, y):
    if number == 50:
        raise RunError("a context was shared")
    return y


@pytest.mark.parametrize("fault", [late, fails], ids=["another answer", "an error"])
def test_threads_that_do_not_agree_are_seen(fault):
    assert robustness.threads(Engine()).holds
    check = robustness.threads(Engine(lambda number, y: fault(number * 2, y)))
    assert not check.holds


@needs_tensorrt
def test_the_models_build(tmp_path):
    assert robustness.built(tmp_path).stat().st_size > 4 * WIDTH * WIDTH * 4
    (tmp_path / "boxes.onnx").write_bytes(suppression())
    sizes = {len(onnxruntime.open(tmp_path / "boxes.onnx").run(boxes_of(20 + seed, seed))[0]) for seed in range(5)}
    assert len(sizes) > 1, "else nothing would depend on the data"


def test_outputs_whose_size_depends_on_the_data(tmp_path, monkeypatch):
    def copies(folder, name, model, profile):
        (folder / "boxes.onnx").write_bytes(model)
        return folder / "boxes.onnx"

    monkeypatch.setattr(robustness, "built", copies)
    real = onnxruntime.open(saved_boxes(tmp_path))
    engine = SimpleNamespace(run=real.run, counts=dict)
    monkeypatch.setattr(tensorrt, "open", lambda path: engine)
    assert robustness.data_dependent(tmp_path).holds is True
    engine.run = lambda values: [real.run(values)[0][:-1]]
    assert robustness.data_dependent(tmp_path).holds is False

    def refuses(*_):
        raise BuildError("no runners that implement it")

    monkeypatch.setattr(robustness, "built", refuses)
    assert robustness.data_dependent(tmp_path).holds is None


def saved_boxes(folder):
    (folder / "b.onnx").write_bytes(suppression())
    return folder / "b.onnx"


@needs_tensorrt
@pytest.mark.skipif(not tensorrt.why_not_here(), reason="TensorRT can execute on this machine")
def test_without_a_gpu_it_says_what_was_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(crash, "killed", lambda folder: [record.Check("killed", "not here", holds=True)])
    assert robustness.main(["--out", str(tmp_path)]) == 0
    text = (tmp_path / "gpu-robustness.md").read_text()
    assert "| engines execute, and refuse what is no engine | not tried | no usable NVIDIA GPU" in text
    monkeypatch.setattr(crash, "killed", lambda folder: [record.Check("killed", "left: b", holds=False)])
    assert robustness.main(["--out", str(tmp_path)]) == 1
    assert "| killed | **no** | left: b |" in (tmp_path / "gpu-robustness.md").read_text()


@pytest.mark.parametrize(
    ("script", "holds"), [("print('no')", True), ("print('OPENED')", False), ("import os; os.abort()", False)]
)
def test_a_crash_or_an_engine_that_opens_is_seen(tmp_path, monkeypatch, script, holds):
    monkeypatch.setattr(crash, "_OPEN", script)
    (tmp_path / "e").write_bytes(bytes(200))
    assert crash.strange_files(tmp_path / "e", tmp_path).holds is holds


@pytest.mark.slow
@needs_tensorrt
def test_a_conversion_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(crash, "_MOMENTS", ("running samples in TensorFlow",))
    assert [check.holds for check in crash.killed(tmp_path)] == [True, True]


def test_what_a_killed_conversion_leaves_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(crash.networks, "encoder", lambda *_, **__: None)

    def leaves(model, target, moment, number):
        target.mkdir()
        return 2 if number == crash.signal.SIGTERM else -9

    monkeypatch.setattr(crash, "_struck", leaves)
    assert [check.holds for check in crash.killed(tmp_path)] == [False, False]


ROW = Row(
    "ResNet50",
    1,
    {"kernels, graph": 0.3, "bare": 1.0, "bare, locked": 0.5, "stitched": 1.05, "infer": 0.5},
    0.5,
    {"enqueued": 2},
    [("conv", 0.1)],
    "",
)


def test_speed_is_held_against_its_targets():
    found = [(check.holds, check.what.rpartition("plus copies")[2]) for check in speed.checks([ROW])[:4]]
    assert [holds for holds, _ in found] == [True, False, True, True]
    assert found[0][1] == found[2][1] == " from and to arrays"
    assert all("page-locked" in which for _, which in found[1::2])
    slow = Row("ResNet50", 64, {"kernels, graph": 3.3, "bare": 1.0, "stitched": 1.2, "infer": 1.05}, 0.5, {}, [], "")
    assert [check.holds for check in speed.checks([slow])] == [False, True, False]
    untimed = Row("ResNet50", 1, {"stitched": 1.2}, 0.5, {}, [], "no graph")
    assert [check.holds for check in speed.checks([untimed])] == [None]


def test_speed_is_written_for_people(tmp_path):
    speed._write(tmp_path, [ROW])
    text = (tmp_path / "gpu-speed.md").read_text()
    assert "| ResNet50 | 1 | - | 0.300 ms | 0.500 ms | 1.000 ms | - | 1.050 ms | 0.500 ms | - | - | 0.50 s |" in text
    head = next(line for line in text.splitlines() if line.startswith("| model | batch"))
    assert f"{head}\n{'|---' * (head.count('|') - 1)}|\n" in text
    assert "| `conv` | 0.1000 |" in text
    assert "within 10 %" in text


@pytest.mark.skipif(not tensorrt.why_not_here(), reason="TensorRT can execute on this machine")
def test_without_a_gpu_nothing_is_timed(capsys):
    assert speed.main([]) == 2
    assert "nothing can be timed" in capsys.readouterr().err


def test_what_cannot_be_timed_costs_its_own_row(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("TensorRT does not run it: ()")

    monkeypatch.setattr(speed, "timed", fails)
    row = speed._timed("ResNet50", speed.SUBJECTS["ResNet50"], tmp_path, 1)
    assert row.says == "RuntimeError: TensorRT does not run it: ()."
    assert [check.holds for check in speed.checks([row])] == [None]
    speed._write(tmp_path, [row])


def test_the_median_is_of_calls():
    assert speed.median_ms(lambda: time.sleep(0.002), 5) >= 2


def test_the_bare_call_gives_everything_back(monkeypatch, tmp_path: Path):
    driver = FakeDriver()
    trt = fake.fake_tensorrt(driver)
    monkeypatch.setattr(library, "module", lambda: trt)
    monkeypatch.setattr(cuda, "device", lambda: Device(driver))
    file = fake.engine_file(tmp_path / "e", "twice", {"x": ("float32", (2,))}, {"y": ("float32", (2,))})
    bare = Bare(file, np.ones(2, np.float32))
    bare.call()
    bare.call_arrays()
    assert bare._results["y"].view(np.float32).tolist() == [2, 2]
    assert bare.kernels_ms(4, 3, graph=True) == bare.kernels_ms(4, 3, graph=False) == 1.5 / 4
    bare.close()
    assert driver.leaks() == {}
    with pytest.raises(RunError, match="does not take one input of float64"):
        Bare(file, np.ones(2))


def test_without_pytorch_there_is_no_peer(monkeypatch):
    monkeypatch.setattr(peers.lent, "pytorch", lambda: None)
    assert peers.resnet50_ms(1, 1, 1) is None


def test_a_bundle_that_does_not_run_on_tensorrt_is_seen(monkeypatch, tmp_path):
    import refimpl

    spec = SimpleNamespace(inputs=())
    result = SimpleNamespace(outputs={}, islands=[SimpleNamespace(engine="onnxruntime")])
    loaded = SimpleNamespace(
        signature=lambda: spec, run=lambda values: result, manifest=SimpleNamespace(islands=())
    )  # fmt: skip
    monkeypatch.setattr(refimpl, "load", lambda *_, **__: loaded)
    assert robustness.carried(tmp_path).holds is False
    result.islands[0].engine = "tensorrt"
    assert robustness.carried(tmp_path).holds is True
