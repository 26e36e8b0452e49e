"""``TrtGraphConverter`` and ``create_inference_graph``: TF-TRT's API of TF1, for SavedModels and GraphDefs.

The model is frozen, written as a SavedModel, converted as any other, and the stitched graph is given back flat, under
the model's own names. Its engine nodes find their files in a temporary folder of this process, so a GraphDef is for use
here; what ``save()`` writes can go anywhere.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import api, bundle, env, tftrt_env
from refimpl.bundle import Manifest
from refimpl.errors import first_line
from refimpl.recipe import Recipe
from refimpl.report import tftrt as report
from refimpl.specs import Signature
from refimpl.trt_convert.params import (
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    TrtConversionParams,
    TrtPrecisionMode,
    build_options,
    check_params,
    log,
    needs_calibration,
    recipe_for,
    without_ranges,
)
from refimpl.trt_convert.support import (
    Attributes,
    Home,
    attributes_of,
    default_recipe,
    in_tftrt_words,
    stored,
    tell_dropped,
)

_KEY = "serving_default"
_EXCLUDED = "excluded by segmenter option. Most likely an input or output node."  # TF-TRT's words
_kept: list[Home] = []  # a GraphDef cannot hold on to its files, so they stay until the process ends


@dataclass(frozen=True)
class _Frozen:
    """A model without variables: its nodes, and its inputs and outputs as ``key -> node:index``."""

    graph_def: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class TrtGraphConverter:
    """TF-TRT's offline converter of TF1.

    Args:
        input_saved_model_dir: the SavedModel; or else give ``input_graph_def``.
        input_saved_model_tags: tags of its meta graph.
        input_saved_model_signature_key: the signature to convert.
        input_graph_def: a frozen GraphDef.
        nodes_denylist: names of nodes (or tensors) that stay in TensorFlow; for a GraphDef also its outputs.
        max_batch_size: the largest batch, when ``is_dynamic_op`` is false; else None.
        max_workspace_size_bytes, precision_mode, minimum_segment_size, maximum_cached_engines, use_calibration: see
            :class:`TrtConversionParams`.
        is_dynamic_op: build engines while the graph runs; else while it is converted.

    Raises:
        RuntimeError: TensorFlow executes eagerly.
        ValueError: both models or neither, or a parameter with an impossible value.
    """

    def __init__(  # noqa: PLR0913, PLR0917  TF-TRT's parameters, in TF-TRT's order
        self,
        input_saved_model_dir: str | None = None,
        input_saved_model_tags: list[str] | None = None,
        input_saved_model_signature_key: str | None = None,
        input_graph_def: Any = None,
        nodes_denylist: Sequence[Any] | None = None,
        max_batch_size: int | None = 1,
        max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        is_dynamic_op: bool = False,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
    ) -> None:
        env.require_tensorflow()
        import tensorflow as tf

        if tf.executing_eagerly():
            raise RuntimeError("Please use tf.experimental.tensorrt.Converter in TF 2.0.")
        if input_graph_def and input_saved_model_dir:
            raise ValueError("Can only specify one of input_graph_def and input_saved_model_dir")
        if not input_graph_def and not input_saved_model_dir:
            raise ValueError("Must specify one of input_graph_def and input_saved_model_dir")
        self._conversion_params = TrtConversionParams(
            max_workspace_size_bytes=max_workspace_size_bytes,
            precision_mode=precision_mode,
            minimum_segment_size=minimum_segment_size,
            maximum_cached_engines=maximum_cached_engines,
            use_calibration=use_calibration,
            allow_build_at_runtime=True,
        )
        calibrates = str(precision_mode).upper() == TrtPrecisionMode.INT8 and bool(use_calibration)
        if calibrates and not is_dynamic_op:
            log.warning("INT8 with calibration is for dynamic ops only: is_dynamic_op is taken for True")
            is_dynamic_op = True
        if is_dynamic_op and max_batch_size is not None:
            log.warning("When is_dynamic_op==True max_batch_size should be None")
        if not is_dynamic_op and not isinstance(max_batch_size, int):
            raise ValueError("When is_dynamic_op==False max_batch_size should be an integer")
        check_params(self._conversion_params)
        tftrt_env.warn_once()
        self._need_calibration = needs_calibration(self._conversion_params)
        self._max_batch_size = None if is_dynamic_op else max_batch_size
        self._is_dynamic_op = is_dynamic_op
        self._input_graph_def = input_graph_def
        self._input_saved_model_dir = input_saved_model_dir
        self._input_saved_model_tags = input_saved_model_tags or ["serve"]
        self._input_saved_model_signature_key = input_saved_model_signature_key or _KEY
        self._nodes_denylist = [_node(item) for item in nodes_denylist or ()]
        self._converted = False
        self._calibration_data_collected = False
        self._test_only_disable_non_trt_optimizers = False  # TF-TRT's own tests set it

    def convert(self) -> Any:
        """Convert the model.

        Returns:
            The converted GraphDef, with the model's names for inputs and outputs.

        Raises:
            AssertionError: it was called before.
            KeyError: no such signature.
            RefimplError: the conversion fails; see :func:`refimpl.convert`.
        """
        assert not self._converted
        self._frozen = self._freeze()
        # Ranges are found by calibrate(); until then the engines compute in FP32.
        recipe = self._recipe()
        self._run(replace(recipe, precision="fp32") if self._need_calibration else recipe)
        self._converted = True
        return self._converted_graph_def

    def _freeze(self) -> _Frozen:
        from refimpl.trt_convert import frozen

        if self._input_graph_def:
            names = frozen.inputs_and_outputs(self._input_graph_def, self._nodes_denylist)
            return _Frozen(self._input_graph_def, *names)
        return _Frozen(
            *frozen.freeze_saved_model(
                str(self._input_saved_model_dir), self._input_saved_model_tags, self._input_saved_model_signature_key
            )
        )

    def _recipe(self) -> Recipe:

        from refimpl.trt_convert import frozen

        recipe = recipe_for(
            without_ranges(self._conversion_params, frozen.quantizes(self._frozen.graph_def)),
            default_recipe(),
            strategy="",
            tags=("serve",),
            key=self._key(),
        )
        return replace(recipe, keep_in_tf=(*recipe.keep_in_tf, *map(glob.escape, self._excluded())))

    def _excluded(self) -> dict[str, str]:
        """Nodes that TF-TRT leaves alone, and its reason."""
        from refimpl.trt_convert import frozen

        outputs = [_node(name) for name in self._frozen.outputs.values()]
        return {
            **dict.fromkeys([*self._nodes_denylist, *outputs], _EXCLUDED),
            **dict.fromkeys(frozen.on_other_devices(self._frozen.graph_def), "node can't be placed on GPU"),
        }

    def _key(self) -> str:
        return _KEY if self._input_graph_def else self._input_saved_model_signature_key

    def _run(self, recipe: Recipe, samples: Sequence[Mapping[str, Any]] = ()) -> None:
        from refimpl import tf_private
        from refimpl.trt_convert import artifact, frozen

        home = Home()
        model, folder = home.path / "model", home.path / "bundle"
        frozen.write_saved_model(model, self._key(), self._frozen.graph_def, self._frozen.inputs, self._frozen.outputs)
        with stored(samples or None) as given, tf_private.eagerly():
            api.convert_only(model, folder, replace(recipe, engines=("onnxruntime",)), samples=given)
        artifact.expect_engines(folder)
        table = artifact.calibration(folder) if samples else ""
        manifest = artifact.stamp(folder, **self._attributes(recipe), calibration_data=table)
        record = next(item for item in manifest.signatures if item.signature.key == self._key())
        self._home, self._folder = home, folder
        _kept.append(home)
        flat = frozen.Flat(
            folder, manifest, record, self._frozen.graph_def, dict(self._frozen.inputs), dict(self._frozen.outputs)
        )
        self._converted_graph_def = flat.graph()
        flat.install()
        if self._max_batch_size is not None:
            self._build_static(manifest, record.signature)
        left = in_tftrt_words(record.left, tftrt_env.read().denylist, self._excluded())
        tell_dropped(left, manifest.recipe)
        log.warning("%s", report.non_conversion_report(left, detailed=tftrt_env.read().detailed_report))

    def _build_static(self, manifest: Manifest, signature: Signature) -> None:
        """Build engines for batches of 1 to the largest, where nothing but the batch is open."""
        import tensorflow as tf

        from refimpl import runtime
        from refimpl.converter.samples import draw, rng_for
        from refimpl.trt_convert import artifact, frozen

        shapes = {spec.name: (self._max_batch_size, *(spec.shape or ())[1:]) for spec in signature.inputs}
        if not manifest.islands or any(size is None for shape in shapes.values() for size in shape):
            return
        feeds = {
            self._frozen.inputs[spec.name]: draw(spec, shapes[spec.name], "tiny", rng_for(spec.name))  # type: ignore[arg-type]
            for spec in signature.inputs
        }
        try:
            with runtime.engines_off(self._folder, manifest.bundle_id):
                cuts = frozen.watch(self._converted_graph_def, feeds)
        except (tf.errors.OpError, ValueError) as error:
            log.warning("engines are built when the graph runs, since no input could be made up: %s", first_line(error))
            return
        options = build_options(manifest.recipe)
        _, failures = artifact.Builder(self._folder, [cuts], [cuts], options).build()
        runtime.forget(self._folder)
        for name, why in failures.items():
            log.error("no TensorRT engine could be built for %s: %s", name, why)

    def _attributes(self, recipe: Recipe) -> Attributes:
        """TF-TRT's attributes of an engine node."""
        found = {
            **attributes_of(self._conversion_params),
            "precision_mode": "INT8" if self._need_calibration else recipe.precision.upper(),
            "use_implicit_batch": True,
            "static_engine": not self._is_dynamic_op,
            "profile_strategy": None,
        }
        if self._max_batch_size is not None:
            found["max_batch_size"] = self._max_batch_size
        if not self._is_dynamic_op:
            found["serialized_segment"] = f"{bundle.FOLDER}/islands"  # where the engine is, which TF-TRT kept here
        return found

    def calibrate(
        self,
        fetch_names: Sequence[str],
        num_runs: int,
        feed_dict_fn: Callable[[], Mapping[Any, Any]] | None = None,
        input_map_fn: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Any:
        """Find the ranges of INT8 from real inputs, and convert anew.

        Args:
            fetch_names: the outputs, as ``node:index``; they must be there.
            num_runs: how many samples to take.
            feed_dict_fn: gives a feed dict for each run.
            input_map_fn: gives tensors by input name, once, whose values are taken for each run.

        Returns:
            The converted GraphDef.

        Raises:
            AssertionError: nothing was converted, or no calibration is needed, or it was done.
            ValueError: both functions or neither; keys or values of ``input_map_fn`` are of the wrong type.
        """
        import tensorflow as tf

        assert self._converted
        assert self._need_calibration
        assert not self._calibration_data_collected
        if bool(feed_dict_fn) == bool(input_map_fn):
            raise ValueError("Should specify one and only one of feed_dict_fn and input_map_fn.")
        known = {node.name for node in self._converted_graph_def.node}
        if missing := [name for name in fetch_names if _node(name) not in known]:
            raise ValueError(f"there is no {missing[0]} in the converted graph")
        samples: list[Mapping[str, Any]] = []
        if input_map_fn:
            mapped = input_map_fn()
            for key, value in mapped.items():
                if not isinstance(key, str):
                    raise ValueError("Keys of input_map_fn must be of type str")
                if not isinstance(value, tf.Tensor):
                    raise ValueError("Values of input_map_fn must be of type tf.Tensor")
            graph = next(iter(mapped.values())).graph
            with tf.compat.v1.Session(graph=graph) as session:
                samples = [self._sample(session.run(dict(mapped))) for _ in range(num_runs)]
        elif feed_dict_fn:
            samples = [self._sample(feed_dict_fn()) for _ in range(num_runs)]
        self._run(self._recipe(), samples)
        self._calibration_data_collected = True
        return self._converted_graph_def

    def _sample(self, feeds: Mapping[Any, Any]) -> dict[str, Any]:
        """A feed dict by the names of the signature's inputs."""
        keys = {_node(tensor): key for key, tensor in self._frozen.inputs.items()}
        return {keys[_node(name)]: np.asarray(value) for name, value in feeds.items()}

    def save(self, output_saved_model_dir: str) -> None:
        """Write the converted SavedModel, which is a bundle.

        Raises:
            AssertionError: nothing was converted, or calibration is still to be done.
            ValueError: the input was a GraphDef.
        """
        from refimpl.trt_convert import artifact

        assert self._converted
        if self._need_calibration:
            assert self._calibration_data_collected
        if self._input_graph_def:
            raise ValueError("Not able to save to a SavedModel since input is a GraphDef")
        artifact.publish(self._folder, Path(output_saved_model_dir), keep_engines=True, build_at_runtime=True)


def _node(item: Any) -> str:
    """The name of a node from its name, a tensor's name, or a tensor."""
    return str(getattr(item, "name", item)).removeprefix("^").split(":")[0]


def create_inference_graph(  # noqa: PLR0913, PLR0917  TF-TRT's parameters, in TF-TRT's order
    input_graph_def: Any,
    outputs: Sequence[Any] | None,
    max_batch_size: int | None = 1,
    max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    precision_mode: str = TrtPrecisionMode.FP32,
    minimum_segment_size: int = 3,
    is_dynamic_op: bool = False,
    maximum_cached_engines: int = 1,
    input_saved_model_dir: str | None = None,
    input_saved_model_tags: list[str] | None = None,
    input_saved_model_signature_key: str | None = None,
    output_saved_model_dir: str | None = None,
) -> Any:
    """TF-TRT's oldest API: convert a GraphDef or a SavedModel, and save it when asked.

    The parameters are those of :class:`TrtGraphConverter`, with ``outputs`` (names of the outputs of a GraphDef) for
    its ``nodes_denylist``, and ``output_saved_model_dir``, where to write the converted SavedModel.

    Returns:
        The converted GraphDef.
    """
    converter = TrtGraphConverter(
        input_saved_model_dir=input_saved_model_dir,
        input_saved_model_tags=input_saved_model_tags,
        input_saved_model_signature_key=input_saved_model_signature_key,
        input_graph_def=input_graph_def,
        nodes_denylist=outputs,
        max_batch_size=max_batch_size,
        max_workspace_size_bytes=max_workspace_size_bytes,
        precision_mode=precision_mode,
        minimum_segment_size=minimum_segment_size,
        is_dynamic_op=is_dynamic_op,
        maximum_cached_engines=maximum_cached_engines,
        use_calibration=False,
    )
    converted = converter.convert()
    if output_saved_model_dir:
        converter.save(output_saved_model_dir)
    return converted
