"""What is asked of tensors that stay on the GPU: each question can fail, seen with a PyTorch that is none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl.engines.tensorrt.cuda import Device
from refimpl.engines.tensorrt.execution import TrtEngine
from refimpl.engines.tensorrt.lanes import Limits
from tests import fake_tensorrt as fake
from tests.test_dlpack import OnHost
from tests.test_infer_gpu import Tensor
from tests.test_tensorrt_execution import driver, trt  # noqa: F401  (fixtures)
from tools.gpu import lent
from tools.gpu.models import WIDTH


class OnGpu(Tensor):
    device, is_cuda = "cuda:0", True

    def copy_(self, other) -> None:
        self.array[:] = other.value

    def cpu(self):
        return SimpleNamespace(numpy=self.array.copy)


def from_numpy(value):
    return SimpleNamespace(value=value, cuda=lambda: OnGpu(value.copy()))


@pytest.fixture
def torch(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: True)
    found = SimpleNamespace(cuda=cuda, from_numpy=from_numpy, from_dlpack=lambda y: OnGpu(np.from_dlpack(OnHost(y))))
    monkeypatch.setitem(sys.modules, "torch", found)
    return found


@pytest.fixture
def engine(driver, trt, tmp_path):  # noqa: F811
    made = []

    def make(**limits):
        shapes = {"x": ((1, WIDTH), (4, WIDTH), (64, WIDTH))}
        x, y = {"x": ("float32", (-1, WIDTH))}, {"y": ("float32", (-1, WIDTH))}
        made.append(
            TrtEngine(fake.engine_file(tmp_path / "e", "twice", x, y, (shapes,)), Device(driver), Limits(**limits))
        )
        return made[-1]

    yield make
    for item in made:
        item.close()


def test_all_hold(engine, torch):
    assert [check.holds for check in lent.questions(engine())] == [True, True, True]


def test_without_pytorch_nothing_is_tried(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [check.holds for check in lent.questions(engine())] == [None] * 3


def test_each_can_fail(engine, torch, driver, trt, monkeypatch):  # noqa: F811
    assert [check.holds for check in lent.questions(engine(graphs=False))] == [True, False, True]
    driver.blind = True
    assert [check.holds for check in lent.questions(engine())] == [True, True, False]
    real = TrtEngine.run_device

    def overwrites(self, inputs, finite_only=False):
        outputs = real(self, inputs, finite_only)
        outputs[0].address = kept.setdefault("address", outputs[0].address)
        kept.setdefault("output", outputs[0])
        return outputs

    kept: dict[str, object] = {}
    monkeypatch.setattr(TrtEngine, "run_device", overwrites)
    assert next(lent.questions(engine())).holds is False
