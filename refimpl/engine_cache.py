"""Engines from the cache: an engine that was built once of the same ONNX, for the same shapes, is not built again."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refimpl import engines, env, gpus
from refimpl.cache import Cache, Key, file_digest
from refimpl.engines import BuildOptions, Profile

KIND, TIMINGS = "engine", "timings"
_COMPILED = ("tensorrt",)  # the kinds whose build is work; the others copy the island's ONNX
_WEIGHTS_SUFFIX = ".data"  # of the file beside a model whose weights are too large to lie in it


def engine_key(kind: str, model: Path, profiles: Sequence[Profile], options: BuildOptions) -> Key:
    """Everything that an engine depends on.

    Args:
        kind: of engine.
        model: the island as ONNX; its bytes count, but for what it says about itself to people
            (:mod:`refimpl.engines.describing`), and those of its weights beside it; not its name.
        profiles: shapes that the engine must take.
        options: of the build; what is timed on the way changes nothing that counts.
    """
    from refimpl.engines import describing  # it imports ONNX, and a process that only runs bundles needs none

    data = model.with_name(model.name + _WEIGHTS_SUFFIX)
    parts = {
        "engine": kind,
        "library": engines.kind(kind).version(),
        "refimpl": env.code_digest(),
        "model": describing.digest_without(model),
        "weights": file_digest(data) if data.exists() else "",
        "profiles": [dataclasses.asdict(profile) for profile in profiles],
        "tf32": options.tf32,
        "workspace_bytes": options.workspace_bytes,
        "targets": options.targets,
        **machine(),
    }
    return Key(KIND, parts)


def machine() -> dict[str, Any]:
    """What an engine may depend on of the machine that builds it: its GPUs, the driver, and what it runs."""
    driver, found = gpus.list_gpus()
    fingerprint = env.fingerprint()
    return {
        "driver": driver,
        "gpus": [dataclasses.asdict(gpu) for gpu in found],
        "system": fingerprint["system"],
        "machine": fingerprint["machine"],
    }


def build(
    cache: Cache | None,
    kind: str,
    model: Path,
    target: Path,
    profiles: Sequence[Profile],
    options: BuildOptions,
    label: Mapping[str, str] | None = None,
) -> bool:
    """Build an engine and write it to ``target``, or copy it from the cache.

    Args:
        cache: where to look first and to store; None builds.
        kind: of engine, see :mod:`refimpl.engines`.
        model: the island as ONNX.
        target: the file to write.
        profiles: shapes that the engine must take.
        options: of the build.
        label: of a new entry, for people.

    Returns:
        Whether it came from the cache.

    Raises:
        BuildError: the island cannot be built.
        UnsupportedError: the library is not installed.
    """
    module = engines.kind(kind)
    if cache is None or kind not in _COMPILED:
        module.build(model, target, profiles, options)
        return False
    key = engine_key(kind, model, profiles, options)
    with tempfile.TemporaryDirectory(prefix="refimpl-cache-", dir=target.parent) as folder:
        if cache.get(key, Path(folder)) is not None:
            (Path(folder) / KIND).replace(target)
            return True
        timings = Path(folder) / TIMINGS
        timed = Key(TIMINGS, {"engine": kind, "library": module.version(), **machine()})
        cache.get(timed, Path(folder))
        before = timings.read_bytes() if timings.exists() else b""
        module.build(model, target, profiles, dataclasses.replace(options, timings=timings))
        if timings.exists() and timings.read_bytes() != before:
            cache.put(timed, {TIMINGS: timings}, label={"library": module.version()}, replace=True)
    cache.put(key, {KIND: target}, label={"library": module.version(), **(label or {})})
    return False
