"""A bundle whose int8 the TensorRT at hand could not build says so, and is completed by the command that it gives."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from refimpl import bundle, calibration
from refimpl.advice import advise_bundle
from refimpl.advice.int8 import NOT_BUILT
from refimpl.bundle import CALIBRATION, Manifest
from refimpl.engines import tensorrt
from refimpl.graph_record import read_graphs
from tests.bundles import main
from tests.precision.helpers import batches, convert, images, small_cnn

OLD = "tensorrt_rtx 1.6.1.120"
needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")


def old_library(op: str) -> str:
    """As TensorRT for RTX before 1.7."""
    return f"{OLD} builds no int8 {op}: no runners that implement it" if op.startswith("Conv") else ""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cnn(tmp_path_factory.mktemp("cnn") / "model")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for number, item in enumerate(batches(2)()):
        np.savez(folder / f"{number}.npz", **item)
    return folder


@pytest.fixture(scope="module")
def incomplete(model: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("incomplete") / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt, "int8_problem", old_library)
        convert(
            model, folder, precision="int8", engines=("onnxruntime", "tensorrt"), calibration=str(samples)
        )  # fmt: skip
    return folder


def counts(manifest: Manifest) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for island in manifest.islands:
        for _, op, precision, _ in island.layers:
            found[op, precision] = found.get((op, precision), 0) + 1
    return found


def advice_of(folder: Path, here=None):
    found = advise_bundle(bundle.read(folder), read_graphs(folder), here)
    return [item for item in found if item.family == NOT_BUILT]


@needs_tensorrt
def test_what_is_missing_is_said_with_the_command(incomplete: Path) -> None:
    (found,) = advice_of(incomplete)
    assert found.title == f"3 layers compute in fp16, not in int8: {OLD} builds no int8 Conv"
    assert found.needed
    assert found.islands == tuple(island.name for island in bundle.read(incomplete).islands)
    assert found.action.startswith("convert again where a newer TensorRT is (TensorRT for RTX builds convolutions")
    (same,) = advice_of(incomplete, old_library)
    assert same.action == found.action
    (here,) = advice_of(incomplete, lambda op: "")
    assert here.action.startswith("the TensorRT that is installed here builds them; convert again: refimpl convert ")


@needs_tensorrt
def test_the_command_completes_the_bundle(
    incomplete: Path, model: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where convolutions build. The library at hand need not: here no engine of TensorRT is asked for. The samples are
    others, so the ranges can only come from the bundle.
    """
    few = tmp_path / "few.npz"
    np.savez(few, **images(4, seed=11, scale=0.5))
    monkeypatch.setattr(tensorrt, "int8_problem", lambda op: "")
    (found,) = advice_of(incomplete)
    words = shlex.split(found.action.split(": refimpl ", 1)[1])
    places = {"MODEL": model, "NEW_BUNDLE": tmp_path / "b", "A_FEW_SAMPLES": few}
    places[f"BUNDLE/{CALIBRATION}"] = incomplete / CALIBRATION
    if tensorrt_builds_none():
        words[words.index("tensorrt")] = "onnxruntime"
    assert main(*(places.get(word, word) for word in words)) == 0
    before, after = bundle.read(incomplete), bundle.read(tmp_path / "b")
    products = sum(counts(before).values())
    assert counts(before)["Conv", "fp16"] == 3
    assert counts(after)["Conv", "int8"] == 3
    assert sum(counts(after).values()) == products
    assert advice_of(tmp_path / "b") == []
    old, new = (calibration.load(folder / CALIBRATION) for folder in (incomplete, tmp_path / "b"))
    assert [item.ranges for item in new] == [item.ranges for item in old]
    convert(model, tmp_path / "straight", precision="int8", calibration=str(samples))
    assert onnx_of(tmp_path / "b") == onnx_of(tmp_path / "straight"), "as if it had been converted there"


def tensorrt_builds_none() -> bool:
    """Whether the real library builds no int8 convolution."""
    from refimpl.engines.tensorrt import capabilities

    return bool(capabilities.int8_problem("Conv"))


def onnx_of(folder: Path) -> list[bytes]:
    """The nodes and weights of its islands, without what they say of themselves to people."""
    files = [item.file for island in bundle.read(folder).islands for item in island.engines if item.kind != "tensorrt"]
    graphs = [onnx.load(folder / file).graph for file in files]
    for graph in graphs:
        graph.doc_string = ""
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
    return [graph.SerializeToString(deterministic=True) for graph in graphs]


@needs_tensorrt
def test_inspect_tells(incomplete: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "int8_problem", lambda op: "")
    assert main("inspect", incomplete) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"3 layers compute in fp16, not in int8: {OLD} builds no int8 Conv" in said
    assert "do: the TensorRT that is installed here builds them; convert again: refimpl convert" in said


@needs_tensorrt
@pytest.mark.skipif(not tensorrt.version() or not tensorrt.int8_problem("Conv"), reason="this TensorRT builds them")
def test_a_library_that_really_builds_none(model: Path, samples: Path, tmp_path: Path) -> None:
    engines = ("onnxruntime", "tensorrt")
    manifest = convert(model, tmp_path / "b", precision="int8", engines=engines, calibration=str(samples))
    assert counts(manifest)["Conv", "fp16"] == 3
    (found,) = advice_of(tmp_path / "b", tensorrt.int8_problem)
    assert found.reasons == (f"{tensorrt.version()} builds no int8 Conv",)
    assert found.action.startswith("convert again where a newer TensorRT is")
