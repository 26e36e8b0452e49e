"""Named inputs for a signature: generated from a stable seed, or the user's own.

Generated cases know nothing about the model but its signature, so every guess they make is a ladder: TensorFlow is
asked with the first rung, and with the next one when it refuses; ``record`` drops a case that it refuses every time.

* batch: an unknown first dimension is the batch: 1, 3 in ``normal-b3``, 7 in ``normal-b7``, 0 in ``empty-batch``;
* other unknown dimensions share one size, since models often want them equal: 32, then 96, then 224
  (64, 128, 256 in ``normal-b3``, so that nothing can be specialised to one size unnoticed; 37, 101, 227 in
  ``normal-b7``, which no stride or pooling divides);
* unknown rank: ``[batch, 8]``, then ``[batch, 32, 32, 3]``, then ``[batch]``;
* integers: -100 to 100 (0 to 255 for unsigned), then 0 to 99 (token ids, indices), then 0 or 1;
* strings: short words, then numerals. Images and serialised messages cannot be guessed: give your own cases.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refimpl.errors import GoldenError
from refimpl.oracle.arrays import Array
from refimpl.specs import Shape, Signature, TensorSpec, format_shape


class CaseKind(enum.Enum):
    """What a case is for: what a verdict may expect of it, and what counts as "nothing compared"."""

    ORDINARY = "ordinary"  # values such as a model meets
    STRESS = "stress"  # magnitudes that a model may never meet, and that nobody calibrates for
    EMPTY_BATCH = "empty-batch"  # outputs may well be empty
    NONFINITE = "nonfinite"  # outputs may well be NaN everywhere
    USER = "user"


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs for one signature."""

    signature: str
    name: str
    kind: CaseKind
    inputs: Mapping[str, Array]
    note: str = ""  # the guesses that were made
    seed: int | None = None
    labels: Mapping[str, Array] = field(default_factory=dict)  # the user's, of the same batch; never fed
    stranger: bool = False  # whether these are magnitudes that the model may never meet


@dataclass(frozen=True, slots=True)
class Guess:
    """One rung of every ladder; ``size`` counts the rungs of the shape ladder."""

    size: int = 0
    integers: str = "mixed"
    strings: str = "words"


INTEGER_RUNGS = ("mixed", "0..99", "0..1")
STRING_RUNGS = ("words", "numerals")
SIZES = (32, 96, 224)
OTHER_SIZES = (64, 128, 256)
ODD_SIZES = (37, 101, 227)  # primes
UNKNOWN_RANK_TAILS = ((8,), (32, 32, 3), ())
WORDS = (b"cat", b"a dog", b"Stra\xc3\x9fe", b"", b"x", b"The quick brown fox")
NUMERALS = (b"0", b"1", b"-2", b"3.5", b"42")

_FLOATS = ("float", "bfloat", "complex")
_INTEGERS = ("int", "uint")
_NARROW = ("int8", "uint8", "int16", "uint16")
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


@dataclass(frozen=True, slots=True)
class CasePlan:
    """A generated case before the guesses are settled."""

    signature: Signature
    name: str
    fill: str  # a key of the branches in _fill
    kind: CaseKind = CaseKind.ORDINARY
    batch: int = 1
    sizes: tuple[int, ...] = SIZES
    seed: int = 0
    stranger: bool = False

    def attempts(self) -> Iterator[Case]:
        """The case at every rung, the likeliest first."""
        specs = self.signature.inputs
        random = self.fill not in ("zeros", "ones")
        sizes = range(len(self.sizes)) if any(_open_size(spec.shape) for spec in specs) else range(1)
        integers = INTEGER_RUNGS if random and _has(specs, _INTEGERS) else INTEGER_RUNGS[:1]
        strings = STRING_RUNGS if random and _has(specs, ("string",)) else STRING_RUNGS[:1]
        for size, text, number in itertools.product(sizes, strings, integers):
            guess = Guess(size, number, text)
            notes = [f"integers {number}"] * (len(integers) > 1) + [f"strings {text}"] * (len(strings) > 1)
            notes += [f"unknown sizes {self.sizes[size]}"] * (len(sizes) > 1)
            inputs = {spec.name: self._input(spec, guess) for spec in specs}
            yield Case(self.signature.key, self.name, self.kind, inputs, ", ".join(notes), self.seed, {}, self.stranger)

    def _input(self, spec: TensorSpec, guess: Guess) -> Array:
        rng = np.random.default_rng([self.seed, _stable_hash(spec.name)])
        shape = concrete_shape(spec.shape, self.batch, self.sizes[guess.size], UNKNOWN_RANK_TAILS[guess.size])
        return _fill(self.fill, spec, shape, guess, rng)


def plan_cases(signature: Signature, seed: int) -> tuple[CasePlan, ...]:
    """The generated cases of a signature, each with a seed that depends on its name, the case's and ``seed`` only.

    Not on the model: the same signature is asked the same questions when its weights are trained further, or when the
    same model is exported again (which changes bytes of a SavedModel without changing the model).

    Raises:
        GoldenError: an input has a dtype for which no values can be made.
    """
    specs = signature.inputs
    for spec in specs:
        if not spec.dtype.startswith(("bool", "string", *_FLOATS, *_INTEGERS)):
            raise GoldenError(
                f"no values can be made for input {spec.describe()}",
                hint="give your own with --cases FILE.npz",
                signature=signature.key,
            )

    def plan(name: str, fill: str, **more: object) -> CasePlan:
        own = _stable_hash(f"{signature.key}/{name}/{seed}")
        return replace(CasePlan(signature, name, fill, seed=own), **more)  # type: ignore[arg-type]

    if not specs:
        return (plan("no-input", "normal"),)
    plans = []
    if any(spec.shape is None or None in spec.shape for spec in specs):
        plans += [plan("normal-b1", "normal"), plan("normal-b3", "normal", batch=3, sizes=OTHER_SIZES)]
        plans += [plan("normal-b7", "normal", batch=7, sizes=ODD_SIZES)]
    else:
        plans += [plan("normal", "normal")]
    floats = _has(specs, _FLOATS)
    plans += [plan("unit", "unit")] * floats
    # Only a model that scales its images itself is at home with pixels.
    plans += [plan("pixels", "pixels", stranger=True)] * any(_is_image(spec) for spec in specs)
    plans += [plan("zeros", "zeros"), plan("ones", "ones")]
    if floats:
        plans += [plan(name, name, kind=CaseKind.STRESS, stranger=True) for name in ("large", "small", "denormals")]
        plans += [plan("nonfinite", "nonfinite", kind=CaseKind.NONFINITE)]
    if _has(specs, _NARROW):
        plans += [plan("extremes", "extremes", kind=CaseKind.STRESS, stranger=True)]
    if any(spec.shape is None or spec.shape[:1] == (None,) for spec in specs):
        plans += [plan("empty-batch", "normal", kind=CaseKind.EMPTY_BATCH, batch=0)]
    return tuple(plans)


def narrow(signature: Signature, shapes: Mapping[str, Shape]) -> Signature:
    """The signature with the user's shapes in place of the unknown dimensions (None keeps one open).

    Raises:
        GoldenError: a shape contradicts the signature.
    """

    def one(spec: TensorSpec) -> TensorSpec:
        shape = shapes.get(spec.name, spec.shape)
        if shape == spec.shape or shape is None:
            return spec
        known = spec.shape if spec.shape is not None else (None,) * len(shape)
        if len(shape) != len(known) or any(
            have is not None and want != have for want, have in zip(shape, known, strict=True)
        ):
            raise GoldenError(
                f"shape {format_shape(shape)} does not fit input {spec.describe()}", signature=signature.key
            )
        return replace(spec, shape=shape)

    return replace(signature, inputs=tuple(one(spec) for spec in signature.inputs))


def concrete_shape(shape: Shape, batch: int, size: int, tail: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without unknowns: see the module docstring for what is put where."""
    if shape is None:
        return (batch, *tail)
    return tuple(known if known is not None else (batch if axis == 0 else size) for axis, known in enumerate(shape))


def _fill(how: str, spec: TensorSpec, shape: tuple[int, ...], guess: Guess, rng: np.random.Generator) -> Array:
    if spec.dtype == "string":
        return _fill_strings(how, shape, guess, rng)
    dtype = spec.numpy_dtype()
    if how in ("zeros", "ones"):
        return np.full(shape, how == "ones").astype(dtype)
    if spec.dtype == "bool":
        return rng.random(shape) < 0.5
    if spec.dtype.startswith(_FLOATS):
        how = "normal" if how == "pixels" and not _is_image(spec) else how
        return _fill_floats(how, spec, shape, rng).astype(dtype)
    limits = np.iinfo(dtype)
    if how == "extremes" and spec.dtype in _NARROW:
        # Only narrow types: a 32-bit extreme used as a size would make TensorFlow ask for all the memory there is.
        return np.where(rng.random(shape) < 0.5, limits.min, limits.max).astype(dtype)
    low, high = {"mixed": (-100, 100) if limits.min < 0 else (0, 255), "0..99": (0, 99), "0..1": (0, 1)}[guess.integers]
    return rng.integers(low, min(high, int(limits.max)), shape, endpoint=True).astype(dtype)


def _fill_floats(how: str, spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Standard normal, scaled so that even float16 holds it; 5 % each of NaN, +Inf, -Inf in ``nonfinite``.

    ``denormals`` are spread over the subnormal numbers of the dtype, both signs; no value rounds up to a normal one.
    """
    values = _draw(how, spec, shape, rng)
    if spec.dtype.startswith("complex"):
        values = values + 1j * _draw(how, spec, shape, rng)
    if how == "nonfinite":
        flat = values.reshape(-1).copy()
        share = -(-flat.size // 20)
        places = rng.permutation(flat.size)[: 3 * share]
        flat[places] = np.resize([np.nan, np.inf, -np.inf], places.size)
        values = flat.reshape(shape)
    return values


def _draw(how: str, spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if how == "unit":
        return rng.random(shape)
    if how == "pixels":
        return rng.integers(0, 255, shape, endpoint=True)
    if how == "denormals":
        signs = rng.choice([-1.0, 1.0], shape)
        return np.asarray(rng.uniform(0.1, 0.9, shape) * signs * smallest_normal(spec.numpy_dtype()))
    return np.asarray(rng.standard_normal(shape) * {"large": 1e3, "small": 1e-3}.get(how, 1.0))


def smallest_normal(dtype: np.dtype[Any]) -> float:
    """The smallest normal number of a float or complex dtype; what is nearer to zero is subnormal."""
    # bfloat16 has float32's exponents, and NumPy knows no limits of it.
    return float(np.finfo(np.float32 if dtype.name == "bfloat16" else dtype).smallest_normal)


def _is_image(spec: TensorSpec) -> bool:
    """A batch of float images, channels last; whole numbers are drawn as pixels anyway."""
    shape = spec.shape or ()
    return spec.dtype.startswith(("float", "bfloat")) and len(shape) == 4 and shape[-1] in _CHANNELS


def _fill_strings(how: str, shape: tuple[int, ...], guess: Guess, rng: np.random.Generator) -> Array:
    fixed = {"zeros": (b"",), "ones": (b"1",)}.get(how)
    words = fixed or (WORDS if guess.strings == "words" else NUMERALS)
    out = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        out[index] = words[int(rng.integers(len(words)))]
    return out


def _has(specs: Sequence[TensorSpec], dtypes: tuple[str, ...]) -> bool:
    return any(spec.dtype.startswith(dtypes) for spec in specs)


def _open_size(shape: Shape) -> bool:
    return shape is None or None in shape[1:]


def _stable_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
