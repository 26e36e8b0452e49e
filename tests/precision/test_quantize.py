"""INT8 placement: which tensors carry pairs, with which scales, and which layers stay in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import refimpl
from refimpl.converter.precision import int8_sites, quantize
from refimpl.converter.precision.quantize import candidates, named, place, quantize_weight, tensors_to_observe
from refimpl.engines import BuildOptions, Profile, tensorrt
from refimpl.errors import InternalError
from tests.models import saved_model
from tests.onnx_models import node
from tests.precision.qdq import (
    conv,
    cosine,
    evaluate,
    graph,
    int8_weights,
    pairs,
    quantized,
    run,
    scales,
    structure,
    weights,
    with_outputs,
)

IMAGE = ("n", 32, 8, 8)
W1, W3 = weights(32, 32, 1, 1), weights(32, 32, 3, 3, seed=1)


def block(**more):
    """Conv - relu - conv, a residual sum, relu, conv: the sum's other branch is the block's input."""
    nodes = [
        conv("x w1 b", "c1"),
        node("Relu", "c1", "r1"),
        conv("r1 w3", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 x", "sum"),
        node("Relu", "sum", "r2"),
        conv("r2 w1", "y"),
    ]
    return graph(nodes, {"x": IMAGE}, "y", w1=W1, w3=W3, b=weights(32), **more)


def test_a_residual_block():
    model = block()
    before = model.SerializeToString()
    got = quantized(model, x=3.0, r1=0.5)
    assert pairs(got.model) == {"x": {"c1:0", "sum:1"}, "r1": {"c2:0"}, "r2": {"y:0"}}
    assert got.layers == {"c1": "", "c2": "", "y": ""}
    assert (
        got.scales
        == scales(got.model)
        == {"x": np.float32(3 / 127), "r1": np.float32(0.5 / 127), "r2": np.float32(1 / 127)}
    )
    assert int8_weights(got.model).keys() == {"c1", "c2", "y"}
    assert model.SerializeToString() == before, "the given model was changed"
    assert got.model.opset_import == model.opset_import
    assert list(got.model.graph.input) == list(model.graph.input)
    assert list(got.model.graph.output) == list(model.graph.output)
    onnx.checker.check_model(got.model)
    (first,) = [item for item in got.model.graph.node if item.name == "c1"]
    assert first.input[2] == "b", "the bias is as it was"
    assert not {"w1", "w3"} & {item.name for item in got.model.graph.initializer}, "float weights were left behind"


def test_a_projected_shortcut_is_the_branch_that_is_quantized():
    """Both branches are convolutions; the deeper one fuses with the sum."""
    nodes = [
        conv("x w1", "shortcut"),
        conv("x w1", "c1"),
        node("Relu", "c1", "r1"),
        conv("r1 w1", "c2"),
        node("Add", "shortcut c2", "y"),
    ]
    model = graph(nodes, {"x": IMAGE}, "y", w1=W1)
    assert pairs(quantized(model).model) == {"x": {"shortcut:0", "c1:0"}, "r1": {"c2:0"}, "shortcut": {"y:0"}}
    assert tensors_to_observe(model) == ("x", "r1", "shortcut")
    kept = pairs(quantized(model, keep=["c2"], c2=1.0).model)
    assert kept == {"x": {"shortcut:0", "c1:0"}}, "the sum fuses with nothing, and the output of c2 stays float"


def test_a_bias_or_a_normalisation_may_lie_before_the_sum():
    nodes = [
        conv("x w1", "c"),
        node("Add", "c bias", "biased"),
        node("BatchNormalization", "biased one bias1 bias1 one", "normal"),
        node("Add", "x normal", "y"),
    ]
    constants = {"w1": W1, "bias": weights(1, 32, 1, 1), "bias1": weights(32), "one": np.ones(32, np.float32)}
    assert pairs(quantized(graph(nodes, {"x": IMAGE}, "y", **constants)).model) == {"x": {"c:0", "y:0"}}


SUM_OF = [conv("x w1", "c"), node("Add", "c x", "y")]


@pytest.mark.parametrize(
    ("nodes", "outputs", "keep"),
    [
        (SUM_OF, "y c", []),
        ([*SUM_OF, node("Relu", "c", "z")], "y z", []),
        ([conv("x w1", "c"), node("Relu", "c", "r"), node("Add", "r x", "y")], "y", []),
        ([conv("x w1", "c"), node("Add", "c other", "y")], "y", []),
        ([conv("x w1", "c"), node("Add", "c c", "y")], "y", []),
        (SUM_OF, "y", ["y"]),
    ],
    ids=["conv is an output", "conv has another reader", "relu between", "another shape", "with itself", "sum is kept"],
)
def test_sums_that_do_not_fuse(nodes, outputs, keep):
    model = graph(nodes, {"x": IMAGE, "other": ("n", 32, 1, 1)}, outputs, w1=W1)
    assert pairs(quantized(model, keep=keep).model) == {"x": {"c:0"}}


def test_a_kept_layer_reads_and_gives_what_it_did():
    got = quantized(block(), keep=["c2"])
    assert pairs(got.model) == {"x": {"c1:0"}, "r2": {"y:0"}}, "neither its input, nor its sum"
    assert got.layers == {"c1": "", "c2": "kept", "y": ""}
    assert int8_weights(got.model).keys() == {"c1", "y"}
    assert "w3" in {item.name for item in got.model.graph.initializer}


def concats():
    """DenseNet-like: x and a convolution of it, joined, pooled, joined again."""
    nodes = [
        conv("x w1", "c1"),
        node("Concat", "x c1", "both", axis=1),
        node("MaxPool", "both", "pooled", kernel_shape=[1, 1]),
        conv("both w2", "c2"),
        node("Concat", "pooled c2", "all", axis=1),
        conv("all w4", "y"),
        conv("c2 w1", "z"),
    ]
    return graph(nodes, {"x": IMAGE}, "y z", w1=W1, w2=weights(32, 64, 1, 1), w4=weights(32, 96, 1, 1))


def test_concat_shares_the_largest_scale():
    got = quantized(concats(), x=1.0, both=2.0, c2=5.0, all=4.0)
    assert pairs(got.model) == {"x": {"c1:0"}, "both": {"c2:0"}, "all": {"y:0"}, "c2": {"z:0"}}
    assert set(got.scales.values()) == {np.float32(5 / 127)}
    alone = quantized(concats(), keep=["y"], x=1.0, both=2.0, c2=5.0)
    assert alone.scales == {"x": np.float32(2 / 127), "both": np.float32(2 / 127), "c2": np.float32(5 / 127)}
    assert (
        place(concats(), {"x": 1.0, "c2": 5.0, "all": 4.0}, {}).layers["c2"] == "no range is known for its input both"
    )


def heads(*more, outputs=""):
    """One tensor, read by a product directly and by another through a transpose and a reshape."""
    nodes = [
        node("Relu", "x", "r"),
        node("Transpose", "r", "t", perm=[1, 0]),
        node("Reshape", "t size", "f"),
        node("MatMul", "f w", "y"),
        node("MatMul", "r w", "z"),
        *more,
    ]
    return graph(
        nodes,
        {"x": (48, 48)},
        f"y z {outputs}",
        w=weights(48, 32),
        size=np.array([48, 48]),
    )


def test_one_pair_before_what_it_commutes_with():
    model = heads(node("Softmax", "r", "s"), outputs="s")
    assert tensors_to_observe(model) == ("r",)
    assert pairs(quantized(model).model) == {"r": {"t:0", "z:0"}}, "and the softmax reads the float tensor"


@pytest.mark.parametrize(
    "model", [heads(node("Softmax", "t", "s"), outputs="s"), heads(outputs="t")], ids=["softmax", "output"]
)
def test_nothing_float_is_behind_a_pair(model):
    got = quantized(model, r=2.0, f=3.0, t=3.0)
    assert tensors_to_observe(model) == ("t", "r")
    assert pairs(got.model) == {"r": {"z:0"}, "t": {"f:0"}}
    assert set(got.scales.values()) == {np.float32(3 / 127)}, "only a transpose lies between, so one scale"


def test_a_kept_neighbour_keeps_the_pair_below():
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "t w", "y"), node("MatMul", "t w", "z")]
    model = graph(nodes, {"x": (48, 40)}, "y z", w=weights(48, 32))
    assert pairs(quantized(model).model) == {"x": {"t:0"}}
    got = place(model, {"x": 2.0}, {"z": "asked"})
    assert pairs(got.model) == {"t": {"y:0"}}
    assert got.scales == {"t": np.float32(2 / 127)}, "the range of x is that of its transpose"
    assert int8_weights(got.model).keys() == {"y"}
    assert "w" in {item.name for item in got.model.graph.initializer}, "z reads it as it was"


def test_a_weight_may_be_behind_ops_that_only_move_it():
    nodes = [
        helper.make_node("Constant", [], ["stored"], "stored", value=numpy_helper.from_array(weights(48, 32, 1))),
        node("Identity", "stored", "same"),
        node("Squeeze", "same last", "flat"),
        node("Transpose", "flat", "w", perm=[1, 0]),
        node("MatMul", "x w", "y"),
    ]
    model = graph(nodes, {"x": (4, 32)}, "y", last=np.array([2]))
    got = quantized(model, x=4.0)
    values, scale, axis = int8_weights(got.model)["y"]
    np.testing.assert_array_equal(values, quantize_weight(weights(48, 32), 0)[0].T)
    assert (axis, len(scale)) == (1, 48)
    assert {item.op_type for item in got.model.graph.node} == {"QuantizeLinear", "DequantizeLinear", "MatMul"}
    x = weights(4, 32, seed=5)
    assert cosine(run(model, {"x": x})[0], run(got.model, {"x": x})[0]) > 0.999


def test_a_weight_that_is_read_otherwise_too():
    nodes = [node("MatMul", "x w", "y"), node("MatMul", "y w", "z"), node("Gather", "w at", "row")]
    model = graph(nodes, {"x": (4, 32)}, "z row", w=weights(32, 32), at=np.array(3))
    got = quantized(model)
    assert int8_weights(got.model).keys() == {"y", "z"}
    assert sum(item.op_type == "DequantizeLinear" for item in got.model.graph.node) == 3, "one for both products"
    np.testing.assert_array_equal(run(got.model, {"x": weights(4, 32)})[1], weights(32, 32)[3])


@pytest.mark.parametrize(
    ("threshold", "reason"),
    [
        (None, "no range is known for its input x"),
        (0.0, "its input x was always zero"),
        (1e-40, "its input x was always zero"),
        (np.nan, "the range of its input x is nan"),
        (np.inf, "the range of its input x is inf"),
        (-1.0, "the range of its input x is -1.0"),
    ],
)
def test_a_layer_without_a_usable_range_stays(threshold, reason):
    model = block()
    given = {"r1": 1.0, "r2": 1.0} | ({} if threshold is None else {"x": threshold})
    got = place(model, given, {})
    assert got.layers == {"c1": reason, "c2": "", "y": ""}
    assert pairs(got.model) == {"r1": {"c2:0"}, "r2": {"y:0"}}


def test_values_are_rounded_half_to_even_and_clipped():
    """The first pair's output, as any engine must compute it: steps of 1, and -128 only by clipping."""
    model = graph([node("MatMul", "x w", "y")], {"x": (2, 16)}, "y", w=np.eye(16, dtype=np.float32) * 127)
    got = quantized(model, x=127.0).model
    x = np.zeros((2, 16), np.float32)
    x[0, :9] = [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 400, -400]
    want = [0, 2, 2, 0, -2, 126, 127, 127, -128]
    assert (run(got, {"x": x})[0][0, :9] / 127).tolist() == want
    assert (evaluate(got, {"x": x})[0][0, :9] / 127).tolist() == want


def test_bodies_are_left_alone():
    body = [
        helper.make_graph([conv("r w1", name)], name, [], [helper.make_empty_tensor_value_info(name)]) for name in "ab"
    ]
    nodes = [
        node("Relu", "x", "r"),
        helper.make_node("If", ["flag"], ["branch"], "branch", then_branch=body[0], else_branch=body[1]),
        node("Transpose", "r", "t", perm=[0, 1, 3, 2]),
        conv("t w1", "c"),
        node("Add", "branch c", "y"),
    ]
    model = graph(nodes, {"x": IMAGE}, "y", w1=W1)
    model.graph.input.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    got = quantized(named(model))
    assert got.layers == {"c": ""}
    assert pairs(got.model) == {"r": {"t:0"}, "branch": {"y:0"}}
    assert got.model.graph.node[-1].name == "y"
    assert "w1" in {item.name for item in got.model.graph.initializer}, "the bodies read it"
    onnx.checker.check_model(got.model)


def test_what_the_model_quantizes_itself_is_not_touched():
    once = quantized(block()).model
    again = quantized(once)
    assert set(again.layers.values()) == {"the model itself quantizes it"}
    assert again.model.graph == once.graph


def test_names():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"], "same")]
    nodes += [helper.make_node("Relu", ["b"], ["c"], "same"), helper.make_node("Relu", ["c"], ["y"], "a")]
    model = graph(nodes, {"x": (3,)}, "y")
    with pytest.raises(InternalError, match="unique"):
        candidates(model)
    unique = named(model)
    assert [item.name for item in unique.graph.node] == ["a_1", "same", "same_1", "a"]
    assert [item.name for item in model.graph.node] == ["", "same", "same", "a"]
    assert named(unique) is unique


def test_new_names_do_not_collide():
    nodes = [node("MatMul", "x w", "x/quantized"), node("MatMul", "x/quantized w", "w/scale")]
    model = graph(nodes, {"x": (4, 32)}, "w/scale", w=weights(32, 32))
    got = quantized(model)
    onnx.checker.check_model(got.model)
    x = weights(4, 32, seed=2)
    assert (
        cosine(run(model, {"x": x})[0], run(quantized(model, x=3.0, **{"x/quantized": 20.0}).model, {"x": x})[0]) > 0.99
    )


def no_residuals(monkeypatch):
    monkeypatch.setattr(quantize, "residual_reads", lambda *_: {})


def the_wrong_branch(monkeypatch):
    honest = int8_sites.residual_reads
    swap = lambda view, layers: {int8_sites.Read(r.node, 1 - r.input): c for r, c in honest(view, layers).items()}  # noqa: E731
    monkeypatch.setattr(quantize, "residual_reads", swap)


def unshared(monkeypatch):
    monkeypatch.setattr(quantize, "shared_scales", lambda view, sites: {site: site for site in sites})


def never_moved(monkeypatch):
    monkeypatch.setattr(int8_sites, "COMMUTING", frozenset())


def a_wrong_axis(monkeypatch):
    honest = quantize.find_candidates
    wrong = lambda view: tuple(quantize.Candidate(**{**vars(item), "axis": 1 - item.axis}) for item in honest(view))  # noqa: E731
    monkeypatch.setattr(quantize, "find_candidates", wrong)


@pytest.mark.parametrize(
    ("fault", "model"),
    [
        (no_residuals, block),
        (the_wrong_branch, block),
        (unshared, concats),
        (never_moved, heads),
        (a_wrong_axis, concats),
    ],
)
def test_the_tests_would_notice(fault, model, monkeypatch):
    given = {"x": 1.0, "both": 2.0, "c2": 5.0, "r1": 2.0, "r2": 2.0, "all": 4.0, "r": 3.0, "t": 2.0, "f": 2.0}
    honest = structure(place(model(), given, {}).model)
    fault(monkeypatch)
    assert structure(place(model(), given, {}).model) != honest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2", "bert"])
def test_real_islands(name, tmp_path):
    """Real weights, ranges of a few batches: close to float, and an engine of TensorRT that is smaller."""
    refimpl.convert(saved_model(name), tmp_path / "bundle")
    (file,) = (tmp_path / "bundle" / "refimpl" / "islands").glob("*.onnx")
    model = named(onnx.load(file))
    observed = with_outputs(model, tensors_to_observe(model))
    names = [item.name for item in observed.graph.output]
    thresholds = dict.fromkeys(tensors_to_observe(model), 0.0)
    batches = [feeds(model, seed) for seed in range(4)]
    for batch in batches:
        values = {**batch, **dict(zip(names, run(observed, batch), strict=True))}
        thresholds = {tensor: max(value, float(np.abs(values[tensor]).max())) for tensor, value in thresholds.items()}
    got = place(model, thresholds, {})
    assert set(got.layers.values()) == {""}
    assert got.scales.keys() == thresholds.keys() == pairs(got.model).keys()
    onnx.checker.check_model(got.model, full_check=True)
    assert got.model.ByteSize() < 0.5 * model.ByteSize()
    for want, answer in zip(run(model, batches[0]), run(got.model, batches[0]), strict=True):
        assert cosine(want, answer) > {"mobilenetv2": 0.85, "bert": 0.999}[name]
    if tensorrt.version():
        sizes = []
        for each in (model, got.model):
            onnx.save(each, tmp_path / "m.onnx")
            profile = Profile(*(tuple((size, *value.shape[1:]) for value in batches[0].values()) for size in (1, 4, 4)))
            tensorrt.build(tmp_path / "m.onnx", tmp_path / "m.engine", [profile], BuildOptions(False, 0))
            sizes.append((tmp_path / "m.engine").stat().st_size)
        assert sizes[1] < 0.9 * sizes[0]


def feeds(model, seed):
    """A batch of four; integers are token numbers or masks of sequences of 16."""
    found, rng = {}, np.random.default_rng(seed)
    for item in model.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        dims = item.type.tensor_type.shape.dim
        shape = [dim.dim_value or (4, 16)[axis] for axis, dim in enumerate(dims)]
        value = rng.standard_normal(shape) if dtype == np.float32 else rng.integers(0, 2, shape)
        found[item.name] = value.astype(dtype)
    return found
