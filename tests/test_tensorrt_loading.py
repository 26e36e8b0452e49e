"""Engines that cannot run here are refused with their reason; kernels that were compiled once are kept."""

from __future__ import annotations

import gc
import struct

import numpy as np
import pytest

import refimpl
from refimpl import bundle, engines, gpus, runtime
from refimpl.engines import BuildOptions, tensorrt
from refimpl.engines.tensorrt import cuda, kernels, library, loading, targets
from refimpl.engines.tensorrt.capabilities import FEATURES
from refimpl.engines.tensorrt.cuda import Device
from refimpl.engines.tensorrt.execution import TrtEngine
from refimpl.engines.tensorrt.kernels import KernelCache
from refimpl.errors import RecipeError, RunError, UnsupportedError
from refimpl.recipe import Recipe
from tests import fake_tensorrt as fake
from tests.bundles import logged, main
from tests.models import saved_model
from tests.onnx_models import dense, saved
from tests.test_dlpack import OnHost, Producer
from tests.test_tensorrt import needs_tensorrt
from tests.test_tensorrt_execution import driver, trt  # noqa: F401  (fixtures)

H100 = gpus.Gpu("NVIDIA H100", "9.0", 1 << 36)


@pytest.fixture
def small(tmp_path):
    return fake.engine_file(tmp_path / "e.engine", "twice", {"x": ("float32", (2,))}, {"y": ("float32", (2,))})


def run_once(file, driver, cache=None):  # noqa: F811
    engine = TrtEngine(file, Device(driver), kernels=cache)
    engine.run([np.ones(2, np.float32)])
    return engine


def test_an_engine_of_another_version_is_not_tried(monkeypatch):
    assert loading.refusal("tensorrt_rtx 1.6", "tensorrt_rtx 1.6", ()) == ""
    why = loading.refusal("tensorrt_rtx 1.7", "tensorrt_rtx 1.6", ())
    assert why.startswith("it was built by tensorrt_rtx 1.7, and tensorrt_rtx 1.6 is installed")


def test_an_engine_for_other_gpus_is_not_tried(monkeypatch):
    monkeypatch.setattr(gpus, "list_gpus", lambda: ("13.0", (H100,)))
    assert loading.refusal("t 1", "t 1", ("sm86", "sm90")) == ""
    why = loading.refusal("t 1", "t 1", ("sm86", "sm89"))
    assert why == "it was built for sm86, sm89, and the GPU here is sm90; convert with --target sm90"


@pytest.mark.parametrize(
    ("validity", "data", "message"),
    [
        ((2, 1), None, "another version of TensorRT built it"),
        ((2, 32), None, "it is damaged, or no engine at all"),
        ((2, 2), b"garbage", "not built for the compute capability of this GPU; magic tag does not match"),
        ((0, 0), b"garbage", "magic tag does not match"),
        ((0, 0), b"", "magic tag does not match"),
    ],
)
def test_what_tensorrt_refuses_is_said(trt, driver, small, validity, data, message):  # noqa: F811
    trt.validity = validity
    if data is not None:
        small.write_bytes(data)
    with pytest.raises(RunError, match=message):
        TrtEngine(small, Device(driver))
    assert driver.leaks() == {}


def test_a_gpu_that_is_only_called_unsupported_is_tried(trt, driver, small):  # noqa: F811
    """As an H100 by TensorRT for RTX, which runs its engines all the same."""
    trt.validity = (2, 2)
    run_once(small, driver).close()


def test_a_file_that_is_missing_is_said(trt, driver, tmp_path):  # noqa: F811
    with pytest.raises(RunError, match="cannot read the engine gone: No such file"):
        TrtEngine(tmp_path / "gone", Device(driver))


def test_an_engine_that_is_cut_off_is_said(trt, driver, small):  # noqa: F811
    header = b"vtrt" + bytes(12) + struct.pack("<Q", 5000) + bytes([9, 9, 9, 9])
    small.write_bytes(header + bytes(100))
    with pytest.raises(RunError, match="cut off: it has 128 bytes of 5000"):
        TrtEngine(small, Device(driver))
    assert loading.stated_size(header, "9.9.9.8") == 0, "the layout is believed only with the version in its place"


@needs_tensorrt
def test_the_header_of_real_engines_is_understood(tmp_path):
    file = tmp_path / "e.engine"
    profile = engines.Profile(((1, 8),), ((4, 8),), ((4, 8),))
    tensorrt.build(saved(tmp_path, dense(weights_are_inputs=False)), file, (profile,), BuildOptions(False, 0))
    module = library.require()
    if module.__name__ == "tensorrt_rtx":
        assert loading.stated_size(file.read_bytes(), module.__version__) == file.stat().st_size


def test_new_kernels_are_kept_and_read_again(trt, driver, small, tmp_path):  # noqa: F811
    kept = tmp_path / "cache" / "kernels" / "k"
    run_once(small, driver, KernelCache(None, kept)).close()
    assert kept.read_bytes().endswith(fake.KERNELS)
    again = KernelCache(None, kept)
    run_once(small, driver, again).close()
    assert again.loaded == ("directory",)
    assert [path.name for path in kept.parent.iterdir()] == ["k"], "no temporary file stays"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40], lambda data: b"", lambda data: data[::-1]]
)
def test_kept_kernels_that_are_damaged_are_not_used(trt, driver, small, tmp_path, damage):  # noqa: F811
    kept = tmp_path / "k"
    run_once(small, driver, KernelCache(None, kept)).close()
    kept.write_bytes(damage(kept.read_bytes()))
    again = KernelCache(None, kept)
    run_once(small, driver, again).close()
    assert again.loaded == ()


def test_kernels_of_the_bundle_are_used_and_others_are_not(trt, driver, small, tmp_path):  # noqa: F811
    stored = tmp_path / "e.engine.kernels"
    for data, loaded in ((fake.KERNELS + b", all of them", ("bundle",)), (b"of another GPU", ())):
        stored.write_bytes(data)
        cache = KernelCache(stored)
        run_once(small, driver, cache).close()
        assert cache.loaded == loaded
        assert trt.configs[-1].cache is not None
    assert trt.configs[-1].strategy == "user"
    assert trt.configs[-1].dynamic_shapes_kernel_specialization_strategy == "eager"


def test_a_directory_is_asked_for_by_name_and_may_be_read_only(trt, driver, small, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.delenv("REFIMPL_CACHE_DIR", raising=False)
    assert kernels.kernel_cache(small)._kept is None
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(tmp_path / "c"))
    monkeypatch.setenv("REFIMPL_CACHE_READ_ONLY", "1")
    run_once(small, driver, kernels.kernel_cache(small)).close()
    assert not (tmp_path / "c").exists()
    monkeypatch.setenv("REFIMPL_CACHE_READ_ONLY", "0")
    run_once(small, driver, kernels.kernel_cache(small)).close()
    assert len(list((tmp_path / "c" / "kernels").iterdir())) == 1
    before = kernels.kernel_cache(small)._kept
    monkeypatch.setattr(gpus, "list_gpus", lambda: ("13.0", (H100,)))
    assert kernels.kernel_cache(small)._kept != before, "another GPU has kernels of its own"


def test_a_directory_that_cannot_be_written_to_is_none(trt, driver, small, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("in the way")
    run_once(small, driver, KernelCache(None, tmp_path / "file" / "k")).close()


def test_without_a_runtime_configuration_contexts_take_the_strategy(trt, driver, small, monkeypatch):  # noqa: F811
    monkeypatch.delattr(fake.FakeEngine, "create_runtime_config")
    run_once(small, driver).close()
    assert trt.configs == []


def test_compiled_kernels_come_from_a_run(trt, driver, small, monkeypatch):  # noqa: F811
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "")
    monkeypatch.setattr(cuda, "device", lambda: Device(driver))
    assert tensorrt.compiled_kernels(small, [[np.ones(2, np.float32)]]) == fake.KERNELS
    assert driver.leaks() == {}
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "no GPU")
    assert tensorrt.compiled_kernels(small, []) == b""


def test_targets_are_checked_before_any_work(tmp_path, capsys):
    with pytest.raises(RecipeError, match="target 'ada' is no compute capability"):
        Recipe(targets=("ada",))
    assert main("convert", saved_model("odd_ops"), tmp_path / "b", "--target", "8.6") == 2
    assert "give sm86 for 8.6" in capsys.readouterr()[1]


def test_targets_that_the_library_does_not_know_are_refused(monkeypatch, trt):  # noqa: F811
    with pytest.raises(UnsupportedError, match=r"--target sm86: tensorrt_rtx 9\.9\.9\.9 cannot build for it") as caught:
        targets.check_targets(["sm86"])
    assert "refimpl[rtx]" in caught.value.hint
    targets.check_targets([])


@needs_tensorrt
def test_engines_for_gpus_that_are_not_here(tmp_path, capsys):
    known = targets.known_targets(library.require())
    if not known:
        pytest.skip("this TensorRT builds for the GPU that is here")
    folder = tmp_path / "b"
    options = ("--engine", "tensorrt", "--target", ",".join(known[-2:]))
    assert main("convert", saved_model("odd_ops"), folder, *options) == 0
    records = [item for island in bundle.read(folder).islands for item in island.engines if item.kind == "tensorrt"]
    assert records
    assert {item.targets for item in records} == {known[-2:]}
    assert main("convert", saved_model("odd_ops"), tmp_path / "c", "--engine", "tensorrt", "--target", "sm10") == 2
    assert f"it builds for {', '.join(known)}" in capsys.readouterr()[1]


def test_a_target_without_an_engine_is_told(tmp_path, capsys):
    assert main("convert", saved_model("odd_ops"), tmp_path / "b", "--target", "sm86") == 0
    assert "--target is for --engine tensorrt: it does nothing here" in capsys.readouterr()[1]


def test_every_feature_can_be_missing():
    assert not any(feature.there(object()) for feature in FEATURES)


@needs_tensorrt
def test_features_are_asked_of_the_library():
    found = tensorrt.features()
    assert list(found) == [feature.name for feature in FEATURES]
    assert found["output allocator"]


@needs_tensorrt
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_int8_is_asked_by_building(op, monkeypatch):
    from refimpl.engines.tensorrt import capabilities
    from refimpl.errors import BuildError

    seen = []
    real = capabilities.build
    monkeypatch.setattr(capabilities, "build", lambda *given: seen.append(given) or real(*given))
    tensorrt.int8_problem.cache_clear()
    first = tensorrt.int8_problem(op)
    assert tensorrt.int8_problem(op) == first
    assert len(seen) == 1, "once per process"

    def refuse(*_):
        raise BuildError("no kernel")

    monkeypatch.setattr(capabilities, "build", refuse)
    tensorrt.int8_problem.cache_clear()
    assert tensorrt.int8_problem(op) == f"{tensorrt.version()} builds no int8 {op}: no kernel"
    tensorrt.int8_problem.cache_clear()


class Island:
    """An owner of one island whose engine runs on the fake GPU."""

    def __init__(self, engine, *, finite_only=False) -> None:
        self.path, self.problem, self.manifest, self.kinds, self.off = "b", "", None, ("tensorrt",), False
        self.runs = []
        self.recorded, self.kept = False, []
        self.island = runtime.island.IslandRuntime(self, "i")
        self.island._record = bundle.IslandRecord(
            name="i", ops=(), inputs=(), outputs=(), engines=(), probe="", finite_only=finite_only, precision="fp32",
            verified="",
        )  # fmt: skip
        self.island._candidates = [(runtime.island.IslandRun("i", "tensorrt", ""), engine)]

    def count(self, run) -> None:
        self.runs.append((run.engine, run.reason))

    def keep(self, name, inputs, outputs) -> None:
        self.kept.append((name, inputs, outputs))


class Everywhere(Producer):
    """A tensor on the GPU, with what the tensors of all libraries have."""

    shape = property(lambda self: self.array.shape)


def test_tensors_on_the_gpu_stay_there(trt, driver, small):  # noqa: F811
    owner = Island(TrtEngine(small, Device(driver)))
    (y,) = owner.island.call_device([Everywhere(np.ones(2, np.float32))])
    assert np.array_equal(np.from_dlpack(OnHost(y)), [2, 2])
    assert not [call for call in driver.calls if "Memcpy" in call]
    assert owner.runs == [("tensorrt", "")]


def test_where_engines_are_off_nothing_runs_and_nothing_is_counted(trt, driver, small):  # noqa: F811
    owner = Island(TrtEngine(small, Device(driver)))
    owner.off = True
    assert owner.island.call_device([Everywhere(np.ones(2, np.float32))]) is None
    assert owner.runs == []


def test_kernels_are_kept_of_calls_on_the_gpu_too(trt, driver, small, tmp_path):  # noqa: F811
    engine = TrtEngine(small, Device(driver), kernels=KernelCache(kept=tmp_path / "kept"))
    engine.run_device([Producer(np.ones(2, np.float32))])
    assert (tmp_path / "kept").read_bytes().endswith(fake.KERNELS)
    engine.close()


def test_what_must_be_looked_at_is_looked_at_on_the_gpu(trt, driver, small):  # noqa: F811
    owner = Island(TrtEngine(small, Device(driver)), finite_only=True)
    (y,) = owner.island.call_device([Everywhere(np.ones(2, np.float32))])
    assert np.array_equal(np.from_dlpack(OnHost(y)), [2, 2])
    assert owner.island.call_device([Everywhere(np.array([np.nan, 1], np.float32))]) is None
    with np.errstate(over="ignore"):
        assert owner.island.call_device([Everywhere(np.full(2, 3e38, np.float32))]) is None
    reasons = [("native", runtime.NOT_FINITE), ("native", runtime.MADE_NOT_FINITE)]
    assert owner.runs == [("tensorrt", ""), *reasons]
    assert not [call for call in driver.calls if "HtoD" in call and "Memcpy" in call][8:], ()


def test_what_cannot_run_on_the_device_goes_through_the_host(trt, driver, small):  # noqa: F811
    owner = Island(TrtEngine(small, Device(driver)))
    with logged() as lines:
        (y,) = owner.island.call_device([Everywhere(np.ones(2, np.float32), number=5)])
    assert np.array_equal(y, [2, 2])
    assert "goes through the host: an input is on another GPU" in "".join(lines)


def test_the_function_behind_engine_nodes_takes_tensors_on_the_gpu(trt, driver, small, monkeypatch):  # noqa: F811
    owner = Island(TrtEngine(small, Device(driver)))
    monkeypatch.setattr(owner, "island", lambda name, found=owner.island: found, raising=False)
    monkeypatch.setattr(runtime.opened, "runtime_of", lambda *_: owner)
    flag, y = runtime.call_engine(b"a", b"i", b"id", b"float32", Everywhere(np.ones(2, np.float32)))
    assert flag
    assert y.__dlpack_device__() == (2, 0)
    assert owner.kept == []


def test_a_recording_misses_no_call_with_tensors_on_the_gpu(trt, driver, small, monkeypatch):  # noqa: F811
    owner = Island(TrtEngine(small, Device(driver)))
    owner.recorded = True
    monkeypatch.setattr(owner, "island", lambda name, found=owner.island: found, raising=False)
    monkeypatch.setattr(runtime.opened, "runtime_of", lambda *_: owner)
    flag, y = runtime.call_engine(b"a", b"i", b"id", b"float32", Everywhere(np.ones(2, np.float32)))
    assert flag
    assert isinstance(y, np.ndarray)
    ((name, inputs, outputs),) = owner.kept
    assert (name, inputs[0].tolist(), outputs[0].tolist()) == ("i", [1, 1], [2, 2])
    flag, y = runtime.call_engine(b"a", b"i", b"id", b"float32", np.ones(2, np.float32))
    assert isinstance(y, np.ndarray)
    gc.collect()


@needs_tensorrt
def test_a_bundle_of_another_version_falls_back_with_the_reason(tmp_path, monkeypatch):
    folder = tmp_path / "b"
    refimpl.convert(saved_model("odd_ops"), folder, refimpl.Recipe(engines=("onnxruntime", "tensorrt")))
    monkeypatch.setattr(tensorrt, "why_not_here", lambda: "")
    monkeypatch.setattr(tensorrt, "version", lambda: "tensorrt_rtx 0.1")
    from tests.bundles import feeds_of

    with logged() as lines:
        result = refimpl.load(folder).run(feeds_of("odd_ops"))
    assert {run.engine for run in result.islands} == {"onnxruntime"}
    assert "and tensorrt_rtx 0.1 is installed; engines are tied to the version that built them" in "".join(lines)
