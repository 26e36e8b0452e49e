"""Sample inputs: the user's own, or made up from dtypes and shapes until TensorFlow accepts them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import npz
from refimpl.artifacts import Array
from refimpl.errors import RecipeError, RefimplError
from refimpl.specs import Signature, TensorSpec
from refimpl.user_code import user_function

# Sizes tried for unknown dimensions. The first is the batch, which is never 1 only: broadcasting would hide mistakes.
_BATCHES = (2, 1, 3)
_SIZES = (32, 48, 8, 64, 224)
MAX_USER_SAMPLES = 16  # enough to see ranges and shapes; calibration proper reads them all


@dataclass(frozen=True)
class Sample:
    """One set of values for some tensors; ``extras`` came with them and are no inputs (labels)."""

    name: str
    values: Mapping[str, Array]
    extras: Mapping[str, Any] = field(default_factory=dict)


# How values of each kind of dtype are drawn, from the most telling to the safest: integers are often indices, and
# TensorFlow refuses indices out of range.
_INTEGERS: tuple[tuple[str, int, int], ...] = (("mixed-sign", -9, 10), ("small", 0, 10), ("tiny", 0, 2), ("zero", 0, 1))


def kinds() -> tuple[str, ...]:
    """Names of the ways in which integers are drawn, most telling first."""
    return tuple(name for name, _, _ in _INTEGERS)


def draw(spec: TensorSpec, shape: Sequence[int], kind: str, rng: np.random.Generator) -> Array:
    """Random values of one tensor.

    Floats are normal with a few larger ones; integers as ``kind`` says and never zero when of mixed sign (they may
    divide); bools are fair coins; strings are short ASCII words.
    """
    dtype = spec.numpy_dtype()
    if spec.dtype == "string":
        return np.array([b"sample"] * int(np.prod(shape, dtype=int)), dtype=object).reshape(shape)
    if dtype == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)
    if np.issubdtype(dtype, np.integer):
        low, high = next((low, high) for name, low, high in _INTEGERS if name == kind)
        if dtype.kind == "u":
            bytes_like = dtype.itemsize == 1 and kind == "mixed-sign"
            return rng.integers(0, 256 if bytes_like else max(high, 1), shape).astype(dtype)
        numbers = rng.integers(low, high, shape)
        return np.where(numbers == 0, 1, numbers).astype(dtype) if kind == "mixed-sign" else numbers.astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    values = rng.standard_normal(shape)
    return np.asarray(values * np.where(rng.random(shape) < 0.05, 4.0, 1.0)).astype(dtype)


def rng_for(*names: object) -> np.random.Generator:
    """A generator seeded with the names alone, so that every run draws the same values."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, names)).encode()))


def with_nonfinite(sample: Sample, rng: np.random.Generator) -> list[Sample]:
    """The sample with some of its float values replaced by NaN, by +infinity, by -infinity, and by all three; []
    without floats.
    """
    if not any(array.dtype.kind == "f" and array.size for array in sample.values.values()):
        return []
    found = []
    for name, bad in (
        ("NaN", [np.nan]),
        ("+inf", [np.inf]),
        ("-inf", [-np.inf]),
        ("non-finite", [np.nan, np.inf, -np.inf]),
    ):
        values = dict(sample.values)
        for tensor, array in sample.values.items():
            if array.dtype.kind == "f" and array.size:
                places = rng.random(array.shape) < max(0.1, 1.5 / array.size)
                values[tensor] = np.where(places, rng.choice(bad, array.shape), array).astype(array.dtype)
        found.append(Sample(f"{sample.name}, {name}", values))
    return found


def guess_shape(spec: TensorSpec, variant: int, fixed: Sequence[int] | None = None) -> tuple[int, ...]:
    """A concrete shape: the fixed one, or known sizes kept and unknown ones filled in; unknown rank becomes 2-D."""
    if fixed is not None:
        return tuple(fixed)
    shape = (None, None) if spec.shape is None else spec.shape
    batch, size = _BATCHES[variant % len(_BATCHES)], _SIZES[variant % len(_SIZES)]
    return tuple(known if known is not None else (batch if axis == 0 else size) for axis, known in enumerate(shape))


def made_up(
    signature: Signature,
    fixed: Mapping[str, Sequence[Sequence[int]]],
    accepts: Callable[[Sample], bool],
    count: int = 2,
) -> list[Sample]:
    """Samples for a whole signature that TensorFlow accepts: values of the most telling kind that works.

    Args:
        signature: what to feed.
        fixed: shapes asked for, by input name.
        accepts: runs TensorFlow and says whether it took the sample.
        count: how many samples, of different shapes where the signature leaves them open.

    Returns:
        Up to ``count`` samples; none when TensorFlow takes nothing that can be made up (encoded images, for example).
    """
    found: list[Sample] = []
    for variant in range(max(len(_SIZES), count)):
        for kind in kinds():
            if len(found) == count:
                return found
            name = f"random {variant}, integers {kind}"
            shapes = {
                spec.name: guess_shape(spec, variant, _pick(fixed.get(spec.name), variant)) for spec in signature.inputs
            }
            sample = Sample(
                name,
                {
                    spec.name: draw(spec, shapes[spec.name], kind, rng_for(signature.key, spec.name, name))
                    for spec in signature.inputs
                },
            )
            if accepts(sample):
                found.append(sample)
                break
        if len(found) == 0 and variant + 1 == len(_SIZES):
            break
    return found


def _pick(shapes: Sequence[Sequence[int]] | None, variant: int) -> Sequence[int] | None:
    return shapes[variant % len(shapes)] if shapes else None


Unwatched = str | Callable[[], Iterable[Mapping[str, Any]]] | Sequence[Mapping[str, Any]]


class WatchedSamples:
    """The user's samples, digested by content: a name says nothing of what a file or a function gives today.

    Args:
        given: where they come from. All of them are read once, one at a time.

    Attributes:
        changed: whether other ones came when they were read again.

    Raises:
        RecipeError: as :func:`user_samples`.
        ValueError: one holds objects that are no arrays.
    """

    def __init__(self, given: Unwatched) -> None:
        self.given = given
        self.changed = False
        self._digests = tuple(_content(values) for _, values in read_samples(given))

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all samples in their order, labels and all."""
        return hashlib.sha256("\n".join(self._digests).encode()).hexdigest()

    def read(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The samples again, compared with what they were."""
        count = 0
        for name, values in read_samples(self.given):
            if count >= len(self._digests) or _content(values) != self._digests[count]:
                self.changed = True
            count += 1
            yield name, values
        self.changed = self.changed or count != len(self._digests)


def _content(values: Mapping[str, Any]) -> str:
    total = hashlib.sha256()
    for name in sorted(values):
        array = np.asarray(values[name])
        total.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        if array.dtype != object:
            total.update(np.ascontiguousarray(array).tobytes())
            continue
        for item in array.reshape(-1).tolist():
            if not isinstance(item, bytes | str):
                raise ValueError(f"{name} holds {type(item).__name__}")
            raw = item.encode() if isinstance(item, str) else item
            total.update(f"{type(item).__name__} {len(raw)}\0".encode() + raw)
    return total.hexdigest()


Given = Unwatched | WatchedSamples


def user_samples(where: Given, signature: Signature) -> Iterator[Sample]:
    """The user's samples of one signature.

    Args:
        where: an ``.npz`` file (keys are input names), a folder of them, a ``package.module:function`` of dicts, or
            such a function itself, or a sequence of dicts. They are read more than once.
        signature: whose inputs they must fit.

    Raises:
        RecipeError: nothing there, or a sample that does not fit.
    """
    empty = True
    for name, values in read_samples(where):
        empty = False
        fitted = _fitted(name, values, signature)
        yield Sample(name, fitted, {key: value for key, value in values.items() if key not in fitted})
    if empty:
        raise RecipeError(f"{given_name(where)} yields no samples", hint="give at least one sample")


def given_name(where: Given) -> str:
    """How samples are called in messages and in the manifest."""
    if isinstance(where, WatchedSamples):
        return given_name(where.given)
    if isinstance(where, str):
        return where
    return f"samples from {getattr(where, '__qualname__', type(where).__name__)}"


def read_samples(where: Given) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Every sample as it was given, labels and all, with a name for messages."""
    if isinstance(where, Iterator):
        raise RecipeError(
            "samples can be read only once from a generator", hint="pass the function that makes it, without calling it"
        )
    if isinstance(where, WatchedSamples):
        yield from where.read()
    elif not isinstance(where, str):
        yield from _yielded(given_name(where), where if callable(where) else lambda: where)
    else:
        yield from _read(where)


def _read(where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    path = Path(where)
    if path.is_dir():
        if what := npz.no_archives(path):
            raise RecipeError(f"{where} holds {what}", hint="write one .npz a sample: numpy.savez(FILE, NAME=array)")
        for file in sorted(path.glob("*.npz")):
            yield file.name, read_npz(file)
    elif path.suffix == ".npz":
        yield path.name, read_npz(path)
    elif ":" in where:
        yield from _generated(where)
    else:
        raise RecipeError(
            f"no samples at {where}", hint="give an .npz file, a folder of them, or package.module:function"
        )


def _generated(where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        make = user_function(where)
    except Exception as error:  # the user's code, which fails in its own ways
        raise _fails(where, error) from error
    yield from _yielded(where, make)


def _yielded(name: str, make: Callable[[], Iterable[Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        for index, item in enumerate(make()):
            if not isinstance(item, Mapping):
                raise RecipeError(f"{name} yielded {type(item).__name__}", hint="yield dicts of arrays by input name")
            yield f"{name}#{index}", item
    except RefimplError:
        raise
    except Exception as error:  # as above
        raise _fails(name, error) from error


def _fails(name: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"{name} fails: {type(error).__name__}: {error}",
        hint="it must name a function on the Python path that yields dicts of arrays by input name",
    )


def read_npz(file: Path) -> dict[str, Array]:
    """All arrays of an ``.npz`` file.

    Raises:
        RecipeError: it is missing, damaged, empty, or something else.
    """
    try:
        with file.open("rb") as stream:
            return npz.read(stream)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(
            f"{file} cannot be read as .npz: {what}", hint="write it with numpy.savez, one array per input"
        ) from None


def _fitted(name: str, values: Mapping[str, Any], signature: Signature) -> dict[str, Array]:
    fitted = {}
    for spec in signature.inputs:
        if spec.name not in values:
            raise RecipeError(f"sample {name} has no input {spec.name!r}", hint=f"it has: {', '.join(values)}")
        try:
            fitted[spec.name] = spec.fit(values[spec.name])
        except ValueError as error:
            raise RecipeError(f"sample {name}: {error}", hint=f"expected {spec.describe()}") from None
    return fitted
