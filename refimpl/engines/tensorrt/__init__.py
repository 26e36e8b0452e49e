"""TensorRT engines: NVIDIA TensorRT or TensorRT for RTX, whichever is installed; they share one Python API.

library.py       which of the two there is, and what it says
capabilities.py  what it can do, asked of itself and not of its version number
building.py      from ONNX to an engine's file
loading.py       from an engine's file to an engine, or the reason why not
kernels.py       kernels that TensorRT for RTX compiles at run time, kept
execution.py     an open engine: a pool of lanes
lanes.py         one call at a time: stream, contexts, CUDA graphs
outputs.py       outputs whose size only the run knows
tensors.py       inputs, outputs and profiles of an engine
memory.py        its memory on the GPU and the host
cuda.py          the CUDA driver
dlpack.py        tensors that stay on the GPU
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refimpl import gpus
from refimpl.engines import Array
from refimpl.engines.tensorrt import cuda, library
from refimpl.engines.tensorrt.building import Refusal, build, parser_refusals
from refimpl.engines.tensorrt.capabilities import capabilities, int8_problem, tf32_problem
from refimpl.engines.tensorrt.kernels import SUFFIX as KERNELS_SUFFIX
from refimpl.engines.tensorrt.library import version
from refimpl.engines.tensorrt.loading import refusal
from refimpl.errors import RunError, first_line

if TYPE_CHECKING:
    from refimpl.engines.tensorrt.execution import TrtEngine

__all__ = [
    "KERNELS_SUFFIX",
    "NAME",
    "SUFFIX",
    "Refusal",
    "build",
    "capabilities",
    "compiled_kernels",
    "int8_problem",
    "open",
    "parser_refusals",
    "refusal",
    "tf32_problem",
    "version",
    "why_not_here",
]

NAME = "tensorrt"
SUFFIX = ".engine"


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


def open(path: Path, *, kernels: Path | None = None) -> TrtEngine:  # noqa: A001  (the Protocol's name)
    """Load a stored engine.

    Args:
        path: its file.
        kernels: kernels that were compiled for it on a GPU before: a file of the bundle, its checksum compared.

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
