"""The format on disk: what goes in comes out, and nothing damaged is ever read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refimpl.errors import GoldenError
from refimpl.oracle import golden as golden_module
from refimpl.oracle.arrays import digest
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.golden import INDEX, Golden, GoldenCase, new_directory, read_golden
from refimpl.specs import Signature, TensorSpec
from tests.oracle.fakes import make_case, strings, write_golden

RNG = np.random.default_rng(5)
ARRAYS = {
    "float32": RNG.standard_normal((2, 3)).astype(np.float32),
    "float16": np.array([1, np.nan, -np.inf], np.float16),
    "float64": np.array(3.5),
    "bfloat16": RNG.standard_normal((3, 2)).astype(ml_dtypes.bfloat16),
    "complex64": np.array([1 + 2j], np.complex64),
    "int8": np.array([-128, 127], np.int8),
    "uint64": np.array([2**64 - 1], np.uint64),
    "bool": np.array([[True], [False]]),
    "fortran": np.asfortranarray(RNG.standard_normal((4, 3))),
    "empty": np.zeros((0, 7), np.int32),
    "string": strings(b"a\0b\0", b"", b"\xff\xfe", "ß".encode()),
    "string scalar": np.array(b"one", dtype=object),
    "no strings": np.empty((0, 2), dtype=object),
    "odd/name with ../dots": np.arange(3),
}


def everything(out: Path) -> Golden:
    def spec(name: str, array: np.ndarray) -> TensorSpec:
        return TensorSpec(name, "string" if array.dtype == object else array.dtype.name, array.shape)

    specs = tuple(spec(name, array) for name, array in ARRAYS.items())
    case = GoldenCase(
        signature="all/of it",
        name="../weird name",
        kind=CaseKind.USER,
        inputs=ARRAYS,
        outputs=ARRAYS,
        unstable={"empty": "shape"},
        note="ünï",
        seed=7,
        labels={"class": np.array([3, 1]), "word": strings(b"a", b"")},
    )
    return write_golden(out, [case], (Signature("all/of it", specs, specs),))


def test_round_trip(tmp_path: Path) -> None:
    record = everything(tmp_path / "g")
    (case,) = record.cases
    for group in (case.inputs, case.outputs):
        assert list(group) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert group[name].dtype == array.dtype
            assert group[name].shape == array.shape
            assert digest(group[name]) == digest(array)
            assert not group[name].flags.writeable
    assert {name: array.tolist() for name, array in case.labels.items()} == {"class": [3, 1], "word": [b"a", b""]}
    assert not case.labels["class"].flags.writeable
    assert case.inputs["string"].tolist() == [b"a\0b\0", b"", b"\xff\xfe", "ß".encode()]
    assert (case.name, case.unstable, case.note, case.seed) == ("../weird name", {"empty": "shape"}, "ünï", 7)
    assert record.dropped[0].reason == "TensorFlow refused: no"
    assert [path.name for path in (tmp_path / "g" / "cases").iterdir()] == ["000-all_of_it-.._weird_name.npz"]


def test_the_same_record_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("g1", "g2"):
        everything(tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("g1", "g2"))
    assert one == two


def test_digest_tells_arrays_apart() -> None:
    like = [np.zeros(4, np.int32), np.zeros((2, 2), np.int32), np.zeros(4, np.float32), np.zeros(2, np.int64)]
    like += [strings(b"ab", b"c"), strings(b"a", b"bc"), np.arange(4), np.arange(4)[::-1]]
    assert len({digest(array) for array in like}) == len(like)
    assert digest(ARRAYS["fortran"]) == digest(np.ascontiguousarray(ARRAYS["fortran"]))
    big_endian = np.array([1, 2], ">i4")
    assert digest(big_endian) == digest(np.array([1, 2], "<i4"))


def edit_index(root: Path, change: Callable[[dict[str, Any]], None], *, seal: bool = False) -> None:
    index = json.loads((root / INDEX).read_text())
    change(index)
    if seal:  # an edit by someone who knows the format
        body = {key: value for key, value in index.items() if key not in ("format", "format_version", "sha256")}
        index["sha256"] = golden_module._body_sha256(body)
    (root / INDEX).write_text(json.dumps(index))


def to_format_1(index: dict[str, Any]) -> None:
    """As the first format was: without labels, and with less of a provenance."""
    index["format_version"] = 1
    for entry in index["cases"]:
        assert entry.pop("labels") == []
    for field in ("threads", "tf32", "processor", "instruction_sets", "libc"):
        del index["provenance"][field]


def test_records_of_format_1_are_read(golden: Golden) -> None:
    edit_index(golden.path, to_format_1, seal=True)
    old = read_golden(golden.path)
    assert [case.name for case in old.cases] == [case.name for case in golden.cases]
    assert [case.labels for case in old.cases] == [{}] * len(old.cases)
    assert (old.provenance.threads, old.provenance.processor) == (None, "")
    assert old.provenance.versions == golden.provenance.versions


def first_case(root: Path) -> Path:
    return min(root.glob("cases/*.npz"))


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def other_arrays(root: Path) -> None:
    """A well-formed case file with other contents, sealed with its own SHA-256: only the arrays' digests can tell."""
    stream = io.BytesIO()
    with np.load(first_case(root)) as archive:
        members = dict(archive)
    np.savez(stream, **{**members, "output/scores": members["output/scores"] + np.float32(1)})
    first_case(root).write_bytes(stream.getvalue())
    sha = hashlib.sha256(stream.getvalue()).hexdigest()
    edit_index(root, lambda index: index["cases"][0].update(sha256=sha), seal=True)


def to_folder(root: Path) -> None:
    file = first_case(root)
    file.unlink()
    file.mkdir()


def pickled(root: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, **{"input/x": np.array([{}], dtype=object)})
    first_case(root).write_bytes(stream.getvalue())
    sha = hashlib.sha256(stream.getvalue()).hexdigest()
    edit_index(root, lambda index: index["cases"][0].update(sha256=sha), seal=True)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda g: (g / INDEX).unlink(), "it has no golden.json"),
    "empty index": (lambda g: (g / INDEX).write_bytes(b""), "cannot be read"),
    "half an index": (lambda g: rewrite(g / INDEX, lambda d: d[: len(d) // 2]), "cannot be read"),
    "binary index": (lambda g: (g / INDEX).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "another JSON": (lambda g: (g / INDEX).write_text('{"format": "x"}'), "is not a golden record"),
    "a JSON list": (lambda g: (g / INDEX).write_text("[]"), "is not a golden record"),
    "newer": (lambda g: edit_index(g, lambda i: i.update(format_version=3)), "has format 3"),
    "version 0": (lambda g: edit_index(g, lambda i: i.update(format_version=0)), "format version 0"),
    "version text": (lambda g: edit_index(g, lambda i: i.update(format_version="1")), "format version '1'"),
    "a case left out": (lambda g: edit_index(g, lambda i: i["cases"].pop()), "was changed"),
    "seed edited": (lambda g: edit_index(g, lambda i: i["provenance"].update(seed=1)), "was changed"),
    "no cases": (lambda g: edit_index(g, lambda i: i.update(cases=[]), seal=True), "holds no cases"),
    "field missing": (lambda g: edit_index(g, lambda i: i["cases"][0].pop("kind"), seal=True), "KeyError"),
    "kind unknown": (lambda g: edit_index(g, lambda i: i["cases"][0].update(kind="?"), seal=True), "ValueError"),
    "cases a number": (lambda g: edit_index(g, lambda i: i.update(cases=3), seal=True), "TypeError"),
    "signature unknown": (lambda g: edit_index(g, lambda i: i.update(signatures=[]), seal=True), "KeyError"),
    "outputs left out": (lambda g: edit_index(g, lambda i: i["cases"][0]["outputs"].pop(), seal=True), "are not those"),
    "labels missing": (lambda g: edit_index(g, lambda i: i["cases"][0].pop("labels"), seal=True), "'labels'"),
    "label unknown": (
        lambda g: edit_index(
            g, lambda i: i["cases"][0].update(labels=[dict(i["cases"][0]["inputs"][0], name="y")]), seal=True
        ),
        "label/y",
    ),
    "no outputs": (lambda g: edit_index(g, lambda i: i["cases"][0].update(outputs=[]), seal=True), "are not those"),
    "path outside": (
        lambda g: edit_index(g, lambda i: i["cases"][0].update(file="cases/../../x.npz"), seal=True),
        "not the name of a case file",
    ),
    "other shape": (
        lambda g: edit_index(g, lambda i: i["cases"][0]["inputs"][0].update(shape=[4, 1]), seal=True),
        "the index says x",
    ),
    "case file gone": (lambda g: first_case(g).unlink(), "is missing"),
    "case file empty": (lambda g: first_case(g).write_bytes(b""), "recorded SHA-256"),
    "case file cut": (lambda g: rewrite(first_case(g), lambda d: d[:-9]), "recorded SHA-256"),
    "one bit": (lambda g: rewrite(first_case(g), flip), "recorded SHA-256"),
    "case file a folder": (to_folder, "is missing or cannot be read"),
    "case files swapped": (
        lambda g: shutil.copy(sorted(g.glob("cases/*.npz"))[1], first_case(g)),
        "recorded SHA-256",
    ),
    "other arrays": (other_arrays, "'scores' does not have the recorded SHA-256"),
    "pickled objects": (pickled, "'input/x' holds Python objects"),
    "stray case": (lambda g: shutil.copy(first_case(g), g / "cases/999.npz"), "does not list cases/999.npz"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(golden: Golden, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    spoil(golden.path)
    with pytest.raises(GoldenError) as caught:
        read_golden(golden.path)
    assert message in str(caught.value)


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="does not exist") as caught:
        read_golden(tmp_path / "nowhere")
    assert "refimpl record" in caught.value.hint


def test_an_existing_directory_is_never_touched(tmp_path: Path) -> None:
    out = tmp_path / "g"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(GoldenError, match="already exists"):
        write_golden(out, [make_case("normal", 2)])
    assert [path.name for path in tmp_path.rglob("*")] == ["g", "mine"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), GoldenError("y")])
def test_interrupted_half_way_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def half() -> None:
        with new_directory(tmp_path / "g") as room:
            (room / "half").write_text("half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(golden_module.os, "fsync", full)
    with pytest.raises(GoldenError, match=r"cannot write .*No space left"):
        write_golden(tmp_path / "g", [make_case("normal", 2)])
    assert list(tmp_path.iterdir()) == []


def test_parent_must_exist(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="is not a directory"):
        write_golden(tmp_path / "no" / "g", [make_case("normal", 2)])


def test_a_record_can_be_moved(golden: Golden, tmp_path: Path) -> None:
    moved = shutil.move(golden.path, tmp_path / "elsewhere")
    assert replace(read_golden(moved), path=golden.path).provenance == golden.provenance
