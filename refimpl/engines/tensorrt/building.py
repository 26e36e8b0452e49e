"""Building: from an island's ONNX file to an engine's file. No GPU is needed with TensorRT for RTX."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refimpl.engines import BuildOptions, Profile
from refimpl.engines.tensorrt.library import Log, require, shorten
from refimpl.engines.tensorrt.targets import set_targets
from refimpl.errors import BuildError


def new_network(trt: Any, builder: Any) -> Any:
    """An empty network, strongly typed where the library has that."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(1 << int(flag) if flag is not None else 0)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that TensorRT's parser does not take."""

    node: str
    reason: str


def parser_refusals(model: bytes, path: str = "") -> tuple[tuple[Refusal, ...], bool]:
    """Ask TensorRT's ONNX parser about a model.

    Args:
        model: a serialized ModelProto.
        path: where it lies, when its weights are in files beside it.

    Returns:
        The nodes it names as the cause of a refusal, and whether it takes the whole model. It stops at the first
        refusal of a region: ask again without the nodes named until it takes everything.
    """
    trt = require()
    log = Log(trt)
    builder = trt.Builder(log.logger)
    network = new_network(trt, builder)  # the parser does not keep it alive
    parser = trt.OnnxParser(network, log.logger)
    whole = bool(parser.supports_model_v2(model, path or None))
    found: dict[str, Refusal] = {}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        if error.node_name():
            found.setdefault(
                error.node_name(), Refusal(error.node_name(), f"{error.node_operator()}: {shorten(error.desc())}")
            )
    return tuple(found.values()), whole


def parser_takes(model: Path) -> bool:
    """Whether TensorRT's ONNX parser takes all of a stored model, its weights in it or in a file beside it.

    The model is parsed in earnest, as it is for a build: nothing is predicted.
    """
    trt = require()
    log = Log(trt)
    network = new_network(trt, trt.Builder(log.logger))
    return bool(trt.OnnxParser(network, log.logger).parse_from_file(str(model)))


def build(model: Path, target: Path, profiles: Sequence[Profile], options: BuildOptions) -> None:
    """Build an engine; see :class:`refimpl.engines.EngineKind`."""
    trt = require()
    log = Log(trt)
    builder = trt.Builder(log.logger)
    network = new_network(trt, builder)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(model)):
        raise BuildError(parse_errors(parser))
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32") and not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "STRICT_NANS"):
        config.set_flag(trt.BuilderFlag.STRICT_NANS)  # else 0*x may become 0 and hide a NaN that TensorFlow shows
    set_targets(trt, config, options.targets)
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    for profile in dict.fromkeys(_without_data(network, profile) for profile in profiles):
        config.add_optimization_profile(_trt_profile(builder, network, profile))
    timed = _with_timings(config, options.timings)
    if not _write_engine(trt, builder, network, config, target):
        raise BuildError(log.said(3) or "TensorRT built nothing and said nothing")
    if timed and options.timings is not None:
        options.timings.write_bytes(memoryview(config.get_timing_cache().serialize()))


def _write_engine(trt: Any, builder: Any, network: Any, config: Any, target: Path) -> bool:
    """Build, and write the engine to a file; whether there is one. Where the library can stream, no copy is held."""
    if not (hasattr(builder, "build_serialized_network_to_stream") and hasattr(trt, "IStreamWriter")):
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            target.write_bytes(memoryview(plan))
        return plan is not None
    failures: list[BaseException] = []

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def write(self, data: Any) -> int:
            if failures:
                return 0
            try:
                return file.write(data)
            except BaseException as error:  # noqa: BLE001  the library would swallow it, and say that it has built
                failures.append(error)
                return 0

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

    with target.open("wb") as file:
        built = bool(builder.build_serialized_network_to_stream(network, config, Writer()))
        if failures:
            raise failures[0]
    if not built:
        target.unlink()
    return built


def parse_errors(parser: Any) -> str:
    """What the parser refused, in one line."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(f"{item.node_operator() or 'ONNX'}: {shorten(item.desc())}" for item in errors) or "parser failed"


def _with_timings(config: Any, file: Path | None) -> bool:
    """Let the builder know what it has timed before; whether this library keeps timings at all.

    TensorRT for RTX times nothing when it builds: there it is a DeprecationWarning that says so.
    """
    if file is None or not hasattr(config, "create_timing_cache"):
        return False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DeprecationWarning)
        known = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
        taken = config.set_timing_cache(known or config.create_timing_cache(b""), False)
    return bool(taken) and not any(issubclass(item.category, DeprecationWarning) for item in said)


def _without_data(network: Any, profile: Profile) -> Profile:
    """Only of inputs that TensorRT takes as shapes do values matter; without the others, profiles may be the same."""
    return replace(profile, values=tuple(item for item in profile.values if network.get_input(item[0]).is_shape_tensor))


def _trt_profile(builder: Any, network: Any, profile: Profile) -> Any:
    result = builder.create_optimization_profile()
    values = {index: rest for index, *rest in profile.values}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if index in values:
            result.set_shape_input(tensor.name, *values[index])
        else:
            result.set_shape(tensor.name, profile.min[index], profile.opt[index], profile.max[index])
    return result
