"""Sample inputs: what is made up, and the user's own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl.converter import samples
from refimpl.converter.samples import (
    Sample,
    draw,
    guess_shape,
    made_up,
    read_npz,
    rng_for,
    user_samples,
    with_nonfinite,
)
from refimpl.errors import RecipeError
from refimpl.specs import Signature, TensorSpec

X = TensorSpec("x", "float32", (None, 3))
TEXT = TensorSpec("text", "string", (None,))
SIGNATURE = Signature("serving_default", (X,), ())


def spec(dtype, shape=(40, 5)):
    return TensorSpec("t", dtype, shape)


@pytest.mark.parametrize(
    "dtype", "float16 bfloat16 float32 float64 complex64 bool int8 uint8 int32 int64 uint16".split()
)
def test_values_have_the_dtype_and_vary(dtype):
    for kind in samples.kinds():
        array = draw(spec(dtype), (40, 5), kind, rng_for(dtype, kind))
        assert array.dtype == spec(dtype).numpy_dtype()
        assert array.shape == (40, 5)
        assert kind == "zero" or len(np.unique(array.astype(complex))) > 1, kind
        again = draw(spec(dtype), (40, 5), kind, rng_for(dtype, kind))
        np.testing.assert_array_equal(again, array)


def test_integers_go_from_telling_to_safe():
    ranges = {kind: draw(spec("int32"), (400,), kind, rng_for(kind)) for kind in samples.kinds()}
    assert samples.kinds() == ("mixed-sign", "small", "tiny", "zero")
    assert ranges["mixed-sign"].min() == -9
    assert ranges["mixed-sign"].max() == 9
    assert 0 not in ranges["mixed-sign"], "it may be a divisor"
    assert (ranges["small"].min(), ranges["small"].max()) == (0, 9)
    assert set(ranges["tiny"]) == {0, 1}
    assert set(ranges["zero"]) == {0}
    assert draw(spec("uint8"), (400,), "mixed-sign", rng_for(1)).max() > 200


def test_strings_are_bytes():
    array = draw(TEXT, (2, 2), "small", rng_for(0))
    assert array.dtype == object
    assert all(isinstance(item, bytes) for item in array.reshape(-1))


def test_scalars():
    for dtype in ("float32", "int32", "bool", "string"):
        array = draw(TensorSpec("t", dtype, ()), (), "small", rng_for(0))
        assert isinstance(array, np.ndarray)
        assert array.shape == ()


def test_nonfinite_values_are_planted_in_floats_only():
    sample = Sample("s", {"x": np.ones((5, 5), np.float32), "n": np.arange(3)})
    found = with_nonfinite(sample, rng_for(0))
    assert [item.name for item in found] == ["s, NaN", "s, +inf", "s, -inf", "s, non-finite"]
    for item, test in zip(found, (np.isnan, np.isposinf, np.isneginf, lambda x: ~np.isfinite(x)), strict=True):
        assert test(item.values["x"]).any()
        assert item.values["x"].dtype == np.float32
        np.testing.assert_array_equal(item.values["n"], np.arange(3))
        assert np.isfinite(item.values["x"]).any(), "not everything, or nothing is compared"
    assert np.isfinite(sample.values["x"]).all(), "the sample itself is left alone"
    assert with_nonfinite(Sample("s", {"n": np.arange(3)}), rng_for(0)) == []
    assert with_nonfinite(Sample("s", {"x": np.zeros((0, 2), np.float32)}), rng_for(0)) == []


@pytest.mark.parametrize(
    ("shape", "variant", "fixed", "wanted"),
    [
        ((None, 3), 0, None, (2, 3)),
        ((None, 3), 1, None, (1, 3)),
        ((None, None, None, 3), 0, None, (2, 32, 32, 3)),
        ((4, 3), 2, None, (4, 3)),
        (None, 0, None, (2, 32)),
        ((), 0, None, ()),
        ((None, 3), 0, (9, 3), (9, 3)),
    ],
)
def test_shapes_are_guessed(shape, variant, fixed, wanted):
    assert guess_shape(TensorSpec("t", "float32", shape), variant, fixed) == wanted


def test_made_up_tries_until_it_is_accepted():
    index = Signature("s", (TensorSpec("i", "int64", (None,)), X), ())

    def accepts(sample):
        return bool((sample.values["i"] >= 0).all() and (sample.values["i"] < 2).all())

    found = made_up(index, {}, accepts)
    assert len(found) == 2
    assert all(accepts(sample) for sample in found)
    assert found[0].values["x"].shape != found[1].values["x"].shape
    again = made_up(index, {}, accepts)
    for one, other in zip(found, again, strict=True):
        for name, value in one.values.items():
            np.testing.assert_array_equal(value, other.values[name])


def test_made_up_takes_the_most_telling_values_that_are_accepted():
    index = Signature("s", (TensorSpec("i", "int64", (None,)),), ())
    (first, _) = made_up(index, {}, lambda sample: True)
    assert first.name == "random 0, integers mixed-sign"


def test_made_up_keeps_to_the_shapes_asked_for():
    found = made_up(SIGNATURE, {"x": [(5, 3), (7, 3)]}, lambda sample: True)
    assert [sample.values["x"].shape for sample in found] == [(5, 3), (7, 3)]


def test_made_up_gives_up():
    tries = []
    assert made_up(SIGNATURE, {}, lambda sample: bool(tries.append(sample))) == []
    assert len({sample.values["x"].shape for sample in tries}) > 1, "another shape might have done"


def npz(file: Path, **arrays):
    np.savez(file, **arrays)
    return str(file)


def read(where, signature=SIGNATURE):
    return list(user_samples(str(where), signature))


def test_a_file_and_a_folder(tmp_path):
    first, second = np.ones((2, 3), np.float32), np.zeros((5, 3), np.float32)
    (sample,) = read(npz(tmp_path / "b.npz", x=first, label=np.arange(2)))
    np.testing.assert_array_equal(sample.values["x"], first)
    assert set(sample.values) == {"x"}
    npz(tmp_path / "a.npz", x=second)
    (tmp_path / "notes.txt").write_text("no sample")
    assert [item.values["x"].shape for item in read(tmp_path)] == [(5, 3), (2, 3)]


def test_strings_come_from_fixed_width_arrays(tmp_path):
    file = npz(tmp_path / "s.npz", text=np.array([b"one", b"three"]))
    (sample,) = read(file, Signature("s", (TEXT,), ()))
    assert sample.values["text"].tolist() == [b"one", b"three"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's own; its name is new in every test."""

    def write(text):
        name = f"user_{abs(hash(str(tmp_path)))}"
        (tmp_path / f"{name}.py").write_text("import numpy as np\n" + text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_a_function(module):
    name = module("def feed():\n    for n in (1, 4):\n        yield {'x': np.ones((n, 3), np.float32)}")
    found = read(f"{name}:feed")
    assert [item.values["x"].shape for item in found] == [(1, 3), (4, 3)]
    assert [item.name for item in found] == [f"{name}:feed#0", f"{name}:feed#1"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("feed = 3", "not callable"),
        ("def other(): pass", "no attribute 'feed'"),
        ("def feed(): return None", "not iterable"),
        ("def feed(): yield [1]", "yielded list"),
        ("def feed(): raise OSError('camera is off')", "camera is off"),
        ("def feed():\n    yield {'x': np.ones((1, 3), np.float32)}\n    1 / 0", "division by zero"),
        ("def feed(: pass", "invalid syntax"),
        ("def feed(): yield {}", "has no input 'x'"),
    ],
)
def test_a_function_that_fails_is_the_users_error(module, text, says):
    name = module(text)
    with pytest.raises(RecipeError, match="hint: ") as caught:
        read(f"{name}:feed")
    assert says in caught.value.message
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.ones((2, 3), np.float32)}, "has no input 'x'"),
        ({"x": np.ones((2, 3), np.float64)}, "'x' is float64"),
        ({"x": np.ones((2, 4), np.float32)}, "'x' has shape [2, 4]"),
        ({"x": np.ones(3, np.float32)}, "'x' has shape [3]"),
        ({"x": np.array(["a", "b"])}, "'x' is <U1"),
        ({}, "has no input 'x'"),
    ],
)
def test_samples_that_do_not_fit(tmp_path, arrays, says):
    file = npz(tmp_path / "c.npz", **arrays)
    with pytest.raises(RecipeError, match="hint: ") as caught:
        read(file)
    assert says in caught.value.message
    assert "c.npz" in caught.value.message


@pytest.mark.parametrize("array", [np.ones(2, np.float32), np.arange(3)])
def test_numbers_are_no_strings(tmp_path, array):
    with pytest.raises(RecipeError, match="'text' is "):
        read(npz(tmp_path / "c.npz", text=array), Signature("s", (TEXT,), ()))


def _whole(folder: Path) -> bytes:
    return Path(npz(folder / "whole.npz", x=np.ones((40, 3), np.float32))).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PK\x03\x04 not really",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:60] + bytes([data[60] ^ 255]) + data[61:],
        lambda data: data[:250] + bytes([data[250] ^ 1]) + data[251:],
        lambda data: b"\x93NUMPY\x01\x00",
        lambda data: b"\x80\x04]\x94.",
    ],
    ids="empty head-only half last-byte header value npy pickle".split(),
)
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    file = tmp_path / "damaged.npz"
    file.write_bytes(damage(_whole(tmp_path)))
    with pytest.raises(RecipeError, match=r"damaged.npz cannot be read as .npz") as caught:
        read_npz(file)
    assert "numpy.savez" in caught.value.hint


def test_pickled_objects_are_not_opened(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_npz(Path(npz(tmp_path / "c.npz", x=np.array([{}], object))))


def test_a_single_array_is_no_npz(tmp_path):
    np.save(tmp_path / "c.npy", np.ones(3))
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    with pytest.raises(RecipeError, match=r"cannot be read as .npz"):
        read_npz(tmp_path / "c.npz")


def test_nothing_there(tmp_path):
    with pytest.raises(RecipeError, match=r"no.npz cannot be read as .npz"):
        read(tmp_path / "no.npz")
    with pytest.raises(RecipeError, match=r"no samples at .*elsewhere"):
        read(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match="yields no samples"):
        read(tmp_path)
    with pytest.raises(RecipeError, match="No module named 'not_a_module'"):
        read("not_a_module:feed")
