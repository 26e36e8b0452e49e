"""Wrong lowerings, optimizations and engines, planted on purpose: caught, and the right op is back in TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import oracle, runtime
from refimpl.bundle import SignatureRecord
from refimpl.converter import check_bundle, lower, refusals, rewrites, verify
from refimpl.converter import graphdefs as gd
from refimpl.engines import onnxruntime, tensorrt
from refimpl.errors import BuildError
from refimpl.runtime import NATIVE, NOT_FINITE
from tests.converter.small import ALL, assert_agrees, converted_types, default, left_types, write_model
from tests.models import sample_inputs
from tests.models_ops import normal, spec, vectors

Rule = Callable[[gd.NodeDef], list[gd.NodeDef]]
X = vectors(5, 8)(np.random.default_rng(1))
needs_tensorrt = pytest.mark.skipif(not tensorrt.version(), reason="no TensorRT is installed")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two dense layers with a Tanh, a Relu, a sum and an argmax between and behind."""
    a, b = tf.Variable(normal(8, 8, seed=80)), tf.Variable(normal(8, 8, seed=81))

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(x @ a + 0.3)
        y = tf.tanh(tf.transpose(tf.reshape(y, (-1, 2, 2, 2)), (0, 2, 1, 3)))
        z = tf.sigmoid(tf.reshape(y, (-1, 8)) @ b)
        return {"z": z, "sums": tf.reduce_sum(y, 1), "best": tf.argmax(z, -1)}

    return write_model(tmp_path / "model", call, spec((None, 8), name="x"), holds=(a, b))


def plant(monkeypatch: pytest.MonkeyPatch, kind: str, rule: Rule) -> None:
    """Lower every op of this type with ``rule`` from now on."""
    monkeypatch.setitem(rewrites.RULES, kind, lambda node, constant: rule(node))


def renamed(kind: str) -> Rule:
    """Lower an op as if it were another one."""

    def rule(node: gd.NodeDef) -> list[gd.NodeDef]:
        wrong = copied(node)
        wrong.op = kind
        return [wrong]

    return rule


def scaled(by: float) -> Rule:
    """Lower an op rightly, then multiply what it gives."""

    def rule(node: gd.NodeDef) -> list[gd.NodeDef]:
        right = copied(node)
        right.name = f"{node.name}/right"
        factor = constant(f"{node.name}/factor", np.float32(by))
        return [right, factor, gd.make_node(node.name, "Mul", [right.name, factor.name], T=node.attr["T"])]

    return rule


def with_input(position: int, value: Any) -> Rule:
    """Lower an op with another constant for one of its inputs, an axis for example."""

    def rule(node: gd.NodeDef) -> list[gd.NodeDef]:
        wrong = copied(node)
        wrong.input[position] = f"{node.name}/other"
        return [constant(wrong.input[position], np.asarray(value, np.int32)), wrong]

    return rule


def plus_one_of_int64(node: gd.NodeDef) -> list[gd.NodeDef]:
    right = copied(node)
    right.name = f"{node.name}/right"
    one = constant(f"{node.name}/one", np.int64(1))
    added = gd.make_node(node.name, "AddV2", [right.name, one.name], T=gd.type_attr(tf.int64.as_datatype_enum))
    return [right, one, added]


def copied(node: gd.NodeDef) -> gd.NodeDef:
    copy = gd.new_node_def()
    copy.CopyFrom(node)
    return copy


def constant(name: str, value: Any) -> gd.NodeDef:
    proto = tf.make_tensor_proto(value)
    node = gd.make_node(name, "Const", [], dtype=gd.type_attr(proto.dtype))
    node.attr["value"].tensor.CopyFrom(proto)
    return node


FAULTS = [
    pytest.param("Tanh", renamed("Sigmoid"), "max |Δ|", id="another function"),
    pytest.param("Relu", scaled(1.001), "max |Δ|", id="a tenth of a percent too large"),
    pytest.param("Sigmoid", scaled(float("nan")), "NaN at", id="not a number"),
    pytest.param("Sum", with_input(1, 2), "max |Δ|", id="another axis"),
    pytest.param("Transpose", with_input(1, (0, 1, 2, 3)), "max |Δ|", id="not transposed"),
    pytest.param("ArgMax", plus_one_of_int64, "elements differ", id="off by one"),
]


@pytest.mark.parametrize(("kind", "rule", "said"), FAULTS)
def test_a_wrong_lowering_ends_in_tensorflow(network, tmp_path, monkeypatch, kind, rule, said):
    fault_free = default(refimpl.convert(network, tmp_path / "right", ALL))
    assert not fault_free.left
    plant(monkeypatch, kind, rule)
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    (left,) = record.left
    assert left.type == kind
    assert said in left.reason
    assert "TensorFlow gives" in left.reason or "elements differ" in left.reason or "TensorFlow at" in left.reason
    assert converted_types(record) == converted_types(fault_free) - Counter([kind])
    runs = assert_agrees(network, tmp_path / "bundle", X)
    assert {run.engine for run in runs} == {"onnxruntime"}


def test_a_lowering_of_another_shape_ends_in_tensorflow(network, tmp_path, monkeypatch):
    plant(monkeypatch, "Sum", with_input(1, (1, 2)))
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    assert left_types(record) == {"Sum": record.left[0].reason}
    assert record.left[0].reason.startswith("shape [")
    assert_agrees(network, tmp_path / "bundle", X)


def test_two_wrong_lowerings_at_once(network, tmp_path, monkeypatch):
    plant(monkeypatch, "Tanh", renamed("Sigmoid"))
    plant(monkeypatch, "ArgMax", plus_one_of_int64)
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    assert {op.type for op in record.left} == {"Tanh", "ArgMax"}
    assert_agrees(network, tmp_path / "bundle", X)


def test_tf2onnx_divides_integers_by_truncation_and_is_caught(model, tmp_path, monkeypatch):
    """Its FloorDiv and FloorMod of integers are those of C: the verifier finds it where it is not refused by name."""
    source = model("integer_division")
    known = default(refimpl.convert(source, tmp_path / "known", ALL))
    monkeypatch.setattr(refusals, "_by_division", lambda *_: "")
    found = default(refimpl.convert(source, tmp_path / "found", ALL))
    for record, said in ((known, "divided by something that may be zero"), (found, "elements differ")):
        floors = [op for op in record.left if op.type in ("FloorDiv", "FloorMod")]
        assert Counter(op.type for op in floors) == {"FloorDiv": 2, "FloorMod": 2}
        assert all(said in op.reason for op in floors)
        assert "FloorDiv" in converted_types(record)  # of float32
    for name in ("known", "found"):
        assert_agrees(source, tmp_path / name, sample_inputs("integer_division")[0])


@pytest.fixture
def integers(tmp_path: Path) -> Path:
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.abs(x * 3 + 1) - 2}

    return write_model(tmp_path / "model", call, spec((None,), tf.int32, "x"))


def test_wrong_for_negative_integers_only(integers, tmp_path, monkeypatch):
    plant(monkeypatch, "Abs", renamed("Identity"))
    record = default(refimpl.convert(integers, tmp_path / "bundle", ALL))
    assert set(left_types(record)) == {"Abs"}
    assert_agrees(integers, tmp_path / "bundle", {"x": np.arange(-9, 9, dtype=np.int32)})


def seven_for_nan(node: gd.NodeDef) -> list[gd.NodeDef]:
    """Right for every number; NaN becomes 7."""
    right = copied(node)
    right.name = f"{node.name}/right"
    test = gd.make_node(f"{node.name}/is_nan", "IsNan", [node.input[0]], T=node.attr["T"])
    seven = constant(f"{node.name}/seven", np.float32(7))
    pick = gd.make_node(node.name, "SelectV2", [test.name, seven.name, right.name], T=node.attr["T"])
    return [right, test, seven, pick]


def test_wrong_for_nan_only_keeps_the_engine_for_numbers(network, tmp_path, monkeypatch):
    fault_free = default(refimpl.convert(network, tmp_path / "right", replace(ALL, keep_in_tf=("ArgMax",))))
    assert [island.finite_only for island in fault_free.islands] == [False]
    plant(monkeypatch, "Tanh", seven_for_nan)
    record = default(refimpl.convert(network, tmp_path / "bundle", replace(ALL, keep_in_tf=("ArgMax",))))
    assert [island.finite_only for island in record.islands] == [True]
    assert {op.type for op in record.left} == {"ArgMax"}
    (run,) = assert_agrees(network, tmp_path / "bundle", X)
    assert run.engine == "onnxruntime"
    with_nan = {"x": X["x"].copy()}
    with_nan["x"][1, 2] = np.nan
    (run,) = assert_agrees(network, tmp_path / "bundle", with_nan)
    assert (run.engine, run.reason) == (NATIVE, NOT_FINITE)


# --- graph optimizations, files and builds


def test_a_wrong_graph_optimization_is_switched_off(network, tmp_path, monkeypatch):
    optimize = onnxruntime.optimize

    def corrupt(model: Any, weights: Any, target: Path) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == 1 and len(tensor.raw_data) >= 256:
                tensor.raw_data = tensor.raw_data[::-1]
        optimize(model, {name: -value for name, value in weights.items()}, target)

    monkeypatch.setattr(onnxruntime, "optimize", corrupt)
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    assert record.left == ()
    (island,) = record.islands
    (engine,) = island.engines
    assert engine.file.endswith(onnxruntime.PLAIN_SUFFIX)
    assert any(note.startswith("graph optimizations are off for it: with them, ") for note in island.notes)
    assert_agrees(network, tmp_path / "bundle", X)


def has_op(file: Path, kind: str) -> bool:
    import onnx

    return any(node.op_type == kind for node in onnx.load(file).graph.node)


def test_a_file_that_onnx_runtime_cannot_load(network, tmp_path, monkeypatch):
    for name in ("optimize", "save_plain"):
        save = getattr(onnxruntime, name)

        def damage(model: Any, weights: Any, target: Path, save: Any = save) -> None:
            save(model, weights, target)
            if has_op(target, "Tanh"):
                target.write_bytes(b"not a model")

        monkeypatch.setattr(onnxruntime, name, damage)
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    ((kind, reason),) = left_types(record).items()
    assert kind == "Tanh"
    assert reason.startswith("ONNX Runtime cannot load")
    assert_agrees(network, tmp_path / "bundle", X)


def failing_build(refuses: Callable[[Path], bool]) -> Any:
    build = tensorrt.build

    def wrapper(model: Path, target: Path, *rest: Any, **more: Any) -> None:
        if refuses(model):
            raise BuildError("planted: no tactic")
        build(model, target, *rest, **more)

    return wrapper


BOTH = replace(ALL, engines=("onnxruntime", "tensorrt"))


@needs_tensorrt
def test_a_failed_build_sends_the_op_back_and_builds_the_rest(network, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "build", failing_build(lambda model: has_op(model, "Tanh")))
    record = default(refimpl.convert(network, tmp_path / "bundle", BOTH))
    assert left_types(record) == {"Tanh": "tensorrt cannot build it: planted: no tactic"}
    assert all([engine.kind for engine in island.engines] == ["onnxruntime", "tensorrt"] for island in record.islands)
    assert_agrees(network, tmp_path / "bundle", X)


@needs_tensorrt
def test_a_build_that_fails_on_a_combination_sends_one_of_it_back(network, tmp_path, monkeypatch):
    def refuses(model: Path) -> bool:
        return has_op(model, "Relu") and has_op(model, "Tanh")

    monkeypatch.setattr(tensorrt, "build", failing_build(refuses))
    record = default(refimpl.convert(network, tmp_path / "bundle", BOTH))
    assert len(record.left) == 1
    assert "together with the ops before it" in record.left[0].reason
    assert record.ops_converted == record.ops_total - 1
    assert_agrees(network, tmp_path / "bundle", X)


@needs_tensorrt
def test_when_every_build_fails_all_stays_in_tensorflow(network, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "build", failing_build(lambda model: True))
    record = default(refimpl.convert(network, tmp_path / "bundle", BOTH))
    assert not record.converted
    assert "no island could be made" in record.reason
    assert len(record.left) == record.ops_total > 0
    assert_agrees(network, tmp_path / "bundle", X)


# --- tf2onnx breaks


def test_an_op_that_breaks_tf2onnx_stays_alone(network, tmp_path, monkeypatch):
    to_onnx = lower.to_onnx

    def breaks(graph: Any, ops: Any, *, marked: bool) -> Any:
        if any(graph.ops[name].type == "Tanh" for name in ops):
            raise ValueError("planted: cannot broadcast\nmore of it")
        return to_onnx(graph, ops, marked=marked)

    monkeypatch.setattr(lower, "to_onnx", breaks)
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    assert left_types(record) == {"Tanh": "tf2onnx fails on it: ValueError: planted: cannot broadcast"}
    assert record.ops_converted == record.ops_total - 1
    assert_agrees(network, tmp_path / "bundle", X)


def test_ops_that_break_tf2onnx_only_without_markers(network, tmp_path, monkeypatch):
    """The plan goes through, the island's own lowering does not."""
    to_onnx = lower.to_onnx

    def breaks(graph: Any, ops: Any, *, marked: bool) -> Any:
        if not marked and any(graph.ops[name].type == "Tanh" for name in ops):
            raise KeyError("planted")
        return to_onnx(graph, ops, marked=marked)

    monkeypatch.setattr(lower, "to_onnx", breaks)
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    assert left_types(record) == {"Tanh": "tf2onnx fails on it: KeyError: 'planted'"}
    assert_agrees(network, tmp_path / "bundle", X)


# --- verification that cannot fail must not exist


def blind(*args: Any) -> str:
    """A comparison that finds nothing wrong with anything."""
    return ""


def test_the_last_gate_catches_what_a_blind_verifier_lets_pass(network, tmp_path, monkeypatch):
    plant(monkeypatch, "Tanh", renamed("Sigmoid"))
    monkeypatch.setattr(verify, "disagreement", blind)
    monkeypatch.setattr(runtime.island, "disagreement", blind)
    with pytest.raises(BuildError, match=r"every island agrees with TensorFlow, but the whole does not: \w+: max"):
        refimpl.convert(network, tmp_path / "bundle", ALL)
    assert not (tmp_path / "bundle").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_the_runtime_does_not_use_an_engine_that_a_blind_verifier_let_pass(network, tmp_path, monkeypatch):
    """The stored probe holds TensorFlow's answer, so the first use on any machine finds it out."""
    plant(monkeypatch, "Tanh", renamed("Sigmoid"))
    monkeypatch.setattr(verify, "disagreement", blind)
    monkeypatch.setattr(check_bundle, "disagreement", blind)
    monkeypatch.setattr(check_bundle, "_require_engines", lambda *_: None)
    record = default(refimpl.convert(network, tmp_path / "bundle", ALL))
    assert not record.left
    runs = assert_agrees(network, tmp_path / "bundle", X)
    assert all(run.engine == NATIVE and "disagrees with TensorFlow on this machine" in run.reason for run in runs)


def test_the_oracle_catches_what_everybody_else_let_pass(network, tmp_path, monkeypatch):
    plant(monkeypatch, "Tanh", renamed("Sigmoid"))
    for module in (verify, runtime.island, check_bundle):
        monkeypatch.setattr(module, "disagreement", blind)
    refimpl.convert(network, tmp_path / "bundle", ALL)
    oracle.record(network, tmp_path / "golden")
    verdict = oracle.check(tmp_path / "bundle", tmp_path / "golden")
    assert verdict.outcome is oracle.Outcome.MISMATCH
    assert not verdict.passed


def test_what_was_not_verified_says_so(network, tmp_path):
    manifest = refimpl.convert(network, tmp_path / "bundle", replace(ALL, verify=False))
    assert not manifest.verified
    assert any(note.startswith("UNVERIFIED") for note in manifest.notes)
    assert all(island.verified == "" and island.probe == "" for island in manifest.islands)


def test_a_wrong_lowering_is_not_saved_by_no_verify(network, tmp_path, monkeypatch):
    """Without island by island there is still the bundle as a whole."""
    plant(monkeypatch, "Tanh", renamed("Sigmoid"))
    with pytest.raises(BuildError, match=r"nothing was verified \(--no-verify\), and the whole disagrees"):
        refimpl.convert(network, tmp_path / "bundle", replace(ALL, verify=False))


def test_islands_that_nothing_can_be_drawn_for_stay(tmp_path):
    """TensorFlow refuses every value but one that nobody guesses: unverifiable, so not converted."""

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        checked = tf.raw_ops.CheckNumerics(tensor=tf.reshape(x, (-1, 7, 11, 13)), message="")
        return {"y": tf.tanh(tf.nn.relu(checked))}

    source = write_model(tmp_path / "model", call, spec((None,), name="x"))
    record: SignatureRecord = default(refimpl.convert(source, tmp_path / "bundle", ALL))
    for op in record.left:
        assert "it is a check" in op.reason or "could not be verified" in op.reason
    x = {"x": np.linspace(-3, 3, 1001, dtype=np.float32)}
    assert_agrees(source, tmp_path / "bundle", x)
