"""TF-TRT's integration-test class in graph mode, which is for a whole process: ``test_integration_v1.py`` starts it."""

from __future__ import annotations

import unittest

import tensorflow as tf

tf.compat.v1.disable_v2_behavior()

from refimpl import trt_convert as ours  # noqa: E402
from tests.tftrt import integration  # noqa: E402
from tests.tftrt.integration import constant  # noqa: E402

V1 = [name for name in dir(integration.base.TfTrtIntegrationTestBase) if name.startswith("testTfTrt_")]


class Base(integration.Base):
    """The class's tests of TF1; conversion while a session runs cannot be had."""

    def ShouldRunTest(self, run_params):
        if run_params.convert_online:
            return False, "a session cannot convert while it runs"
        if run_params.precision_mode == "INT8" and not run_params.use_calibration:
            return True, "TF-TRT takes FP16 then"
        return super().ShouldRunTest(run_params)

    def _CreateConverter(self, run_params, saved_model_dir, conversion_params):
        return ours.TrtGraphConverter(
            input_saved_model_dir=saved_model_dir,
            max_batch_size=self.GetMaxBatchSize(run_params),
            max_workspace_size_bytes=conversion_params.max_workspace_size_bytes,
            precision_mode=conversion_params.precision_mode,
            minimum_segment_size=conversion_params.minimum_segment_size,
            is_dynamic_op=run_params.dynamic_engine,
            maximum_cached_engines=conversion_params.maximum_cached_engines,
            use_calibration=conversion_params.use_calibration,
        )

    def _GetGraphDef(self, run_params, gdef_or_saved_model_dir):
        graph_def = super()._GetGraphDef(run_params, gdef_or_saved_model_dir)
        for nodes in [graph_def.node, *(function.node_def for function in graph_def.library.function)]:
            for node in nodes:  # seen from outside, the conditional behind an engine node is the engine
                inputs = node.input[4:] if node.op == "TRTEngineOp" else node.input  # four are the bundle's
                node.input[:] = [text.replace("_value", "") if "TRTEngineOp" in text else text for text in inputs]
        return graph_def


for _name in V1:
    setattr(Base, _name, getattr(integration.base.TfTrtIntegrationTestBase, _name))


class NetworkTest(Base):
    """A convolution, a product and a softmax: one engine, and the output node that TF1 leaves alone."""

    def GraphFn(self, x):
        y = tf.nn.conv2d(x, constant(3, 3, 2, 4), strides=2, padding="SAME", name="conv")
        y = tf.nn.relu(tf.nn.bias_add(y, constant(4), name="bias"), name="relu")
        y = tf.reshape(y, [-1, 64], name="flat")
        y = tf.nn.softmax(tf.matmul(y, constant(64, 5), name="product") * 0.1, name="softmax")
        return tf.identity(y, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[4, 8, 8, 2]], [[4, 5]])

    def ExpectedEnginesToBuild(self, run_params):
        return {"TRTEngineOp_000": ["conv", "bias", "relu", "flat", "product", "softmax"]}

    def ExpectedConnections(self, run_params):
        return {"input_0": set(), "TRTEngineOp_000": {"input_0"}, "output_0": {"TRTEngineOp_000"}}


class TwoEnginesTest(Base):
    """An op in the middle that cannot convert."""

    def GraphFn(self, x):
        y = tf.nn.relu(x * 2.0 + 1.0, name="first")
        y = tf.math.igamma(y + 1.0, y + 0.5, name="middle")
        y = tf.nn.tanh(y * 3.0 - 1.0, name="second")
        return tf.identity(y, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[4, 6]], [[4, 6]])

    def ExpectedEnginesToBuild(self, run_params):
        return {"TRTEngineOp_000": ["first"], "TRTEngineOp_001": ["second"]}


del Base
if __name__ == "__main__":
    unittest.main()
