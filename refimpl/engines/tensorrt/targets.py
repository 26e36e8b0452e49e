"""Engines ahead of time for GPUs that are not here: the compute capabilities that a builder can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refimpl.engines.tensorrt import library
from refimpl.errors import UnsupportedError


def known_targets(trt: Any) -> tuple[str, ...]:
    """Names such as ``"sm86"`` that this library can build for; empty when it builds for the GPU that is here."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return tuple(sorted((name.lower() for name in members if name.startswith("SM")), key=lambda name: int(name[2:])))


def check_targets(targets: Sequence[str]) -> None:
    """Before any work is done.

    Raises:
        UnsupportedError: the TensorRT that is installed cannot build for one of them; the hint lists what it can.
    """
    known = known_targets(library.require()) if targets else ()
    for target in targets:
        if target not in known:
            hint = f"it builds for {', '.join(known)}" if known else "TensorRT for RTX can: pip install 'refimpl[rtx]'"
            raise UnsupportedError(f"--target {target}: {library.version()} cannot build for it", hint=hint)


def set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    """Tell a builder's configuration what to build for; without targets the library chooses."""
    if not targets:
        return
    check_targets(targets)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index):
            raise UnsupportedError(f"{library.version()} refuses to build for {', '.join(targets)} at once")
