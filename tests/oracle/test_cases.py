from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from refimpl.errors import GoldenError
from refimpl.oracle.cases import SIZES, CaseKind, CasePlan, narrow, plan_cases
from refimpl.oracle.user_cases import user_cases
from refimpl.specs import Signature, TensorSpec

IMAGE = TensorSpec("image", "float32", (None, None, None, 3))
MIXED = Signature(
    "s",
    (
        IMAGE,
        TensorSpec("ids", "int32", (None, 5)),
        TensorSpec("text", "string", (None,)),
        TensorSpec("flag", "bool", ()),
        TensorSpec("pixels", "uint8", (2, 2)),
        TensorSpec("wave", "complex64", (4,)),
        TensorSpec("half", "bfloat16", (4,)),
    ),
    (TensorSpec("y", "float32", None),),
)


def plans(signature: Signature = MIXED, model: str = "m", seed: int = 0) -> dict[str, CasePlan]:
    return {plan.name: plan for plan in plan_cases(signature, model, seed)}


def first(plan: CasePlan) -> dict[str, np.ndarray]:
    return dict(next(plan.attempts()).inputs)


def one(dtype: str, shape: tuple[int | None, ...] | None) -> Signature:
    return Signature("s", (TensorSpec("x", dtype, shape),), ())


def test_names_and_kinds() -> None:
    assert {name: plan.kind for name, plan in plans().items() if plan.kind is not CaseKind.ORDINARY} == {
        "nonfinite": CaseKind.NONFINITE,
        "empty-batch": CaseKind.EMPTY_BATCH,
    }
    assert set(plans()) >= {"normal-b1", "normal-b3", "zeros", "ones", "large", "small", "extremes"}
    assert list(plans(one("int32", (2, 2)))) == ["normal", "zeros", "ones"]
    assert list(plans(Signature("s", (), ()))) == ["no-input"]


@pytest.mark.parametrize("name", plans())
def test_every_attempt_fits_the_signature(name: str) -> None:
    for case in plans()[name].attempts():
        for spec in MIXED.inputs:
            array = case.inputs[spec.name]
            assert array.dtype == spec.numpy_dtype()
            assert spec.accepts(array.shape)


def test_values_depend_on_model_case_and_seed_only() -> None:
    def image(name: str = "normal-b1", **more: object) -> bytes:
        return first(plans(**more)[name])["image"].tobytes()  # type: ignore[arg-type]

    assert image() == image()
    assert len({image(), image(model="n"), image(seed=1), image("large")}) == 4
    b1, other = first(plans()["normal-b1"])["wave"], first(plans(one("complex64", (4,)))["normal"])["x"]
    assert not np.array_equal(b1, other)


def test_inputs_of_one_case_differ() -> None:
    twins = Signature("s", tuple(TensorSpec(name, "float32", (8,)) for name in "ab"), ())
    values = first(plans(twins)["normal"])
    assert not np.array_equal(values["a"], values["b"])


def test_open_dimensions() -> None:
    shapes = [case.inputs["image"].shape for case in plans()["normal-b1"].attempts()]
    assert list(dict.fromkeys(shapes)) == [(1, size, size, 3) for size in SIZES]
    assert first(plans()["normal-b3"])["image"].shape == (3, 64, 64, 3)
    assert first(plans()["empty-batch"])["image"].shape == (0, 32, 32, 3)
    unknown = [case.inputs["x"].shape for case in plans(one("float32", None))["normal-b1"].attempts()]
    assert unknown == [(1, 8), (1, 32, 32, 3), (1,)]


def test_ladders_are_climbed_and_noted() -> None:
    notes = [case.note for case in plans(one("int32", (None,)))["normal-b1"].attempts()]
    assert notes == ["integers mixed", "integers 0..99", "integers 0..1"]
    rungs = [case.inputs["x"] for case in plans(one("int64", (400,)))["normal"].attempts()]
    assert [(rung.min() < 0, rung.max() > 1) for rung in rungs] == [(True, True), (False, True), (False, False)]
    assert [case.note for case in plans(one("float32", (3,)))["normal"].attempts()] == [""]


def test_fills() -> None:
    assert not any(np.any(array) for name, array in first(plans()["zeros"]).items() if name != "text")
    assert all(np.all(array) for name, array in first(plans()["ones"]).items() if name != "text")
    assert set(first(plans()["extremes"])["pixels"].ravel()) <= {0, 255}
    values = first(plans()["nonfinite"])["image"]
    assert np.isnan(values).any()
    assert np.isposinf(values).any()
    assert np.isneginf(values).any()
    assert np.isfinite(values).mean() > 0.8
    big, small = (np.abs(first(plans()[name])["image"]).max() for name in ("large", "small"))
    assert big > 1e3
    assert 1e-3 < small < 1e-2
    assert {type(item) for item in first(plans()["normal-b3"])["text"]} == {bytes}


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), ()])
def test_nonfinite_works_on_tiny_inputs(shape: tuple[int, ...]) -> None:
    assert not np.isfinite(first(plans(one("float32", shape))["nonfinite"])["x"]).any()


def test_wide_integers_never_get_extremes() -> None:
    assert "extremes" not in plans(one("int32", (None,)))
    assert "extremes" not in plans(one("int64", (None,)))


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(GoldenError, match="no values can be made for input x: variant"):
        plans(one("variant", ()))


def test_narrow() -> None:
    sized = narrow(MIXED, {"image": (None, 48, 64, 3)})
    assert first(plans(sized)["normal-b3"])["image"].shape == (3, 48, 64, 3)
    assert narrow(one("float32", None), {"x": (2, 3)}).inputs[0].shape == (2, 3)
    assert narrow(MIXED, {}) == MIXED
    for wrong in [(1, 8, 8), (1, 8, 8, 4), (1, 8, 8, None)]:
        with pytest.raises(GoldenError, match="does not fit input image"):
            narrow(MIXED, {"image": wrong})


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
    np.savez(tmp_path / "objects.npz", t=np.array([b"a"], dtype=object))
    (tmp_path / "empty").mkdir()
    for name, what in itertools.chain(
        [("junk.npz", "cannot be read"), ("objects.npz", "cannot be read"), ("absent.npz", "cannot read")],
        [("empty", "holds no cases"), ("absent", "no cases at")],
    ):
        with pytest.raises(GoldenError, match=what):
            user_cases(str(tmp_path / name), [TEXT])
