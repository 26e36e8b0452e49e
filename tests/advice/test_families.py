"""Every sentence that the converter gives as a reason has a family, every family an action and a place in the docs."""

from __future__ import annotations

import ast
import re

import pytest

from refimpl.advice.families import FAMILIES, UNKNOWN, family_of
from refimpl.advice.int8 import NOT_BUILT
from refimpl.advice.whole import SLOW, WHOLE
from tests.contract.messages import ANY, strings
from tests.contract.sources import PACKAGE, ROOT

GIVE_REASONS = """converter/refusals.py converter/atoms.py converter/judge.py converter/onnxgraphs.py
converter/tftrt_ops.py partition.py converter/islands.py converter/verify.py numerics.py converter/repair.py
converter/fake_quant_exact.py converter/drafts.py engines/onnxruntime.py""".split()
AROUND = {  # what is put around a reason
    f"{ANY} ({ANY} inside {ANY})",
    f"{ANY}, inside {ANY}",
    f"{ANY} (inside {ANY})",
    f"{ANY} (together with the ops before it; alone it is fine)",
    f"{ANY} at {ANY} ({ANY})",
    f"{ANY} part: {ANY}",
}
NO_REASONS = {  # of an op that stays: notes of islands and layers, names of samples, what is told meanwhile
    f"table of ops ({ANY}); install refimpl[rtx] for the parser itself",
    f"asking the {ANY} op by op",
    "float64 (TensorRT would compute it in float32)",
    f"whole-model sample {ANY}",
    f"graph optimizations are off for it: with them, {ANY}",
    f"no {ANY} engine could be built: {ANY}",
    f"drawn at the cut, integers {ANY}",
    ", in float32 too",
    f"{ANY}: {ANY} with TensorFlow, relative error {ANY}",
    f"{ANY} computes it wrongly in {ANY} (relative error {ANY})",
    (
        f"{ANY} of its layers compute in fp32, or {ANY} would compute it wrongly ({ANY}; relative error {ANY} before, "
        f"{ANY} now; the embedded engine is right on the same file): {ANY}"
    ),
    f"relative error {ANY} before it, {ANY} after it",
    f"{ANY}, in more than {ANY} places",
    f"{ANY} may fuse it with {ANY}, and computes that wrongly",
    f"trying it with {ANY} in fp32",
    f"{ANY}; no TensorFlow op is known for {ANY}",
    f"{ANY}; ops went back to TensorFlow {ANY} times for that, and no more do",
    f"its error grows from {ANY} to {ANY} at {ANY}",
    f"it is like {ANY}, which {ANY} computes wrongly",
    f" and {ANY} more",
    f"with more of it in float32 it cannot be run: {ANY}",
    f"{ANY}; no layer of it is to blame alone",
}


def sentences() -> list[tuple[str, str]]:
    """File and sentence: strings of three words or more, neither documentation nor lists of op types."""
    found = []
    for name in GIVE_REASONS:
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        scopes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
        documentation = {ast.get_docstring(node, clean=False) for node in scopes}
        for text in dict.fromkeys(strings(PACKAGE / name)):
            words = text.split()
            if len(words) > 2 and text not in documentation and not all(re.fullmatch(r"[A-Z]\w+", w) for w in words):
                found.append((name, text))
    return found


def test_sentences_are_found():
    texts = {text for _, text in sentences()}
    assert len(texts) > 80
    assert "strings have no place in TensorRT" in texts
    assert f"its island would have {ANY}, fewer than min_segment_size={ANY}" in texts
    assert texts >= AROUND | NO_REASONS, "take away what is no longer said"


@pytest.mark.parametrize(("file", "text"), [item for item in sentences() if item[1] not in AROUND | NO_REASONS])
def test_every_reason_has_a_family(file, text):
    reason = text.replace(ANY, "7")
    assert family_of(reason).name != UNKNOWN, f"{file} says {text!r}: give it a family, or name it among NO_REASONS"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_met_by_a_reason_and_has_an_action(family):
    reasons = [text.replace(ANY, "7") for _, text in sentences()]
    assert any(family_of(reason) is family for reason in reasons), "no reason belongs to it any more"
    assert len(family.action) > 20


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("its lowering computes integers in float32, which is exact only up to 2^24", "integers-as-floats"),
        ("its lowering computes in float64 (TensorRT would compute it in float32)", "lowering-dtype"),
        ("TensorRT refuses Sub: Invalid Node - x\nITensor::getDimensions", "parser"),
        ("TensorRT refuses Loop of int64 (by table), inside If", "table"),
        (
            "real part: max |Δ| 0.5 where TensorFlow gives 1; 1 of 2 elements beyond tolerance at a:0 (zeros)",
            "verification",
        ),
        ("shape [1, 2], TensorFlow gives [2, 1] (together with the ops before it; alone it is fine)", "verification"),
        ("it is a check that only TensorFlow makes (EnsureShape inside StatelessWhile)", "checks"),
        ("NVIDIA H100 computes it wrongly, in float32 too (r); the embedded engine is right", "gpu-wrong"),
        ("tensorrt cannot build it: no tactic", "build"),
        ("something that nobody has said yet", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_which_family(reason, name):
    assert family_of(reason).name == name


def test_families_are_in_the_docs():
    text = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (\S+)$", text, re.MULTILINE)
    for family in FAMILIES:
        assert f"### {family.name}\n\n{family.action[0].upper()}{family.action[1:]}.\n" in text
    assert sorted(headings) == sorted([*(family.name for family in FAMILIES), UNKNOWN, SLOW, WHOLE, NOT_BUILT])
