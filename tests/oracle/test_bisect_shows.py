"""``bisect`` names the planted op in every one of the planted single-op faults, and says that it is born there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from refimpl.oracle.bisect import Origin, Place, bisect
from tests.oracle.planting import (
    Edit,
    attribute,
    golden_of,
    instead,
    one_element,
    operand,
    planted,
    scaled,
    shifted,
    turned,
)


def gate_off(value: np.ndarray) -> np.ndarray:
    """The first of an LSTM's four gates without its recurrent weights."""
    value[:, : value.shape[1] // 4] = 0
    return value


@dataclass(frozen=True)
class Fault:
    """A wrong node, and what a search must say.

    ``ops`` are the types of all TensorFlow ops that the node does the work of; the first is the one that must be named.
    """

    kind: str
    model: str
    edit: Edit
    op: str  # the TensorFlow op that is to blame, by the end of its name
    ops: tuple[str, ...]
    island: int = 0


CONV = ("Conv2D", "Mul", "AddV2")  # with the batch normalization that ONNX Runtime folds into it
CNN, BERT, LSTM, NMS = "fully_convolutional", "bert", "lstm", "detector"
LOOP = ("While", "TensorListFromTensor", "Pack", "Fill", "TensorListStack")
FAULTS = [
    Fault("scaled weights", CNN, operand("conv2d_1_2/convolution", 1, scaled(1.05)), "conv2d_1_2/convolution", CONV),
    Fault(
        "one element of a weight",
        CNN,
        operand("conv2d_4_1/convolution", 1, one_element(7, 2.0)),
        "conv2d_4_1/convolution",
        CONV,
    ),
    Fault(
        "wrong bias",
        CNN,
        operand("conv2d_1/convolution", 2, shifted(0.3)),
        "batch_normalization_1/batchnorm/add_1",
        ("AddV2", "Conv2D", "Mul"),
    ),
    Fault(
        "wrong scale of a normalization",
        CNN,
        operand("batch_normalization_2_1/batchnorm/mul_1", 1, scaled(1.02)),
        "batch_normalization_2_1/batchnorm/mul_1",
        ("Mul",),
    ),
    Fault(
        "wrong padding",
        CNN,
        attribute("conv2d_3_1/convolution", pads=[0, 0, 2, 2], auto_pad="NOTSET"),
        "conv2d_3_1/convolution",
        CONV,
    ),
    Fault(
        "padding that changes the shape",
        CNN,
        attribute("conv2d_3_1/convolution", pads=[0, 0, 0, 0], auto_pad="NOTSET"),
        "conv2d_3_1/convolution",
        CONV,
    ),
    Fault(
        "off-by-half resize",
        CNN,
        attribute("Resize", coordinate_transformation_mode="asymmetric"),
        "resize/ResizeBilinear",
        ("ResizeBilinear",),
    ),
    Fault("activation left out", CNN, instead("re_lu_1_2/Relu", "Identity"), "re_lu_1_2/Relu", ("Relu",)),
    Fault(
        "axis that cannot run", CNN, attribute("concatenate_1/concat", axis=2), "concatenate_1/concat", ("ConcatV2",)
    ),
    Fault(
        "wrong epsilon",
        BERT,
        operand("layer_normalization_3_1/add", 1, scaled(1e10)),
        "layer_normalization_3_1/add",
        ("AddV2",),
    ),
    Fault(
        "wrong axis",
        BERT,
        attribute("multi_head_attention_1_2/Softmax", axis=2),
        "multi_head_attention_1_2/Softmax",
        ("Softmax",),
    ),
    Fault(
        "wrong scale of attention",
        BERT,
        operand("multi_head_attention_1_2/Mul", 1, scaled(1.1)),
        "multi_head_attention_1_2/Mul",
        ("Mul",),
    ),
    Fault(
        "rows of a table moved by one",
        BERT,
        operand("embedding_1/GatherV2", 0, lambda value: np.roll(value, 1, 0)),
        "embedding_1/GatherV2",
        ("GatherV2",),
    ),
    Fault(
        "another op", BERT, instead("layer_normalization_3_1/mul_2", "Add"), "layer_normalization_3_1/mul_2", ("Mul",)
    ),
    Fault(
        "square left out",
        BERT,
        instead("layer_normalization_3_1/moments/SquaredDifference", "Max"),
        "layer_normalization_3_1/moments/SquaredDifference",
        ("SquaredDifference",),
    ),
    Fault("LSTM: scaled input weights", LSTM, operand("LSTM", 1, scaled(1.1)), "lstm_1/while", LOOP),
    Fault("LSTM: a gate without its past", LSTM, operand("LSTM", 2, gate_off), "lstm_1/while", LOOP),
    Fault("LSTM: wrong bias", LSTM, operand("LSTM", 3, shifted(0.1)), "lstm_1/while", LOOP),
    Fault(
        "rows of a weight in reverse",
        LSTM,
        operand("dense_1/Tensordot/MatMul", 1, lambda value: value[::-1]),
        "dense_1/Tensordot/MatMul",
        ("MatMul",),
    ),
    Fault("bias of the last op", LSTM, operand("dense_1/BiasAdd", 1, shifted(0.1)), "dense_1/BiasAdd", ("BiasAdd",)),
    Fault("transposed weights", NMS, operand("Conv2D_1", 1, lambda value: value[:, ::-1]), "Conv2D_1", ("Conv2D",)),
    Fault("kernel turned", NMS, operand("Conv2D_2", 1, turned((0, 1, 3, 2))), "Conv2D_2", ("Conv2D",)),
    Fault("other activation", NMS, instead("Relu_1", "Tanh"), "Relu_1", ("Relu",)),
    Fault("divisor of the input", NMS, operand("truediv", 1, scaled(0.99)), "truediv", ("RealDiv",)),
    Fault("strides and pads", NMS, attribute("Conv2D", pads=[1, 1, 0, 0], auto_pad="NOTSET"), "Conv2D", ("Conv2D",)),
    Fault("axis of the last op", NMS, attribute("concat", axis=1), "concat", ("ConcatV2",)),
    Fault("off-by-one slice", NMS, operand("strided_slice_3", 1, shifted(-1)), "strided_slice_3", ("StridedSlice",)),
    Fault("sign", NMS, instead("sub_1", "Add"), "sub_1", ("Sub",)),
    Fault("first of two islands", "odd_ops", operand("Erfc", 0, scaled(1.1)), "Erfc", ("Erfc",)),
    Fault("second of two islands", "odd_ops", attribute("Softmax", axis=0), "Softmax", ("Softmax",), island=1),
    Fault("smallest for largest", "argmax_gather", instead("ArgMax", "ArgMin"), "ArgMax", ("ArgMax",)),
]
SLOW = [
    Fault(
        "depthwise kernels in reverse",
        "mobilenetv2",
        operand("block_5_depthwise_1/depthwise", 1, lambda value: value[::-1]),
        "block_5_depthwise_1/depthwise",
        ("DepthwiseConv2dNative", "Mul", "AddV2"),
    ),
    Fault(
        "bias among many",
        "mobilenetv2",
        operand("block_3_expand_1/convolution", 2, shifted(0.5)),
        "block_3_expand_BN_1/batchnorm/add_1",
        ("AddV2", "Conv2D", "Mul"),
    ),
    Fault(
        "one of many clips", "mobilenetv2", operand("block_9_depthwise_relu_1/Relu6", 2, scaled(0.5)),
        "block_9_depthwise_relu_1/Relu6", ("Relu6",),
    ),
]  # fmt: skip


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 20
    assert len({fault.model for fault in FAULTS}) >= 5
    assert len({fault.kind for fault in FAULTS + SLOW}) == len(FAULTS + SLOW)


@pytest.mark.parametrize(
    "fault", [*FAULTS, *(pytest.param(item, marks=pytest.mark.slow) for item in SLOW)], ids=lambda fault: fault.kind
)
def test_the_planted_op_is_named(fault: Fault, tmp_path: Path) -> None:
    path = planted(fault.model, tmp_path, fault.edit, island=fault.island)
    report = bisect(path, golden_of(fault.model))
    assert report.exit_code == 1
    found = report.finding
    assert found is not None
    assert (found.place, found.origin) == (Place.ISLAND, Origin.BORN)
    assert found.op[0].endswith(f"/{fault.op}")
    assert found.op[1] == fault.ops[0]
    assert {kind for _, kind in found.ops} == set(fault.ops)
    assert found.island.endswith(f"_{fault.island:03}")
    assert not [line for line in found.remarks if "later layers" in line], "one node is wrong"


@pytest.mark.parametrize("name", [CNN, BERT, LSTM, NMS, "odd_ops", "argmax_gather", "while_loop", "tensor_array"])
def test_nothing_is_found_where_nothing_was_planted(name: str, tmp_path: Path) -> None:
    report = bisect(planted(name, tmp_path, lambda model: None), golden_of(name))
    assert report.finding is None
    assert report.exit_code == 0
    assert report.cases == ("serving_default/sample",)
