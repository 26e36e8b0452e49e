"""From an engine's file to a deserialized engine; whatever cannot run here is refused with its reason."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refimpl import gpus
from refimpl.engines.tensorrt import library
from refimpl.errors import RunError

_REASONS = {  # EngineInvalidityDiagnostics, in words
    "VERSION_MISMATCH": "another version of TensorRT built it",
    "UNSUPPORTED_CC": "it was not built for the compute capability of this GPU",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is damaged, or no engine at all",
    "CUDA_ERROR": "CUDA fails here",
}
# Only these are believed before it is tried: the library calls GPUs unsupported that run its engines all the same.
_CERTAIN = ("VERSION_MISMATCH", "MALFORMED_ENGINE")
_MAGIC = b"vtrt"  # see stated_size


def refusal(built_by: str, here: str, targets: Sequence[str]) -> str:
    """Why an engine cannot run here, from what its bundle records of it; "" when nothing speaks against it.

    Args:
        built_by: name and version of the library that built it.
        here: of the library that is installed.
        targets: compute capabilities that it was built for, such as ``"sm86"``; empty for the library's own choice.
    """
    if built_by != here:
        return f"it was built by {built_by}, and {here} is installed; engines are tied to the version that built them"
    found = [f"sm{gpu.compute_capability.replace('.', '')}" for gpu in gpus.list_gpus()[1][:1]]
    if targets and found and found[0] not in targets:
        return (
            f"it was built for {', '.join(targets)}, and the GPU here is {found[0]}; convert with --target {found[0]}"
        )
    return ""


def deserialize(trt: Any, log: library.Log, path: Path) -> tuple[Any, Any]:
    """Read an engine.

    Returns:
        TensorRT's runtime, which must outlive the engine, and the engine.

    Raises:
        RunError: the file cannot be read, is cut off, or is refused by TensorRT; the message says why.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read the engine {path.name}: {error.strerror}") from None
    runtime = trt.Runtime(log.logger)
    if len(data) < (stated := stated_size(data, trt.__version__)):
        raise RunError(f"the engine {path.name} is cut off: it has {len(data)} bytes of {stated}")
    problems = _diagnosis(trt, runtime, data)
    if certain := [_REASONS[name] for name in problems if name in _CERTAIN]:
        raise RunError(f"{library.version()} cannot load {path.name}: {'; '.join(certain)}")
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        said = "; ".join(filter(None, [*(_REASONS[name] for name in problems), log.said()]))
        raise RunError(f"{library.version()} cannot load {path.name}: {said or 'no reason given'}")
    return runtime, engine


def _diagnosis(trt: Any, runtime: Any, data: bytes) -> list[str]:
    """What TensorRT for RTX finds wrong with an engine by its header; NVIDIA TensorRT says nothing before it tries."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return []
    known = trt.EngineInvalidityDiagnostics.__members__
    return [name for name in _REASONS if name in known and int(diagnostics) & int(known[name])]


def stated_size(data: bytes, version: str) -> int:
    """How long an engine says that it is; 0 when its header is not understood.

    The header of TensorRT for RTX 1.6 and 1.7, as their engines show it: ``vtrt``, at byte 16 the size as 64 bits,
    little end first, and at byte 24 the four numbers of the version. Only with this very version there is it believed.
    """
    numbers = version.split(".")
    if len(data) < 28 or data[:4] != _MAGIC or not all(part.isdigit() and int(part) < 256 for part in numbers):
        return 0
    size: int = struct.unpack_from("<Q", data, 16)[0]
    return size if list(data[24:28]) == [int(part) for part in numbers] else 0
