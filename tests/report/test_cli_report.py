"""The command ``report`` and ``convert --report``: exit codes, files, and what is refused before any work."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from refimpl import vendoring
from refimpl.recipe import Recipe
from refimpl.report.html import target
from tests.bundles import assert_refused, copy_of, files_of, golden_of, main, make_bundle, reseal
from tests.models import saved_model


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_report_is_one_new_file(tmp_path, capfd):
    bundle = make_bundle("odd_ops")
    before = files_of(bundle)
    assert main("report", bundle, "--output", "report.html") == 0
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    assert files_of(bundle) == before
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capfd.readouterr().out == ""


def test_json_is_all_of_stdout(capfd):
    assert main("report", make_bundle("odd_ops"), "--json") == 0
    document = json.loads(capfd.readouterr().out)
    assert document["verdict"] is None
    assert {row["engine"] for row in document["cuts"]} == {"onnxruntime"}
    assert document["advice"]
    assert main("report", make_bundle("odd_ops"), "--json", "--no-probes") == 0
    assert json.loads(capfd.readouterr().out)["cuts"] is None


def test_with_golden_the_bundle_is_checked(capfd):
    assert main("report", make_bundle("odd_ops"), golden_of("odd_ops"), "--json", "--output", "report.html") == 0
    document = json.loads(capfd.readouterr().out)
    (engine,) = document["verdict"]["engines"]
    assert document["verdict"]["passed"]
    assert {row["outcome"] for row in engine["rows"]} == {"match"}
    assert len({row["name"] for row in engine["outputs"]}) == len(document["signatures"][0]["outputs"])


def test_a_wrong_bundle_gets_its_report_and_exit_code_1(tmp_path, capfd):
    from refimpl.runtime import read_probe, write_probe

    folder = copy_of("odd_ops", tmp_path)
    for probe in folder.rglob("*.probe.npz"):  # no engine passes its guard, so TensorFlow runs, unexpectedly
        inputs, outputs = read_probe(probe)
        write_probe(probe, inputs, [output + 1 for output in outputs])
    reseal(folder)
    assert main("report", folder, golden_of("odd_ops"), "--output", "report.html") == 1
    assert "check FAILED: " in capfd.readouterr().err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "check FAILED" in page
    assert "beyond tolerance" in page


def test_a_kept_verdict_is_read(tmp_path, capfd):
    assert main("check", make_bundle("odd_ops"), golden_of("odd_ops"), "--json") == 0
    file = tmp_path / "verdict.json"
    file.write_text(capfd.readouterr().out, encoding="utf-8")
    assert main("report", make_bundle("odd_ops"), file, "--json") == 0
    assert json.loads(capfd.readouterr().out)["verdict"]["golden"]["name"] == golden_of("odd_ops").name
    assert_refused(capfd, "report", make_bundle("detector"), file, "--json", says="is on another bundle")
    again = make_bundle("odd_ops", Recipe(min_segment_size=1))  # of the same model, in the same precision
    assert_refused(capfd, "report", again, file, "--json", says="is on another bundle")
    kept = json.loads(file.read_text(encoding="utf-8"))
    del kept["machine"]
    file.write_text(json.dumps(kept), encoding="utf-8")
    assert main("report", make_bundle("odd_ops"), file, "--json") == 2
    assert "verdict.json" in capfd.readouterr().err


def test_a_name_that_is_no_text_can_be_reported(tmp_path):
    """On Linux, names of folders are bytes."""
    folder = shutil.copytree(make_bundle("odd_ops"), os.fsdecode(b"odd\xff"))
    assert main("report", folder, "--output", "report.html", "--no-probes") == 0
    assert r"odd\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_convert_writes_a_report(tmp_path):
    assert main("-q", "convert", saved_model("odd_ops"), "bundle", "--report", "report.html") == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", "report.html"]


@pytest.mark.parametrize("command", ["report", "convert"])
def test_what_cannot_be_written_is_refused_before_any_work(command, tmp_path, capfd, monkeypatch):
    import refimpl

    monkeypatch.setattr(refimpl, "convert", None)  # calling it would be a bug, exit code 3
    model = shutil.copytree(saved_model("odd_ops"), tmp_path / "model")

    def refused(file, says):
        if command == "report":
            assert_refused(capfd, "report", make_bundle("odd_ops"), "--output", file, says=says)
        else:
            assert_refused(capfd, "convert", model, "bundle", "--report", file, says=says)

    (tmp_path / "there.html").write_text("mine", encoding="utf-8")
    refused("there.html", "there.html exists already")
    refused("nowhere/report.html", "lies in no folder that exists")
    (tmp_path / "link.html").symlink_to("missing")
    refused("link.html", "link.html exists already")
    sealed = make_bundle("odd_ops") if command == "report" else model
    refused(sealed / "report.html", "would lie inside")
    assert (tmp_path / "there.html").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path, capfd):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert_refused(
        capfd, "report", make_bundle("odd_ops"), "--output", "locked/report.html", says="no file can be written into"
    )


def test_a_file_that_comes_meanwhile_is_kept(tmp_path, monkeypatch, capfd):
    written = target.write_report

    def late(file, text):
        (tmp_path / "report.html").write_text("mine", encoding="utf-8")
        written(file, text)

    monkeypatch.setattr(target, "write_report", late)
    assert main("report", make_bundle("odd_ops"), "--output", "report.html") == 2
    assert "exists already" in capfd.readouterr().err
    assert [item.read_text(encoding="utf-8") for item in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target.os, "fdopen", full)
    assert_refused(capfd, "report", make_bundle("odd_ops"), "--output", "report.html", says="cannot write report.html")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the report has no file to go to"),
        (["--all-engines", "--json"], "--all-engines is for a golden record"),
    ],
)
def test_impossible_choices(arguments, says, capfd):
    assert_refused(capfd, "report", make_bundle("odd_ops"), *arguments, says=says)


def test_a_damaged_bundle_gets_no_report(tmp_path, capfd):
    folder = copy_of("odd_ops", tmp_path)
    (folder / "refimpl" / "graph.json").write_text("{}", encoding="utf-8")
    assert_refused(capfd, "report", folder, "--output", "report.html", says="checksum")
    reseal(folder)
    assert_refused(capfd, "report", folder, "--output", "report.html", says="graph.json is damaged")


# The vendored library


def test_the_library_is_there_in_ci():
    if vendoring.library() is None and not os.environ.get("CI"):
        pytest.skip("the library was not fetched: python -m refimpl.vendoring")
    assert vendoring.library() is not None
    assert "Permission is hereby granted" in vendoring.licence()


def test_another_archive_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    def packed(npm, place):
        (place / "x.tgz").write_bytes(b"something else")
        return place / "x.tgz"

    monkeypatch.setattr(vendoring.shutil, "which", lambda name: name)
    monkeypatch.setattr(vendoring, "_packed", packed)
    with pytest.raises(vendoring.VendoringError, match="not the pinned sha512-"):
        vendoring.fetch(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()


def test_without_npm_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(vendoring.shutil, "which", lambda name: None)
    with pytest.raises(vendoring.VendoringError, match="npm is not installed"):
        vendoring.fetch(tmp_path / "vendor")


def test_a_failing_npm_says_why(tmp_path):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network' >&2\nexit 1\n", encoding="utf-8")
    npm.chmod(0o755)
    with pytest.raises(vendoring.VendoringError, match="npm pack failed: npm error network"):
        vendoring._packed(str(npm), tmp_path)


def test_another_version_does_not_count(tmp_path):
    (tmp_path / vendoring.LIBRARY).write_text("old", encoding="utf-8")
    (tmp_path / vendoring.STAMP).write_text("0.0.1\n", encoding="utf-8")
    assert vendoring.library(tmp_path) is None
