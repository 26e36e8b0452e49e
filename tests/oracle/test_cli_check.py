"""The command ``check``: every stage of a verdict with its exit code, what is printed where, and real bundles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner, Result

from refimpl import oracle
from refimpl.cli_check import check
from refimpl.errors import GoldenError, RecipeError, RunError
from refimpl.oracle.golden import Golden
from tests.bundles import command, copy_of, golden_of, make_bundle, reseal
from tests.contract.sources import ROOT
from tests.oracle.fakes import SIGNATURE, FakeBundle, FakeIsland, fake_manifest

NAME = "tf1_resource_variables"


def invoke(*args: object) -> Result:
    return CliRunner().invoke(check, [str(arg) for arg in args])


def checked(*args: object) -> dict[str, Any]:
    """The JSON of a check that came to a verdict."""
    result = invoke(*args, "--json")
    assert result.exit_code in (0, 1), result.output
    data: dict[str, Any] = json.loads(result.stdout)
    assert data["passed"] is (result.exit_code == 0)
    return data


@pytest.fixture
def bundle(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> FakeBundle:
    """What ``check`` will find behind any path."""
    fake = FakeBundle(golden)
    real = oracle.judge

    def with_fake(path: Any, record: Any, options: Any, **more: Any) -> Any:
        return real(path, record, options, open_with=fake.opener(), manifest_with=lambda p: fake.manifest, **more)

    monkeypatch.setattr(oracle, "judge", with_fake)
    return fake


def test_a_pass(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    result = invoke("b", golden.path, "--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "PASSED: 3 of 3 cases match TensorFlow"
    assert "normal-b1: match" in result.stderr
    assert ET.fromstring((tmp_path / "j.xml").read_text()).get("failures") == "0"
    assert (tmp_path / "m.md").read_text().startswith("## PASSED")


# Every stage of a verdict, as a user meets it


def mismatch(bundle: FakeBundle) -> None:
    bundle.fault = lambda outputs: {**outputs, "scores": np.zeros_like(outputs["scores"])}


def nothing_accelerated(bundle: FakeBundle) -> None:
    bundle.islands = lambda case: ()


def fallback(bundle: FakeBundle) -> None:
    bundle.islands = lambda case: (FakeIsland("TRTEngineOp_000_000", "native", "its engine disagrees"),)


def conversion_failed(bundle: FakeBundle) -> None:
    record = replace(fake_manifest().signatures[0], converted=False, reason="TF1 control flow (Enter) cannot be cut")
    bundle.manifest = fake_manifest(signatures=(record,))
    bundle.islands = lambda case: ()


def run_failed(bundle: FakeBundle) -> None:
    def fail(outputs: Any) -> Any:
        raise RunError("TensorFlow fails on these inputs: no memory")

    bundle.fault = fail


def not_run(bundle: FakeBundle) -> None:
    bundle.signatures = {"other": replace(SIGNATURE, key="other")}


@pytest.mark.parametrize(
    ("plant", "outcome", "reason", "allowed"),
    [
        (mismatch, "mismatch", "scores: 6 of 6 beyond the tolerance", None),
        (nothing_accelerated, "match-nothing-accelerated", "no island ran", "--allow-unaccelerated"),
        (conversion_failed, "conversion-failed", "TF1 control flow (Enter) cannot be cut", "--allow-unaccelerated"),
        (run_failed, "run-failed", "no memory", None),
        (not_run, "not-run", "the bundle has no signature 'serving_default', only other", None),
    ],
)
def test_every_stage_fails_by_its_name(
    bundle: FakeBundle, golden: Golden, plant: Callable[[Any], None], outcome: str, reason: str, allowed: str | None
) -> None:
    plant(bundle)
    data = checked("b", golden.path)
    assert (data["passed"], data["outcome"]) == (False, outcome)
    case = data["verdicts"][0]["cases"][0]
    assert case["outcome"] == outcome
    assert reason in case["reason"]
    for option in ("--allow-fallback", "--allow-unaccelerated"):
        assert checked("b", golden.path, option)["passed"] is (option == allowed)


def test_a_fallback(bundle: FakeBundle, golden: Golden) -> None:
    fallback(bundle)
    data = checked("b", golden.path)
    assert data["outcome"] == "fallback-used"
    assert "its engine disagrees" in data["verdicts"][0]["cases"][0]["reason"]
    assert not checked("b", golden.path, "--allow-fallback")["passed"], "nothing was accelerated, besides"
    assert checked("b", golden.path, "--allow-fallback", "--allow-unaccelerated")["passed"]


def test_engines_are_passed_on(bundle: FakeBundle, golden: Golden) -> None:
    assert invoke("b", golden.path, "--engine", "tensorrt").exit_code == 1
    assert invoke("b", golden.path, "--engine", "tensorrt", "--engine", "onnxruntime").exit_code == 0


def test_other_options_are_passed_on(bundle: FakeBundle, golden: Golden) -> None:
    assert not checked("b", golden.path, "--time-limit", "0")["passed"]
    assert checked("b", golden.path, "--repeat", "2")["verdicts"][0]["latencies"][0]["runs"] == 2
    assert checked("b", golden.path, "--repeat", "0")["verdicts"][0]["latencies"] == []
    assert isinstance(invoke("b", golden.path, "--max-drop", "1%").exception, RecipeError)
    for wrong in (("--max-drop", "some"), ("--allow-drift", "size=1"), ("--allow-drift", "speed=1")):
        assert isinstance(invoke("b", golden.path, *wrong).exception, RecipeError)
    assert invoke("b", golden.path, "--repeat", "-1").exit_code == 2


def test_a_report_that_cannot_be_written(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    result = invoke("b", golden.path, "--junit", tmp_path / "no" / "j.xml")
    assert isinstance(result.exception, GoldenError)


# Baselines


def test_a_baseline(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    file.write_text(invoke("b", golden.path, "--json").stdout, encoding="utf-8")
    steady = ("b", golden.path, "--repeat", "0", "--baseline", file)
    assert invoke(*steady).exit_code == 0
    bundle.manifest = replace(bundle.manifest, signatures=(replace(bundle.manifest.signatures[0], ops_total=4),))
    result = invoke(*steady)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "FAILED: since baseline verdict.json: share of serving_default worse"
    assert re.search(r"share +serving_default +100.0% +50.0% +100.0% +worse", result.stdout)
    data = checked(*steady)
    assert [row["name"] for row in data["drift"]["rows"] if row["change"] == "worse"] == ["serving_default"]
    assert invoke(*steady, "--allow-drift", "share=50%").exit_code == 0


def test_an_error_that_grows_within_its_tolerance_is_caught(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    file.write_text(invoke("b", golden.path, "--json").stdout, encoding="utf-8")
    bundle.fault = lambda outputs: {**outputs, "scores": outputs["scores"] * np.float32(1 + 6e-5)}
    assert invoke("b", golden.path).exit_code == 0, "within the tolerance"
    result = invoke("b", golden.path, "--repeat", "0", "--baseline", file)
    assert result.exit_code == 1
    assert "accuracy of any/serving_default/scores worse" in " ".join(result.stdout.split())


def test_a_baseline_of_another_model(bundle: FakeBundle, golden: Golden, tmp_path: Path) -> None:
    data = checked("b", golden.path)
    data["bundle"]["source_sha256"] = "6" * 64
    (tmp_path / "other.json").write_text(json.dumps(data), encoding="utf-8")
    result = invoke("b", golden.path, "--baseline", tmp_path / "other.json")
    assert isinstance(result.exception, GoldenError)
    assert "is of another model" in str(result.exception)
    assert result.stdout == ""


# Real bundles


def test_a_real_bundle_by_every_engine() -> None:
    # In a process of its own, where TensorFlow can still be told to compute as golden was recorded.
    done = command("check", make_bundle(NAME), golden_of(NAME), "--all-engines", "--repeat", "1", "--json")
    data = json.loads(done.stdout)
    assert data["passed"], data["problems"]
    assert done.returncode == 0
    found = {verdict["engine"]: verdict for verdict in data["verdicts"]}
    assert list(found) == ["tensorflow", "tensorrt", "onnxruntime", "numpy"]
    for engine in ("onnxruntime", "numpy"):
        verdict = found[engine]
        assert verdict["accelerated"]
        ran = {note["engine"] for case in verdict["cases"] for note in case["islands"] if not note["reason"]}
        assert ran == {engine}
        assert verdict["latencies"][0]["ratio"] > 0
        opinions = [t["second_opinion"] for case in verdict["cases"] for t in case["outputs"] if t["name"] == "scores"]
        assert opinions.count("agrees") >= 5
    assert {note["engine"] for case in found["tensorflow"]["cases"] for note in case["islands"]} == set()
    assert found["tensorrt"]["excused"]
    assert data["bundle"]["bytes"]["engines/onnxruntime"] > 0
    assert data["bundle"]["signatures"][0]["share"] == 1.0


def test_a_real_bundle_that_tells_the_wrong_engine_apart(tmp_path: Path) -> None:
    """The island's ONNX file is another function than the original ops."""
    import onnx
    from onnx import numpy_helper

    folder = copy_of(NAME, tmp_path)
    file = next(folder.glob("refimpl/islands/*.onnx"))
    model = onnx.load(file)
    weight = max(model.graph.initializer, key=lambda item: int(np.prod(item.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(model, file)
    for probe in folder.glob("refimpl/islands/*.npz"):
        probe.unlink()
    blind = _without_probes(folder)
    data = checked(blind, golden_of(NAME), "--repeat", "0")
    assert data["outcome"] == "mismatch"
    case = next(case for case in data["verdicts"][0]["cases"] if case["outcome"] == "mismatch")
    assert "TensorFlow itself, without engines, gives the golden answer here" in case["notes"]


def _without_probes(folder: Path) -> Path:
    """As if its islands had never been verified: the runtime would else refuse the engine."""
    from refimpl import bundle as bundles

    manifest = bundles.read(folder, check_files=False)
    records = tuple(
        replace(record, islands=tuple(replace(island, probe="") for island in record.islands))
        for record in manifest.signatures
    )
    reseal(folder, signatures=records)
    return folder


# The CI file of docs/checking.md


def _ci_commands() -> list[str]:
    text = (ROOT / "docs" / "checking.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for line in script.splitlines() if line and not line.startswith("#")]


@pytest.mark.slow
def test_the_shell_version_of_the_ci_file_runs(tmp_path: Path) -> None:
    """The commands that the docs give to a team, on a real model, from the first to the last."""
    from tests.models import saved_model

    (tmp_path / "my_model").symlink_to(saved_model(NAME))
    lines = _ci_commands()
    assert [line.split()[1] for line in lines if line.startswith("refimpl ")] == [
        *("record", "convert", "check"),
        *("convert", "check"),
    ]
    script = 'set -e\nrefimpl() { "$PYTHON" -m refimpl "$@"; }\n' + "\n".join(lines)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "verdict.json").read_text())["drift"]["passed"] is True
    assert ET.parse(tmp_path / "verdict.xml").getroot().get("failures") == "0"
    assert (tmp_path / "verdict.md").read_text().startswith("## PASSED")
