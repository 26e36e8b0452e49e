"""``TrtGraphConverterV2``: convert, build, save, summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl import api, env, tftrt_env
from refimpl.bundle import Manifest, SignatureRecord
from refimpl.recipe import Recipe
from refimpl.report import tftrt as report
from refimpl.runtime import DISALLOWED
from refimpl.trt_convert.params import (
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    PROFILE_STRATEGY_RANGE,
    TrtConversionParams,
    TrtPrecisionMode,
    build_options,
    check_params,
    check_strategy,
    log,
    needs_calibration,
    recipe_for,
    without_ranges,
)
from refimpl.trt_convert.support import (
    Attributes,
    Home,
    InputFn,
    aborted,
    attributes_of,
    default_recipe,
    in_tftrt_words,
    stored,
    tell_dropped,
    tell_once,
    tell_scope,
    write_report,
)
from refimpl.trt_convert.upstream import UpstreamMethods


class TrtGraphConverterV2(UpstreamMethods):
    """TF-TRT's offline converter for TF2 SavedModels.

    Args:
        input_saved_model_dir: the SavedModel.
        input_saved_model_tags: tags of its meta graph; ``["serve"]`` by default.
        input_saved_model_signature_key: the signature to convert; ``serving_default`` by default. The others stay.
        use_dynamic_shape: engines for ranges of shapes, as ``build()`` shows them; else for batches of 1 to N.
        dynamic_shape_profile_strategy: one of ``supported_profile_strategies()``; ``Range`` by default.
        max_workspace_size_bytes, precision_mode, minimum_segment_size, maximum_cached_engines, use_calibration,
        allow_build_at_runtime: see :class:`TrtConversionParams`.
        conversion_params: all six at once; deprecated, and it wins over them.
        recipe: our own choices, for what TF-TRT has no parameter for (``Recipe(op_set="tf-trt")``).

    Raises:
        ValueError: a parameter has an impossible value.
        AssertionError: TensorFlow does not execute eagerly.
    """

    def __init__(  # noqa: PLR0913, PLR0917  TF-TRT's parameters, in TF-TRT's order
        self,
        input_saved_model_dir: str | None = None,
        input_saved_model_tags: list[str] | None = None,
        input_saved_model_signature_key: str | None = None,
        use_dynamic_shape: bool | None = None,
        dynamic_shape_profile_strategy: str | None = None,
        max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
        allow_build_at_runtime: bool = True,
        conversion_params: TrtConversionParams | None = None,
        *,
        recipe: Recipe | None = None,
    ) -> None:
        env.require_tensorflow()
        import tensorflow as tf

        assert tf.executing_eagerly()
        if conversion_params is None:
            conversion_params = TrtConversionParams(
                max_workspace_size_bytes=max_workspace_size_bytes,
                precision_mode=precision_mode,
                minimum_segment_size=minimum_segment_size,
                maximum_cached_engines=maximum_cached_engines,
                use_calibration=use_calibration,
                allow_build_at_runtime=allow_build_at_runtime,
            )
        else:
            tell_once("conversion_params is deprecated in TF-TRT; use the converter's own parameters")
        check_params(conversion_params)
        self._conversion_params = conversion_params
        self._input_saved_model_dir = input_saved_model_dir
        self._input_saved_model_tags = input_saved_model_tags or ["serve"]
        self._input_saved_model_signature_key = input_saved_model_signature_key or "serving_default"
        self._use_dynamic_shape = bool(use_dynamic_shape)
        self._profile_strategy = "Unknown"
        if self._use_dynamic_shape:
            self._profile_strategy = dynamic_shape_profile_strategy or PROFILE_STRATEGY_RANGE
            check_strategy(self._profile_strategy)
        features = tftrt_env.read().features
        self.freeze = "disable_graph_freezing" not in features or not self._use_dynamic_shape
        if "disable_graph_freezing" in features and not self._use_dynamic_shape:
            log.warning("disable_graph_freezing is only possible in dynamic shape mode; the graph is frozen")
        tftrt_env.warn_once()
        self._base = recipe or default_recipe()
        self._need_calibration = needs_calibration(conversion_params)
        self._calibration_input_fn: InputFn | None = None
        self._converted = False
        self._build_called_once = False
        self._calibrated = False
        self._home: Home | None = None
        self._real: Mapping[str, Any] | None = None  # a sample of the user's for calibration
        self._converted_func: Any = None
        self._converted_graph_def: Any = None

    def convert(self, calibration_input_fn: InputFn | None = None) -> Any:
        """Convert the signature.

        Args:
            calibration_input_fn: yields real inputs, for INT8 with calibration only. In dynamic shape mode they are
                read by ``build()``.

        Returns:
            A concrete function of the converted signature: positional or keyword arguments, a dict by output name.

        Raises:
            AssertionError: it was called before.
            ValueError: calibration is needed and no function is given, or the other way round; unknown tags.
            KeyError: no such signature.
            OSError: no SavedModel there.
            RefimplError: the conversion fails; see :func:`refimpl.convert`.
        """
        assert not self._converted
        self._device = tell_scope()
        if self._need_calibration and not calibration_input_fn:
            raise ValueError("Should specify calibration_input_fn because INT8 calibration is needed")
        if not self._need_calibration and calibration_input_fn:
            raise ValueError("Should not specify calibration_input_fn because INT8 calibration is not needed")
        self._open_model()
        recipe = self._recipe()
        if self._need_calibration and self._use_dynamic_shape:
            # Ranges are found by build(); until then the engines compute in FP32.
            self._run(replace(recipe, precision="fp32"), None)
        else:
            self._run(recipe, calibration_input_fn)
            self._calibrated = self._need_calibration
        self._calibration_input_fn = calibration_input_fn
        self._converted = True
        self._report()
        return self._converted_func

    def _open_model(self) -> None:
        from refimpl import exporter
        from refimpl.trt_convert import inputs

        exporter.check_place()
        if self._input_saved_model_dir is None:
            raise TypeError("Expected binary or unicode string, got None")
        meta_graph = inputs.read_meta_graph(Path(self._input_saved_model_dir), self._input_saved_model_tags)
        if (key := self._input_saved_model_signature_key) not in meta_graph.signature_def:
            raise KeyError(key)
        inputs.tell_ignored(meta_graph.graph_def)
        self._quantizes = inputs.has_quantization(meta_graph)
        self._binder = inputs.Binder(inputs.input_specs(meta_graph, key), inputs.declared_order(meta_graph, key))

    def _recipe(self) -> Recipe:
        return recipe_for(
            without_ranges(self._conversion_params, self._quantizes),
            self._base,
            strategy=self._profile_strategy if self._use_dynamic_shape else "",
            tags=tuple(self._input_saved_model_tags),
            key=self._input_saved_model_signature_key,
        )

    def _run(self, recipe: Recipe, input_fn: InputFn | None) -> None:
        """Run the ordinary conversion into a folder of the converter's own, and load what it made."""
        from refimpl.trt_convert import artifact

        home = Home()
        folder = home.path / "bundle"
        # Engines of TensorRT are built by build(), from the shapes that it is shown.
        kinds = tuple(kind for kind in recipe.engines if kind != "tensorrt")
        with stored(self._binder.samples(input_fn) if input_fn else None) as samples:
            self._real = next(iter(samples()), None) if samples else None
            api.convert_only(str(self._input_saved_model_dir), folder, replace(recipe, engines=kinds), samples=samples)
        artifact.expect_engines(folder)
        self._home, self._folder = home, folder
        table = artifact.calibration(folder) if input_fn else ""
        self._load(artifact.stamp(folder, **self._attributes(recipe), calibration_data=table))

    def _attributes(self, recipe: Recipe) -> Attributes:
        """TF-TRT's attributes of an engine node."""
        calibrated_later = self._need_calibration and recipe.precision == "fp32"
        return {
            **attributes_of(self._conversion_params),
            "precision_mode": "INT8" if calibrated_later else recipe.precision.upper(),
            "use_implicit_batch": not self._use_dynamic_shape,
            "profile_strategy": self._profile_strategy.lower() if self._use_dynamic_shape else None,
        }

    def _load(self, manifest: Manifest) -> None:
        from refimpl import runtime
        from refimpl.trt_convert import function, view

        runtime.forget(self._folder)
        self._manifest = manifest
        record = self._record()
        self._function = function.load_function(
            self._folder, record.signature, self._binder.order, self._input_saved_model_tags
        )
        self._converted_func = self._function.function
        self._converted_func.refimpl_home = self._home  # whoever keeps the function keeps its engines
        self._converted_graph_def = view.converted_graph(self._folder, manifest, record, self._converted_func)

    def _record(self) -> SignatureRecord:
        return next(
            item for item in self._manifest.signatures if item.signature.key == self._input_saved_model_signature_key
        )

    def _report(self) -> None:
        """What TF-TRT reports after each conversion: the ops that stayed, and the graph for Graphviz."""
        from refimpl.trt_convert import view

        settings = tftrt_env.read()
        left = in_tftrt_words(self._record().left, settings.denylist)
        tell_dropped(left, self._manifest.recipe)
        log.warning("%s", report.non_conversion_report(left, detailed=settings.detailed_report))
        if settings.csv_path:
            write_report(settings.csv_path, report.non_conversion_csv(left), "TF-TRT Non-Conversion Report")
        if settings.dot_path:
            nodes = view.dot_nodes(self._converted_graph_def, self._record())
            write_report(settings.dot_path, report.dot(nodes), "Graph Visualization")

    def build(self, input_fn: InputFn | None) -> None:
        """Build TensorRT engines for the shapes that ``input_fn`` shows; in dynamic shape mode calibrate before.

        Args:
            input_fn: a function that yields inputs: a dict by input name, a list or tuple in the order in which the
                model declares them, or the one input itself.

        Raises:
            NotImplementedError: it was called before.
            RuntimeError: there is nothing to build or to build from; an item cannot become tensors.
            TypeError: an item does not fit the signature's inputs.
            tensorflow.errors.AbortedError: an island runs in TensorFlow, and that was forbidden
                (``TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION``).
        """
        if self._build_called_once:
            raise NotImplementedError("build() is already called. It is not supported to call build() more than once.")
        if not input_fn:
            raise RuntimeError(
                "input_fn is None. Method build() needs input_fn to be specified in order to build TensorRT engines"
            )
        if not self._converted:
            raise RuntimeError("Need to call convert() before build()")
        if self._need_calibration and not self._calibrated:
            if self._calibration_input_fn is None:
                raise RuntimeError("Need to provide the calibration_input_fn arg while calling convert().")
            self._run(self._recipe(), self._calibration_input_fn)
            self._calibrated = True
        self._call(self._build_engines(input_fn))
        self._build_called_once = True

    def _build_engines(self, input_fn: InputFn) -> dict[str, Any]:
        """Build for what ``input_fn`` yields; no more than the first item, which is returned, stays in memory."""
        from refimpl.trt_convert import artifact

        first: dict[str, Any] | None = None
        seen = []
        for sample in self._binder.samples(input_fn):
            first = sample if first is None else first
            seen.append(artifact.outline(self._natively(sample)))
        if first is None:
            log.error("input_fn yielded nothing")
            raise RuntimeError("Failed to convert input to tensor.")
        options = build_options(self._manifest.recipe)
        manifest, failures = artifact.Builder(self._folder, seen, self._probes(first), options).build()
        for name, why in failures.items():
            log.error("no TensorRT engine could be built for %s: %s", name, why)
        if failures and not tftrt_env.read().native_allowed:
            raise aborted()
        self._load(manifest)
        return first

    def _natively(self, sample: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
        """TensorFlow's own values at the cuts: no engine runs."""
        from refimpl import runtime

        with runtime.engines_off(self._folder, self._manifest.bundle_id):
            return self._function.watch(sample)

    def _probes(self, sample: Mapping[str, Any]) -> list[dict[str, tuple[list[Any], list[Any]]]]:
        """Values at the cuts for inputs of a sample's shapes: real or random ones first, then the sample's own.

        A sample of build() may be zeros, which prove little.
        """
        import tensorflow as tf

        from refimpl.converter.samples import Sample, made_up
        from refimpl.trt_convert.inputs import resized, tensors_of

        found: list[dict[str, tuple[list[Any], list[Any]]]] = []

        def accepts(candidate: Sample) -> bool:
            try:
                found.append(self._natively(tensors_of(candidate.values)))
            except tf.errors.OpError:
                return False
            return True

        shapes = {name: tuple(value.shape) for name, value in sample.items()}
        if self._real is not None:
            accepts(Sample("calibration", resized(self._real, shapes)))
        else:
            made_up(self._record().signature, {name: [shape] for name, shape in shapes.items()}, accepts, count=1)
        return [*found, self._natively(sample)]

    def _call(self, sample: Mapping[str, Any]) -> None:
        import tensorflow as tf

        try:
            self._converted_func(*(sample[name] for name in self._binder.order))
        except tf.errors.UnknownError as error:
            if DISALLOWED in str(error):  # a Python function's error can reach TensorFlow as this class only
                raise aborted() from error
            raise

    def save(self, output_saved_model_dir: str, save_gpu_specific_engines: bool = True, options: Any = None) -> None:
        """Write the converted SavedModel, which is a bundle. It may be called again.

        Args:
            output_saved_model_dir: where to; a SavedModel that is there is replaced.
            save_gpu_specific_engines: store the TensorRT engines; without, another GPU builds its own.
            options: a ``tf.saved_model.SaveOptions``: ``save_debug_info`` applies, and the others are told.

        Raises:
            AssertionError: nothing was converted.
            RuntimeError: calibration is still to be done by ``build()``.
            RecipeError: the directory holds something else.
        """
        from refimpl.trt_convert import artifact, saving

        assert self._converted
        if self._need_calibration and not self._calibrated:
            raise RuntimeError(
                "A model that requires INT8 calibration has to be built before saving it. Call build() to build and "
                "calibrate the TensorRT engines."
            )
        if options is not None:
            saving.tell_options(options)
        with saving.exported(Path(output_saved_model_dir), wanted=save_gpu_specific_engines):
            artifact.publish(
                self._folder,
                Path(output_saved_model_dir),
                keep_engines=save_gpu_specific_engines,
                build_at_runtime=bool(self._conversion_params.allow_build_at_runtime),
                traced=self._converted_func if options is not None and options.save_debug_info else None,
            )

    def summary(
        self, line_length: int = 160, detailed: bool = True, print_fn: Callable[..., object] | None = None
    ) -> None:
        """Print the engines, their inputs and outputs, and how much of the graph was converted.

        Args:
            line_length: width, at least 160.
            detailed: list the ops of every engine.
            print_fn: called for each piece of text; ``print`` by default.

        Raises:
            RuntimeError: nothing was converted.
            ValueError: the line is too short.
        """
        from refimpl.trt_convert import view

        if not self._converted:
            name = type(self).__name__
            raise RuntimeError(f"Impossible to call `{name}.summary()` before calling {name}.convert().")
        if line_length < report.MIN_LINE_LENGTH:
            raise ValueError(
                f"Invalid `line_length` value has been received: {line_length}. Minimum: {report.MIN_LINE_LENGTH}."
            )
        record, graph = self._record(), self._converted_graph_def
        report.print_summary(
            view.rows(graph, record),
            len(view.other_nodes(graph, record)),
            line_length=line_length,
            detailed=detailed,
            print_fn=print_fn or print,
        )
