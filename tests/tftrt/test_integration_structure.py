"""TF-TRT's integration-test class on what makes engines: several of them, ops between, shapes, and the cache."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from refimpl import trt_convert
from tests.tftrt import integration
from tests.tftrt.integration import constant


class TwoEnginesTest(integration.Base):
    """Two engines, and between them an op that TF-TRT did not convert."""

    ops = "tf-trt"

    def GraphFn(self, x):
        y = tf.nn.conv2d(x, constant(5, 5, 2, 8), 1, "SAME", name="conv")
        y = tf.nn.relu(y, name="relu")
        y = self.trt_incompatible_op(y * 0.01, name="incompatible")
        y = tf.nn.conv2d(y, constant(3, 3, 8, 3), 1, "SAME", name="conv_1")
        return tf.nn.bias_add(y, constant(3), name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[2, 12, 12, 2]], [[2, 12, 12, 3]])

    def ExpectedEnginesToBuild(self, run_params):
        return {"TRTEngineOp_000": ["conv", "relu"], "TRTEngineOp_001": ["conv_1"]}


class SideBySideTest(integration.Base):
    """A diamond: two branches of which one cannot convert; the other must not swallow both ends."""

    def GraphFn(self, x):
        start = tf.nn.relu(x * 2.0 + 1.0, name="start")
        left = tf.nn.sigmoid(start * constant(6), name="left")
        right = self.trt_incompatible_binary_op(start + 1.0, tf.abs(start) + 1.0)
        return tf.nn.softmax(left + tf.abs(right), name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[7, 6]], [[7, 6]])

    def ExpectedEnginesToBuild(self, run_params):
        return ["TRTEngineOp_000", "TRTEngineOp_001"]


class SmallSegmentTest(integration.Base):
    """Parts of fewer ops than asked for stay in TensorFlow."""

    def GetConversionParams(self, run_params):
        return super().GetConversionParams(run_params)._replace(minimum_segment_size=4)

    def GraphFn(self, x):
        y = tf.abs(tf.math.tanh(x), name="small")
        y = self.trt_incompatible_binary_op(y, y)
        for _ in range(3):
            y = tf.nn.sigmoid(y * 1.5)
        return tf.identity(y, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[3, 6]], [[3, 6]])

    def ExpectedEnginesToBuild(self, run_params):
        return {"TRTEngineOp_000": ["Sigmoid", "Sigmoid_1", "Sigmoid_2"]}


class NothingConvertsTest(integration.Base):
    """``minimum_segment_size=-1``: the main graph stays as it is."""

    def GetConversionParams(self, run_params):
        return super().GetConversionParams(run_params)._replace(minimum_segment_size=-1)

    def GraphFn(self, x):
        return tf.nn.relu(tf.math.tanh(x * 2.0) + 1.0, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[3, 6]], [[3, 6]])

    def ExpectedEnginesToBuild(self, run_params):
        return []


class EngineCacheTest(integration.Base):
    """Several batch sizes and image sizes through one converted model."""

    def GraphFn(self, x):
        y = tf.nn.conv2d(x, constant(3, 3, 2, 6), 2, "SAME", name="conv")
        return tf.nn.relu(y + constant(6), name="output_0")

    def GetParams(self):
        sizes = [(1, 14), (3, 14), (3, 20), (2, 9)]
        images = [[[batch, size, size, 2]] for batch, size in sizes]
        results = [[[batch, (size + 1) // 2, (size + 1) // 2, 6]] for batch, size in sizes]
        mask = [[False, False, False, True]]
        return self.BuildParamsWithMask(
            self.GraphFn, tf.float32, images[0], results[0], mask, mask, images[1:], results[1:]
        )

    def ShouldRunTest(self, run_params):  # TF-TRT's class calibrates with one shape only
        return run_params.precision_mode != "INT8" and super().ShouldRunTest(run_params)[0], "one shape for INT8"

    def ExpectedEnginesToBuild(self, run_params):
        return {"TRTEngineOp_000": ["conv"]}


class RangeStrategyTest(integration.Base):
    """Shapes that a later call has and build() did not show, with another strategy than the class's own."""

    def __init__(self, methodName="runTest"):
        super().__init__(methodName)
        self._profile_strategy = trt_convert.PROFILE_STRATEGY_RANGE_OPTIMAL

    def GraphFn(self, x, y):
        return tf.nn.softmax(tf.matmul(x, y, transpose_b=True) * 0.5, name="output_0")

    def GetParams(self):
        return self.BuildParamsWithMask(
            self.GraphFn,
            tf.float32,
            [[2, 5, 4], [2, 3, 4]],
            [[2, 5, 3]],
            [[False, False, True]] * 2,
            [[False, False, False]],
            [[[4, 6, 4], [4, 7, 4]]],
            [[[4, 6, 7]]],
        )

    def ShouldRunTest(self, run_params):
        return run_params.precision_mode != "INT8" and super().ShouldRunTest(run_params)[0], "one shape for INT8"

    def ExpectedEnginesToBuild(self, run_params):
        return ["TRTEngineOp_000"]

    def testProfiles(self):
        """One profile per shape first, and then one for all."""
        params = self._GetParamsCached()
        run_params = integration.base.RunParams(False, "FP32", True, False, "profiles", True, True)
        self._GetInferGraph(run_params, self._MakeSavedModel(run_params))
        records = [engine for island in self.converter._manifest.islands for engine in island.engines]
        (profiles,) = [record.profiles for record in records if record.kind == "tensorrt"]
        shown = [tuple(map(tuple, shapes)) for shapes in params.input_dims]
        assert [item["max"] for item in profiles] == [*shown, shown[1]]
        assert [item["min"] for item in profiles] == [*shown, shown[0]]


class CombinedNmsTest(integration.Base):
    """Non-maximum suppression over all classes has no form in ONNX: it stays in TensorFlow, between engines."""

    def GraphFn(self, boxes, scores):
        found = tf.image.combined_non_max_suppression(
            boxes * 0.9, scores * 0.8, 6, 20, iou_threshold=0.3, score_threshold=0.1
        )
        return (
            tf.identity(found.nmsed_boxes, name="output_0"),
            tf.identity(found.nmsed_scores, name="output_1"),
            tf.identity(found.nmsed_classes, name="output_2"),
            tf.identity(found.valid_detections, name="output_3"),
        )

    def GetParams(self):
        return self.BuildParamsWithMask(
            self.GraphFn,
            tf.float32,
            [[2, 40, 3, 4], [2, 40, 3]],
            [[2, 20, 4], [2, 20], [2, 20], [2]],
            [[True] * 4, [True] * 3],
            [[True] * 3, [True] * 2, [True] * 2, [True]],
            [],
            [],
        )

    def ExpectedEnginesToBuild(self, run_params):
        return ["TRTEngineOp_000", "TRTEngineOp_001"]


class ChannelsFirstTest(integration.Base):
    """Convolution and bias with channels first, which TensorFlow itself computes here by changing the layout."""

    def GraphFn(self, x):
        y = tf.nn.conv2d(x, constant(3, 3, 2, 4), 2, "SAME", data_format="NCHW", name="conv")
        return tf.nn.relu(y + np.ones((1, 4, 1, 1), np.float32), name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[2, 2, 10, 10]], [[2, 4, 5, 5]])

    def ExpectedEnginesToBuild(self, run_params):
        return {"TRTEngineOp_000": ["conv"]}


class QuantizationTest(integration.Base):
    """A model that was trained with fake quantization: its ranges are in its own ops."""

    def GraphFn(self, x):
        def quantized(value, limit):
            return tf.quantization.quantize_and_dequantize_v2(value, -limit, limit, range_given=True)

        y = tf.matmul(quantized(x, 1.0), quantized(constant(32, 64) * 0.1, 0.4))
        y = tf.matmul(quantized(tf.nn.relu(y), 3.0), quantized(constant(64, 16) * 0.1, 0.4))
        return tf.identity(y, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[8, 32]], [[8, 16]])

    def ExpectedEnginesToBuild(self, run_params):
        return ["TRTEngineOp_000"]

    def testItsOwnRanges(self):
        """INT8 without calibration."""
        for dynamic in (False, True):
            run_params = integration.base.RunParams(False, "INT8", True, False, f"own_{dynamic}", True, dynamic)
            self.RunTest(run_params)
            assert self.converter._manifest.precision == "int8"

    def ShouldRunTest(self, run_params):
        return True, "the class itself never runs INT8 without calibration"
