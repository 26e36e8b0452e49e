"""The GPU at hand: what a TensorRT engine really answers here, compared with what TensorFlow does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from refimpl import gpus
from refimpl.accuracy import accuracy
from refimpl.artifacts import Array
from refimpl.converter.islands import Built
from refimpl.converter.verify import Evidence, is_special
from refimpl.engines import BuildOptions, tensorrt
from refimpl.errors import BuildError, RunError
from refimpl.numerics import disagreement, has_nonfinite
from refimpl.runtime.building import covers
from refimpl.tolerance import tolerance_for

_SIZE = 64  # of the square matrices that are multiplied to see whether anything is right here


@dataclass(frozen=True)
class Verdict:
    """What running one engine on the GPU showed.

    Attributes:
        problem: why it must not be used; "" when it may.
        item: the evidence that it disagreed on first; None when it did not run at all.
        outputs: what it answered there.
        compared: samples that agreed.
        relative: the largest relative error on samples without NaN and infinities.
        finite_only: it agrees on finite values only.
    """

    problem: str = ""
    item: Evidence | None = None
    outputs: tuple[Array, ...] = ()
    compared: int = 0
    relative: float = 0.0
    finite_only: bool = False


def where() -> str:
    """The library and the GPU, for people: ``"tensorrt_rtx 1.6.1.120 on NVIDIA H100"``."""
    _, found = gpus.list_gpus()
    return f"{tensorrt.version()} on {found[0].name if found else 'the GPU here'}"


def runs_here(engine: Built) -> bool:
    """Whether an engine can be tried on this machine at all."""
    if engine.kind != tensorrt.NAME or tensorrt.why_not_here():
        return False
    return not tensorrt.refusal(engine.version, tensorrt.version(), engine.targets)


def judged(built: Built, evidence: Sequence[Evidence], precision: str) -> Verdict:
    """Run a stored engine on everything that is known of its island; its full tolerance may be used up.

    Args:
        built: the engine.
        evidence: inputs, and TensorFlow's outputs for them. Inputs that no profile takes, or that are empty, never
            reach the engine at run time either, and are left out.
        precision: row of the table of tolerances.
    """
    found = Verdict()
    telling = [item for item in evidence if _tells(built, item)]
    if not telling:
        return found
    try:
        with closing(tensorrt.open(built.file)) as engine:
            for item in telling:
                outputs = engine.run([np.asarray(array, order="C") for array in item.inputs])
                found = _with(found, item, outputs, precision)
                if found.problem:
                    return found
    except RunError as error:
        return Verdict(error.message)
    return found


def _tells(built: Built, item: Evidence) -> bool:
    """Whether an engine is ever given such inputs, and something can be seen of what it makes of them."""
    takes = not built.profiles or any(covers(profile, item.inputs) for profile in built.profiles)
    return takes and all(array.size for array in item.inputs) and any(array.size for array in item.outputs)


def _with(found: Verdict, item: Evidence, outputs: Sequence[Array], precision: str) -> Verdict:
    """The verdict after one more sample."""
    problem = differs(item.outputs, outputs, precision)
    # The runtime sees a NaN or an infinity as well, and lets TensorFlow answer. Where the values are finite in
    # TensorFlow, one that the engine makes is an error of it.
    if problem and is_special(item) and (any(map(has_nonfinite, (*item.inputs, *outputs)))):
        return replace(found, finite_only=True)
    usual = not is_special(item)
    relative = accuracy(item.outputs, outputs).relative if usual and _same_shapes(item.outputs, outputs) else 0.0
    relative = max(found.relative, relative)
    if problem:
        return replace(found, problem=f"{problem} ({item.name})", item=item, outputs=tuple(outputs), relative=relative)
    return replace(found, compared=found.compared + 1, relative=relative)


def differs(want: Sequence[Array], got: Sequence[Array], precision: str) -> str:
    """Why outputs do not agree by the row of a precision; "" when they do."""
    if len(want) != len(got):
        return f"{len(got)} outputs, and {len(want)} are wanted"
    pairs = zip(want, got, strict=True)
    return next((why for a, b in pairs if (why := disagreement(a, b, tolerance_for(precision, a.dtype.name)))), "")


def _same_shapes(want: Sequence[Array], got: Sequence[Array]) -> bool:
    return [item.shape for item in want] == [item.shape for item in got]


def nothing_right() -> str:
    """Why not even a product of two matrices comes out right on this GPU; "" when it does.

    One engine of one layer, within what TF32 loses. Where this is wrong, no layer of a network is to blame.
    """
    rng = np.random.default_rng(5)
    x, weight = (rng.standard_normal((_SIZE, _SIZE)).astype(np.float32) for _ in range(2))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIZE, _SIZE]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    graph = helper.make_graph(nodes, "product", infos[:1], infos[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory(prefix="refimpl-product-") as folder:
        file, engine_file = Path(folder) / "product.onnx", Path(folder) / f"product{tensorrt.SUFFIX}"
        file.write_bytes(model.SerializeToString())
        try:
            tensorrt.build(file, engine_file, (), BuildOptions(tf32=False, workspace_bytes=0))
            with closing(tensorrt.open(engine_file)) as engine:
                return differs([x @ weight], engine.run([x]), "tf32")
        except (BuildError, RunError) as error:
            return error.message
