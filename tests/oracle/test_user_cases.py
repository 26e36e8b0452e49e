"""The user's own cases and their labels: what fits is taken as it is, and what does not is one clear error."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import GoldenError
from refimpl.oracle.cases import CaseKind
from refimpl.oracle.user_cases import user_cases
from refimpl.specs import Signature, TensorSpec

PAIR = Signature("pair", (TensorSpec("a/b", "float32", (None,)), TensorSpec("n", "int32", ())), ())
TEXT = Signature("text", (TensorSpec("t", "string", (None,)),), ())
A, N = np.ones(2, np.float32), np.int32(3)


def test_npz_of_one_case(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **{"a/b": A, "n": N})
    (case,) = user_cases(str(tmp_path / "mine.npz"), [PAIR, TEXT])
    assert (case.name, case.signature, case.kind) == ("mine", "pair", CaseKind.USER)
    assert case.inputs["n"].shape == ()


def test_npz_of_several_cases_and_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", **{"one/a/b": A, "one/n": N, "two/a/b": A[:0], "two/n": N})
    np.savez(tmp_path / "a.npz", t=np.array([b"x", "ß".encode()]))
    cases = user_cases(str(tmp_path), [PAIR, TEXT])
    assert [(case.name, case.kind) for case in cases] == [
        ("a", CaseKind.USER),
        ("b-one", CaseKind.USER),
        ("b-two", CaseKind.EMPTY_BATCH),
    ]
    assert cases[0].inputs["t"].tolist() == [b"x", "ß".encode()]


def test_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_oracle_inputs.py").write_text(
        "def good():\n    yield {'t': ['a', b'b']}\n    yield 'named', {'t': ['ü']}\n"
        "def broken():\n    yield {'t': ['a']}\n    raise OSError('no image')\n"
        "def odd():\n    yield 7\n"
    )
    monkeypatch.chdir(tmp_path)
    cases = user_cases("my_oracle_inputs:good", [TEXT])
    assert [case.name for case in cases] == ["good-0", "named"]
    assert cases[1].inputs["t"].tolist() == ["ü".encode()]
    for name, what in [("broken", "failed: OSError: no image"), ("odd", "yields int"), ("absent", "cannot find")]:
        with pytest.raises(GoldenError, match=what):
            user_cases(f"my_oracle_inputs:{name}", [TEXT])


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"a/b": A}, "fit no signature"),
        ({"a/b": A, "n": N, "z": N}, "fit no signature"),
        ({"a/b": A.astype(np.float64), "n": N}, "is float64, the signature wants float32"),
        ({"a/b": A[None], "n": N}, r"has shape \[1,2\], the signature wants \[\?\]"),
        ({"t": A}, "wants strings"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, values: dict[str, np.ndarray], what: str) -> None:
    np.savez(tmp_path / "mine.npz", **values)
    with pytest.raises(GoldenError, match=what):
        user_cases(str(tmp_path / "mine.npz"), [PAIR, TEXT])


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "text.npz").write_text("t = 1, 2, 3")
    np.savez(tmp_path / "objects.npz", t=np.array([b"a"], dtype=object))
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    np.save(tmp_path / "single" / "t.npy", np.array([b"a"]))
    for name, what in itertools.chain(
        [("junk.npz", "is not an npz archive"), ("text.npz", "is not an npz archive")],
        [("objects.npz", "array 't' holds Python objects"), ("absent.npz", "cannot read")],
        [("empty", "holds no cases"), ("absent", "no cases at"), ("single", r"holds \.npy files and no \.npz")],
    ):
        with pytest.raises(GoldenError, match=what) as caught:
            user_cases(str(tmp_path / name), [TEXT])
        assert "pickle" not in str(caught.value), "NumPy's advice lets a file run code"
        assert caught.value.hint


def test_a_module_that_fails_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_failing_inputs.py").write_text("raise RuntimeError('no data here')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GoldenError, match="my_failing_inputs:f failed: RuntimeError: no data here"):
        user_cases("my_failing_inputs:f", [TEXT])


# Labels.

SCORES = Signature("scores", (TensorSpec("x", "float32", (None, 2)), TensorSpec("scale", "float32", (3,))), ())
X, SCALE = np.ones((4, 2), np.float32), np.ones(3, np.float32)


def labelled(tmp_path: Path, **arrays: Any) -> str:
    np.savez(tmp_path / "mine.npz", **{"x": X, "scale": SCALE, **arrays})
    return str(tmp_path / "mine.npz")


@pytest.mark.parametrize(
    ("label", "want"),
    [
        (np.arange(4), [0, 1, 2, 3]),
        (np.eye(4, 2), np.eye(4, 2).tolist()),
        (np.array([b"a", b"b", b"", b"d"]), [b"a", b"b", b"", b"d"]),
        (np.array(list("abcd")), [b"a", b"b", b"c", b"d"]),
        (np.array([True, False, True, True]), [True, False, True, True]),
    ],
)
def test_labels_are_kept_and_not_fed(tmp_path: Path, label: np.ndarray, want: list[Any]) -> None:
    (case,) = user_cases(labelled(tmp_path, y=label), [SCORES], ["y"])
    assert set(case.inputs) == {"x", "scale"}
    assert {name: array.tolist() for name, array in case.labels.items()} == {"y": want}


def test_an_array_that_nobody_declared_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="fit no signature") as caught:
        user_cases(labelled(tmp_path, y=np.arange(4)), [TEXT, SCORES])
    assert "--label y" in caught.value.hint
    with pytest.raises(GoldenError, match="fit no signature") as caught:
        user_cases(labelled(tmp_path), [Signature("s", (*SCORES.inputs, TensorSpec("z", "bool", ())), ())])
    assert "--label" not in caught.value.hint, "nothing is too many: an input is missing"


@pytest.mark.parametrize(
    ("label", "what"),
    [
        (np.arange(3), r"label 'y' has shape \[3\], the inputs have 4 examples"),  # the other input has 3 rows
        (np.array(7), r"has shape \[\], the inputs have 4 examples"),
        (np.zeros((0,)), "the inputs have 4 examples"),
        (np.array(["2020-01-01"] * 4, "datetime64[D]"), r"label 'y' is datetime64\[D\]"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, label: np.ndarray, what: str) -> None:
    with pytest.raises(GoldenError, match=what) as caught:
        user_cases(labelled(tmp_path, y=label), [SCORES], ["y"])
    assert caught.value.where == {"case": "mine", "signature": "scores"}


def test_labels_that_are_python_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_odd_labels.py").write_text(
        "def f():\n    yield {'t': ['a', 'b'], 'y': [{}, None]}\ndef g():\n    yield {'t': ['a', 'b'], 'y': [1, 2]}\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GoldenError, match="label 'y' is object"):
        user_cases("my_odd_labels:f", [TEXT], ["y"])
    (case,) = user_cases("my_odd_labels:g", [TEXT], ["y"])
    assert case.labels["y"].tolist() == [1, 2]


def test_every_case_must_have_every_label(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="case 'mine' has no label 'z'") as caught:
        user_cases(labelled(tmp_path, y=np.arange(4)), [SCORES], ["y", "z"])
    assert "it has: x, scale, y" in caught.value.hint


def test_a_label_must_not_be_an_input(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="label 'x' is an input of signature 'scores'"):
        user_cases(labelled(tmp_path), [SCORES], ["x"])


def test_labels_in_a_file_of_several_cases(tmp_path: Path) -> None:
    arrays = {"one/t": np.array([b"a"]), "one/y": np.array([1]), "two/t": np.array([b"b"]), "two/y": np.array([2])}
    np.savez(tmp_path / "f.npz", **arrays)
    cases = user_cases(str(tmp_path / "f.npz"), [TEXT], ["y"])
    assert [(case.name, case.labels["y"].tolist()) for case in cases] == [("f-one", [1]), ("f-two", [2])]


def test_an_input_named_with_a_slash_beside_a_label_named_with_one(tmp_path: Path) -> None:
    only = Signature("only", (TensorSpec("a/b", "float32", (None,)),), ())
    np.savez(tmp_path / "f.npz", **{"a/b": A, "a/y": np.arange(2)})
    (case,) = user_cases(str(tmp_path / "f.npz"), [only], ["a/y"])
    assert (case.name, list(case.labels)) == ("f", ["a/y"])
