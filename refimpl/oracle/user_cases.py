"""The user's own cases: an ``.npz`` file, a folder of them, or a Python function."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from refimpl.errors import GoldenError
from refimpl.oracle.arrays import conform_all, read_npz
from refimpl.oracle.cases import Case, CaseKind
from refimpl.specs import Signature

Values = Mapping[str, object]

_FORMS = "a .npz file, a folder of .npz files, or package.module:function"


def user_cases(source: str, signatures: Sequence[Signature]) -> tuple[Case, ...]:
    """Read the user's cases and fit each to every signature that has exactly its input names.

    Args:
        source: a ``.npz`` (keys are input names, or ``CASE/INPUT`` for several cases), a folder of such files, or
            ``package.module:function``, called without arguments, yielding dicts or ``(name, dict)`` pairs.
        signatures: the signatures to record.

    Raises:
        GoldenError: nothing there, unreadable, or a case that fits no signature.
    """
    cases: list[Case] = []
    for name, values in _read(source, {frozenset(spec.name for spec in sig.inputs) for sig in signatures}):
        fitting = [sig for sig in signatures if {spec.name for spec in sig.inputs} == set(values)]
        if not fitting:
            wanted = "; ".join(f"{sig.key}: {', '.join(spec.name for spec in sig.inputs)}" for sig in signatures)
            raise GoldenError(
                f"case {name!r} has inputs {sorted(values)}, which fit no signature",
                hint=f"the signatures take: {wanted}",
            )
        cases += [_case(name, values, signature) for signature in fitting]
    if not cases:
        raise GoldenError(f"{source} holds no cases")
    keys = [(case.signature, case.name) for case in cases]
    twice = sorted({f"{signature}/{name}" for signature, name in keys if keys.count((signature, name)) > 1})
    if twice:
        raise GoldenError(f"case names occur twice: {', '.join(twice)}")
    return tuple(cases)


def _case(name: str, values: Values, signature: Signature) -> Case:
    try:
        inputs = conform_all(signature.inputs, values)
    except GoldenError as error:
        error.where = {"case": name, "signature": signature.key, **error.where}
        raise
    arrays = [array for array in inputs.values() if array.dtype != object]
    if any(array.size == 0 for array in arrays):
        kind = CaseKind.EMPTY_BATCH
    elif not all(np.isfinite(array).all() for array in arrays):
        kind = CaseKind.NONFINITE
    else:
        kind = CaseKind.USER
    return Case(signature.key, name, kind, inputs, "given by the user")


def _read(source: str, name_sets: set[frozenset[str]]) -> Iterator[tuple[str, Values]]:
    path = Path(source)
    if path.is_dir():
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
            arrays = read_npz(stream)
    except OSError as error:
        raise GoldenError(f"cannot read {path}: {error.strerror}", hint=f"give {_FORMS}") from error
    except ValueError as error:
        hint = "store strings as fixed-width bytes (dtype S), not as objects"
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
    module, _, function = source.partition(":")
    with _working_directory_importable():
        try:
            make = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise GoldenError(f"cannot find {source}: {error}", hint=f"give {_FORMS}") from error
        try:
            produced: list[object] = list(make())
        except Exception as error:
            raise GoldenError(f"{source} failed: {type(error).__name__}: {error}") from error
        for number, item in enumerate(produced):
            name, values = item if isinstance(item, tuple) and len(item) == 2 else (f"{function}-{number}", item)
            if not isinstance(name, str) or not isinstance(values, Mapping):
                raise GoldenError(f"{source} yields {type(item).__name__}, not a dict of inputs or (name, dict)")
            yield name, values


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
