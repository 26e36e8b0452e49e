"""Calibration tables: kept, read again, checked against a model, compared; and every way in which a file is bad."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os

import numpy as np
import pytest
from click.testing import CliRunner

from refimpl import calibration
from refimpl.calibration import CalibrationTable, Difference, TensorRange, check_fits, diff, load, save, table_for
from refimpl.cli_calibration import calibration as commands
from refimpl.converter.precision.calibrate import range_of, warnings_of
from refimpl.converter.precision.histogram import Histogram
from refimpl.errors import RecipeError
from refimpl.recipe import CALIBRATORS, Recipe

SHA = "a1" * 32


def range_with(threshold, **changed):
    whole = TensorRange(
        low=-threshold,
        high=threshold / 2,
        threshold=threshold,
        clipped=0.0,
        values=1000,
        zeros=0 if threshold else 1000,
        nonfinite=0,
        quantiles={"99": threshold / 2, "99.9": threshold / 2, "99.99": threshold},
        histogram=(1000, *[0] * 63),
    )
    return dataclasses.replace(whole, **changed)


def table_of(thresholds, signature="serving_default", **changed):
    made = calibration.make_table(
        SHA,
        signature,
        {f"island_0/{name}": range_with(value) for name, value in thresholds.items()},
        method="entropy",
        percentile=99.99,
        batches=12,
        warnings=["one", "two"],
    )
    return dataclasses.replace(made, **changed)


TABLE = table_of({"conv1/Relu:0": 2.5, "add:0": 0.1, "zero:0": 0.0})


@pytest.fixture
def file(tmp_path):
    save(TABLE, tmp_path / "table.json")
    return tmp_path / "table.json"


def spoil(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


# Files


def test_a_table_survives_a_file(file, tmp_path):
    assert load(file) == (TABLE,)
    save(load(file), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["again.json", "table.json"]


def test_real_ranges_survive_a_file(tmp_path):
    found = Histogram()
    found.add(np.random.default_rng(3).standard_normal(10_000) * 1e-3)
    ranges = {f"island_0/{method}": range_of(found, method) for method in calibration.METHODS}
    made = calibration.make_table(
        SHA, "s", ranges, method="minmax", percentile=99.9, batches=1, warnings=warnings_of(ranges, "minmax")
    )
    save(made, tmp_path / "t")
    assert load(tmp_path / "t") == (made,)


def test_several_signatures_in_one_file(tmp_path):
    other = table_of({"x": 1.0}, signature="other")
    save((TABLE, other), tmp_path / "t.json")
    assert load(tmp_path / "t.json") == (TABLE, other)
    assert table_for(load(tmp_path / "t.json"), "other") == other
    with pytest.raises(RecipeError, match="no ranges of signature 'third', only of serving_default, other"):
        table_for(load(tmp_path / "t.json"), "third")
    for bad in ((), (TABLE, TABLE)):
        with pytest.raises(RecipeError, match="one table per signature"):
            save(bad, tmp_path / "bad.json")
    assert not (tmp_path / "bad.json").exists()


def test_a_file_can_be_read_by_people(file):
    data = json.loads(file.read_text())
    assert data["format"] == "refimpl calibration"
    (table,) = data["tables"]
    assert (table["method"], table["batches"], table["source_sha256"]) == ("entropy", 12, SHA)
    assert list(table["ranges"]) == ["island_0/add:0", "island_0/conv1/Relu:0", "island_0/zero:0"]
    assert table["ranges"]["island_0/add:0"]["threshold"] == 0.1
    assert table["onnxruntime"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_nothing_is_overwritten(file):
    before = file.read_bytes()
    with pytest.raises(RecipeError, match=r"table\.json exists already") as caught:
        save(table_of({"x": 1.0}), file)
    assert "nothing is ever overwritten" in caught.value.hint
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecipeError, match="No space left on device"):
        save(TABLE, tmp_path / "t.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="No such file or directory"):
        save(TABLE, tmp_path / "no" / "t.json")


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    save(TABLE, tmp_path / "t.json")
    assert load(tmp_path / "t.json") == (TABLE,)
    with pytest.raises(RecipeError, match="exists already"):
        save(TABLE, tmp_path / "t.json")
    assert len(list(tmp_path.iterdir())) == 1


def first_range(data):
    return data["tables"][0]["ranges"]["island_0/add:0"]


DAMAGES = {
    "no tables": (lambda data: data.pop("tables"), "'tables' is missing"),
    "empty": (lambda data: data.update(tables=[]), "tables of signatures []"),
    "twice": (lambda data: data["tables"].append(data["tables"][0]), "tables of signatures"),
    "no object": (lambda data: data.update(tables=[7]), "7 where an object"),
    "no method": (lambda data: data["tables"][0].pop("method"), "'method' is missing"),
    "odd method": (lambda data: data["tables"][0].update(method="best"), "method 'best' is none of entropy"),
    "text": (lambda data: data["tables"][0].update(batches="many"), "'batches' is 'many'"),
    "bool": (lambda data: data["tables"][0].update(batches=True), "'batches' is True"),
    "negative": (lambda data: data["tables"][0].update(batches=-1), "'batches' is -1"),
    "percentile": (lambda data: data["tables"][0].update(percentile=101), "'percentile' is 101"),
    "warnings": (lambda data: data["tables"][0].update(warnings=[1]), "warnings holds"),
    "ranges": (lambda data: data["tables"][0].update(ranges=[]), "'ranges' is []"),
    "no threshold": (lambda data: first_range(data).pop("threshold"), "island_0/add:0: 'threshold' is missing"),
    "null": (lambda data: first_range(data).update(threshold=None), "'threshold' is None"),
    "nan": (lambda data: first_range(data).update(threshold=math.nan), "'threshold' is nan"),
    "below zero": (lambda data: first_range(data).update(threshold=-1.0), "'threshold' is -1"),
    "zero": (lambda data: first_range(data).update(threshold=0.0), "threshold 0 for a tensor"),
    "infinite": (lambda data: first_range(data).update(high=math.inf), "'high' is inf"),
    "swapped": (lambda data: first_range(data).update(low=2.0, high=1.0), "low 2.0 is above high 1.0"),
    "share": (lambda data: first_range(data).update(clipped=1.5), "'clipped' is 1.5"),
    "counts": (lambda data: first_range(data).update(histogram=[1, -1]), "'histogram' holds"),
    "quantile": (lambda data: first_range(data)["quantiles"].update({"99": "a"}), "'99' is 'a'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tables_are_refused(name, file):
    change, said = DAMAGES[name]
    spoil(file, change)
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert str(file) in caught.value.message
    assert "damaged" in caught.value.message
    assert said in caught.value.message
    assert "calibrate again" in caught.value.hint


def test_files_that_are_no_tables(file, tmp_path):
    text = file.read_text()
    with pytest.raises(RecipeError, match=r"nothing\.json cannot be read: No such file"):
        load(tmp_path / "nothing.json")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load(tmp_path)
    for content in (b"", text[:-20].encode(), b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(RecipeError, match="is damaged"):
            load(file)
    for content in ("[]", "{}", '{"format": "other"}', "3"):
        file.write_text(content)
        with pytest.raises(RecipeError, match="no calibration table of refimpl"):
            load(file)


@pytest.mark.parametrize(
    ("version", "said"), [(2, "a newer one"), (0, "an unknown one"), ("1", "an unknown"), (True, "an unk")]
)
def test_other_formats_are_refused(version, said, file):
    spoil(file, lambda data: data.update(format_version=version))
    with pytest.raises(RecipeError, match=said):
        load(file)


# Fit


def test_a_table_fits_its_model():
    check_fits(TABLE, SHA, "serving_default", ["island_0/add:0", "island_0/conv1/Relu:0"])
    assert list(calibration.ranges_of(TABLE, "island_0")) == ["conv1/Relu:0", "add:0", "zero:0"]
    assert calibration.ranges_of(TABLE, "island_") == {}


def test_misfits_are_named():
    with pytest.raises(RecipeError, match="another model: its SHA-256 starts a1a1a1a1a1a1, that of this one b2b2"):
        check_fits(TABLE, "b2" * 32, "serving_default", [])
    with pytest.raises(RecipeError, match="no ranges of signature 'other', only of serving_default"):
        check_fits(TABLE, SHA, "other", [])
    with pytest.raises(RecipeError, match="no range of island_0/new:0 and 1 more") as caught:
        check_fits(TABLE, SHA, "serving_default", ["island_0/add:0", "island_0/new:0", "island_1/x"])
    assert "cut into other islands" in caught.value.hint
    with pytest.raises(RecipeError, match=r"no range of island_1/x\n"):
        check_fits(TABLE, SHA, "serving_default", ["island_1/x"])


def test_recipes_take_the_same_methods():
    assert set(CALIBRATORS) == set(calibration.METHODS)
    assert Recipe().percentile == calibration.PERCENTILE


# Comparison


def test_differences_come_by_size():
    a = table_of({"same": 1.0, "bit": 1.0, "half": 1.0, "ten": 1.0, "only a": 1.0, "was zero": 0.0})
    b = table_of({"same": 1.0, "bit": 1.01, "half": 0.5, "ten": 10.0, "only b": 2.0, "was zero": 3.0})
    rows = diff(a, b)
    assert [row.tensor.removeprefix("island_0/") for row in rows] == "only a,only b,was zero,ten,half,bit".split(",")
    assert rows[0] == Difference("island_0/only a", 1.0, None)
    assert [row.ratio for row in rows] == [None, None, math.inf, 10.0, 0.5, 1.01]
    assert diff(a, a) == ()
    assert diff(a, dataclasses.replace(a, method="minmax", batches=1)) == ()


# The command line


def call(*arguments):
    return CliRunner().invoke(commands, list(map(str, arguments)), env={"COLUMNS": "80"})


@pytest.fixture
def long_names(tmp_path):
    name = "model/block_1_expand_depthwise_separable/convolution_with_a_long_name/Conv2D_quant:0"
    table = table_of({name: 1234.5678, "b": 1e-12})
    save(table, tmp_path / "long.json")
    return tmp_path / "long.json"


def test_show(file, long_names):
    done = call("show", file)
    assert done.exit_code == 0
    assert "serving_default: 3 tensors, entropy, 12 batches" in done.stdout
    assert "model a1a1a1a1a1a1" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "conv1/Relu:0" in line)
    assert row.split() == ["island_0/conv1/Relu:0", "-2.5", "1.25", "2.5", "2.5"]
    assert next(line for line in done.stdout.splitlines() if "zero:0" in line).split()[-1] == "none"
    assert "warning: one\nwarning: two\n" in done.stdout
    assert max(map(len, call("show", long_names).stdout.splitlines())) <= 80
    assert json.loads(call("show", file, "--json").stdout) == [TABLE.to_json()]


def test_diff_exit_codes_and_rows(file, tmp_path, long_names):
    same = call("diff", file, file)
    assert (same.exit_code, same.stdout) == (0, "serving_default: the same 3 thresholds\n")
    save(table_of({"conv1/Relu:0": 5.0, "add:0": 0.1}, method="minmax"), tmp_path / "b.json")
    done = call("diff", file, tmp_path / "b.json")
    assert done.exit_code == 1
    assert "serving_default: 2 thresholds differ\n  method: entropy in A, minmax in B\n" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["island_0/conv1/Relu:0", "2.5", "5", "2"] in lines
    assert ["island_0/zero:0", "0", "only", "in", "A"] in lines
    wide = call("diff", file, long_names)
    assert wide.exit_code == 1
    assert max(map(len, wide.stdout.splitlines())) <= 80


def test_diff_as_json(file, tmp_path):
    save((table_of({"conv1/Relu:0": 5.0}), table_of({"x": 1.0}, signature="other")), tmp_path / "b.json")
    done = call("diff", file, tmp_path / "b.json", "--json")
    assert done.exit_code == 1
    data = json.loads(done.stdout)
    assert (data["same"], data["only_in"]) == (False, {"a": [], "b": ["other"]})
    assert data["signatures"]["serving_default"][-1] == {
        "tensor": "island_0/conv1/Relu:0", "a": 2.5, "b": 5.0, "ratio": 2.0,
    }  # fmt: skip
    assert "other: only in b" in call("diff", file, tmp_path / "b.json").stdout
    assert json.loads(call("diff", file, file, "--json").stdout)["same"] is True


@pytest.mark.parametrize("command", ["show", "diff"])
def test_bad_files_are_errors_of_the_user(command, tmp_path):
    arguments = [tmp_path / "no.json"] * (2 if command == "diff" else 1)
    done = call(command, *arguments)
    assert isinstance(done.exception, RecipeError), "refimpl.cli makes exit code 2 of it"


def test_the_table_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TABLE.batches = 3
    assert isinstance(TABLE, CalibrationTable)
