"""The one reader and writer of the process environment: flags, installed versions, how TensorFlow starts.

Flags, each ``0`` or ``1``:

    REFIMPL_TF_LOGS    1 shows TensorFlow's own start-up messages and warnings; 0 (the default) its errors only
    REFIMPL_TFTRT_OPS  1 lets refimpl.trt_convert keep to the ops that TF-TRT took; 0 (the default) takes more
    REFIMPL_CACHE_READ_ONLY  1 uses what is in the cache and writes nothing to it; 0 (the default) writes, too

``REFIMPL_CACHE_DIR`` names the directory of the cache; unset or empty, there is none.

Nothing here imports TensorFlow or another vendor's library.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from refimpl.errors import RecipeError, UnsupportedError

PACKAGES = (
    *("refimpl", "numpy", "protobuf", "onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "polygraphy"),
    *("tf2onnx", "tensorflow", "tensorflow-cpu", "keras", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
)
_INSTRUCTION_SETS = (  # vector units, fused multiply-add and half precision of x86 and Arm
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimdhp", "sve", "bf16"),
)
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_MISSING_TENSORFLOW = "pip install 'refimpl[cpu]', or 'refimpl[cuda]' for NVIDIA GPUs"


def flag(name: str, *, default: bool, environ: Mapping[str, str] = os.environ) -> bool:
    """Value of a flag.

    Raises:
        RecipeError: it is set to anything but 0 or 1.
    """
    raw = environ.get(name)
    if raw is None:
        return default
    if raw not in ("0", "1"):
        raise RecipeError(f"environment variable {name} is {raw!r}", hint=f"set {name} to 0 or 1, or unset it")
    return raw == "1"


def variables(prefix: str) -> dict[str, str]:
    """Every variable whose name starts with ``prefix``, as it is now: callers may change them between calls."""
    return {name: value for name, value in os.environ.items() if name.startswith(prefix)}


@functools.cache
def versions() -> Mapping[str, str]:
    """Version by name of Python and of every package of ``PACKAGES`` that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def processor() -> str:
    """Model name of the processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """The processor's instruction sets that change how floats are summed or rounded, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    found = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split(":")[-1].split()}
    return tuple(name for name in _INSTRUCTION_SETS if name in found)


def fingerprint() -> dict[str, str]:
    """What numbers may depend on: versions, system, processor, and whether TensorFlow may use oneDNN."""
    machine = {"system": platform.system(), "machine": platform.machine(), "processor": processor()}
    return {**versions(), **machine, "onednn": "off" if onednn_is_off() else "TensorFlow's default"}


@functools.cache
def code_digest() -> str:
    """SHA-256 (hexadecimal) of refimpl's own code and tables: a version number says nothing of an edited checkout."""
    total, root = hashlib.sha256(), Path(__file__).parent
    for file in sorted(item for item in root.rglob("*") if item.suffix in (".py", ".json")):
        total.update(f"{file.relative_to(root).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def cache_directory() -> str:
    """The directory that ``REFIMPL_CACHE_DIR`` names; "" when it names none."""
    return os.environ.get("REFIMPL_CACHE_DIR", "")


def cache_is_read_only() -> bool:
    """Whether ``REFIMPL_CACHE_READ_ONLY`` forbids to write to the cache."""
    return flag("REFIMPL_CACHE_READ_ONLY", default=False)


def fingerprint_digest() -> str:
    """Twelve hexadecimal digits that change with anything in :func:`fingerprint`."""
    return hashlib.sha256(json.dumps(fingerprint(), sort_keys=True).encode()).hexdigest()[:12]


def tensorflow_installed() -> bool:
    """Whether TensorFlow can be found; it is not imported."""
    return "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow") is not None


def require_tensorflow() -> None:
    """Make sure that TensorFlow can be imported, and that it will be quiet.

    Raises:
        UnsupportedError: it is not installed; the hint says which extra to take.
    """
    if not tensorflow_installed():
        raise UnsupportedError("TensorFlow is not installed", hint=_MISSING_TENSORFLOW)
    quiet_tensorflow()
    if "tensorflow" not in sys.modules and not flag("REFIMPL_TF_LOGS", default=False):
        _import_silently("tensorflow")


class _Process:
    ours = False


def own_process() -> None:
    """Say that this process runs one command of refimpl and nothing else."""
    _Process.ours = True


def skip_collections() -> None:
    """In a process of our own, what is alive now is not looked at again by the garbage collector; elsewhere no-op.

    Libraries as large as TensorFlow are a million objects that live until the end. Every full collection goes through
    all of them, and Python makes several on its way out.
    """
    if _Process.ours:
        gc.freeze()


def _import_silently(name: str) -> None:
    """Import a module with file descriptor 2 closed: TensorFlow's C++ side greets before its log level is read.

    No garbage is collected meanwhile: there is none, and looking for it takes a sixth of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        importlib.import_module(name)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
        if collecting:
            gc.enable()
    skip_collections()


def quiet_tensorflow() -> None:
    """Let TensorFlow print errors only, unless ``REFIMPL_TF_LOGS=1``. What the user has set wins.

    Before TensorFlow's first import this quiets its C++ side as well.
    """
    if flag("REFIMPL_TF_LOGS", default=False):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logger = logging.getLogger("tensorflow")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)


def turn_onednn_off() -> bool:
    """Let TensorFlow compute without oneDNN, whose float sums differ from machine to machine.

    That can only be chosen before TensorFlow's first import.

    Returns:
        Whether oneDNN is off.
    """
    if "tensorflow" not in sys.modules:
        os.environ[_ONEDNN] = "0"
    return onednn_is_off()


def onednn_is_off() -> bool:
    """Whether the environment forbids TensorFlow to use oneDNN."""
    return os.environ.get(_ONEDNN) == "0"


def limit_tensorflow_threads(threads: int | None) -> None:
    """Let so many threads share one op of TensorFlow; None leaves it to TensorFlow.

    That can only be chosen before TensorFlow's first import.
    """
    if threads is not None:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)


def prefers_plain_text() -> bool:
    """Whether the user asked for output without colours (``NO_COLOR``, see no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))
