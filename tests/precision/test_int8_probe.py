"""What the TensorRT at hand cannot build in int8 is known before a whole island is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from refimpl.engines import tensorrt
from tests.precision.helpers import batches, convert, small_cnn


@pytest.mark.skipif(not tensorrt.version(), reason="neither tensorrt nor tensorrt_rtx is installed")
def test_what_tensorrt_does_not_build_in_int8_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with TensorRT for RTX before 1.7, whose int8 convolutions do not build."""
    monkeypatch.setattr(tensorrt, "int8_problem", lambda op: "no int8 Conv here" if op == "Conv" else "")
    cnn = small_cnn(tmp_path / "model")
    manifest = convert(cnn, tmp_path / "b", samples=batches(2), precision="int8", engines=("onnxruntime", "tensorrt"))
    kinds: dict[str, list[tuple[str, str]]] = {op: [] for op in ("Conv", "MatMul")}
    for island in manifest.islands:
        for _, op, precision, why in island.layers:
            kinds.setdefault(op, []).append((precision, why))
    assert kinds["Conv"] == [("fp16", "no int8 Conv here")] * 3
    assert {precision for precision, _ in (*kinds["MatMul"], *kinds.get("Gemm", ()))} == {"int8"}
    (island,) = manifest.islands
    assert not any("could be built" in note for note in island.notes)
