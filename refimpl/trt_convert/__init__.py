"""TF-TRT's API: ``from refimpl import trt_convert as trt`` in place of TensorFlow's module of that name.

Names, defaults, order of calls and messages are TF-TRT's; what it makes is a bundle. ``docs/migrating-from-tf-trt.md``
lists what differs, and why.
"""

from __future__ import annotations

from refimpl.trt_convert import upstream as _upstream
from refimpl.trt_convert.converter import TrtGraphConverterV2
from refimpl.trt_convert.params import (
    DEFAULT_TRT_CONVERSION_PARAMS,
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    PROFILE_STRATEGY_OPTIMAL,
    PROFILE_STRATEGY_RANGE,
    PROFILE_STRATEGY_RANGE_OPTIMAL,
    TrtConversionParams,
    TrtPrecisionMode,
    get_tensorrt_rewriter_config,
    supported_profile_strategies,
)
from refimpl.trt_convert.v1 import TrtGraphConverter, create_inference_graph

# The names under tf.experimental.tensorrt.
Converter = TrtGraphConverterV2
ConversionParams = TrtConversionParams

_TRT_ENGINE_OP_NAME = _upstream.ENGINE_OP_NAME
_check_conversion_params = _upstream.check_conversion_params
_check_trt_version_compatibility = _upstream.check_trt_version_compatibility
_get_canonical_engine_name = _upstream.canonical_engine_name

__all__ = [
    "DEFAULT_TRT_CONVERSION_PARAMS",
    "DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES",
    "PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE",
    "PROFILE_STRATEGY_OPTIMAL",
    "PROFILE_STRATEGY_RANGE",
    "PROFILE_STRATEGY_RANGE_OPTIMAL",
    "ConversionParams",
    "Converter",
    "TrtConversionParams",
    "TrtGraphConverter",
    "TrtGraphConverterV2",
    "TrtPrecisionMode",
    "create_inference_graph",
    "get_tensorrt_rewriter_config",
    "supported_profile_strategies",
]
