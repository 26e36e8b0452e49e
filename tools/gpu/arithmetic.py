"""How does this GPU round? Single products by TensorRT, held against ways in which they may have been computed.

    python -m tools.gpu.arithmetic                 # docs/benchmarks/gpu-arithmetic.json
    python -m tools.gpu.arithmetic --out FOLDER

The embedded engine predicts a GPU's error, so it has to know what a GPU does inside one product: which bits of the
operands it drops, how wide it sums, where it rounds between fused ops. Each probe is one small ONNX graph. Its answer
is compared with float64 and with every candidate: the share of equal elements, and the distance relative to the
answer's norm. The candidate that explains the GPU is the one at (nearly) no distance.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refimpl import gpus
from refimpl.engines import BuildOptions, Profile, onnxruntime, tensorrt
from refimpl.errors import RefimplError

OUT = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks"
Array = Any
OURS = "the embedded engine"
_ONNX = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Probe:
    """One graph, its inputs, and what it would give if it were computed in certain ways."""

    name: str
    model: Any
    inputs: tuple[Array, ...]
    exact: Array  # float64
    candidates: Mapping[str, Callable[[], Array]]
    tf32: bool = True


@dataclass(frozen=True)
class Finding:
    """How far TensorRT's answer is from float64, and from each candidate."""

    probe: str
    error: float | None  # relative norm against float64
    candidates: Mapping[str, tuple[float, float, float]]  # own error, distance from TensorRT, share of equal elements
    says: str = ""


def tf32(values: Array, how: str = "nearest") -> Array:
    """Float32 with the last 13 bits of the mantissa rounded away: to nearest even, half away from zero, or cut off."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    added: Array = {"nearest": 0xFFF + ((bits >> 13) & 1), "away": np.uint32(0x1000), "cut": np.uint32(0)}[how]
    return ((bits + added.astype(np.uint32)) & np.uint32(0xFFFFE000)).view(np.float32)


def summed(a: Array, b: Array, dtype: Any, block: int) -> Array:
    """``a @ b`` with the running sum rounded to ``dtype`` after every ``block`` products."""
    total = np.zeros((a.shape[0], b.shape[1]), dtype)
    for start in range(0, a.shape[1], block):
        part = a[:, start : start + block].astype(np.float64) @ b[start : start + block].astype(np.float64)
        total = (total.astype(np.float64) + part).astype(dtype)
    return total


def split(a: Array, b: Array, parts: int, dtype: Any) -> Array:
    """``a @ b`` in ``parts`` portions, each a float16 sum every 16, and the portions summed in ``dtype``."""
    step = a.shape[1] // parts
    total = np.zeros((a.shape[0], b.shape[1]), dtype)
    for start in range(0, a.shape[1], step):
        portion = summed(a[:, start : start + step], b[start : start + step], np.float16, 16)
        total = (total.astype(np.float64) + portion).astype(dtype)
    return total.astype(np.float16)


def _model(nodes: Sequence[Any], inputs: Sequence[Array], weights: Mapping[str, Array], out: tuple[str, Any]) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "probe",
        [helper.make_tensor_value_info(f"x{i}", _ONNX[v.dtype.name], v.shape) for i, v in enumerate(inputs)],
        [helper.make_tensor_value_info(out[0], out[1], None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _half_candidates(a: Array, b: Array) -> dict[str, Callable[[], Array]]:
    """Ways to multiply two float16 matrices."""
    parts = [(n, dtype) for n in (2, 4, 8, 16) for dtype in (np.float16, np.float32) if a.shape[1] // n >= 64]
    return {
        "wide sum, rounded once": partial(_wide, a, b),
        **{f"float16 sum, every {block}": partial(summed, a, b, np.float16, block) for block in (8, 16, 32)},
        **{
            f"{n} parts of float16 sums, joined in {dtype.__name__}": partial(split, a, b, n, dtype)
            for n, dtype in parts
        },
    }


def _single_candidates(a: Array, b: Array) -> dict[str, Callable[[], Array]]:
    """Ways to multiply two float32 matrices."""
    return {
        "float32": partial(np.matmul, a, b),
        **{f"tf32 {how}": partial(_tf32_product, a, b, how) for how in ("nearest", "away", "cut")},
    }


def _wide(a: Array, b: Array) -> Array:
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)


def _tf32_product(a: Array, b: Array, how: str) -> Array:
    return np.matmul(tf32(a, how).astype(np.float64), tf32(b, how).astype(np.float64)).astype(np.float32)


def products(rows: int, size: int, width: int, kind: str) -> Probe:
    """One MatMul of ``size`` terms per sum."""
    rng = np.random.default_rng(size)
    dtype = np.float16 if kind == "fp16" else np.float32
    a, b = rng.standard_normal((rows, size)).astype(dtype), rng.standard_normal((size, width)).astype(dtype)
    model = _model([helper.make_node("MatMul", ["x0", "w"], ["y"])], [a], {"w": b}, ("y", _ONNX[a.dtype.name]))
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    candidates = _half_candidates(a, b) if kind == "fp16" else _single_candidates(a, b)
    return Probe(f"MatMul {kind}, {rows}x{size}x{width}", model, (a,), exact, candidates, kind != "fp32")


@dataclass(frozen=True)
class Convolution:
    """One convolution, ``kernel**2 * channels / group`` terms per sum."""

    channels: int
    size: int
    out: int = 0  # as many as go in
    group: int = 1
    kernel: int = 3
    stride: int = 1
    begin: int = -1  # padding before; as much as after when not given

    @property
    def pads(self) -> tuple[int, int]:
        after = self.kernel // 2
        return (after if self.begin < 0 else self.begin), after


def convolution(what: Convolution, kind: str) -> Probe:
    """A convolution as products of matrices, its terms in two orders."""
    rng = np.random.default_rng(what.channels)
    dtype = np.float16 if kind == "fp16" else np.float32
    out, (before, after) = what.out or what.channels, what.pads
    x = rng.standard_normal((2, what.channels, what.size, what.size)).astype(dtype)
    w = rng.standard_normal((out, what.channels // what.group, what.kernel, what.kernel)).astype(dtype)
    given: dict[str, Any] = {"pads": [before] * 2 + [after] * 2, "group": what.group, "strides": [what.stride] * 2}
    model = _model([helper.make_node("Conv", ["x0", "w"], ["y"], **given)], [x], {"w": w}, ("y", _ONNX[x.dtype.name]))
    taps = _taps(x, what)

    def by(candidate: str, order: str) -> Array:
        make = _half_candidates if kind == "fp16" else _single_candidates
        pairs = _matrices(taps, w, what.group, order)
        return _image(np.concatenate([make(a, b)[candidate]() for a, b in pairs], 1), taps)

    exact = [a.astype(np.float64) @ b.astype(np.float64) for a, b in _matrices(taps, w, what.group, "taps first")]
    names = ["float32", "tf32 nearest", "tf32 away", "tf32 cut"]
    if kind == "fp16":
        names = ["wide sum, rounded once", *(f"float16 sum, every {block}" for block in (8, 16, 32))]
    orders = ("taps first", "channels first") if kind == "fp16" else ("taps first",)
    candidates = {f"{name}, {order}": partial(by, name, order) for name in names for order in orders}
    name = f"Conv {kind}, {what.channels} to {out} channels in {what.group} groups, {what.size}x{what.size}, "
    name += f"kernel {what.kernel}, stride {what.stride}, padded by {before} and {after}"
    return Probe(name, model, (x,), _image(np.concatenate(exact, 1), taps), candidates, kind != "fp32")


def _matrices(taps: Array, w: Array, group: int, order: str) -> Iterator[tuple[Array, Array]]:
    """Operands of each group's product; the terms are ordered by tap and channel, or by channel and tap."""
    out, channels = w.shape[:2]
    for g in range(group):
        mine = taps[..., g * channels : (g + 1) * channels]
        theirs = w[g * out // group : (g + 1) * out // group].reshape(out // group, channels, -1)
        if order == "channels first":
            mine, theirs = mine.swapaxes(-1, -2), theirs.transpose(1, 2, 0)
        else:
            theirs = theirs.transpose(2, 1, 0)
        yield mine.reshape(-1, mine.shape[-1] * mine.shape[-2]), theirs.reshape(-1, out // group)


def _image(product: Array, taps: Array) -> Array:
    return product.reshape(*taps.shape[:3], -1).transpose(0, 3, 1, 2)


def _taps(x: Array, what: Convolution) -> Array:
    """``[batch, rows, columns, taps, channels]``"""
    h, w = (n + sum(what.pads) - what.kernel + 1 for n in x.shape[2:])
    padded, by = np.pad(x, ((0, 0), (0, 0), what.pads, what.pads)), what.stride
    views = [padded[:, :, i : i + h : by, j : j + w : by] for i in range(what.kernel) for j in range(what.kernel)]
    return np.stack(views, axis=-1).transpose(0, 2, 3, 4, 1)


def chain() -> Probe:
    """MatMul, bias, residual, Relu: where is it rounded in between?"""
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((64, 256)).astype(np.float16), rng.standard_normal((256, 64)).astype(np.float16)
    bias, rest = rng.standard_normal(64).astype(np.float16), (8 * rng.standard_normal((64, 64))).astype(np.float16)
    nodes = [
        helper.make_node("MatMul", ["x0", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Add", ["q", "x1"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    model = _model(nodes, [a, rest], {"w": b, "b": bias}, ("y", TensorProto.FLOAT16))
    wide = a.astype(np.float64) @ b.astype(np.float64)
    exact = np.maximum(wide + bias.astype(np.float64) + rest.astype(np.float64), 0)

    def half(value: Array) -> Array:
        return value.astype(np.float16).astype(np.float64)

    def relu(value: Array) -> Array:
        return np.maximum(value, 0).astype(np.float16)

    def sums(block: int) -> Array:
        return summed(a, b, np.float16, block).astype(np.float64)

    candidates = {
        "rounded at every op": lambda: relu(half(half(half(wide) + bias) + rest)),
        "rounded once": lambda: relu(wide + bias + rest),
        "rounded after the bias": lambda: relu(half(wide + bias) + rest),
        "float16 sum every 16, rounded at every op": lambda: relu(half(half(sums(16) + bias) + rest)),
        "float16 sum every 32, rounded at every op": lambda: relu(half(half(sums(32) + bias) + rest)),
    }
    return Probe("MatMul, Add, Add, Relu fp16", model, (a, rest), exact, candidates)


_PRODUCTS = (
    (64, 64, 64), (64, 256, 64), (1, 256, 64), (1, 2048, 1000), (8, 512, 512), (8, 2048, 1000), (64, 1024, 64),
    (64, 4096, 64), (64, 2048, 1000), (512, 768, 768), (512, 3072, 768), (512, 4096, 512),
)  # fmt: skip
_CONVOLUTIONS = (
    Convolution(16, 32),
    Convolution(64, 56),
    Convolution(256, 14),
    Convolution(512, 7),
    Convolution(3, 64, out=64, kernel=7, stride=2),
    Convolution(24, 28, out=144, kernel=1),
    Convolution(64, 56, out=256, kernel=1),
    Convolution(1024, 14, out=256, kernel=1),
    Convolution(512, 7, out=2048, kernel=1),
    Convolution(128, 28, stride=2),
    Convolution(64, 28, group=2),
    Convolution(32, 28, group=32),
    Convolution(96, 56, group=96, stride=2),
    Convolution(96, 28, group=96, kernel=5),
    Convolution(96, 56, group=96, stride=2, begin=0),
    Convolution(144, 56, group=144, stride=2, begin=0),
    Convolution(64, 56, stride=2, begin=0),
)
# Where channels are few, kernels for float32 differ in how they round operands.
_FEW_CHANNELS = (
    Convolution(1, 28, out=32),
    Convolution(3, 96, out=24, stride=2, begin=0),
    Convolution(3, 64, out=64),
    Convolution(8, 62, out=16, kernel=1),
    Convolution(16, 56, out=96, kernel=1),
    Convolution(16, 28, out=64),
    Convolution(24, 48, out=32, stride=2, begin=0),
    Convolution(32, 56, out=16, kernel=1),
    Convolution(32, 14, out=32),
)


def probes() -> Iterator[Probe]:
    """Every probe: single products, then ops that may be fused."""
    for kind in ("fp16", "tf32"):
        for sizes in _PRODUCTS:
            yield products(*sizes, kind)
        for what in _CONVOLUTIONS:
            yield convolution(what, kind)
    for what in _FEW_CHANNELS:
        yield convolution(what, "tf32")
    yield products(64, 256, 64, "fp32")  # the flag for TF32 is off: is it heeded?
    yield chain()


def measure(probe: Probe, folder: Path) -> Finding:
    """Build, run, compare."""
    file, target = folder / ("p.half.onnx" if " fp16" in probe.name else "p.tf32.onnx"), folder / "p.engine"
    onnx.save(probe.model, file)
    shapes = tuple(value.shape for value in probe.inputs)
    try:
        tensorrt.build(file, target, (Profile(shapes, shapes, shapes),), BuildOptions(probe.tf32, 0))
        got = tensorrt.open(target).run(probe.inputs)[0]
    except RefimplError as error:
        return Finding(probe.name, None, {}, error.message)
    found = {}
    embedded = onnxruntime.open(file)
    for name, make in {OURS: lambda: embedded.run(probe.inputs)[0], **probe.candidates}.items():
        value = make()
        equal = float(np.mean(value == got))
        found[name] = (_distance(value, probe.exact), _distance(value, got), equal)
    return Finding(probe.name, _distance(got, probe.exact), found)


def _distance(value: Array, other: Array) -> float:
    a, b = value.astype(np.float64), other.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    driver, found = gpus.list_gpus()
    data: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "gpu": [asdict(gpu) for gpu in found],
        "cuda": driver,
        "tensorrt": tensorrt.version(),
        "findings": [],
    }
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for probe in probes():
            finding = measure(probe, Path(scratch))
            data["findings"].append(asdict(finding))
            print(finding.probe, finding.error, finding.says, file=sys.stderr, flush=True)
            (given.out / "gpu-arithmetic.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            (given.out / "gpu-arithmetic.md").write_text(markdown(data), encoding="utf-8")
    return 0


_ABOUT = (
    "Written by `python -m tools.gpu.arithmetic`; do not edit. Errors are relative norms against float64; *equal* is "
    "the share of elements that are the same number as TensorRT's."
)


def markdown(data: Mapping[str, Any]) -> str:
    """The record for people: the error, ours, and the candidate that explains the GPU best."""
    gpu = ", ".join(f"{item['name']} (compute capability {item['compute_capability']})" for item in data["gpu"])
    lines = [
        "# How a GPU rounds inside of products",
        "",
        _ABOUT,
        "",
        f"* {data['date']}, {gpu or 'no GPU'}, CUDA {data['cuda'] or '-'}, {data['tensorrt'] or 'no TensorRT'}",
        "",
        "| product | GPU's error | embedded engine's | equal | computed as | equal |",
        "|---|---|---|---|---|---|",
    ]
    for item in data["findings"]:
        if item["error"] is None:
            lines.append(f"| {item['probe']} | {item['says']} | - | - | - | - |")
            continue
        candidates = dict(item["candidates"])
        ours = candidates.pop(OURS)
        name = min(candidates, key=lambda key: candidates[key][1])
        cells = [f"{item['error']:.2e}", f"{ours[0]:.2e}", f"{ours[2]:.0%}", name, f"{candidates[name][2]:.0%}"]
        lines.append(f"| {item['probe']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
