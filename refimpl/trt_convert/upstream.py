"""Names with an underscore in front that TF-TRT's module and converter have, and that tests and patches of it touch.

Each does here what its name says; what TF-TRT did with TensorRT inside TensorFlow has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refimpl.trt_convert.params import TrtConversionParams, check_params, check_strategy

ENGINE_OP_NAME = "TRTEngineOp"  # how the names of engine nodes begin; their op type is one of TensorFlow's own


def check_conversion_params(conversion_params: TrtConversionParams, is_v2: bool = False) -> None:
    """TF-TRT's ``_check_conversion_params``; both versions refuse the same here.

    Raises:
        ValueError: a parameter has an impossible value.
    """
    del is_v2
    check_params(conversion_params)


def check_trt_version_compatibility() -> None:
    """TF-TRT's ``_check_trt_version_compatibility``: nothing to check, since conversion needs no TensorRT.

    Which versions of TensorRT an engine runs with is checked where it is opened.
    """


def canonical_engine_name(name: str) -> str:
    """TF-TRT's ``_get_canonical_engine_name``: an engine node's name without the scopes around it."""
    return name.rsplit("/", maxsplit=1)[-1]


class UpstreamMethods:
    """Private methods and settings of TF-TRT's ``TrtGraphConverterV2``."""

    _device: str | None = None  # what tf.device around convert() asks for
    _test_only_disable_non_trt_optimizers = False  # TF-TRT's own tests set it
    _use_dynamic_shape: bool

    def _need_trt_profiles(self) -> bool:
        """Whether engines get their shapes from ``build()``."""
        return self._use_dynamic_shape

    def _verify_profile_strategy(self, strategy: str) -> None:
        check_strategy(strategy)

    def _for_each_trt_node(self, graph_def: Any, fn: Callable[[Any], object]) -> None:
        """Call ``fn`` with every engine node of a GraphDef, those in its functions included."""
        from refimpl.trt_convert.function import is_engine

        for nodes in [graph_def.node, *(function.node_def for function in graph_def.library.function)]:
            for node in nodes:
                if is_engine(node):
                    fn(node)
