"""Parameters of TF-TRT's converters: names, defaults and checks as TF-TRT has them, and the recipe they amount to."""

from __future__ import annotations

import glob
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

from refimpl import env, tftrt_env
from refimpl.engines import BuildOptions
from refimpl.errors import UnsupportedError
from refimpl.recipe import Recipe

log = logging.getLogger("refimpl.trt_convert")

PROFILE_STRATEGY_RANGE = "Range"
PROFILE_STRATEGY_OPTIMAL = "Optimal"
PROFILE_STRATEGY_RANGE_OPTIMAL = "Range+Optimal"
PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE = "ImplicitBatchModeCompatible"

UNLIMITED_WORKSPACE = sys.maxsize - 512  # what TF-TRT took for "as much as there is" from TensorRT 8.4 on


def _default_workspace() -> int:
    installed = env.versions().keys() & {"tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"}
    return UNLIMITED_WORKSPACE if installed else 1 << 30


DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES = _default_workspace()


class TrtPrecisionMode:
    """What engines may compute in."""

    FP32 = "FP32"
    FP16 = "FP16"
    INT8 = "INT8"

    @staticmethod
    def supported_precision_modes() -> list[str]:
        """The names in capitals, then in small letters; mixed case is refused."""
        names = [TrtPrecisionMode.FP32, TrtPrecisionMode.FP16, TrtPrecisionMode.INT8]
        return [*names, *(name.lower() for name in names)]


def supported_profile_strategies() -> list[str]:
    """How shapes become optimization profiles in dynamic shape mode; case does not matter."""
    return [
        PROFILE_STRATEGY_RANGE,
        PROFILE_STRATEGY_OPTIMAL,
        PROFILE_STRATEGY_RANGE_OPTIMAL,
        PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    ]


class TrtConversionParams(NamedTuple):
    """Parameters of a conversion; nothing is checked until a converter is made with them.

    Attributes:
        max_workspace_size_bytes: memory that TensorRT may use while it builds an engine.
        precision_mode: one of :meth:`TrtPrecisionMode.supported_precision_modes`.
        minimum_segment_size: islands of fewer ops stay in TensorFlow; -1 converts nothing.
        maximum_cached_engines: how many engines built at run time an island keeps; 0 or less means no limit.
        use_calibration: INT8 only: take ranges from samples, not from the model's own quantization ops.
        allow_build_at_runtime: build an engine for shapes that no stored one takes.
    """

    max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES
    precision_mode: str = TrtPrecisionMode.FP32
    minimum_segment_size: int = 3
    maximum_cached_engines: int = 1
    use_calibration: bool = True
    allow_build_at_runtime: bool = True


DEFAULT_TRT_CONVERSION_PARAMS = TrtConversionParams()


def check_params(params: TrtConversionParams) -> None:
    """Refuse what TF-TRT refuses, in its words.

    Raises:
        ValueError: an unknown precision mode, or a segment size that is neither positive nor -1.
        TypeError: a segment size that is no number.
    """
    supported = TrtPrecisionMode.supported_precision_modes()
    if params.precision_mode not in supported:
        # TF-TRT's message has no space after the full stop, and people match on it.
        raise ValueError(f"precision mode '{params.precision_mode}' is not supported.It should be one of {supported}")
    if params.minimum_segment_size <= 0 and params.minimum_segment_size != -1:
        raise ValueError("minimum segment size should be positive or -1 (to disable main graph conversion).")


def check_strategy(strategy: str) -> None:
    """Refuse an unknown profile strategy.

    Raises:
        ValueError: it is none of :func:`supported_profile_strategies`, whatever the case.
    """
    known = supported_profile_strategies()
    if strategy.lower() not in [name.lower() for name in known]:
        raise ValueError(f"profile_strategy '{strategy}' is not supported. It should be one of {known}")
    if strategy == PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE:
        log.warning("the profile strategy %s is deprecated in TF-TRT; consider Range or Optimal", strategy)


def needs_calibration(params: TrtConversionParams) -> bool:
    """Whether samples decide the ranges of this conversion."""
    return params.precision_mode.upper() == TrtPrecisionMode.INT8 and bool(params.use_calibration)


def without_ranges(params: TrtConversionParams, quantizes: bool) -> TrtConversionParams:
    """INT8 without calibration, in a model that has no quantization op to take ranges from, is FP16 in TF-TRT."""
    if params.precision_mode.upper() != TrtPrecisionMode.INT8 or params.use_calibration or quantizes:
        return params
    log.warning("Set engine precision to FP16 due to missing QDQ OP")
    return params._replace(precision_mode=TrtPrecisionMode.FP16)


def recipe_for(params: TrtConversionParams, base: Recipe, *, strategy: str, tags: tuple[str, ...], key: str) -> Recipe:
    """The recipe that a converter's parameters and the ``TF_TRT_*`` variables amount to.

    Args:
        params: the converter's.
        base: our own choices, for all that TF-TRT has no parameter for.
        strategy: of profiles, as TF-TRT names it; "" in implicit batch mode.
        tags: of the meta graph.
        key: of the signature.
    """
    settings = tftrt_env.read()
    keep = [*base.keep_in_tf, *map(glob.escape, settings.denylist)]  # TF-TRT's are no patterns
    if "reject_all_fp_cast_ops" in settings.features:
        keep.append("Cast")
    if params.minimum_segment_size == -1:
        keep.append("*")
    changes: dict[str, Any] = {
        "signatures": (key,),
        "tags": tags,
        "min_segment_size": max(1, params.minimum_segment_size),
        "max_engines": settings.max_engines,
        "keep_in_tf": tuple(keep),
        "profile": recipe_profile(strategy),
        "workspace_bytes": _workspace(params.max_workspace_size_bytes),
        "max_cached_engines": max(0, params.maximum_cached_engines),
        "build_at_runtime": True,  # the user's choice is stamped by save(), as in TF-TRT
    }
    if base.op_set != "tensorrt":
        changes["op_set"] = "tf-trt" if strategy else "tf-trt-implicit"
    mode = params.precision_mode.lower()
    if mode != "fp32":
        changes["precision"] = mode
    if mode == "int8":
        changes["use_calibration"] = bool(params.use_calibration)
    return replace(base, **changes)


def build_options(recipe: Mapping[str, Any]) -> BuildOptions:
    """How engines with this recipe are built: TF32 is allowed where it is in TensorFlow itself, as in TF-TRT.

    What runs on a CPU stays in float32: that is what TensorFlow does there.
    """
    import tensorflow as tf

    allowed = bool(tf.config.experimental.tensor_float_32_execution_enabled())
    targets = tuple(recipe.get("targets", ()))
    return BuildOptions(recipe["tf32"] or allowed, recipe["workspace_bytes"], targets=targets)


def recipe_profile(strategy: str) -> str:
    """A strategy's name in a recipe; implicit batch mode has none in TF-TRT and is what it says here."""
    lowered = strategy.lower()
    return "implicit-batch" if lowered in ("", "implicitbatchmodecompatible") else lowered


def _workspace(size: int) -> int:
    """0 leaves the choice to TensorRT, which is what no limit means."""
    return 0 if size >= UNLIMITED_WORKSPACE else max(0, size)


def get_tensorrt_rewriter_config(
    conversion_params: TrtConversionParams,
    is_dynamic_op: bool | None = None,
    max_batch_size: int | None = None,
    is_v2: bool = False,
    disable_non_trt_optimizers: bool = False,
) -> NoReturn:
    """TF-TRT's way to convert while a session runs, which needs TensorRT inside TensorFlow. It cannot be had here.

    Raises:
        ValueError: parameters that TF-TRT refuses.
        UnsupportedError: always otherwise; it says what to use.
    """
    del disable_non_trt_optimizers
    check_params(conversion_params)
    if is_v2 and is_dynamic_op is not None and not is_dynamic_op:
        raise ValueError("is_dynamic_op is either None or True for TF2")
    if not is_v2 and is_dynamic_op is None:
        raise ValueError("is_dynamic_op can't be None for TF1")
    if (is_dynamic_op is None or is_dynamic_op) and max_batch_size is not None:
        raise ValueError("max_batch_size has to be None for TF2 or when is_dynamic_op == True in TF1")
    if is_dynamic_op is not None and not is_dynamic_op and not isinstance(max_batch_size, int):
        raise ValueError("max_batch_size has to be an integer for is_dynamic_op==False in TF1")
    raise UnsupportedError(
        "TensorFlow has no TensorRT optimizer any more, so a session cannot convert a graph while it runs",
        hint="convert the SavedModel with TrtGraphConverterV2 or refimpl.convert, and load the bundle in the session",
    )
