"""TF-TRT's integration-test class, from the TensorFlow wheel, run against ``refimpl.trt_convert``.

That class builds a SavedModel, converts it, checks which engines it has and compares answers, in every precision and
both shape modes. An engine node is one of TensorFlow's own ops here, so it is shown to the class under the op type
that it looks for; everything else is the class's own check.
"""

from __future__ import annotations

import os
from unittest import mock

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2tensorrt import _pywrap_py_utils
from tensorflow.python.compiler.tensorrt import trt_convert as _theirs  # noqa: F401  before it thinks that TensorRT is there

from refimpl import recipe, runtime
from refimpl import trt_convert as ours
from refimpl.recipe import Recipe

NATIVE = "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION"
with mock.patch.dict(os.environ), mock.patch.object(_pywrap_py_utils, "is_tensorrt_enabled", return_value=True):
    from tensorflow.python.compiler.tensorrt.test import tf_trt_integration_test_base as base

base.trt_convert = ours


class Base(base.TfTrtIntegrationTestBase):
    """What every integration test of ours adds to TF-TRT's class.

    Attributes:
        ops: what may convert: all that TensorRT takes, or TF-TRT's narrower set.
    """

    ops = "tensorrt"

    def setUp(self):
        super().setUp()
        patched = mock.patch.dict(os.environ, {NATIVE: "False"})  # an engine that falls back is a failure
        patched.start()
        self.addCleanup(patched.stop)

    def ShouldRunTest(self, run_params):  # TF-TRT's name
        if run_params.precision_mode.lower() not in recipe.PRECISIONS:
            return False, f"no {run_params.precision_mode} here"
        return super().ShouldRunTest(run_params)

    def _CreateConverter(self, run_params, saved_model_dir, conversion_params):
        self.converter = ours.TrtGraphConverterV2(
            input_saved_model_dir=saved_model_dir,
            use_dynamic_shape=run_params.dynamic_shape,
            dynamic_shape_profile_strategy=self._profile_strategy,
            recipe=Recipe(op_set=self.ops),
            **conversion_params._asdict(),
        )
        return self.converter

    def _GetGraphDef(self, run_params, gdef_or_saved_model_dir):
        return as_tftrt(super()._GetGraphDef(run_params, gdef_or_saved_model_dir))


for _name in [name for name in dir(base.TfTrtIntegrationTestBase) if name.startswith("testTfTrt_")]:
    setattr(Base, _name, None)  # those of TF1 run in graph mode only, which one process cannot have beside eager mode


def as_tftrt(graph_def):
    """A GraphDef whose engine nodes are of TF-TRT's op type, with its attributes under TF-TRT's names."""
    shown = tf.compat.v1.GraphDef()
    shown.CopyFrom(graph_def)
    for nodes in [shown.node, *(function.node_def for function in shown.library.function)]:
        for node in nodes:
            if node.op == "PyFunc" and node.attr["token"].s.decode() == runtime.TOKEN:
                node.op = "TRTEngineOp"
                for key in [key for key in node.attr if key.startswith("_")]:
                    node.attr[key[1:]].CopyFrom(node.attr[key])
    return shown


def constant(*shape: int, seed: int = 1) -> tf.Tensor:
    """Weights of a shape, the same in every run."""
    return tf.constant(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
