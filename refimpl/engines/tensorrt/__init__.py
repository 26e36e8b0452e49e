"""TensorRT engines: NVIDIA TensorRT or TensorRT for RTX, whichever is installed; they share one Python API.

* ``library``: which of the two there is, and what it says; ``capabilities``: what it can do, asked of itself
* ``building``: from ONNX to an engine's file; ``targets``: for which GPUs
* ``loading``: from an engine's file to an engine, or the reason why not; ``kernels``: those compiled at run time, kept
* ``execution``: an open engine, a pool of ``lanes``: one call at a time, with its stream, contexts and CUDA graphs
* ``inspection``: what is in a model, and in an engine
* ``tensors``, ``outputs``, ``memory``: what goes in, what comes out, and where it lies
* ``cuda``: the CUDA driver; ``dlpack``: tensors that stay on the GPU; ``lent``: calls on them; ``finite``: whether they
  are finite, looked at there; ``copies``: those that go through the host after all
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl import gpus
from refimpl.engines import Array
from refimpl.engines.tensorrt import cuda, library
from refimpl.engines.tensorrt.building import Refusal, build, parser_refusals, parser_takes
from refimpl.engines.tensorrt.capabilities import UNKNOWN, features, graph_problem, int8_problem, tf32_problem
from refimpl.engines.tensorrt.inspection import NetworkLayers, network_layers
from refimpl.engines.tensorrt.library import version
from refimpl.engines.tensorrt.loading import refusal
from refimpl.engines.tensorrt.targets import check_targets, known_targets
from refimpl.errors import RunError, first_line

if TYPE_CHECKING:
    from refimpl.engines.tensorrt.execution import TrtEngine

__all__ = [
    "NAME",
    "SUFFIX",
    "UNKNOWN",
    "NetworkLayers",
    "Refusal",
    "build",
    "build_targets",
    "check_targets",
    "compiled_kernels",
    "engine_layers",
    "features",
    "graph_problem",
    "int8_problem",
    "network_layers",
    "open",
    "open_with",
    "parser_refusals",
    "parser_takes",
    "refusal",
    "tf32_problem",
    "version",
    "why_not_here",
]

NAME = "tensorrt"
SUFFIX = ".engine"


def build_targets() -> tuple[str, ...]:
    """Compute capabilities that can be built for, such as ``"sm86"``; empty when only for the GPU that is here."""
    return known_targets(library.require())


@functools.cache
def why_not_here() -> str:
    """Why TensorRT engines cannot execute on this machine; "" when they can."""
    if library.module() is None:
        return "neither tensorrt nor tensorrt_rtx is installed"
    driver, found = gpus.list_gpus()
    if not found:
        return f"no usable NVIDIA GPU ({driver or 'no driver'})"
    try:
        device = cuda.device()
        device.free(device.allocate(1))
    except RunError as error:
        return f"no usable NVIDIA GPU: {first_line(error)}"
    return ""


def open(path: Path, threads: int = 0) -> TrtEngine:  # noqa: A001  (the Protocol's name, and the CPU's threads)
    """Load a stored engine; see :class:`refimpl.engines.EngineKind`."""
    return open_with(path, None)


def open_with(path: Path, kernels: Path | None) -> TrtEngine:
    """Load a stored engine and kernels that were compiled for it before.

    Args:
        path: its file.
        kernels: a file of the bundle, its checksum compared; None without one.

    Raises:
        RunError: it cannot be loaded here.
    """
    if reason := why_not_here():
        raise RunError(f"TensorRT cannot execute here: {reason}")
    from refimpl.engines.tensorrt.execution import TrtEngine
    from refimpl.engines.tensorrt.kernels import kernel_cache

    return TrtEngine(path, cuda.device(), kernels=kernel_cache(path, kernels))


def compiled_kernels(path: Path, calls: Sequence[Sequence[Array]]) -> bytes:
    """Run an engine, so that its kernels are compiled, and return them.

    Args:
        path: the engine's file.
        calls: inputs, one sequence for each combination of shapes.

    Returns:
        What :func:`open` takes as a file; empty where TensorRT cannot execute, or compiles nothing at run time.

    Raises:
        RunError: the engine cannot be loaded, or fails.
    """
    if why_not_here():
        return b""
    from refimpl.engines.tensorrt.execution import TrtEngine
    from refimpl.engines.tensorrt.kernels import KernelCache

    cache = KernelCache()
    engine = TrtEngine(path, cuda.device(), kernels=cache)
    try:
        for inputs in calls:
            engine.run(inputs)
        return cache.serialized()
    finally:
        engine.close()


def engine_layers(path: Path) -> Any:
    """What TensorRT's engine inspector says of a stored engine; this needs a GPU that the engine fits.

    Returns:
        The inspector's JSON. An engine that was built without detailed profiling names its layers, and no more.

    Raises:
        RunError: the engine cannot be loaded here; the message says why.
    """
    if reason := why_not_here():
        raise RunError(f"TensorRT cannot load an engine here: {reason}")
    from refimpl.engines.tensorrt.inspection import inspected

    return inspected(path)
