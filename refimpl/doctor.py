"""What is installed here, what can be built here, and what can execute here: the command ``doctor``.

Nothing is assumed from a version number: each kind of engine builds a network of one op and runs it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from refimpl import engines, env
from refimpl.engines import tensorrt
from refimpl.errors import RefimplError
from refimpl.gpus import Gpu, list_gpus


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What one kind of engine did with a network of one op."""

    kind: str
    library: str  # "" when it is not installed
    builds: bool
    executes: bool
    problem: str  # why it does not build or execute; "" when it does both
    seconds: float


@dataclass(frozen=True, slots=True)
class Health:
    """Everything that ``refimpl doctor`` prints."""

    versions: dict[str, str]
    tensorflow: str  # "" when it is not installed
    processor: str
    gpus: tuple[Gpu, ...]
    cuda_driver: str  # highest CUDA version that the driver supports; "" without a driver
    engines: tuple[EngineHealth, ...]
    tensorrt: tuple[tuple[str, str], ...]  # what the installed TensorRT can do, and what it found out about the GPU
    temp: str
    temp_free_bytes: int


def examine() -> Health:
    """Look at this machine. Takes a few seconds, because it builds engines."""
    versions = dict(env.versions())
    driver, gpus = list_gpus()
    temp = tempfile.gettempdir()
    return Health(
        versions=versions,
        tensorflow=versions.get("tensorflow") or versions.get("tensorflow-cpu") or "",
        processor=env.processor(),
        gpus=gpus,
        cuda_driver=driver,
        engines=tuple(examine_engine(name) for name in engines.KINDS),
        tensorrt=examine_tensorrt(),
        temp=temp,
        temp_free_bytes=shutil.disk_usage(temp).free,
    )


def examine_engine(name: str) -> EngineHealth:
    """Build ``y = relu(x)`` with one kind of engine and, where it can execute, run it and check the answer."""
    kind = engines.kind(name)
    library = kind.version()
    if not library:
        return EngineHealth(name, "", builds=False, executes=False, problem=kind.why_not_here(), seconds=0.0)
    started = time.perf_counter()
    builds = executes = False
    problem = kind.why_not_here()
    with tempfile.TemporaryDirectory(prefix="refimpl-doctor-") as folder:
        model, engine = Path(folder) / "relu.onnx", Path(folder) / f"relu{kind.SUFFIX}.built"
        model.write_bytes(_relu_model())
        try:
            kind.build(model, engine, (), engines.BuildOptions(tf32=False, workspace_bytes=0))
            builds = True
            if not problem:
                x = np.array([-1.5, 0.0, 2.5], np.float32)
                (y,) = kind.open(engine).run([x])
                executes = bool(np.array_equal(y, np.maximum(x, 0)))
                problem = "" if executes else f"relu({x.tolist()}) came out as {np.asarray(y).tolist()}"
        except RefimplError as error:
            problem = str(error)
    return EngineHealth(name, library, builds, executes, problem, time.perf_counter() - started)


def examine_tensorrt() -> tuple[tuple[str, str], ...]:
    """What the installed TensorRT can do: (what, answer). Where it executes, what cannot be asked is tried."""
    if not tensorrt.version():
        return ()
    targets = ", ".join(tensorrt.build_targets()) or "the GPU that is here"
    rows = [("builds for", targets)]
    rows += [(name, "yes" if there else "no") for name, there in tensorrt.features().items()]
    rows += [(f"int8 {op}", tensorrt.int8_problem(op) or "builds") for op in ("Conv", "ConvTranspose", "MatMul")]
    if not tensorrt.why_not_here():
        rows.append(("CUDA graphs", tensorrt.graph_problem() or "replayed with the same answers"))
        rows.append(("float32 products", tensorrt.tf32_problem() or "keep float32 unless TF32 is allowed"))
    return tuple(rows)


def _relu_model() -> bytes:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "relu", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def advice(health: Health) -> tuple[str, ...]:
    """What to install or know next, one sentence each; empty when everything is there."""
    lines = []
    if not health.tensorflow:
        lines.append("TensorFlow is missing: pip install 'refimpl[cpu]', or 'refimpl[cuda]' for NVIDIA GPUs.")
    by_kind = {engine.kind: engine for engine in health.engines}
    trt = by_kind["tensorrt"]
    if not trt.library:
        lines.append("No TensorRT: conversion works and uses a shipped table; 'refimpl[rtx]' needs no GPU to build.")
    elif trt.builds and not trt.executes:
        lines.append("TensorRT engines can be built here ahead of time; bundles run through ONNX Runtime here.")
    if health.temp_free_bytes < 2 << 30:
        lines.append(f"Less than 2 GiB are free in {health.temp}: large models may not fit.")
    return tuple(lines)


def show(health: Health, console: Console) -> None:
    """Print the report for a person. The console must not read markup: ``refimpl[cpu]`` looks like it."""
    packages = Table("package", "version", title="Installed", title_justify="left")
    for name, version in health.versions.items():
        packages.add_row(name, version)
    console.print(packages)
    table = Table("engine", "library", "builds", "executes", "why not", title="Engines", title_justify="left")
    for engine in health.engines:
        builds, executes = ("yes" if it else "no" for it in (engine.builds, engine.executes))
        table.add_row(engine.kind, engine.library or "not installed", builds, executes, engine.problem)
    console.print(table)
    if health.tensorrt:
        features = Table("feature", "here", title="TensorRT", title_justify="left")
        for row in health.tensorrt:
            features.add_row(*row)
        console.print(features)
    console.print(f"processor: {health.processor}")
    console.print(f"CUDA driver: {health.cuda_driver or 'none'}")
    for gpu in health.gpus:
        console.print(f"GPU: {gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_bytes >> 20} MiB")
    console.print(f"free in {health.temp}: {health.temp_free_bytes / (1 << 30):.1f} GiB")
    for line in advice(health):
        console.print(f"note: {line}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(*, as_json: bool) -> None:
    """Show versions and GPUs, and what can be built and run on this machine."""
    with contextlib.redirect_stdout(sys.stderr):  # Polygraphy logs to stdout, which is for data
        health = examine()
    if as_json:
        click.echo(json.dumps({**asdict(health), "advice": advice(health)}, indent=2))
    else:
        show(health, Console(highlight=False, markup=False, no_color=env.prefers_plain_text() or None))
