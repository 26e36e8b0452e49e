"""The embedded engine: ONNX Runtime on the CPU. Always there, and the reference that islands are verified with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from refimpl import memory
from refimpl.engines import Array, BuildOptions, Profile, external, rounding
from refimpl.errors import BuildError, RunError, first_line

NAME = "onnxruntime"
SUFFIX = ".onnx"
PLAIN = ".plain."  # in the name of an island that only agrees with TensorFlow while graph optimizations are off
PLAIN_SUFFIX = f"{PLAIN}onnx"
HALF_SUFFIX = ".half.onnx"  # an island with float16 or bfloat16 in it; the name tells before the file is parsed
_PROVIDERS = ("CPUExecutionProvider",)
# Of a model with Q/DQ in it, the first would quantize biases to int32, which TensorRT refuses, and the second would
# copy pairs across transposes and pools.
_NOT_BASIC = ("WeightBiasQuantization", "QDQPropagationTransformer")
# Idle threads of ONNX Runtime spin for milliseconds, also after a run, on cores that TensorFlow or another thread's run
# then lacks. A short spin still bridges the gaps between ops. No answer depends on it.
_SPINNING = {"session.intra_op.spin_duration_us": "50", "session.force_spinning_stop": "1"}
FACTOR_BYTES = 64 << 20  # of factors of products and gathered tables: above this, they go to a file beside the model
EXTERNAL_BYTES = 1 << 30  # a protobuf ends at 2 GiB; above this, weights go to a file beside the model


def version() -> str:
    return f"onnxruntime {ort.__version__}"


def why_not_here() -> str:
    return ""


def build(model: Path, target: Path, profiles: Sequence[Profile], options: BuildOptions) -> None:
    """Nothing to compile: the stored engine is the island's ONNX file, checked to load."""
    try:
        open(model)
    except RunError as error:
        raise BuildError(error.message) from error
    if model != target:
        shutil.copyfile(model, target)


def open(path: Path, threads: int = 0) -> OrtEngine:  # noqa: A001  (the Protocol's name)
    spell_out = path.name.endswith(HALF_SUFFIX) or rounding.TF32 in path.name
    return OrtEngine(path, optimize=PLAIN not in path.name, spell_out=spell_out, threads=threads)


def suffix(precision: str) -> str:
    """The end of the name of an island's file that computes in this precision (a row of the tolerance table)."""
    return HALF_SUFFIX if precision == "half" else SUFFIX


def open_model(model: Any, beside: Path, *, optimize: bool = True) -> OrtEngine:
    """Load a ModelProto that was made of a stored island, and run it as that one is run.

    Args:
        model: its half-precision ops spelled out already.
        beside: the stored file; weights that are not in the model lie beside it.
        optimize: False turns off all graph optimizations; they are off anyway when the file's name says so.

    Raises:
        RunError: ONNX Runtime cannot load it.
    """
    return OrtEngine(beside, optimize=optimize and PLAIN not in beside.name, spell_out=False, model=model)


class OrtEngine:
    """An ONNX Runtime session over one island. It may run in many threads at once.

    ``InferenceSession.run`` copies nothing: inputs are read where they lie, and outputs are views of memory that
    ONNX Runtime hands over. Binding inputs and outputs, or passing OrtValues, was measured and is slower from Python
    (``python -m tools.bench inference`` measures what is left of the cost of a call).
    """

    def __init__(self, path: Path, *, optimize: bool, spell_out: bool, threads: int = 0, model: Any = None) -> None:
        options = session_options()
        options.intra_op_num_threads = threads
        for key, value in _SPINNING.items():
            options.add_session_config_entry(key, value)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # QuantizeLinear and DequantizeLinear as they stand: fused kernels saturate pairs of products on some CPUs.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            if spell_out:
                model = onnx.load(path, load_external_data=False)
                model = rounding.spelled_out(model, tf32=rounding.TF32 in path.name)
            if model is not None:
                options.add_session_config_entry(
                    "session.model_external_initializers_file_folder_path", str(path.parent)
                )
            source = str(path) if model is None else model.SerializeToString()
            self._session = ort.InferenceSession(source, options, providers=list(_PROVIDERS))
        except Exception as error:  # its exceptions share no base class with a public name
            raise RunError(f"ONNX Runtime cannot load {path.name}: {first_line(error)}") from error
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        try:
            return list(self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True))))
        except Exception as error:
            raise RunError(f"ONNX Runtime failed: {first_line(error)}") from error


def session_options() -> Any:
    """Options of a session that keeps its warnings to itself."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def optimize(model: Any, weights: Mapping[str, Array], target: Path) -> None:
    """Write ``model`` to ``target`` after ONNX Runtime's BASIC optimizations: constants folded, transposes cancelled.

    BASIC uses standard ONNX ops only, so that TensorRT can parse the result.

    Args:
        model: ModelProto whose inputs include the names in ``weights``; it is changed.
        weights: values of the inputs that are weights; passed by reference, never copied into the protobuf.
        target: the file to write; above ``EXTERNAL_BYTES`` of weights a ``.data`` file lies beside it, and the large
            ones are hidden from the optimizer, which would copy them several times.

    Raises:
        BuildError: ONNX Runtime refuses the model.
    """
    large = outside(weights) or _factors(model, weights)
    inside = {name: value for name, value in weights.items() if name not in large}
    _initialize(model, inside)
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.add_external_initializers(
        list(inside), [ort.OrtValue.ortvalue_from_numpy(value) for value in inside.values()]
    )
    try:
        ort.InferenceSession(
            model.SerializeToString(), options, providers=list(_PROVIDERS), disabled_optimizers=list(_NOT_BASIC)
        )
    except Exception as error:
        raise BuildError(f"ONNX Runtime refuses the island: {first_line(error)}") from error
    for value in inside.values():
        external.forget_pages(value)
    memory.give_back()
    if large:
        external.store(onnx.load(target), large, target)


def outside(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The weights that are too large to lie in an ONNX file: none; all that are not small; or all, of a great many."""
    large = {name: value for name, value in weights.items() if value.nbytes > external.SMALL}
    total = sum(value.nbytes for value in weights.values())
    if total <= EXTERNAL_BYTES:
        return {}
    return large if total - sum(value.nbytes for value in large.values()) <= EXTERNAL_BYTES else dict(weights)


def _factors(model: Any, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The weights that need not be shown to the optimizer, if that saves much: it holds four copies of each."""
    found = external.factors(model, weights)
    return found if sum(value.nbytes for value in found.values()) > FACTOR_BYTES else {}


def move_weights(model: Path, name: str) -> None:
    """Let a stored model look for its weights in a file of another name, beside it."""
    proto = onnx.load(model, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save(proto, model)


def save_plain(model: Any, weights: Mapping[str, Array], target: Path) -> None:
    """Write ``model`` to ``target`` as it is, the weights put back; arguments as for :func:`optimize`."""
    large = outside(weights)
    inside = {name: value for name, value in weights.items() if name not in large}
    kept = [item for item in model.graph.input if item.name not in inside]
    model.graph.ClearField("input")
    model.graph.input.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in inside.items())
    if large:
        external.store(model, large, target)
    else:
        save(model, target)


def save(model: Any, target: Path) -> None:
    """Write a ModelProto with all its weights in it; above ``EXTERNAL_BYTES`` they go to a ``.data`` file beside it.

    A ``.data`` file that lies there already belongs to the model that is overwritten: it goes.
    """
    target.with_name(f"{target.name}.data").unlink(missing_ok=True)
    if model.ByteSize() <= EXTERNAL_BYTES:
        onnx.save(model, target)
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving takes the weights out of the model
    onnx.save(copy, target, save_as_external_data=True, location=f"{target.name}.data")


def _initialize(model: Any, weights: Mapping[str, Array]) -> None:
    """Turn inputs into initializers whose values ONNX Runtime is handed in memory."""
    kept = [item for item in model.graph.input if item.name not in weights]
    model.graph.ClearField("input")
    model.graph.input.extend(kept)
    model.graph.initializer.extend(_external(name, value) for name, value in weights.items())


def _external(name: str, value: Array) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=value.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="in-memory")
    return tensor
