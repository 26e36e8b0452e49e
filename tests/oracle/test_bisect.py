"""``bisect`` outside of islands: TensorFlow here, ops between islands, the runtime, refused engines; the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from onnx import numpy_helper
from rich.console import Console

import refimpl
from refimpl import bundle, oracle, runtime
from refimpl.engines import onnxruntime
from refimpl.errors import GoldenError, RecipeError
from refimpl.oracle.bisect import Origin, Place, bisect, render
from refimpl.oracle.bisect.reference import ReferenceGraph
from refimpl.recipe import Recipe
from tests.bundles import assert_refused, main, make_bundle
from tests.models import sample_inputs, saved_model
from tests.models_ops import normal, spec
from tests.oracle.planting import edit_island, golden_of, instead, operand, planted, scaled, shifted, unguard
from tests.precision.helpers import Tiny, convert

NMS = "detector"


def cliff(folder: Path) -> tuple[Path, Path]:
    """A bundle and a golden record of a model in which an op that stays in TensorFlow makes much of little."""
    a, b = tf.Variable(normal(8, 8, seed=1)), tf.Variable(normal(8, 4, seed=2))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(tf.tanh(x @ a) @ b) + 1.0
        return {"z": tf.sin(tf.cast(y, tf.float64) * 50.0, name="cliff")}

    model = Tiny(call, spec((None, 8), name="x"), holds=(a, b)).save(folder / "model")
    convert(model, folder / "bundle")
    np.savez(folder / "sample.npz", x=normal(4, 8, seed=3))
    oracle.record(model, folder / "golden", cases=str(folder / "sample.npz"))
    return folder / "bundle", folder / "golden"


def nudged(model: Any) -> None:
    """The island's last weight, by less than the tolerance of its result."""
    for item in model.graph.initializer:
        value = numpy_helper.to_array(item).copy()
        if value.shape == (8, 4):
            value *= np.float32(1 + 8e-5)
            item.CopyFrom(numpy_helper.from_array(value, item.name))


def test_an_op_in_tensorflow_makes_much_of_little(tmp_path: Path) -> None:
    path, golden = cliff(tmp_path)
    unguard(path)
    edit_island(path, nudged)
    found = bisect(path, golden).finding
    assert found is not None
    assert (found.place, found.origin) == (Place.TENSORFLOW, Origin.AMPLIFIED)
    assert found.op[1] == "Sin"
    assert found.op[0].endswith("/cliff")
    assert found.island == ""
    assert found.share > 1


def test_an_engine_that_the_runtime_refuses_is_searched_all_the_same(tmp_path: Path) -> None:
    path = planted(NMS, tmp_path, instead("Relu_1", "Tanh"), guarded=True)
    found = bisect(path, golden_of(NMS)).finding
    assert found is not None
    assert (found.place, found.origin, found.op[1]) == (Place.ISLAND, Origin.BORN, "Relu")
    assert any("the runtime does not use this engine" in line and "disagrees" in line for line in found.remarks)


def test_tensorflow_here_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ReferenceGraph.run

    def other(self: ReferenceGraph, *args: Any) -> dict[str, np.ndarray]:
        found = real(self, *args)
        return {name: value * 1.01 if name.startswith("result/") else value for name, value in found.items()}

    monkeypatch.setattr(ReferenceGraph, "run", other)
    found = bisect(make_bundle("lstm"), golden_of("lstm")).finding
    assert found is not None
    assert (found.place, found.op, found.island) == (Place.ENVIRONMENT, ("", ""), "")
    assert "TensorFlow itself" in found.remarks[0]


def test_a_wrong_engine_of_a_right_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a wrong fusion, or a library's bug: the node by node run is right, the engine is not."""
    real = onnxruntime.open

    class Wrong:
        def __init__(self, path: Path) -> None:
            self._engine = real(path)

        def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [value * np.float32(1.1) for value in self._engine.run(inputs)]

    path = planted("lstm", tmp_path, lambda model: None)
    monkeypatch.setattr(onnxruntime, "open", Wrong)
    found = bisect(path, golden_of("lstm")).finding
    assert found is not None
    assert found.place is Place.ENGINE
    assert found.nodes == ()
    assert "every ONNX node is right by itself" in found.remarks[0]
    assert "one of them is wrong" in found.remarks[1]


def test_a_runtime_that_hands_over_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = planted("lstm", tmp_path, lambda model: None)
    real = runtime.island.IslandRuntime.call

    def stale(self: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        outputs = real(self, inputs)
        return outputs and [value[::-1].copy() for value in outputs]

    monkeypatch.setattr(runtime.island.IslandRuntime, "call", stale)
    found = bisect(path, golden_of("lstm")).finding
    assert found is not None
    assert found.place is Place.RUNTIME
    assert found.cut.endswith("BiasAdd:0")


def test_recording_keeps_copies_of_what_islands_saw() -> None:
    loaded = runtime.load(make_bundle("odd_ops"))
    inputs = sample_inputs("odd_ops")[0]
    with loaded.recording() as tape:
        loaded.run(inputs)
    assert [call.island for call in tape] == ["TRTEngineOp_000_000", "TRTEngineOp_000_001"]
    first, second = tape
    assert first.outputs is not None
    assert second.outputs is not None
    np.testing.assert_array_equal(first.inputs[0], inputs["x"])
    assert any(np.array_equal(first.outputs[0], value) for value in second.inputs)
    loaded.run(inputs)
    assert len(tape) == 2, "nothing is kept afterwards"


def test_every_op_can_be_fetched_by_its_own_name() -> None:
    path = make_bundle("odd_ops")
    manifest = bundle.read(path)
    (record,) = [item for item in manifest.signatures if item.islands]
    reference = ReferenceGraph(path, manifest.tags, "serving_default", [spec.name for spec in record.signature.outputs])
    own = {name for island in record.islands for name, _ in island.ops}
    assert own <= reference.ops.keys()
    assert [segment.name for segment in reference.segments] == [island.name for island in record.islands]
    inputs = sample_inputs("odd_ops")[0]
    names = [name for op in reference.ops.values() for name in op.outputs]
    found = reference.run(inputs, [*names, *reference.results.values()])
    assert set(names) <= found.keys()
    (place,) = [name for name in names if name.endswith("/Svd:0")]
    fed = reference.run(inputs, reference.results.values(), {place: np.zeros_like(found[place])})
    assert not fed[reference.results["values"]].any()
    reference.close()


def test_the_case_can_be_chosen(tmp_path: Path) -> None:
    path = planted("lstm", tmp_path, operand("LSTM", 1, scaled(1.1)))
    report = bisect(path, golden_of("lstm"), case="serving_default/sample")
    assert report.finding is not None
    assert report.finding.case == "sample"
    with pytest.raises(GoldenError, match="no case 'nonsense'"):
        bisect(path, golden_of("lstm"), case="nonsense")


def test_the_engine_can_be_chosen(tmp_path: Path) -> None:
    path = planted("lstm", tmp_path, operand("dense_1/BiasAdd", 1, shifted(3.0)))
    report = bisect(path, golden_of("lstm"), engines=("numpy",))
    assert report.finding is not None
    assert report.finding.engine == "numpy"
    assert report.finding.op[1] == "BiasAdd"


def test_an_engine_that_is_not_stored_is_no_culprit(tmp_path: Path) -> None:
    path = planted("lstm", tmp_path, operand("dense_1/BiasAdd", 1, shifted(3.0)))
    with pytest.raises(RecipeError, match="the bundle stores no tensorrt engine"):
        bisect(path, golden_of("lstm"), engines=("tensorrt",))


def test_a_bundle_without_islands_has_nothing_to_search(tmp_path: Path) -> None:
    refimpl.convert(saved_model("lstm"), tmp_path / "bundle", Recipe(keep_in_tf=("*",)))
    report = bisect(tmp_path / "bundle", golden_of("lstm"))
    assert (report.exit_code, report.cases) == (0, ())
    console = Console(width=80, record=True)
    render.print_report(report, console)
    assert "NOTHING SEARCHED" in console.export_text()


# The command line


def test_the_command_finds(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = planted("lstm", tmp_path, operand("LSTM", 1, scaled(1.1)))
    assert main("bisect", path, golden_of("lstm")) == 1
    out, err = capfd.readouterr()
    assert "lstm_1/while" in out.replace("\n", "").replace(" ", "")
    assert out.rstrip().splitlines()[-1].endswith("born there")
    assert "searching" in err
    assert max(map(len, out.splitlines())) <= 80
    assert main("bisect", path, golden_of("lstm"), "--json") == 1
    data = json.loads(capfd.readouterr().out)
    assert data["finding"]["op"][1] == "While"
    assert data["finding"]["origin"] == "born"
    assert data["ranking"] is None


def test_the_command_finds_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert main("bisect", make_bundle("lstm"), golden_of("lstm"), "--rank") == 0
    out = capfd.readouterr().out
    assert "NOTHING TO FIND: 1 case" in out
    assert "nothing to rank" in out


def test_the_command_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert_refused(capfd, "bisect", make_bundle("lstm"), golden_of(NMS), says="another SavedModel", hint="again")
    assert_refused(capfd, "bisect", "nowhere", golden_of(NMS), says="no such bundle", hint="convert")
    assert_refused(capfd, "bisect", make_bundle("lstm"), "nowhere", says="does not exist", hint="record")
    assert_refused(
        capfd, "bisect", make_bundle("lstm"), golden_of("lstm"), "--case", "x", says="no case 'x'", hint="has"
    )
