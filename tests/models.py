"""The models that tests convert: one row each, with what is expected of its plan, and a cache on disk.

Names, by group (also ``KERAS``, ``OPS``, ``NUMERIC``, ``INTERFACE``, ``TF1``, ``TRAINED``):

    resnet50 mobilenetv2 efficientnetb0 convnexttiny inceptionv3 vit bert fully_convolutional lstm gru bidirectional
    while_loop cond tensor_array detector decode_and_label odd_ops stateful_random python_function
    integer_division integer_matmul resizes argmax_gather float64 half not_finite empty_and_dynamic
    several_signatures odd_names many_dtypes unknown_rank no_input captured_table counter pass_through
    tf1_resource_variables tf1_ref_variables tf1_table keras2_optimizer_slots
    basic_pitch spliceai facial_expression music_tagger

``MODELS[name]`` is a :class:`Model`; ``saved_model(name)`` (or the fixture ``model``) gives the directory of its
SavedModel, made on first use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import tensorflow as tf

from tests import models_interface, models_keras, models_numeric, models_ops, models_tf1, models_trained
from tests.models_ops import vectors

Inputs = Callable[[np.random.Generator], dict[str, np.ndarray]]
CACHE = Path(__file__).resolve().parent.parent / ".models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What a test may expect of one model, through its ``serving_default``."""

    inputs: Inputs  # sample inputs by name; the generator is the only source of chance
    more: tuple[Inputs, ...] = ()  # further inputs: other batch sizes, empty batches, the other branch
    min_share: float  # least share of its TensorFlow ops that must lie in islands
    islands: int = 1  # exact number of islands when TensorRT's parser judges
    # Op type that must stay in TensorFlow -> words of the reason. Ops of islands that are too small are not among them.
    stay: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False
    others: Mapping[str, Inputs] = field(default_factory=dict)  # sample inputs of its other signatures
    loads: bool = True  # whether ``tf.saved_model.load`` takes it; the meta graph always does
    in_process_only: bool = False  # calls Python functions of the process that saved it


@dataclass(frozen=True, slots=True)
class Model:
    """How to write a SavedModel into a directory that does not exist yet, and what to expect of it."""

    build: Callable[[Path], None]
    expect: Expect


_STRING, _TABLE, _RANDOM = "strings have no place", "works on a table", "random numbers are drawn"
_NO_LOWERING, _REFUSED, _RANK = "no lowering for", "TensorRT refuses", "the rank of"
_WRITTEN = "a variable that a signature of this model assigns"
_CHECK = "a check that only TensorFlow makes"
_WRONG = "where TensorFlow gives"  # the verifier found another answer


def _stay(reason: str, *ops: str) -> dict[str, str]:
    return dict.fromkeys(ops, reason)


_224 = models_keras.images(224)
_series = models_keras.series_inputs

KERAS = {
    "resnet50": Model(models_keras.resnet50, Expect(inputs=_224, min_share=1.0)),
    "mobilenetv2": Model(models_keras.mobilenetv2, Expect(inputs=_224, min_share=1.0)),
    "efficientnetb0": Model(
        models_keras.efficientnetb0, Expect(inputs=models_keras.images(224, scale=60.0), min_share=1.0, slow=True)
    ),
    "convnexttiny": Model(
        models_keras.convnexttiny, Expect(inputs=models_keras.images(224, scale=60.0), min_share=1.0, slow=True)
    ),
    "inceptionv3": Model(models_keras.inceptionv3, Expect(inputs=models_keras.images(299), min_share=1.0, slow=True)),
    "vit": Model(models_keras.vit, Expect(inputs=models_keras.images(96), min_share=1.0)),
    "bert": Model(models_keras.bert, Expect(inputs=models_keras.bert_inputs, min_share=1.0)),
    "fully_convolutional": Model(
        models_keras.fully_convolutional,
        Expect(
            inputs=models_keras.fully_convolutional_inputs,
            more=(lambda rng: {"image": rng.standard_normal((1, 40, 56, 3)).astype(np.float32)},),
            min_share=1.0,
        ),
    ),
    "lstm": Model(models_keras.lstm, Expect(inputs=_series, min_share=1.0)),
    "gru": Model(models_keras.gru, Expect(inputs=_series, min_share=1.0)),
    "bidirectional": Model(models_keras.bidirectional, Expect(inputs=_series, min_share=1.0)),
}

OPS = {
    "while_loop": Model(models_ops.while_loop, Expect(inputs=vectors(3, 8), min_share=1.0)),
    "cond": Model(
        models_ops.cond,
        Expect(
            inputs=models_ops.cond_inputs,
            more=(lambda rng: {"x": -np.abs(rng.standard_normal((2, 8))).astype(np.float32), "flip": np.array(False)},),
            min_share=1.0,
        ),
    ),
    "tensor_array": Model(
        models_ops.tensor_array,
        Expect(
            inputs=vectors(2, 7, 6),
            more=(vectors(1, 1, 6),),
            min_share=0.5,
            stay=_stay("no trip limit", "While", "TensorListReserve", "TensorListStack"),
        ),
    ),
    "detector": Model(
        models_ops.detector,
        Expect(
            inputs=models_ops.detector_inputs,
            min_share=0.95,
            stay=_stay(_NO_LOWERING, "CombinedNonMaxSuppression"),
        ),
    ),
    "decode_and_label": Model(
        models_ops.decode_and_label,
        Expect(
            inputs=models_ops.decode_and_label_inputs,
            min_share=0.5,
            islands=2,
            stay={
                **_stay(_STRING, "Shape", "StringToHashBucketFast", "AsString", "StringJoin"),
                **_stay(_STRING, "TensorListFromTensor", "TensorListReserve", "TensorListStack"),
                **_stay(_CHECK, "StatelessWhile"),
                **_stay(_TABLE, "LookupTableFindV2", "LookupTableSizeV2"),
                **_stay(_RANK, "NotEqual", "SelectV2"),
            },
        ),
    ),
    "odd_ops": Model(
        models_ops.odd_ops,
        Expect(
            inputs=vectors(4, 12),
            min_share=0.9,
            islands=2,
            stay={**_stay(_NO_LOWERING, "Svd"), **_stay(_RANDOM, "StatelessRandomNormalV2")},
        ),
    ),
    "stateful_random": Model(
        models_ops.stateful_random,
        Expect(inputs=vectors(4, 9), min_share=0.9, islands=2, stay=_stay(_RANDOM, "RandomStandardNormal")),
    ),
    "python_function": Model(
        models_ops.python_function,
        Expect(
            inputs=vectors(4, 9),
            min_share=0.5,
            islands=2,
            stay={**_stay(_NO_LOWERING, "EagerPyFunc", "PyFunc"), **_stay(_CHECK, "EnsureShape")},
            in_process_only=True,
        ),
    ),
}

NUMERIC = {
    "integer_division": Model(
        models_numeric.integer_division,
        Expect(
            inputs=models_numeric.integer_division_inputs,
            min_share=0.3,
            islands=1,
            stay={
                **_stay("divided by something that may be zero", "FloorDiv", "FloorMod", "TruncateDiv"),
                **_stay(_NO_LOWERING, "TruncateMod"),
            },
        ),
    ),
    "integer_matmul": Model(
        models_numeric.integer_matmul,
        Expect(
            inputs=models_numeric.pixels_inputs,
            min_share=0.5,
            islands=2,
            stay={**_stay(_REFUSED, "MatMul", "Cast"), **_stay("towards minus infinity", "FloorMod")},
        ),
    ),
    "resizes": Model(
        models_numeric.resizes,
        Expect(inputs=models_numeric.resizes_inputs, min_share=0.75, stay=_stay(_WRONG, "ResizeArea", "ResizeBicubic")),
    ),
    "argmax_gather": Model(
        models_numeric.argmax_gather, Expect(inputs=models_numeric.argmax_gather_inputs, min_share=0.9)
    ),
    "float64": Model(
        models_numeric.float64,
        Expect(
            inputs=models_numeric.float64_inputs,
            min_share=0.3,
            islands=2,
            stay=_stay("float64 is not computed", "AddV2", "Sub", "Cast", "MatMul", "Mul"),
        ),
    ),
    "half": Model(
        models_numeric.half,
        Expect(inputs=vectors(4, 16), min_share=0.5, stay=_stay("bfloat16 values", "Cast", "MatMul", "Tanh")),
    ),
    "not_finite": Model(
        models_numeric.not_finite, Expect(inputs=models_numeric.not_finite_inputs, min_share=0.25, islands=3)
    ),
    "empty_and_dynamic": Model(
        models_numeric.empty_and_dynamic,
        Expect(
            inputs=models_numeric.images(3), more=(models_numeric.images(1), models_numeric.images(0)), min_share=1.0
        ),
    ),
}

INTERFACE = {
    "several_signatures": Model(
        models_interface.several_signatures,
        Expect(inputs=vectors(3, 12), others=models_interface.SEVERAL_OTHERS, min_share=1.0),
    ),
    "odd_names": Model(models_interface.odd_names, Expect(inputs=models_interface.odd_names_inputs, min_share=1.0)),
    "many_dtypes": Model(
        models_interface.many_dtypes,
        Expect(
            inputs=models_interface.many_dtypes_inputs,
            min_share=0.7,
            stay={**_stay(_STRING, "StringUpper", "StringLength"), **_stay(_REFUSED, "Reshape", "Sub")},  # of uint8
        ),
    ),
    "unknown_rank": Model(
        models_interface.unknown_rank,
        Expect(
            inputs=vectors(3, 8),
            more=(vectors(8), vectors(2, 3, 1, 8)),
            min_share=0.4,
            islands=2,
            stay={**_stay(_RANK, "Shape", "Mean", "Elu", "Mul", "Reshape"), **_stay(_NO_LOWERING, "Rank")},
        ),
    ),
    "no_input": Model(models_interface.no_input, Expect(inputs=lambda rng: {}, min_share=0.0, islands=0)),
    "captured_table": Model(
        models_interface.captured_table,
        Expect(
            inputs=models_interface.captured_table_inputs,
            min_share=0.3,
            stay={**_stay(_TABLE, "LookupTableFindV2"), **_stay(_RANK, "StridedSlice", "Mul", "MatMul")},
        ),
    ),
    "counter": Model(
        models_interface.counter,
        Expect(inputs=vectors(3, 6), min_share=0.6, stay=_stay(_WRITTEN, "AssignAddVariableOp", "ReadVariableOp")),
    ),
    "pass_through": Model(
        models_interface.pass_through, Expect(inputs=models_interface.pass_through_inputs, min_share=1.0)
    ),
}

_image = vectors(6, 20, 20, 3, name="image")
TF1 = {
    "tf1_resource_variables": Model(models_tf1.tf1_resource_variables, Expect(inputs=_image, min_share=1.0)),
    "tf1_ref_variables": Model(models_tf1.tf1_ref_variables, Expect(inputs=_image, min_share=1.0)),
    "tf1_table": Model(
        models_tf1.tf1_table,
        Expect(
            inputs=models_tf1.words_inputs,
            min_share=0.5,
            stay={**_stay(_TABLE, "LookupTableFindV2"), **_stay(_RANK, "ResourceGather", "MatMul")},
        ),
    ),
    "keras2_optimizer_slots": Model(
        models_tf1.keras2_optimizer_slots, Expect(inputs=vectors(3, 10, name="features"), min_share=1.0, loads=False)
    ),
}

TRAINED = {
    "basic_pitch": Model(
        models_trained.basic_pitch,
        Expect(
            inputs=models_trained.basic_pitch_inputs,
            min_share=0.99,
            stay=_stay(_NO_LOWERING, "Assert"),
            loads=False,
        ),
    ),
    "spliceai": Model(
        models_trained.spliceai,
        # A dilated convolution over an unknown length pads by a computed size, which TensorRT refuses: 24 of them.
        Expect(
            inputs=models_trained.spliceai_inputs,
            min_share=0.95,
            islands=25,
            stay=_stay("TensorRT refuses Pad", "SpaceToBatchND"),
            slow=True,
        ),
    ),
    "facial_expression": Model(
        models_trained.facial_expression, Expect(inputs=models_trained.facial_expression_inputs, min_share=1.0)
    ),
    "music_tagger": Model(
        models_trained.music_tagger, Expect(inputs=models_trained.music_tagger_inputs, min_share=1.0)
    ),
}

MODELS: dict[str, Model] = {**KERAS, **OPS, **NUMERIC, **INTERFACE, **TF1, **TRAINED}

_in_process: dict[str, Path] = {}


def sample_inputs(name: str) -> list[dict[str, np.ndarray]]:
    """All sample inputs of a model, in order; the same in every process."""
    expect = MODELS[name].expect
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return [inputs(np.random.default_rng([seed, i])) for i, inputs in enumerate((expect.inputs, *expect.more))]


def saved_model(name: str) -> Path:
    """Directory of a model's SavedModel: from the cache, or made now. Safe when processes ask at once."""
    row = MODELS[name]
    if row.expect.in_process_only:
        if name not in _in_process:
            _in_process[name] = Path(tempfile.mkdtemp(prefix="refimpl-test-")) / name
            _build(row, _in_process[name])
        return _in_process[name]
    final = CACHE / f"{name}-{_digest(sys.modules[row.build.__module__])}"
    if final.exists():
        return final
    with _locked(CACHE / f"{name}.lock"):
        if not final.exists():
            with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=CACHE) as scratch:
                _build(row, Path(scratch) / name)
                (Path(scratch) / name).rename(final)
            for old in CACHE.glob(f"{name}-????????????"):
                if old != final:
                    shutil.rmtree(old)
    return final


def _build(row: Model, target: Path) -> None:
    """Keras counts layers for as long as a process lives: without this, op names depend on what ran before."""
    keras.utils.clear_session()
    row.build(target)


def _digest(module: ModuleType) -> str:
    """Changes with the source of a module, of the test modules that it imports from, and with the libraries."""
    owners = {getattr(value, "__module__", None) or "" for value in vars(module).values()}
    sources = [inspect.getsource(sys.modules[name]) for name in sorted(owners) if name.startswith("tests.")]
    versions = [tf.__version__, keras.__version__, np.__version__, models_trained.PINS.read_text(encoding="utf-8")]
    return hashlib.sha256("\n".join(sources + versions).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
