"""TF-TRT's integration-test class on the ops that TF-TRT's users convert most; every model must become one engine."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.tftrt import integration
from tests.tftrt.integration import constant

ONE = ["TRTEngineOp_000"]


class OneEngine(integration.Base):
    """A model that must become one engine as a whole."""

    def ExpectedEnginesToBuild(self, run_params):
        return ONE


class MatMulBroadcastTest(OneEngine):
    """Batches of matrices times weights of a lower rank, each side transposed."""

    def GraphFn(self, x):
        y = tf.matmul(x, constant(1, 1, 12, 7))
        y = tf.matmul(y, constant(5, 7, seed=2), transpose_b=True)
        z = tf.matmul(constant(1, 2, 8, 6, seed=3), y, transpose_a=True)
        return tf.identity(tf.nn.relu(z), name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[3, 2, 8, 12]], [[3, 2, 6, 5]])


class ConvTest(OneEngine):
    """Convolutions, plain, depthwise, dilated and transposed, with pooling and normalisation, channels last."""

    def GraphFn(self, x):
        y = tf.nn.conv2d(x, constant(3, 3, 2, 8), 1, "SAME")
        y = tf.nn.bias_add(y, constant(8))
        y = tf.nn.relu(y)
        y = tf.nn.depthwise_conv2d(y, constant(3, 3, 8, 1), [1, 1, 1, 1], "VALID")
        scale = tf.constant(np.linspace(0.5, 1.5, 8, dtype=np.float32))
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(y, scale, constant(8), constant(8), scale, is_training=False)
        y = tf.nn.max_pool2d(y, 2, 2, "VALID")
        y = tf.nn.conv2d(y, constant(3, 3, 8, 4), 1, "SAME", dilations=2)
        y = tf.nn.conv2d_transpose(y, constant(2, 2, 6, 4), [2, 10, 10, 6], 2, "SAME")
        y = tf.nn.avg_pool2d(y, 2, 2, "SAME")
        return tf.reduce_mean(y, [1, 2], name="output_0")

    def GetParams(self):
        return self.BuildParamsWithMask(
            self.GraphFn, tf.float32, [[2, 12, 12, 2]], [[2, 6]], [[True] * 4], [[True] * 2], [], []
        )

    def ExpectedAbsoluteTolerance(self, run_params):  # values are in the tens after five convolutions
        return 1e-3 if run_params.precision_mode == "FP32" else super().ExpectedAbsoluteTolerance(run_params)


class ReshapeTransposeTest(OneEngine):
    """Chains of shape ops between two computations, the batch carried along."""

    def GraphFn(self, x):
        y = x * 2.0
        y = tf.transpose(y, [0, 3, 1, 2])
        y = tf.reshape(y, [-1, 2, 5, 4, 3])
        y = tf.transpose(y, [0, 1, 3, 4, 2])
        y = tf.expand_dims(y, 2)
        y = tf.squeeze(y, [2])
        y = tf.reshape(y, [-1, 120])
        return tf.identity(y + 1.0, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[4, 3, 4, 10]], [[4, 120]])


class TopKTest(OneEngine):
    """Values and indices of the largest."""

    def GraphFn(self, x):
        values, indices = tf.nn.top_k(x * 3.0, 5)
        return tf.identity(values + 1.0, name="output_0"), tf.identity(indices, name="output_1")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[10, 16]], [[10, 5], [10, 5]])


class Int32Test(OneEngine):
    """Integers that are gathered with, compared, reshaped and cast, beside floats."""

    def GraphFn(self, x):
        y = tf.gather(constant(10, 4), tf.minimum(x, 9))
        y = tf.where(tf.expand_dims(x, -1) > tf.expand_dims(tf.minimum(x, 4), -1), y, -y)
        y = y * tf.cast(tf.expand_dims(tf.maximum(x, 2), -1), tf.float32)
        return tf.identity(tf.nn.relu(y), name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.int32, [[100, 3]], [[100, 3, 4]])


class BoolTest(OneEngine):
    """Logic and comparisons; bools go in and out."""

    def GraphFn(self, x, y):
        z = tf.logical_or(tf.logical_and(x, y), tf.logical_not(y))
        return tf.identity(tf.where(z, x, tf.logical_not(x)), name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.bool, [[4, 8], [4, 8]], [[4, 8]])


class CastTest(OneEngine):
    """Casts between float32, float16 and int32."""

    def GraphFn(self, x):
        y = tf.cast(x, tf.float16) + tf.constant(1, tf.float16)
        y = tf.cast(tf.cast(y, tf.float32), tf.int32)
        return tf.identity(tf.cast(tf.abs(y), tf.float32) * 0.5, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[6, 10]], [[6, 10]])


class ConcatSplitTest(OneEngine):
    """Concatenation, even and uneven splits, stacking and its opposite, slices."""

    def GraphFn(self, x, y):
        z = tf.concat([x, y, x * 2.0], axis=2)
        a, b, c = tf.split(z, [2, 3, 4], axis=2)
        d, e, f = tf.split(z, 3, axis=-1)
        parts = tf.unstack(tf.stack([d, e, f], axis=1), axis=1)
        return tf.concat([*parts, a, b[:, ::2], c[:, 1:, :]][:3], axis=1, name="output_0"), tf.add(
            tf.reduce_sum(tf.concat([a, b, c], 2), 2), 1.0, name="output_1"
        )

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[4, 5, 3], [4, 5, 3]], [[4, 15, 3], [4, 5]])


UNARY = """abs acos acosh asin asinh atan atanh ceil cos cosh elu erf exp floor log neg reciprocal relu relu6
round rsqrt selu sigmoid sign sin sinh softplus softsign sqrt square tan tanh""".split()


class UnaryTest(OneEngine):
    """One after the other, every unary op that TF-TRT had, in its domain."""

    def GraphFn(self, x):
        results = []
        for name in UNARY:
            value = x * 0.8 + (1.5 if name == "acosh" else 0.1)  # within every op's domain, off its edges
            results.append(getattr(tf.math, name, None) or getattr(tf.nn, name, None) or tf.math.negative)
            results[-1] = results[-1](value)
        return tf.stack(results, axis=1, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[12, 5, 3]], [[12, len(UNARY), 5, 3]])


class SoftmaxReduceTest(OneEngine):
    """Softmax and its logarithm, reductions, and an einsum."""

    def GraphFn(self, x):
        y = tf.nn.softmax(x) + tf.nn.log_softmax(x)
        z = tf.einsum("bij,bkj->bik", y, x)
        parts = [f(z, axis=2, keepdims=True) for f in (tf.reduce_max, tf.reduce_min, tf.reduce_sum, tf.reduce_mean)]
        return tf.concat(parts, axis=2, name="output_0")

    def GetParams(self):
        return self.BuildParams(self.GraphFn, tf.float32, [[3, 6, 9]], [[3, 6, 4]])


del OneEngine  # a unittest class in the module would be collected as a test
