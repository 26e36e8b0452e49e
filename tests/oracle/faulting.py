"""Real bundles with one fault each, and what a verdict must say of it.

The bundles are those of ``golden/`` (and of the zoo): converted here, judged by real golden records. A fault is planted
in the ONNX of an island, in an engine at work, in the files of the bundle, or in the answers on their way out.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import refimpl
from refimpl.oracle import CheckOptions, Outcome, Verdict, read_golden
from refimpl.oracle.check import STRICT, check_record
from refimpl.oracle.golden import Golden
from refimpl.oracle.runners import open_bundle, require_reference_tf
from refimpl.oracle.verdict import CaseResult
from tests import bundles
from tests.contract.sources import ROOT
from tests.oracle.planting import Edit, attribute, node_of

require_reference_tf()

Outputs = dict[str, np.ndarray]
Bend = Callable[[Outputs], Outputs]
Proof = Callable[[np.ndarray, np.ndarray], bool]
_FOLDER = tempfile.TemporaryDirectory(prefix="refimpl-test-faults-")
SHIPPED = ("convnet", "classifier", "lstm", "words", "encoder", "ranking", "half")  # of golden/
# Enough to tell: one row, several rows, and values that only NaN handling tells apart. No empty batch: where another
# test brought oneDNN in, TensorFlow's own convolution refuses it.
CASES = ("normal-b1", "normal-b3", "nonfinite")
BLAMES_ENGINES = "TensorFlow itself, without engines, gives the golden answer here"
DISAGREES = "its engine disagrees with TensorFlow on this machine"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault in the ONNX of one island, and what a check must say.

    Attributes:
        kind: its name.
        model: the model, of ``golden/`` or of the zoo.
        edit: plants it.
        outputs: all outputs of the model that are wrong by it, and no others.
        says: words of the reason, about the first of them.
        proof: whether the wrong answer is the planted one: of the golden and the given values of the first output.
        island: in which island.
        case: the case that shows it.
        outcome: without the probes of the bundle.
        guarded: what the runtime says when the probes are there; empty when they cannot see it.
    """

    kind: str
    model: str
    edit: Edit
    outputs: tuple[str, ...]
    says: str = "beyond the tolerance"
    proof: Proof = lambda want, got: True
    island: int = 0
    case: str = "normal-b3"
    outcome: Outcome = Outcome.MISMATCH
    guarded: str = DISAGREES


@functools.cache
def bundle_of(name: str) -> Path:
    """The bundle of a model; nobody may change it."""
    if name not in SHIPPED:
        return bundles.make_bundle(name)
    target = Path(_FOLDER.name) / name
    refimpl.convert(ROOT / "golden" / name / "saved_model", target)
    return target


def copied(name: str, folder: Path) -> Path:
    """A bundle of one's own."""
    return Path(shutil.copytree(bundle_of(name), folder / "bundle"))


def golden_folder(name: str) -> Path:
    return ROOT / "golden" / name / "golden" if name in SHIPPED else bundles.golden_of(name)


@functools.cache
def golden_of(name: str, cases: tuple[str, ...] = CASES) -> Golden:
    """The golden record of a model, with these cases only."""
    found = read_golden(golden_folder(name))
    kept = tuple(case for case in found.cases if case.name in cases)
    assert kept
    return replace(found, cases=kept)


class Watched:
    """A loaded bundle whose answers may be bent on their way out, and are kept by case inputs."""

    def __init__(self, path: Any, engines: Sequence[str] | None, bend: Bend) -> None:
        self._bundle, self._bend = open_bundle(path, engines), bend
        self.answers: list[Outputs] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bundle, name)

    def run(self, inputs: Mapping[str, np.ndarray], signature: str) -> Any:
        ran = self._bundle.run(inputs, signature)
        bent = self._bend({name: np.array(value) for name, value in ran.outputs.items()})
        self.answers.append(bent)
        return replace(ran, outputs=bent)


def judged(
    path: Path, golden: Golden, options: CheckOptions = STRICT, *, bend: Bend = lambda outputs: outputs
) -> tuple[Verdict, dict[str, Outputs]]:
    """The verdict on a bundle, and its answers by case; cases whose run failed have none."""
    opened: list[Watched] = []

    def opener(place: Any, engines: Any) -> Any:
        opened.append(Watched(place, engines, bend))
        return opened[-1]

    verdict = check_record(path, golden, options, open_with=opener)
    ran = [case.case for case in verdict.cases if case.outcome is not Outcome.RUN_FAILED]
    assert len(ran) == len(opened[0].answers), "one call a case"
    return verdict, dict(zip(ran, opened[0].answers, strict=True))


def case_of(verdict: Verdict, name: str) -> CaseResult:
    (found,) = [case for case in verdict.cases if case.case == name]
    return found


def wrong_outputs(case: CaseResult) -> set[str]:
    """The outputs that a case says are wrong."""
    assert case.comparison is not None
    return {tensor.name for tensor in case.comparison.tensors if not tensor.ok}


def caught(fault: Fault, path: Path, golden: Golden) -> None:
    """The verdict on a bundle whose engines run says exactly what was planted.

    Raises:
        AssertionError: it passes, or says something else.
    """
    verdict, answers = judged(path, golden)
    assert not verdict.passed
    assert verdict.exit_code == 1
    case = case_of(verdict, fault.case)
    assert case.outcome is fault.outcome, case
    if fault.outcome is not Outcome.MISMATCH:
        assert fault.says in case.reason
        return
    assert wrong_outputs(case) == set(fault.outputs)
    assert case.comparison is not None
    first = next(tensor for tensor in case.comparison.tensors if tensor.name == fault.outputs[0])
    assert fault.says in first.reason
    assert f"{first.name}: {first.reason}" in case.reason
    assert {run.engine for run in case.islands} == {"onnxruntime"}, "the answer is the engines'"
    assert BLAMES_ENGINES in case.notes
    (want,) = [item.outputs[first.name] for item in golden.cases if item.name == fault.case]
    assert fault.proof(want, answers[fault.case][first.name]), "wrong, but not by what was planted"


# How a fault gets into the ONNX of an island; more of them are in planting.py.


def then(op: str, *constants: Any, place: int = 0, **attributes: Any) -> Edit:
    """One more op behind an output of the island.

    Args:
        op: its type.
        constants: its further inputs.
        place: which output.
        attributes: its attributes.
    """

    def edit(model: onnx.ModelProto) -> None:
        name, inner = _opened(model, place)
        given = [inner]
        for number, constant in enumerate(constants):
            given.append(f"{name}/constant{number}")
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), given[-1]))
        model.graph.node.append(helper.make_node(op, given, [name], name="planted", **attributes))
        if op == "Cast":
            model.graph.output[place].type.tensor_type.elem_type = attributes["to"]

    return edit


def _opened(model: onnx.ModelProto, place: int) -> tuple[str, str]:
    """Give what computes an output another name, for a node to stand between: the output's name, and the new one."""
    name = model.graph.output[place].name
    inner = f"{name}/before"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index in [i for i, item in enumerate(names) if item == name]:
                names[index] = inner
    return name, inner


def nan_swallowed(model: onnx.ModelProto) -> None:
    """Zeros in place of the NaN of the first output, which is float16."""
    name, inner = _opened(model, 0)
    model.graph.initializer.append(numpy_helper.from_array(np.float16(0), "planted/zero"))
    model.graph.node.append(helper.make_node("IsNaN", [inner], ["planted/odd"]))
    model.graph.node.append(helper.make_node("Where", ["planted/odd", "planted/zero", inner], [name]))


def retyped(ending: str, op: str) -> Edit:
    """Another op in the place of a node, with its attributes."""

    def edit(model: onnx.ModelProto) -> None:
        node_of(model, ending).op_type = op

    return edit


def attribute_before(ending: str, **values: Any) -> Edit:
    """Other attributes of the node before one, where its own name is nothing but a number."""

    def edit(model: onnx.ModelProto) -> None:
        source = node_of(model, ending).input[0]
        (node,) = [item for item in model.graph.node if source in item.output]
        attribute(node.name, **values)(model)

    return edit


def one_set_to(value: Any, at: Sequence[int], dtype: Any = np.float32, **attributes: Any) -> Edit:
    """One element of the first output is this value (or has it added, with ``reduction="add"``)."""
    return then("ScatterND", np.array([at], np.int64), np.array([value], dtype), **attributes)


def both(*edits: Edit) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for item in edits:
            item(model)

    return edit


def swapped_outputs(model: onnx.ModelProto) -> None:
    """The first two outputs of the island in the other order."""
    first, second = model.graph.output[0], model.graph.output[1]
    first.name, second.name = second.name, first.name


def weight_of_another(node: str, index: int, other: str) -> Edit:
    """One node takes a weight that belongs to another node."""

    def edit(model: onnx.ModelProto) -> None:
        mine, theirs = node_of(model, node), node_of(model, other)
        assert mine.input[index] != theirs.input[index]
        mine.input[index] = theirs.input[index]

    return edit


def every_weight(change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """All float weights of the island changed."""

    def edit(model: onnx.ModelProto) -> None:
        for item in model.graph.initializer:
            if item.data_type == onnx.TensorProto.FLOAT:
                value = numpy_helper.to_array(item)
                item.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), item.name))

    return edit
