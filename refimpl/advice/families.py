"""Families of reasons: every sentence that the converter gives for an op that stays, and what can be done about it.

A contract test reads the sentences out of the converter's source and finds a family for each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TOO_SMALL, TOO_MANY, UNKNOWN = "small-islands", "max-engines", "unknown"
LEFT_OUT = frozenset([TOO_SMALL, TOO_MANY])  # their ops are convertible


@dataclass(frozen=True)
class Family:
    """Reasons that have one remedy.

    Attributes:
        name: of the family; a heading of ``docs/advice.md``.
        pattern: regular expression that the reason begins with.
        action: what to do about it, for an op that has no well-known alternative.
        per_type: whether each op type is a matter of its own.
        by_op: whether an alternative to the op (:mod:`refimpl.advice.alternatives`) is a remedy.
    """

    name: str
    pattern: str
    action: str
    per_type: bool = False
    by_op: bool = False

    def matches(self, reason: str) -> bool:
        return re.match(self.pattern, reason, re.DOTALL) is not None


_TF_TRT = "this is TF-TRT's own limit, kept by op_set; leave op_set at its default to use all that TensorRT takes"
FAMILIES: tuple[Family, ...] = (
    Family(
        TOO_SMALL,
        r"its island would have .*, fewer than min_segment_size",
        "lower --min-segment-size to convert it, or better remove what cuts it off; tiny islands seldom pay",
    ),
    Family(TOO_MANY, r"its island is not among the \d+ largest", "raise --max-engines, or leave the option away"),
    Family(
        "asked",
        r"kept in TensorFlow as asked",
        "you asked for it: take it out of --keep-in-tf (or keep_in_tf of the recipe) to convert it",
    ),
    Family(
        "variables",
        r"it reads or writes a variable that a signature of this model assigns",
        "export for inference without the signature or the training step that assigns the variable, or assign outside",
    ),
    Family(
        "strings",
        r"strings have no place in TensorRT",
        "move strings out of the model: take and give numbers, and translate where it is called",
        by_op=True,
    ),
    Family(
        "float64",
        r"float64 is not computed by TensorRT",
        "cast to float32 (tf.cast) before these ops, or build the model with tf.float32, if the digits are not needed",
    ),
    Family(
        "complex",
        r"complex numbers are not computed by TensorRT",
        "compute real and imaginary parts as two float32 tensors; for a spectrum, multiply by matrices of sines and "
        "cosines",
    ),
    Family("bfloat16", r"bfloat16 values do not cross", "export in float32, and convert with --precision bf16"),
    Family(
        "resources",
        r"it works on a table, an iterator or another resource",
        "look things up before or after the model, or at its start or end, where they split nothing",
        by_op=True,
    ),
    Family(
        "segments",
        r"its lowering goes through float32 matrix products",
        "keep segment sums at the start or the end of the model, where they split nothing",
        by_op=True,
    ),
    Family(
        "crop-in-loop", r"TensorRT's parser crashes on its lowering inside loops", "take it out of the loop", by_op=True
    ),
    Family(
        "checks",
        r"it is a check that only TensorFlow makes",
        "remove the check (tf.ensure_shape, or set_shape in a loop or a map) and export with fixed shapes",
        by_op=True,
    ),
    Family(
        "out-of-range",
        r"TensorFlow refuses (labels|indices) out of range|TensorFlow refuses positions and sizes out of range"
        r"|TensorFlow refuses to cut more out of a dimension",
        "make labels, indices, positions and sizes constants or take them from shapes; or keep the op at the end",
        per_type=True,
        by_op=True,
    ),
    Family(
        "random",
        r"random numbers are drawn by TensorFlow",
        "draw random numbers outside, and give them to the model as an input",
        by_op=True,
    ),
    Family(
        "side-effects",
        r"it only runs for its side effect",
        "nothing is computed here; remove it before exporting if it is not wanted",
        by_op=True,
    ),
    Family(
        "no-lowering",
        r"tf2onnx has no lowering for ",
        "rewrite it in other TensorFlow ops; nothing else converts it (refimpl writes the newest opset of tf2onnx)",
        per_type=True,
        by_op=True,
    ),
    Family(
        "lowering-fails",
        r"tf2onnx fails on it|tf2onnx folds its tensors away|its fake quantization cannot be written as Q/DQ",
        "write this part in other TensorFlow ops; fixed shapes (--shape does not fix them, the export does) often help",
        per_type=True,
        by_op=True,
    ),
    Family(
        "lowering-dtype",
        r"its lowering computes in ",
        "cast its inputs to float32 or int32 before it",
        per_type=True,
    ),
    Family(
        "integers-as-floats",
        r"its lowering computes integers in float32",
        "cast to float32 yourself where the numbers stay below 2^24, so that the model says so",
        per_type=True,
    ),
    Family(
        "fake-quantization",
        r"fake quantization inside loops|\S+ rounds in \S+ after every step|TensorFlow refuses a range or a number",
        "use float32 fake quantization with constant ranges, outside of loops and branches",
    ),
    Family(
        "integer-division",
        r"integers are divided |TensorFlow rounds the quotient of integers",
        "divide as float32 and take tf.floor(x / y) where the numbers stay below 2^24, or divide outside of the model",
    ),
    Family(
        "overflow",
        r"integers that overflow here wrap around",
        "cast to float32 before the sum or product, if the result stays below 2^24",
    ),
    Family(
        "wide-integers",
        r"engines take 64-bit integers from 2\^31 to 2\^32 for negative",
        "cast to int32 before it, where the numbers fit",
    ),
    Family(
        "lost-digits",
        r"the remainder of floats is computed as|its lowering is 1 - erf|floats out of range of 8-bit integers"
        r"|negative 8-bit indices",
        "cast to int32 before 8-bit integers, index with int32; leave remainders and tails to TensorFlow",
    ),
    Family(
        "nearest-resize",
        r"nearest-neighbour resizing of an image whose size is not fixed",
        "export with a fixed image size (height and width in the TensorSpec)",
        by_op=True,
    ),
    Family(
        "unknown-rank",
        r"the rank of \S+ is unknown",
        "export with a known rank: a TensorSpec with None for open sizes, tf.reshape or tf.ensure_shape after what "
        "loses it",
    ),
    Family(
        "table",
        r"TensorRT .*\(by table\)",
        "install refimpl[rtx] (or TensorRT), so that its parser decides; if it refuses too, cast to float32 or int32, "
        "or rewrite the op",
        per_type=True,
        by_op=True,
    ),
    Family(
        "parser",
        r"TensorRT refuses ",
        "try a newer TensorRT; or rewrite the op (other dtype: float32 or int32; fixed shapes; constant parameters)",
        per_type=True,
        by_op=True,
    ),
    Family(
        "unread",
        r"nothing outside its island reads it",
        "its result is not used; remove it from the model",
    ),
    Family(
        "unverifiable",
        r"it could not be verified",
        "give real samples with --calibration: TensorFlow takes none that can be made up",
    ),
    Family(
        "gpu-wrong",
        r".* computes it wrongly.*; the embedded engine is right",
        "another version of TensorRT or another GPU may compute it rightly: convert again there",
    ),
    Family(
        "build",
        r"(\S+ cannot build it: |its engines could not be built|no shapes are known for its inputs)",
        "try a newer TensorRT, a larger workspace_bytes, or --shape to narrow the range of shapes; the reason has "
        "TensorRT's words",
        per_type=True,
    ),
    Family(
        "tf-trt",
        r"Op type \S+ is not supported\.|.* op is not supported - Allowed |.* is not supported in implicit batch mode"
        r"|implicit batch mode |TensorRT does not allow manipulation of the batch|The inputs? \"|MatMul with 2D "
        r"|.* padding type not implemented|Channel dimension must be|\S+ must be 1 for the batch|Dilation with "
        r"|\S+ only supports is_training|Cannot Convert |Convertpad |Padding layer |Squeeze is not implemented"
        r"|new_axis_mask |Reshape to shape=|No conversion for einsum|GatherV2 with |Only sorted=True|Output type "
        r"|Dimension |Input shape must be rank|\S+ is only supported for explicit batch|At least 1 dimension "
        r"|CombinedNonMaxSuppression requires",
        _TF_TRT,
        per_type=True,
    ),
    Family(
        "verification",
        r".*(max \|Δ\| |elements differ|NaN at \d+ places|infinities at other places|dtype \S+, TensorFlow gives"
        r"|shape .*, TensorFlow gives)",
        "TensorFlow's op stays, so answers are right. Give real samples with --calibration: drawn values may never "
        "come there. To see the layer, convert with --no-verify and run refimpl bisect",
        per_type=True,
    ),
    Family(
        "engine-fails",
        r"ONNX Runtime |onnxruntime|cannot be written|the engine ",
        "the embedded engine cannot run it; a newer ONNX Runtime may, or write this part in other TensorFlow ops",
        per_type=True,
    ),
)
_UNKNOWN = Family(UNKNOWN, "", "no advice is known for this reason")


def family_of(reason: str) -> Family:
    """The family of a reason; one that says that it knows nothing when there is none."""
    return next((family for family in FAMILIES if family.matches(reason)), _UNKNOWN)
