"""The user's own cases: an ``.npz`` file, a folder of them, or a Python function."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from refimpl import npz
from refimpl.errors import GoldenError
from refimpl.oracle.arrays import Array, conform, conform_all, dtype_name
from refimpl.oracle.cases import Case, CaseKind
from refimpl.specs import Signature, TensorSpec
from refimpl.user_code import user_function

Values = Mapping[str, object]

_FORMS = "a .npz file, a folder of .npz files, or package.module:function"


def user_cases(source: str, signatures: Sequence[Signature], labels: Sequence[str] = ()) -> tuple[Case, ...]:
    """Read the user's cases and fit each to every signature that has exactly its input names.

    Args:
        source: a ``.npz`` (keys are names of inputs and labels, or ``CASE/NAME`` for several cases), a folder of such
            files, or ``package.module:function``, called without arguments, yielding dicts or ``(name, dict)`` pairs.
        signatures: the signatures to record.
        labels: names of arrays that every case must have beside its inputs. They are kept, and not fed; the first axis
            of each is the batch.

    Raises:
        GoldenError: nothing there, unreadable, a case that fits no signature, or a label that is missing or no label.
    """
    _require_no_input(labels, signatures)
    cases: list[Case] = []
    name_sets = {frozenset(spec.name for spec in sig.inputs) | frozenset(labels) for sig in signatures}
    for name, values in _read(source, name_sets):
        lacking = [label for label in labels if label not in values]
        if lacking:
            raise GoldenError(
                f"case {name!r} has no label {lacking[0]!r}",
                hint=f"it has: {', '.join(values)}; every case must have every --label",
            )
        inputs = {key: value for key, value in values.items() if key not in labels}
        fitting = [sig for sig in signatures if {spec.name for spec in sig.inputs} == set(inputs)]
        if not fitting:
            raise _fits_nothing(name, inputs, signatures)
        beside = {label: values[label] for label in labels}
        cases += [_case(name, inputs, beside, signature) for signature in fitting]
    if not cases:
        raise GoldenError(f"{source} holds no cases", hint=f"give {_FORMS}")
    keys = [(case.signature, case.name) for case in cases]
    twice = sorted({f"{signature}/{name}" for signature, name in keys if keys.count((signature, name)) > 1})
    if twice:
        raise GoldenError(f"case names occur twice: {', '.join(twice)}")
    return tuple(cases)


def _require_no_input(labels: Sequence[str], signatures: Sequence[Signature]) -> None:
    for signature in signatures:
        for spec in signature.inputs:
            if spec.name in labels:
                raise GoldenError(
                    f"label {spec.name!r} is an input of signature {signature.key!r}",
                    hint="a label is what must not be fed: leave --label away, or rename the array",
                )


def _fits_nothing(name: str, inputs: Values, signatures: Sequence[Signature]) -> GoldenError:
    wanted = "; ".join(f"{sig.key}: {', '.join(spec.name for spec in sig.inputs)}" for sig in signatures)
    spare = [sorted(set(inputs) - {spec.name for spec in sig.inputs}) for sig in signatures]
    fewest = min(spare, key=len, default=[])
    label = f"; if {fewest[0]!r} is a label, say --label {fewest[0]}" if fewest else ""
    return GoldenError(
        f"case {name!r} has inputs {sorted(inputs)}, which fit no signature",
        hint=f"the signatures take: {wanted}{label}",
    )


def _case(name: str, values: Values, labels: Values, signature: Signature) -> Case:
    try:
        inputs = conform_all(signature.inputs, values)
        kept = {label: _label(label, value, signature, inputs) for label, value in labels.items()}
    except GoldenError as error:
        error.where = {"case": name, "signature": signature.key, **error.where}
        raise
    return Case(signature.key, name, _kind(inputs), inputs, "given by the user", labels=kept)


def _kind(inputs: Mapping[str, Array]) -> CaseKind:
    arrays = [array for array in inputs.values() if array.dtype != object]
    if any(array.size == 0 for array in arrays):
        return CaseKind.EMPTY_BATCH
    if not all(np.isfinite(array).all() for array in arrays):
        return CaseKind.NONFINITE
    return CaseKind.USER


def _label(name: str, value: object, signature: Signature, inputs: Mapping[str, Array]) -> Array:
    """A label as an array that can be stored, one entry for every example of the inputs."""
    array = np.asarray(value)
    if array.dtype.kind in "SU" or (array.size and all(isinstance(item, str | bytes) for item in array.flat)):
        array = conform(TensorSpec(name, "string", None), value)
    elif array.dtype.kind not in "biufc" and dtype_name(array) != "bfloat16":
        raise GoldenError(f"label {name!r} is {array.dtype}", hint="give numbers, booleans or strings")
    open_first = {spec.name for spec in signature.inputs if spec.shape is None or spec.shape[:1] == (None,)}
    sizes = {key: item.shape[0] for key, item in inputs.items() if item.ndim}
    batches = {size for key, size in sizes.items() if key in open_first} or set(sizes.values())
    if not array.ndim or array.shape[0] not in batches:
        have = " or ".join(map(str, sorted(batches))) or "no"
        raise GoldenError(
            f"label {name!r} has shape {list(array.shape)}, the inputs have {have} examples",
            hint="the first axis of a label is the batch",
        )
    return array


def _read(source: str, name_sets: set[frozenset[str]]) -> Iterator[tuple[str, Values]]:
    path = Path(source)
    if path.is_dir():
        if what := npz.no_archives(path):
            raise GoldenError(f"{source} holds {what}", hint="write one .npz a case: numpy.savez(FILE, NAME=array)")
        for file in sorted(path.glob("*.npz")):
            yield from _read_npz(file, name_sets)
    elif path.suffix == ".npz":
        yield from _read_npz(path, name_sets)
    elif re.fullmatch(r"[\w.]+:\w+", source):
        yield from _call(source)
    else:
        raise GoldenError(f"no cases at {source!r}", hint=f"give {_FORMS}")


def _read_npz(path: Path, name_sets: set[frozenset[str]]) -> Iterator[tuple[str, Values]]:
    try:
        with path.open("rb") as stream:
            arrays = npz.read(stream)
    except OSError as error:
        raise GoldenError(f"cannot read {path}: {error.strerror}", hint=f"give {_FORMS}") from error
    except ValueError as error:
        hint = "write it with numpy.savez; strings as fixed-width bytes (dtype S), not as objects"
        raise GoldenError(f"{path.name} cannot be read: {error}", hint=hint) from error
    if frozenset(arrays) in name_sets or not all("/" in key for key in arrays):
        yield path.stem, arrays
        return
    groups: dict[str, dict[str, object]] = {}
    for key, array in arrays.items():
        case, _, name = key.partition("/")
        groups.setdefault(case, {})[name] = array
    for case, values in groups.items():
        yield f"{path.stem}-{case}", values


def _call(source: str) -> Iterator[tuple[str, Values]]:
    try:
        make = user_function(source)
    except (ImportError, AttributeError) as error:
        raise GoldenError(f"cannot find {source}: {error}", hint=f"give {_FORMS}") from error
    except Exception as error:  # the user's code, which fails in its own ways
        raise _failed(source, error) from error
    try:
        produced: list[object] = list(make())
    except Exception as error:  # as above
        raise _failed(source, error) from error
    function = source.partition(":")[2]
    for number, item in enumerate(produced):
        name, values = (f"{function}-{number}", item) if not isinstance(item, tuple) or len(item) != 2 else item
        if not isinstance(name, str) or not isinstance(values, Mapping):
            raise GoldenError(f"{source} yields {type(item).__name__}, not a dict of inputs or (name, dict)")
        yield name, values


def _failed(source: str, error: Exception) -> GoldenError:
    return GoldenError(f"{source} failed: {type(error).__name__}: {error}")
