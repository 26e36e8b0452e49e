"""Every choice a user can make, in one frozen, digestible record. How a choice is carried out is not known here."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from refimpl.errors import RecipeError

ENGINES = ("onnxruntime", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "auto")
CALIBRATORS = ("entropy", "minmax", "percentile")
METRICS = ("agreement", "top1")  # or package.module:function
PROFILES = ("range", "optimal", "range+optimal", "implicit-batch")
OP_SETS = ("tensorrt", "tf-trt", "tf-trt-implicit")

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_OUTSIDE = "outside_key"  # metadata of a field whose value is not in the key of the cache: why it need not be


def _outside_key(default: Any, why: str) -> Any:
    """A field that leaves the key of finished work alone. Every other field is part of it."""
    return field(default=default, metadata={_OUTSIDE: why})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All choices of one conversion.

    Attributes:
        signatures: keys of the signatures to convert; empty means ``serving_default``, or the only one there is. ``*``
            means all of them. Signatures that are not converted stay in the bundle as they are.
        tags: tags of the meta graph; empty means ``serve``, or the only meta graph there is.
        precision: what the engines compute in. ``fp16`` and ``bf16`` keep in float32 what does not stand it; ``int8``
            quantizes what TensorRT runs in int8 and computes other products in float16; ``auto`` takes the fastest
            that costs no more than ``max_drop``.
        engines: kinds of engines to store. The embedded ``onnxruntime`` engine is always there.
        min_segment_size: an island of fewer TensorFlow ops and constants stays in TensorFlow.
        max_engines: keep only this many islands, the largest; 0 means no limit.
        keep_in_tf: TensorFlow op types or node names (``fnmatch`` patterns) that must stay in TensorFlow.
        shapes: for each input named, a concrete shape; several shapes of one input span a profile.
        profile: how shapes seen at the cuts become TensorRT optimization profiles.
        calibration: samples of real inputs: an ``.npz`` file, a folder of them, or ``package.module:function``.
        verify: run every island against the TensorFlow ops it replaces before it ships.
        workspace_bytes: memory that TensorRT may use while it builds; 0 leaves the choice to TensorRT.
        tf32: let TensorRT's FP32 engines round their operands to TF32 on GPUs that can, and accept answers that loose.
        keep_fp32: ONNX or TensorFlow op types and node names (``fnmatch`` patterns) that compute in float32 whatever
            the precision.
        calibrator: how int8 ranges are made from what calibration saw: ``entropy``, ``minmax`` or ``percentile``.
        percentile: for that calibrator, the share of values (in %) that a range must hold.
        use_calibration: with int8, calibrate; when False, ranges come from the model's own fake-quantization ops.
        calibration_table: a file of ranges from an earlier calibration; nothing is calibrated then.
        max_drop: for ``auto``, how far the metric may fall below TensorFlow's (0.005 is half a percentage point).
        metric: for ``auto``: ``agreement`` (1 minus the relative error), ``top1`` (share of rows with TensorFlow's
            largest output), or ``package.module:function`` of ``(outputs, sample)``, which may use labels.
        op_set: ``tensorrt`` converts what today's TensorRT takes; ``tf-trt`` only what TF-TRT took of it in dynamic
            shape mode, ``tf-trt-implicit`` in implicit batch mode.
        max_cached_engines: how many TensorRT engines that were built while the bundle ran an island may keep.
        targets: compute capabilities to build TensorRT engines for, such as ``sm86``; empty leaves it to the library.
            Only TensorRT for RTX builds for GPUs that are not there.
        build_at_runtime: build a TensorRT engine for shapes that no stored one takes, where TensorRT can execute.
    """

    signatures: tuple[str, ...] = _outside_key((), "each signature has a key of its own, with its name and number")
    tags: tuple[str, ...] = _outside_key((), "the tags that were found are in the key")
    precision: str = "fp32"
    engines: tuple[str, ...] = ("onnxruntime",)
    min_segment_size: int = 3
    max_engines: int = 0
    keep_in_tf: tuple[str, ...] = ()
    shapes: Shapes = ()
    profile: str = "range"
    calibration: str = _outside_key("", "the contents of the samples are in the key, whatever they are called")
    verify: bool = True
    workspace_bytes: int = 0
    tf32: bool = False
    keep_fp32: tuple[str, ...] = ()
    calibrator: str = "entropy"
    percentile: float = 99.99
    use_calibration: bool = True
    calibration_table: str = _outside_key("", "the contents of the table are in the key, whatever it is called")
    max_drop: float = 0.005
    metric: str = "agreement"
    op_set: str = "tensorrt"
    max_cached_engines: int = _outside_key(1, "heeded where the bundle runs; the new manifest has it")
    build_at_runtime: bool = _outside_key(False, "heeded where the bundle runs; the new manifest has it")
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _one_of("precision", (self.precision,), PRECISIONS)
        _one_of("calibrator", (self.calibrator,), CALIBRATORS)
        if ":" not in self.metric:
            _one_of("metric", (self.metric,), (*METRICS, "package.module:function"))
        if not 50.0 <= self.percentile <= 100.0:
            raise RecipeError(f"percentile is {self.percentile}", hint="give a number from 50 to 100, such as 99.99")
        if not 0.0 <= self.max_drop < 1.0:
            raise RecipeError(f"max_drop is {self.max_drop}", hint="give a share from 0 to 1, or a percentage: 0.5%")
        _one_of("engine", self.engines, ENGINES)
        _one_of("profile", (self.profile,), PROFILES)
        _one_of("op_set", (self.op_set,), OP_SETS)
        for target in self.targets:
            if not re.fullmatch(r"sm[1-9]\d{1,2}", target):
                raise RecipeError(f"target {target!r} is no compute capability", hint="give sm86 for 8.6, for example")
        if self.min_segment_size < 1:
            raise RecipeError(
                f"min_segment_size is {self.min_segment_size}", hint="give 1 to convert even single ops, 3 by default"
            )
        if self.max_engines < 0 or self.workspace_bytes < 0:
            raise RecipeError("max_engines and workspace_bytes cannot be negative", hint="0 means no limit")
        if self.max_cached_engines < 0:
            raise RecipeError("max_cached_engines cannot be negative", hint="0 means no limit")
        for name, shape in self.shapes:
            if any(size < 1 for size in shape):
                raise RecipeError(f"shape of {name!r} is {shape}", hint="every dimension must be at least 1")

    def digest(self) -> str:
        """SHA-256 (hex) over every field: two recipes with one digest ask for the same bundle."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def outside_key(self) -> dict[str, str]:
        """Why a field's value is not in the key of finished work in the cache, by the names of those that are not."""
        return {item.name: item.metadata[_OUTSIDE] for item in fields(self) if _OUTSIDE in item.metadata}

    def key_parts(self) -> dict[str, Any]:
        """Every other field: what finished work depends on of a recipe's own words."""
        return {name: value for name, value in asdict(self).items() if name not in self.outside_key()}


def _one_of(what: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise RecipeError(f"{what} {value!r} is not known", hint=f"choose from {', '.join(known)}")


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse ``NAME=1x224x224x3``; ``NAME=`` is a scalar.

    Raises:
        RecipeError: the text has another form.
    """
    name, equals, sizes = text.rpartition("=")
    try:
        if not equals or not name:
            raise ValueError
        return name, tuple(int(size) for size in sizes.split("x")) if sizes else ()
    except ValueError:
        raise RecipeError(
            f"shape {text!r} is not of the form NAME=1x224x224x3", hint="name an input, and its sizes with x between"
        ) from None


def load_recipe(path: Path, base: Recipe = Recipe()) -> Recipe:
    """Read a recipe from a TOML file whose keys are the fields of :class:`Recipe`.

    Raises:
        RecipeError: the file cannot be read, or has an unknown key or a value of the wrong type.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(
            f"cannot read the recipe {path}: {error}",
            hint="give a TOML file whose keys are the fields of refimpl.Recipe",
        ) from None
    return recipe_with(base, data, str(path))


def recipe_with(base: Recipe, data: Mapping[str, Any], source: str) -> Recipe:
    """``base`` with the fields in ``data`` replaced; ``source`` names where they came from in errors."""
    known = {item.name: item for item in fields(Recipe)}
    changes: dict[str, Any] = {}
    for key, given in data.items():
        value = given
        if key not in known:
            raise RecipeError(f"{source}: unknown key {key!r}", hint=f"known keys: {', '.join(known)}")
        changes[key] = _typed(value, key, type(getattr(base, key)), source)
    return replace(base, **changes)


def _typed(value: Any, key: str, kind: type, source: str) -> Any:
    if key == "shapes":
        return _typed_shapes(value, source)
    if kind is tuple:
        if isinstance(value, list | tuple) and all(type(item) is str for item in value):
            return tuple(value)
        raise RecipeError(
            f"{source}: {key} is {value!r}, and not what that field takes", hint="expected a list of strings"
        )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RecipeError(
            f"{source}: {key} is {value!r}, and not what that field takes", hint=f"expected {kind.__name__}"
        )
    return value


def _typed_shapes(value: Any, source: str) -> Shapes:
    """From a table of one shape, or a list of shapes, per input; or from pairs as a recipe holds them."""
    pairs = []
    for name, given in value.items() if isinstance(value, Mapping) else _pairs(value, source):
        many = isinstance(given, list | tuple) and bool(given) and all(isinstance(item, list | tuple) for item in given)
        for shape in given if many else [given]:
            if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
                raise RecipeError(
                    f"{source}: shape of {name!r} is {given!r}", hint="expected [1, 224, 224, 3], or a list of such"
                )
            pairs.append((name, tuple(shape)))
    return tuple(pairs)


def _pairs(value: Any, source: str) -> list[Any]:
    if isinstance(value, list | tuple) and all(
        isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str) for item in value
    ):
        return list(value)
    raise RecipeError(f"{source}: shapes is {value!r}", hint="expected a table of shapes by input name")
