"""Wrong bundles that a careless judge would pass: what never ran, what nobody compared, what answers another way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import runtime
from refimpl.bundle import DirectCall, EngineRecord
from refimpl.errors import GoldenError, RunError
from refimpl.oracle import CheckOptions, Outcome, Verdict, VerdictSet, check, judge, read_golden
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import Golden
from refimpl.oracle.runners import tree_sha256
from refimpl.oracle.selection import suspicious_fallbacks
from tests.oracle.fakes import (
    IN_ENGINE,
    ISLANDS,
    SIGNATURE,
    FakeBundle,
    FakeIsland,
    copies,
    fake_manifest,
    island,
    make_case,
    write_golden,
)


def judged(bundle: FakeBundle, **options: Any) -> Verdict:
    return check("b", bundle.golden.path, CheckOptions(**options), open_with=bundle.opener())


def judged_set(bundle: FakeBundle, **options: Any) -> VerdictSet:
    return judge(
        "b",
        bundle.golden.path,
        CheckOptions(**options),
        open_with=bundle.opener(),
        manifest_with=lambda path: bundle.manifest,
    )


# What never ran


def test_an_island_that_the_graph_does_not_call(golden: Golden) -> None:
    """The manifest has two islands; in no case was the second one even asked."""
    verdict = judged(FakeBundle(golden, islands=lambda case: IN_ENGINE[:1]))
    assert {case.outcome for case in verdict.cases} == {Outcome.MATCH}
    assert verdict.outcome is Outcome.FALLBACK_USED
    assert verdict.problems == (
        f"serving_default: island {ISLANDS[1]} ran in no engine in any case (nothing called it): it was not judged",
    )
    assert judged(FakeBundle(golden, islands=lambda case: IN_ENGINE[:1]), allow_fallback=True).passed


def test_a_signature_without_its_engines(tmp_path: Path) -> None:
    """One signature runs in engines; the other one's graph was replaced by the original one."""
    cases = [make_case("a", 2), replace(make_case("b", 3), signature="plain")]
    signatures = (SIGNATURE, replace(SIGNATURE, key="plain"))
    record = write_golden(tmp_path / "g", cases, signatures)
    first = fake_manifest(*map(island, ISLANDS)).signatures[0]
    manifest = fake_manifest(signatures=(first, replace(first, signature=signatures[1])))

    def islands(case: Any) -> tuple[FakeIsland, ...]:
        return IN_ENGINE if case.signature == "serving_default" else ()

    bundle = FakeBundle(record, islands=islands, manifest=manifest)
    assert not judged(bundle).passed
    assert "plain: island TRTEngineOp_000_000 ran in no engine" in judged(bundle).problems[0]


def test_engines_that_the_bundle_stores_and_did_not_use(golden: Golden) -> None:
    both = [replace(island(name), engines=(*island(name).engines, _TENSORRT)) for name in ISLANDS]
    bundle = FakeBundle(golden, manifest=fake_manifest(*both))
    verdict = judged(bundle)
    assert verdict.passed
    (note,) = verdict.notes
    assert note.startswith("the bundle's tensorrt engines ran in no case, and were not judged: ")
    assert judged(bundle, engines=("onnxruntime",)).notes == (), "what was asked for was judged"


_TENSORRT = EngineRecord(kind="tensorrt", file="refimpl/islands/i.engine", version="any", precision="fp32")


def test_an_engine_that_overflows_now_and_then(golden: Golden) -> None:
    """TensorFlow answers where an engine makes NaN, so the case matches; a reader of the pass must know."""
    made = FakeIsland(ISLANDS[1], "native", runtime.MADE_NOT_FINITE)

    def islands(case: Any) -> tuple[FakeIsland, ...]:
        return (IN_ENGINE[0], made) if case.name == "normal-b3" else IN_ENGINE

    verdict = judged(FakeBundle(golden, islands=islands))
    assert verdict.passed
    (note,) = verdict.notes
    assert f"the engine of {ISLANDS[1]} made NaN or infinities in 1 case whose golden answers have none" in note
    quiet = replace(golden.cases[1], outputs={**golden.cases[1].outputs, "scores": np.full((3, 6), np.nan, np.float32)})
    assert suspicious_fallbacks(replace(golden, cases=(quiet,)), verdict.cases) == (), "TensorFlow makes them, too"


# What nobody compared


def test_a_record_of_empty_batches_alone(tmp_path: Path) -> None:
    record = write_golden(tmp_path / "g", [make_case("empty", 0, CaseKind.EMPTY_BATCH)])
    verdict = judged(FakeBundle(record), allow_unaccelerated=True, allow_fallback=True)
    assert verdict.problems == ("nothing was compared: every output of every case is empty or not repeatable",)
    assert not verdict.passed


def test_a_metric_whose_cases_were_all_left_out(tmp_path: Path) -> None:
    """The drop was to be judged; the labelled case came too late."""
    user = make_case("user", 4, CaseKind.USER)
    labelled = replace(user, labels={"label": user.outputs["classes"]})
    record = write_golden(tmp_path / "g", [make_case("normal-b1", 1), labelled])
    bundle = FakeBundle(record)
    assert judged(bundle, max_drop=0.01).passed

    class Slow(FakeBundle):
        def run(self, inputs: Any, signature: str) -> Any:
            import time

            time.sleep(0.05)
            return super().run(inputs, signature)

    late = judged(Slow(record), max_drop=0.01, time_limit=0.01, excuse_unfinished=True)
    assert late.task is not None
    assert (late.task.drop, late.task.unmeasured) == (None, "every labelled case was left out")
    assert late.passed, "NumPy's engine may be slow, and the verdict says what it left"
    excused = replace(late, task=replace(late.task, max_drop=0.01))
    assert excused.problems == ("top1 was not measured: every labelled case was left out",)


@dataclass
class TwoHeads(FakeBundle):
    """Gives its outputs in another order than golden has them."""

    def run(self, inputs: Any, signature: str) -> Any:
        found = super().run(inputs, signature)
        return replace(found, outputs=dict(reversed(found.outputs.items())))


def test_a_label_is_about_the_same_output_of_both(tmp_path: Path) -> None:
    """Two outputs fit the label: taking another one of the bundle than of TensorFlow would measure nothing."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 4)).astype(np.float32)
    outputs = {name: rng.standard_normal((8, 6)).astype(np.float32) for name in ("a", "b")}
    signature = replace(SIGNATURE, outputs=tuple(replace(SIGNATURE.outputs[3], name=name) for name in outputs))
    case = replace(make_case("user", 8, CaseKind.USER), inputs={"x": x}, outputs=outputs)
    record = write_golden(tmp_path / "g", [replace(case, labels={"label": outputs["a"].argmax(-1)})], (signature,))
    task = judged(TwoHeads(record)).task
    assert task is not None
    assert (task.tensorflow, task.bundle, task.drop) == (1.0, 1.0, 0.0)


# What answers another way


@dataclass
class Direct(FakeBundle):
    """A bundle whose ``infer`` asks an engine alone, and gives outputs that ``bend`` has changed."""

    bend: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        (record,) = self.manifest.signatures
        direct = DirectCall(inputs=("x",), outputs=(0, 1, 2, 3))
        self.manifest = replace(self.manifest, signatures=(replace(record, direct=direct),))
        self.inferred = 0

    def infer(self, inputs: Any, signature: str) -> dict[str, Any]:
        self.inferred += 1
        found: dict[str, Any] = self.bend(copies(self._case(inputs, signature)))
        return found


def test_an_answer_without_the_graph_is_judged_too(golden: Golden) -> None:
    right = Direct(golden, bend=lambda outputs: outputs)
    assert judged(right).passed
    assert right.inferred == len(golden.cases)

    swapped = Direct(golden, bend=lambda outputs: {**outputs, "scores": outputs["scores"][:, ::-1]})
    verdict = judged(swapped)
    assert verdict.outcome is Outcome.MISMATCH
    assert verdict.cases[0].reason.startswith("right through the graph; by LoadedBundle.infer, which asks the engine")
    assert "scores: 6 of 6 beyond the tolerance" in verdict.cases[0].reason

    lost = Direct(golden, bend=lambda outputs: {"scores": outputs["scores"]})
    assert "missing outputs: classes, flags, labels" in judged(lost).cases[0].reason


def test_an_answer_without_the_graph_that_fails(golden: Golden) -> None:
    def fail(outputs: Any) -> Any:
        raise RunError("no such output")

    assert judged(Direct(golden, bend=fail)).outcome is Outcome.RUN_FAILED


def test_nothing_is_asked_alone_where_tensorflow_ran(golden: Golden) -> None:
    bundle = Direct(golden, bend=lambda outputs: {}, islands=lambda case: ())
    judged(bundle)
    assert bundle.inferred == 0


# Records


def test_two_cases_of_one_name(tmp_path: Path) -> None:
    """A baseline tells cases apart by their names: the worse one of two would hide behind the other."""
    with pytest.raises(GoldenError, match="two cases of one signature have the same name"):
        write_golden(tmp_path / "g", [make_case("same", 1), make_case("same", 2)])


def test_a_case_without_one_of_its_inputs(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match=r"the inputs of serving_default/normal are not those of its signature"):
        write_golden(tmp_path / "g", [replace(make_case("normal", 1), inputs={})])


def test_weights_behind_a_link_belong_to_the_model(tmp_path: Path) -> None:
    """TensorFlow reads them; else two models with other weights would have one SHA-256."""
    weights, model = tmp_path / "weights", tmp_path / "model"
    weights.mkdir()
    model.mkdir()
    (model / "saved_model.pb").write_bytes(b"graph")
    (weights / "variables.data").write_bytes(b"1")
    (model / "variables").symlink_to(weights)
    before = tree_sha256(model)
    (weights / "variables.data").write_bytes(b"2")
    assert tree_sha256(model) != before
    (weights / "up").symlink_to(model)
    assert tree_sha256(model), "a link that leads back up ends"
    plain = tmp_path / "plain"
    (plain / "variables").mkdir(parents=True)
    (plain / "saved_model.pb").write_bytes(b"graph")
    (plain / "variables" / "variables.data").write_bytes(b"1")
    assert tree_sha256(plain) == before, "how it is stored is no part of the model"


def test_the_converter_tells_models_apart_in_the_same_way(tmp_path: Path) -> None:
    from refimpl.converter.source import Source
    from tests.models import saved_model

    real = saved_model("tf1_resource_variables")
    linked = tmp_path / "linked"
    linked.mkdir()
    for item in real.iterdir():
        (linked / item.name).symlink_to(item)
    with Source(linked) as source:
        assert source.sha256 == tree_sha256(linked) == tree_sha256(real)


# Latency


def test_the_case_that_is_timed_does_not_hang_on_the_outcome(golden: Golden) -> None:
    assert [item.case for item in judged(FakeBundle(golden), repeat=1).latencies] == ["normal-b3"]

    def wrong(outputs: Any) -> Any:
        return {**outputs, "scores": outputs["scores"] + (len(outputs["scores"]) == 3)}

    verdict = judged(FakeBundle(golden, wrong), repeat=1)
    assert verdict.latencies == ()
    assert "signature 'serving_default': latency was not measured: normal-b3: mismatch" in verdict.notes


def test_golden_says_which_it_is(golden: Golden) -> None:
    facts = judged_set(FakeBundle(golden)).facts
    assert facts.golden["sha256"] == golden.sha256 == read_golden(golden.path).sha256
    assert len(golden.sha256) == 64
