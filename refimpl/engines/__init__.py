"""Engines: how one island is built and run. One small Protocol, one module per kind, no registry.

``KINDS`` is in order of preference at run time: the first kind that is stored in a bundle and can execute here runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from refimpl.errors import RunError
from refimpl.numerics import has_nonfinite

KINDS = ("tensorrt", "onnxruntime")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """Smallest, typical and largest shape of every input of an island, in the island's input order."""

    min: tuple[tuple[int, ...], ...]
    opt: tuple[tuple[int, ...], ...]
    max: tuple[tuple[int, ...], ...]
    # Values of the integer inputs that are used as shapes: (input index, min, opt, max), flattened.
    values: tuple[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What an engine build may depend on besides the island and its profiles.

    Attributes:
        tf32: round the operands of float32 products to TF32 on GPUs that can.
        workspace_bytes: memory that may be used while building; 0 leaves the choice to the library.
        timings: a file of what kernels cost on this GPU, read and written again where the library keeps such a thing
            and the file's folder exists. It makes a build faster and allows nothing that is not allowed without.
    """

    tf32: bool
    workspace_bytes: int
    timings: Path | None = None
    targets: tuple[str, ...] = ()  # compute capabilities to build for, such as "sm86"; empty leaves it to the library


class OpenEngine(Protocol):
    """An engine that is loaded and ready."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once. Inputs and outputs are C-contiguous arrays in the island's order.

        Raises:
            RunError: the engine cannot run these inputs.
        """


class NotFiniteError(RunError):
    """An engine for finite values only was given another one, or made one.

    Attributes:
        made: the inputs were finite.
    """

    def __init__(self, *, made: bool) -> None:
        super().__init__("a value is not finite")
        self.made = made


def looked_at(run: Callable[[Sequence[Array]], list[Array]], inputs: Sequence[Array]) -> list[Array]:
    """Run once, with a look at inputs and outputs before and after, on the host.

    Raises:
        NotFiniteError: a value is not finite.
        RunError: the engine cannot run these inputs.
    """
    if any(map(has_nonfinite, inputs)):
        raise NotFiniteError(made=False)
    outputs = run(inputs)
    if any(map(has_nonfinite, outputs)):
        raise NotFiniteError(made=True)
    return outputs


@runtime_checkable
class DeviceEngine(OpenEngine, Protocol):
    """An open engine that also runs on tensors where they are, on the GPU."""

    def run_finite(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once with arrays of the host, looking on the GPU whether inputs and outputs are finite.

        Raises:
            NotFiniteError: a value is not.
            RunError: the engine cannot run these inputs.
        """

    def run_device(self, inputs: Sequence[Any], finite_only: bool = False) -> Sequence[Any]:
        """Run once. Inputs and outputs have ``__dlpack__`` and ``__dlpack_device__`` and are in the island's order.

        Args:
            inputs: on the GPU.
            finite_only: look there whether inputs and outputs are finite.

        Raises:
            NotFiniteError: ``finite_only``, and a value is not.
            RunError: the engine cannot run these inputs there.
        """


class EngineKind(Protocol):
    """A module of this package, seen as an object."""

    NAME: str
    SUFFIX: str  # of the stored file

    def version(self) -> str:
        """Name and version of the library that builds and runs engines of this kind; "" when it is not installed."""

    def why_not_here(self) -> str:
        """Why engines of this kind cannot execute on this machine; "" when they can."""

    def build(self, model: Path, target: Path, profiles: Sequence[Profile], options: BuildOptions) -> None:
        """Build an engine from an ONNX file and write it to ``target``.

        Raises:
            BuildError: the island cannot be built; the message says why.
            UnsupportedError: the library is not installed.
        """

    def open(self, path: Path, threads: int = 0) -> OpenEngine:
        """Load a stored engine.

        Args:
            path: its file.
            threads: how many CPU threads may share one op's work; 0 lets the library choose. Engines that do not
                compute on the CPU, or in one thread only, take no notice.

        Raises:
            RunError: it cannot be loaded here.
        """


def kind(name: str) -> EngineKind:
    """The engine kind of this name (one of ``KINDS``)."""
    module: Any = importlib.import_module(f"refimpl.engines.{name}")
    return module  # type: ignore[no-any-return]
