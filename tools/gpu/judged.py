"""The verdict of ``refimpl check`` on a bundle, with only TensorRT allowed to run its islands."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import oracle
from refimpl.engines import tensorrt
from refimpl.errors import RefimplError, first_line

Array = Any


def golden(model: Path, inputs: Mapping[str, Array], target: Path) -> Path:
    """Record what TensorFlow answers to inputs, as ``refimpl record MODEL GOLDEN --cases FILE.npz`` does."""
    with tempfile.TemporaryDirectory() as folder:
        cases = Path(folder) / "judged.npz"
        np.savez(cases, **{name: _stored(value) for name, value in inputs.items()})
        oracle.record(model, target, signatures=("serving_default",), cases=str(cases))
    return target


def _stored(value: Array) -> Array:
    """Strings as bytes of one length: objects would have to be pickled."""
    return value.astype(bytes) if value.dtype == object else value


def verdict(bundle: Path, record: Path) -> str | None:
    """Why ``refimpl check BUNDLE GOLDEN --engine tensorrt`` fails; "" when it passes.

    Args:
        bundle: the bundle.
        record: what :func:`golden` wrote.

    Returns:
        None where no TensorRT engine can run.
    """
    if tensorrt.why_not_here():
        return None
    try:
        found = oracle.check(bundle, record, oracle.CheckOptions(engines=("tensorrt",)))
    except RefimplError as error:
        return f"no verdict: {error.message}"
    except Exception as error:  # noqa: BLE001  (whatever happens is the answer)
        return f"no verdict: {type(error).__name__}: {first_line(error)}"
    return "; ".join(found.problems) or found.excused
