"""The slow second opinion: ONNX's own reference evaluator, in NumPy. Never chosen unless asked for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refimpl.engines import Array, BuildOptions, Profile, rounding
from refimpl.errors import RunError

NAME = "numpy"
SUFFIX = ".onnx"


def version() -> str:
    import onnx

    return f"onnx reference {onnx.__version__}"


def why_not_here() -> str:
    return ""


def build(model: Path, target: Path, profiles: Sequence[Profile], options: BuildOptions) -> None:
    """The engine is the island's ONNX file itself."""
    if model != target:
        shutil.copyfile(model, target)


def open(path: Path, threads: int = 0) -> NumpyEngine:  # noqa: A001  (the Protocol's name)
    return NumpyEngine(path)


class NumpyEngine:
    """An ``onnx.reference.ReferenceEvaluator`` over one island."""

    def __init__(self, path: Path) -> None:
        import onnx.reference

        try:
            model = onnx.load(path)
            self._evaluator = onnx.reference.ReferenceEvaluator(
                rounding.spelled_out(model, tf32=rounding.TF32 in path.name)
            )
        except Exception as error:  # the evaluator raises what the failing op raises
            raise RunError(f"the ONNX reference cannot load {path.name}: {error}") from error

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        names = self._evaluator.input_names
        try:
            results = self._evaluator.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:  # as above
            raise RunError(f"the ONNX reference failed: {error}") from error
        return [np.asarray(result, order="C") for result in results]
