from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.errors import GoldenError
from refimpl.oracle.cases import ODD_SIZES, SIZES, CaseKind, CasePlan, narrow, plan_cases, smallest_normal
from refimpl.specs import Signature, TensorSpec

PINNED = [1.3115179538726807, -0.1362808495759964]
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


def plans(signature: Signature = MIXED, seed: int = 0) -> dict[str, CasePlan]:
    return {plan.name: plan for plan in plan_cases(signature, seed)}


def first(plan: CasePlan) -> dict[str, np.ndarray]:
    return dict(next(plan.attempts()).inputs)


def one(dtype: str, shape: tuple[int | None, ...] | None) -> Signature:
    return Signature("s", (TensorSpec("x", dtype, shape),), ())


def test_names_and_kinds() -> None:
    assert {name: plan.kind for name, plan in plans().items() if plan.kind is not CaseKind.ORDINARY} == {
        **dict.fromkeys(("large", "small", "denormals", "extremes"), CaseKind.STRESS),
        "nonfinite": CaseKind.NONFINITE,
        "empty-batch": CaseKind.EMPTY_BATCH,
    }
    assert [name for name, plan in plans().items() if plan.kind is CaseKind.ORDINARY] == [
        *("normal-b1", "normal-b3", "normal-b7", "unit", "pixels", "zeros", "ones")
    ]
    assert list(plans(one("int32", (2, 2)))) == ["normal", "zeros", "ones"]
    assert list(plans(Signature("s", (), ()))) == ["no-input"]


@pytest.mark.parametrize("name", plans())
def test_every_attempt_fits_the_signature(name: str) -> None:
    for case in plans()[name].attempts():
        for spec in MIXED.inputs:
            array = case.inputs[spec.name]
            assert array.dtype == spec.numpy_dtype()
            assert spec.accepts(array.shape)


def test_values_depend_on_signature_case_and_seed_only() -> None:
    def image(name: str = "normal-b1", seed: int = 0, key: str = "s") -> bytes:
        return first(plans(replace(MIXED, key=key), seed)[name])["image"].tobytes()

    assert image() == image()
    assert len({image(), image(key="t"), image(seed=1), image("large")}) == 4
    # The questions are part of the format: they may not change unnoticed.
    assert first(plans(one("float32", (2,)))["normal"])["x"].tolist() == PINNED
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
    odd = first(plans()["normal-b7"])["image"].shape
    assert odd == (7, 37, 37, 3)
    assert all(size % 2 and size % 32 for size in ODD_SIZES)
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
    unit, pixels = (first(plans()[name])["image"] for name in ("unit", "pixels"))
    assert unit.min() >= 0
    assert 0.9 < unit.max() <= 1
    assert set(np.unique(pixels)) == set(range(256))
    assert {type(item) for item in first(plans()["normal-b3"])["text"]} == {bytes}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "complex64"])
def test_denormals_are_subnormal_and_not_zero(dtype: str) -> None:
    values = first(plans(one(dtype, (500,)))["denormals"])["x"]
    for part in (values.real, values.imag) if dtype == "complex64" else (values,):
        size = np.abs(part.astype(np.float64))
        assert (size > 0).all()
        assert (size < smallest_normal(values.dtype)).all()
        assert len(set(part.tolist())) > 50
        assert (part < 0).any()
        assert (part > 0).any()


@pytest.mark.parametrize(
    ("dtype", "shape", "has"),
    [
        *[("float32", (None, 8, 8, channels), True) for channels in (1, 3, 4)],
        ("float16", (None, None, None, 3), True),
        ("float32", (None, 8, 8, 2), False),
        ("float32", (None, 8, 3), False),
        ("float32", None, False),
        ("uint8", (None, 8, 8, 3), False),
        ("complex64", (None, 8, 8, 3), False),
    ],
)
def test_pixels_are_for_images(dtype: str, shape: tuple[int | None, ...] | None, has: bool) -> None:
    assert ("pixels" in plans(one(dtype, shape))) == has


def test_what_is_no_image_is_normal_among_pixels() -> None:
    with_vector = Signature("s", (IMAGE, TensorSpec("x", "float32", (400,))), ())
    assert (first(plans(with_vector)["pixels"])["x"] < 0).any()


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
