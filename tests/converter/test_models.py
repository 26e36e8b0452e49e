"""Every model from SavedModel to verdict: what the plan looks like, then what the bundle answers, then ``check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import oracle
from refimpl.bundle import IDLE_OPS, Manifest, SignatureRecord
from refimpl.converter import graphdefs as gd
from refimpl.converter.load import signature_graph
from refimpl.converter.source import Source
from refimpl.engines import tensorrt
from refimpl.env import onednn_is_off
from refimpl.oracle.compare import compare
from refimpl.oracle.runners import SavedModelRunner
from refimpl.runtime import BY_DESIGN, IslandRun
from refimpl.tolerance import tolerance_for
from tests.converter import cases
from tests.converter.graphs import are_convex, reaches
from tests.models import MODELS, Expect, sample_inputs

Inputs = Mapping[str, np.ndarray]
ENGINES = ("onnxruntime", "tensorrt") if tensorrt.version() else ("onnxruntime",)
# What a cut may carry: a TensorFlow string, resource or float64 has no place in an engine.
CUT_DTYPES = {"float32", "float16", "int8", "uint8", "int32", "int64", "bool"}
# Their other signature, ``serve``, is the same function; converting it as well would only take as long again.
LARGE = {"resnet50", "mobilenetv2", "efficientnetb0", "convnexttiny", "inceptionv3", "vit", "bert", "spliceai"}
NEED_SAMPLES = {"decode_and_label", "spliceai"}  # no input that can be made up runs through them
NAMES = [name for name, row in MODELS.items() if not row.expect.in_process_only]
SLOW = {name for name in NAMES if MODELS[name].expect.slow} | {"resnet50", "mobilenetv2", "basic_pitch"}
ROWS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NAMES]


@pytest.mark.parametrize("name", ROWS)
def test_model(name: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    source, bundle = model(name), tmp_path / "bundle"
    signatures = ("serving_default",) if name in LARGE else ("*",)
    calibration = f"tests.converter.cases:{name}" if name in NEED_SAMPLES else ""
    recipe = refimpl.Recipe(signatures=signatures, engines=ENGINES, calibration=calibration)
    manifest = refimpl.convert(source, bundle, recipe)
    check_structure(name, source, manifest)
    check_answers(name, source, bundle, manifest)
    check_verdict(name, source, bundle, tmp_path / "golden", manifest)


# --- what the plan looks like


def check_structure(name: str, source: Path, manifest: Manifest) -> None:
    expect = MODELS[name].expect
    records = {record.signature.key: record for record in manifest.signatures}
    assert set(expect.others) <= set(records)
    main = records["serving_default"]
    by_parser = "parser" in manifest.judge
    assert main.share >= expect.min_share
    if by_parser:
        assert len(main.islands) == expect.islands
        assert {op.type for op in main.left if not is_small(op.reason)} == set(expect.stay)
    for record in records.values():
        check_reasons(record, expect)
        check_islands(record)
    if "serve" in records and name not in LARGE:
        assert op_types(records["serve"]) == op_types(main)
    with Source(source) as opened:
        for key, record in records.items():
            if record.converted:
                check_cuts(record, opened, key)


def is_small(reason: str) -> bool:
    return "fewer than min_segment_size=3" in reason


def check_reasons(record: SignatureRecord, expect: Expect) -> None:
    """Every op is converted, idle, or left with a reason that was foreseen for its type."""
    converted = {op for island in record.islands for op, _ in island.ops}
    left = {op.name for op in record.left}
    assert not converted & left
    for op in record.left:
        if not is_small(op.reason):
            assert expect.stay.get(op.type, "not foreseen") in op.reason, f"{op.type}: {op.reason}"
    if record.converted:
        assert record.ops_converted + len(left) == record.ops_total
    else:
        assert record.reason


def check_islands(record: SignatureRecord) -> None:
    for island in record.islands:
        assert island.ops
        assert any(kind not in IDLE_OPS for _, kind in island.ops)
        assert {spec.dtype for spec in (*island.inputs, *island.outputs)} <= CUT_DTYPES
        assert all(spec.shape is not None for spec in (*island.inputs, *island.outputs))
        assert [engine.kind for engine in island.engines] == list(ENGINES)
        assert island.verified.endswith("samples agree with TensorFlow")
        assert island.probe


def op_types(record: SignatureRecord) -> list[Counter[str]]:
    return [Counter(kind for _, kind in island.ops) for island in record.islands]


def check_cuts(record: SignatureRecord, opened: Source, key: str) -> None:
    """On the model's own nodes: islands are convex, and what enters and leaves one is just what crosses its border."""
    nodes = {node.name: node for node in signature_graph(opened, key).graph_def.node}
    edges = {name: [gd.parse_ref(text).node for text in node.input] for name, node in nodes.items()}
    islands = [[op for op, _ in island.ops] for island in record.islands]
    names = [name for island in islands for name in island]
    assert len(names) == len(set(names))
    assert all(nodes[op].op == kind for island in record.islands for op, kind in island.ops)
    assert are_convex(edges, islands)
    readers: dict[str, set[str]] = {}
    for node in nodes.values():
        for ref in gd.data_inputs(node):
            readers.setdefault(ref.tensor, set()).add(node.name)
    live = {name for name in nodes if any(reaches(edges, arg, name) for arg in nodes if arg.startswith("arg/"))}
    for island in record.islands:
        inside = {op for op, _ in island.ops}
        reads = {ref for op in inside for ref in gd.data_inputs(nodes[op]) if ref.node in live - inside}
        assert {spec.name for spec in island.inputs} == {ref.tensor for ref in reads}
        leaves = {tensor for tensor in readers if gd.parse_ref(tensor).node in inside and readers[tensor] - inside}
        assert {spec.name for spec in island.outputs} == leaves


# --- what it answers


def check_answers(name: str, source: Path, bundle: Path, manifest: Manifest) -> None:
    """``tf.saved_model.load`` and TensorFlow's own answers, for every signature, for every sample and its variants."""
    expect = MODELS[name].expect
    loaded = tf.saved_model.load(str(bundle))
    assert set(loaded.signatures) >= {record.signature.key for record in manifest.signatures}
    watcher = refimpl.load(bundle)
    feeds: dict[str, list[Inputs]] = {"serving_default": list(sample_inputs(name))}
    feeds |= {key: [make(np.random.default_rng(0))] for key, make in expect.others.items()}
    if "serve" in loaded.signatures:
        feeds["serve"] = feeds["serving_default"][:1]
    with closing(SavedModelRunner(source)) as truth:
        for key, samples in feeds.items():
            record = next(item for item in manifest.signatures if item.signature.key == key)
            for inputs in samples:
                ran = compare_with_truth([truth], loaded, watcher, record, inputs, manifest.precision)
                check_runs(record, ran, inputs)
            if record.converted and not expect.slow:
                truths = [Served(source), truth] if expect.loads else [truth]
                fresh = tf.saved_model.load(str(bundle))  # state (a counter) starts anew on both sides
                for inputs in variants_of(samples[0], record, no_rows=takes_no_rows(record)):
                    compare_with_truth(truths, fresh, watcher, record, inputs, manifest.precision)


class Served:
    """The model itself, loaded as the bundle is.

    TensorFlow's fused kernels make other things of a NaN than its plain ones: there is more than one truth.
    """

    def __init__(self, source: Path) -> None:
        self.signatures = tf.saved_model.load(str(source)).signatures

    def run(self, inputs: Inputs, key: str) -> dict[str, np.ndarray]:
        raw = self.signatures[key](**{name: tf.constant(value) for name, value in inputs.items()})
        return {output: array_of(tensor) for output, tensor in raw.items()}


def compare_with_truth(
    truths: Sequence[SavedModelRunner | Served],
    loaded: Any,
    watcher: Any,
    record: SignatureRecord,
    inputs: Inputs,
    precision: str,
) -> Counter[IslandRun]:
    """One call, which must agree with one of the truths; what ran the islands meanwhile."""
    key = record.signature.key
    before = Counter(watcher.counts())
    raw = loaded.signatures[key](**{name: tf.constant(value) for name, value in inputs.items()})
    ran = Counter(watcher.counts()) - before
    assert {output: tensor.dtype.name for output, tensor in raw.items()} == {
        spec.name: spec.dtype for spec in record.signature.outputs
    }
    got = {output: array_of(tensor) for output, tensor in raw.items()}
    wanted = [truth.run(inputs, key) for truth in truths]
    comparisons = [compare(want, got, lambda dtype: tolerance_for(precision, dtype)) for want in wanted]
    comparison = next((item for item in comparisons if item.ok), comparisons[0])
    assert comparison.ok, f"{key}, {[value.shape for value in inputs.values()]}: {comparison.reason}"
    return ran


def array_of(tensor: Any) -> np.ndarray:
    value = tensor.numpy()
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)


def check_runs(record: SignatureRecord, ran: Counter[IslandRun], inputs: Inputs) -> None:
    """Every island ran once, in an engine unless its values may not go into one."""
    assert Counter(run.island for run in ran.elements()) == Counter(island.name for island in record.islands)
    finite = all(np.isfinite(value).all() for value in inputs.values() if value.dtype.kind == "f")
    for run in ran:
        if all(value.size for value in inputs.values()) and finite:
            assert (run.engine, run.reason) == ("onnxruntime", "")
        else:
            assert run.engine == "onnxruntime" or run.reason in BY_DESIGN


def takes_no_rows(record: SignatureRecord) -> bool:
    """Whether TensorFlow has an answer for no rows: with oneDNN, its convolution gives them a wrong shape."""
    if onednn_is_off():
        return True
    kinds = {kind for island in record.islands for _, kind in island.ops} | {op.type for op in record.left}
    return not any("Conv" in kind for kind in kinds)


def variants_of(inputs: Inputs, record: SignatureRecord, *, no_rows: bool) -> Iterator[Inputs]:
    """The sample with NaN, infinities or both in every float input, and with no rows."""
    floats = [name for name, value in inputs.items() if value.dtype.kind == "f" and value.size]
    for bad in ([np.nan], [np.inf, -np.inf], [np.nan, np.inf, -np.inf]) if floats else ():
        changed = dict(inputs)
        for name in floats:
            value = inputs[name].copy()
            places = np.linspace(0, value.size - 1, 3 * len(bad)).astype(int)
            value.ravel()[places] = np.resize(np.array(bad, value.dtype), len(places))
            changed[name] = value
        yield changed
    open_batch = [spec.name for spec in record.signature.inputs if spec.shape is None or spec.shape[:1] == (None,)]
    if open_batch and no_rows:
        yield {name: value[:0] if name in open_batch else value for name, value in inputs.items()}


# --- the verdict


def check_verdict(name: str, source: Path, bundle: Path, golden: Path, manifest: Manifest) -> None:
    expect = MODELS[name].expect
    given = f"tests.converter.cases:{name}" if hasattr(cases, name) else None
    oracle.record(source, golden, cases=given, signatures=["serving_default", *expect.others])
    verdict = oracle.check(bundle, golden)
    rows = all(takes_no_rows(record) for record in manifest.signatures)
    judged = [case for case in verdict.cases if rows or case.kind != "empty-batch"]
    # The golden run is without fused kernels; see Served.
    judged = [case for case in judged if case.kind != "nonfinite" or case.accelerated]
    assert judged
    wanted = oracle.Outcome.MATCH if expect.islands else oracle.Outcome.MATCH_NOTHING_ACCELERATED
    for case in judged:
        assert case.outcome is wanted, f"{case.case}: {case.reason}"
    if len(judged) == len(verdict.cases):
        assert verdict.passed is bool(expect.islands)
