"""Graphs that look like normalisations or GELUs and are none, and what a newer opset may change."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refimpl.converter.precision import fuse as fuse_module
from refimpl.converter.precision.fuse import Fused, fuse
from refimpl.converter.precision.opsets import can_raise
from tests.onnx_models import info, make_model, node
from tests.precision.fused import GELU, IN, LN, ops_of, opset_of, run, true_layer_norm

# Near misses, from hand-made graphs.


def chain(
    *,
    shape=("n", 5, 8),
    mean_axes=(-1,),
    keepdims=1,
    epsilon=1e-3,
    last="x",
    squared="x",
    shift="gamma",
    total="scaled shifted",
    more=(),
    **at,
) -> onnx.ModelProto:
    """The Keras chain over x, with z beside it; ``at`` replaces or adds (array or None: an input) constants."""
    constants = {
        "gamma": np.linspace(0.5, 2, 8, dtype=np.float32),
        "beta": np.linspace(-1, 1, 8, dtype=np.float32),
        "epsilon": np.float32(epsilon),
        "axes": np.array([-1]),
        "mean_axes": np.array(mean_axes),
        **at,
    }
    nodes = [
        node("ReduceMean", "x mean_axes", "m", keepdims=keepdims),
        node("Sub", f"{squared} m", "d"),
        node("Mul", "d d", "dd"),
        node("ReduceMean", "dd axes", "v", keepdims=1),
        node("Add", "v epsilon", "ve"),
        node("Sqrt", "ve", "s"),
        node("Reciprocal", "s", "r"),
        node("Mul", "r gamma", "rg"),
        node("Mul", f"r {shift}", "rg2"),
        node("Neg", "m", "minus"),
        node("Mul", "minus rg2", "shift"),
        node("Add", "shift beta", "shifted"),
        node("Mul", f"{last} rg", "scaled"),
        node("Add", total, "y"),
        node("Identity", "z", "unused"),
        *more,
    ]
    free = [info(name, (8,)) for name, value in constants.items() if value is None]
    stored = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if value is not None
    ]
    made = {name for item in nodes for name in item.output}
    results = [info(name, None) for name in ("y", "unused", "w") if name in made]
    return make_model(nodes, [info("x", shape), info("z", shape), *free], results, stored)


def with_output(name: str) -> onnx.ModelProto:
    model = chain()
    model.graph.output.append(info(name, None))
    return model


def captured(name: str) -> onnx.ModelProto:
    """A tensor of the chain is read in a branch of an If."""
    branches = [
        helper.make_graph([node("Identity", read, f"{read}_copy")], f"read {read}", [], [info(f"{read}_copy", None)])
        for read in (name, "z")
    ]
    chosen = helper.make_node("If", ["flag"], ["w"], "if", then_branch=branches[0], else_branch=branches[1])
    return chain(more=[chosen], flag=np.array(True))


MISSES = {
    "an interior tensor is an output": lambda: with_output("r"),
    "the mean is an output": lambda: with_output("m"),
    "an interior tensor is read elsewhere": lambda: chain(more=[node("Exp", "rg", "w")]),
    "an interior tensor is read in a branch": lambda: captured("shift"),
    "mean over another axis": lambda: chain(mean_axes=(1,)),
    "mean over one axis more": lambda: chain(mean_axes=(-2, -1)),
    "mean without its axis": lambda: chain(shape=(1, 8), keepdims=0),
    "variance of something else": lambda: chain(squared="z"),
    "mean of something else": lambda: chain(squared="z", last="z"),
    "another tensor is scaled": lambda: chain(last="z"),
    "another scale of the mean": lambda: chain(shift="other", other=np.full(8, 2, np.float32)),
    "the mean is not subtracted": lambda: chain(total="scaled beta"),  # LayerNormalization(rms_scaling=True) of Keras
    "epsilon of many values": lambda: chain(epsilon=np.full(8, 1e-3, np.float32)),
    "epsilon of too many dimensions": lambda: chain(epsilon=np.full((1, 1, 1, 1), 1e-3, np.float32)),
    "negative epsilon": lambda: chain(epsilon=-1e-3),
    "no epsilon": lambda: chain(epsilon=0.0),
    "gamma is an input": lambda: chain(gamma=None),
    "beta is an input": lambda: chain(beta=None),
    "beta widens the result": lambda: chain(beta=np.ones((3, 1, 1, 8), np.float32)),
    "gamma widens an open size": lambda: chain(shape=("n", 5, "m")),
    "axes are no constant": lambda: chain(axes=None),
}


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_stay(name: str) -> None:
    model = MISSES[name]()
    if name == "axes are no constant":
        next(item for item in model.graph.input if item.name == "axes").type.tensor_type.elem_type = TensorProto.INT64
    before = model.SerializeToString()
    assert fuse(model) == Fused(model, ())
    assert model.SerializeToString() == before


@true_layer_norm
def test_the_chain_of_the_near_misses_is_one() -> None:
    fused = fuse(chain())
    assert fused.found == ("LayerNormalization at y (14 nodes)",)
    assert ops_of(fused.model) == {LN: 1, "Identity": 1}
    scale, bias = (numpy_helper.to_array(item) for item in fused.model.graph.initializer)
    np.testing.assert_array_equal(scale, np.linspace(0.5, 2, 8, dtype=np.float32))
    np.testing.assert_array_equal(bias, np.linspace(-1, 1, 8, dtype=np.float32))


@true_layer_norm
def test_affine_steps_after_it_are_taken_only_if_exact() -> None:
    """A half is exact in float32; a tenth is not, so it stays a step of its own."""

    def after(factor: float) -> Counter[str]:
        more = [node("Mul", "y factor", "w")]
        model = chain(more=more, factor=np.float32(factor))
        del model.graph.output[0]
        return ops_of(fuse(model).model)

    assert after(0.5) == {LN: 1, "Identity": 1}
    assert after(0.1) == {LN: 1, "Identity": 1, "Mul": 1}


@true_layer_norm
@pytest.mark.parametrize("beside", ["x", "m"])
def test_a_residual_is_no_part_of_it(beside: str) -> None:
    model = chain(more=[node("Add", f"y {beside}", "w")])
    del model.graph.output[0]
    fused = fuse(model)
    if beside == "m":  # which is read inside too
        assert fused == Fused(model, ())
    else:
        assert ops_of(fused.model) == {LN: 1, "Add": 1, "Identity": 1}


@true_layer_norm
def test_gamma_along_another_axis_stays_outside() -> None:
    fused = fuse(chain(gamma=np.linspace(1, 2, 5, dtype=np.float32)[:, None]))
    assert ops_of(fused.model) == {IN: 1, "Mul": 1, "Add": 1, "Identity": 1}
    x = np.random.default_rng(8).standard_normal((3, 5, 8)).astype(np.float32)
    want = run(chain(gamma=np.linspace(1, 2, 5, dtype=np.float32)[:, None]), x=x, z=x)[0]
    np.testing.assert_allclose(run(fused.model, x=x, z=x)[0], want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_nothing_is_fused_that_the_embedded_engine_would_spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_module, "_runs_true", lambda op: op != LN)
    assert fuse(chain()).found == ()


def gelu(*, root=0.5**0.5, half=0.5, one=1.0, again="x", more=(), **at) -> onnx.ModelProto:
    constants = {"root": np.float32(root), "half": np.float32(half), "one": np.float32(one), **at}
    nodes = [
        node("Mul", "x root", "scaled"),
        node("Erf", "scaled", "t"),
        node("Add", "t one", "up"),
        node("Mul", f"{again} half", "halved"),
        node("Mul", "halved up", "y"),
        node("Identity", "z", "unused"),
        *more,
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = {name for item in nodes for name in item.output}
    results = [info(name, None) for name in ("y", "unused", "w") if name in made]
    return make_model(nodes, [info("x", ("n", 8)), info("z", ("n", 8))], results, stored)


GELU_MISSES = {
    "another root": lambda: gelu(root=0.7),
    "not a half": lambda: gelu(half=0.25),
    "not one": lambda: gelu(one=2.0),
    "another tensor": lambda: gelu(again="z"),
    "read elsewhere": lambda: gelu(more=[node("Exp", "t", "w")]),
    "a constant of many values": lambda: gelu(half=np.full(8, 0.5, np.float32)),
}


@pytest.mark.parametrize("name", GELU_MISSES)
def test_gelu_near_misses_stay(name: str) -> None:
    model = GELU_MISSES[name]()
    assert fuse(model) == Fused(model, ())


def test_the_gelu_of_the_near_misses_is_one() -> None:
    assert fuse(gelu()).found == ("Gelu at y (5 nodes)",)


def test_a_bias_after_it_is_no_part_of_it() -> None:
    model = gelu(more=[node("Add", "y bias", "w")], bias=np.linspace(0, 1, 8, dtype=np.float32))
    del model.graph.output[0]
    assert ops_of(fuse(model).model) == {GELU: 1, "Add": 1, "Identity": 1}


# Opsets.


def test_newest_caps_the_opset() -> None:
    model = gelu()
    assert fuse(model, newest=19) == Fused(model, ())
    assert opset_of(fuse(model, newest=20).model) == 20


def test_an_op_with_another_meaning_later_keeps_the_opset() -> None:
    sample = node("GridSample", "image grid", "w", mode="bilinear")
    model = gelu(more=[sample], image=np.zeros((1, 1, 2, 2), np.float32), grid=np.zeros((1, 2, 2, 2), np.float32))
    assert not can_raise(model, 18, 20)
    assert fuse(model) == Fused(model, ())


def test_which_ops_change_their_meaning() -> None:
    """Of all ops of opset 18; a new release of onnx that says otherwise must be looked at."""
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    changed = []
    for name in sorted(names):
        try:
            if onnx.defs.get_schema(name, 18, "").deprecated:
                continue
        except onnx.defs.SchemaError:
            continue
        if not can_raise(make_model([node(name, "x", "y")], [], []), 18, 23):
            changed.append(name)
    assert changed == ["DFT", "GridSample"]
    # Deprecated in 18: its scale was one per group, and only a new attribute gives that away.
    assert not can_raise(make_model([node("GroupNormalization", "x s b", "y", num_groups=2)], [], []), 18, 21)
