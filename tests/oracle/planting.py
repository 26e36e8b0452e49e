"""One wrong node in the ONNX of a real bundle, its checksums made right again, as a bad converter would write it."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from refimpl import bundle, oracle, runtime
from tests.bundles import DEFAULT, copy_of
from tests.models import sample_inputs, saved_model

Edit = Callable[[onnx.ModelProto], None]
Change = Callable[[np.ndarray], np.ndarray]
_FOLDER = tempfile.TemporaryDirectory(prefix="refimpl-test-bisect-")


@functools.cache
def golden_of(name: str) -> Path:
    """A golden record of a model of the zoo: its first sample inputs, as the one case ``sample``."""
    folder = Path(_FOLDER.name) / name
    folder.mkdir()
    np.savez(folder / "sample.npz", **sample_inputs(name)[0])  # type: ignore[arg-type]
    oracle.record(
        saved_model(name), folder / "golden", cases=str(folder / "sample.npz"), signatures=["serving_default"]
    )
    return folder / "golden"


def planted(name: str, folder: Path, edit: Edit, *, island: int = 0, guarded: bool = False, **more: Any) -> Path:
    """A bundle of a model with an edit in the ONNX of one island.

    Args:
        name: the model.
        folder: where the bundle is copied to.
        edit: changes the island's model.
        island: which one.
        guarded: leave the probes, so that the runtime refuses the engine.
        more: ``recipe``.
    """
    path = copy_of(name, folder, more.get("recipe", DEFAULT))
    edit_island(path, edit, island=island)
    if not guarded:
        unguard(path)
    return path


def edit_island(path: Path, edit: Edit, *, island: int = 0) -> None:
    """Change the ONNX of one island of a bundle."""
    manifest = bundle.read(path, check_files=False)
    record = manifest.islands[island]
    file = path / next(engine.file for engine in record.engines if engine.kind == "onnxruntime")
    model = onnx.load(file)
    edit(model)
    onnx.save(model, file)
    bundle.seal(path, manifest)
    runtime.forget(path)


def unguard(path: Path) -> None:
    """Take the probes of all islands away: the runtime then takes every engine."""
    manifest = bundle.read(path, check_files=False)
    signatures = tuple(
        replace(item, islands=tuple(replace(island, probe="") for island in item.islands))
        for item in manifest.signatures
    )
    bundle.seal(path, replace(manifest, signatures=signatures))


def node_of(model: onnx.ModelProto, ending: str) -> onnx.NodeProto:
    """The one node whose name is this, or ends so after a slash."""
    exact = [(node.name, node) for node in model.graph.node]
    counted = [(re.sub(r"__\d+$", "", name), node) for name, node in exact]  # the numbers are a counter's
    for names in (exact, counted):
        if found := [node for name, node in names if name == ending or name.endswith(f"/{ending}")]:
            break
    assert len(found) == 1, [node.name for node in found]
    return found[0]


def operand(ending: str, index: int, change: Change) -> Edit:
    """A changed copy of a weight of one node; other nodes keep what they share with it."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, ending)
        (weight,) = [item for item in model.graph.initializer if item.name == node.input[index]]
        value = numpy_helper.to_array(weight)
        changed = np.ascontiguousarray(change(value.copy())).astype(value.dtype)
        assert changed.shape != value.shape or not np.array_equal(changed, value), "nothing was planted"
        node.input[index] = f"{weight.name}/planted"
        model.graph.initializer.append(numpy_helper.from_array(changed, node.input[index]))

    return edit


def attribute(ending: str, **values: Any) -> Edit:
    """Other attributes of one node."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, ending)
        for name, value in values.items():
            for old in [item for item in node.attribute if item.name == name]:
                assert helper.get_attribute_value(old) != value, "nothing was planted"
                node.attribute.remove(old)
            node.attribute.append(helper.make_attribute(name, value))

    return edit


def instead(ending: str, op_type: str) -> Edit:
    """Another op in the place of one node, without attributes."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, ending)
        node.op_type = op_type
        del node.attribute[:]

    return edit


def scaled(factor: float) -> Change:
    return lambda value: value * factor


def shifted(by: float) -> Change:
    return lambda value: value + by


def turned(axes: Sequence[int]) -> Change:
    return lambda value: value.transpose(axes)


def one_element(place: int, by: float) -> Change:
    def change(value: np.ndarray) -> np.ndarray:
        value.reshape(-1)[place] += by
        return value

    return change
