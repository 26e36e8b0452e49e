"""Alternatives: what a TensorFlow op that no engine takes is well known to be replaced by, in the model's own code."""

from __future__ import annotations

_IMAGES = "decode images before the model, and export it with the pixels as its input"
_TABLES = "look words up before the model (or after it), and let it take (or give) their integer ids"
_ALGEBRA = "where the matrix is constant, compute this once with NumPy and export the result as a weight"
_RANDOM = "draw random numbers outside, and give them to the model as an input"
_PYTHON = "write the Python function in TensorFlow ops, or call it outside of the model"
_EXAMPLES = "parse examples before the model, and export it with the parsed tensors as its inputs"
_SUPPRESSION = (
    "let the model end with boxes and scores, and suppress after it; at the very end of a model it costs nothing here"
)
_NO_SEGMENTS = (
    "where there are few segments, multiply by tf.one_hot(ids, count, axis=0); else do this before or after the rest"
)

ALTERNATIVES: dict[str, str] = {
    **dict.fromkeys("DecodeJpeg DecodePng DecodeBmp DecodeGif DecodeImage DecodeAndCropJpeg".split(), _IMAGES),
    **dict.fromkeys(
        "LookupTableFind LookupTableFindV2 LookupTableSize LookupTableSizeV2 LookupTableExportV2".split(), _TABLES
    ),
    **dict.fromkeys(
        """Cholesky MatrixInverse MatrixSolve MatrixTriangularSolve MatrixDeterminant Qr Svd SelfAdjointEigV2
        LogMatrixDeterminant""".split(),
        _ALGEBRA,
    ),
    **dict.fromkeys(
        "ParseExample ParseExampleV2 ParseSingleExample ParseSequenceExampleV2 DecodeCSV".split(), _EXAMPLES
    ),
    **dict.fromkeys("PyFunc PyFuncStateless EagerPyFunc".split(), _PYTHON),
    **dict.fromkeys("Multinomial StatelessMultinomial".split(), _RANDOM),
    **dict.fromkeys(
        """CombinedNonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4
        NonMaxSuppressionV5""".split(),
        _SUPPRESSION,
    ),
    **dict.fromkeys(
        """SegmentSum SegmentMean SegmentProd SegmentMax SegmentMin UnsortedSegmentSum UnsortedSegmentProd
        UnsortedSegmentMax UnsortedSegmentMin SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN""".split(),
        _NO_SEGMENTS,
    ),
    "Log1p": "write tf.math.log(1.0 + x), where x is not tiny",
    "Expm1": "write tf.exp(x) - 1.0, where x is not tiny",
    "L2Loss": "write tf.reduce_sum(x * x) / 2.0",
    "Xlogy": "write x * tf.math.log(y), where x and y are not zero at once",
    "Xdivy": "write x / y, where x and y are not zero at once",
    "Reverse": "write tf.gather with the indices in reverse order",
    "ReverseV2": "write tf.gather with the indices in reverse order",
    "Bucketize": "count the boundaries below: tf.reduce_sum(tf.cast(x[..., None] >= boundaries, tf.float32), -1)",
    "LinSpace": "compute the points once with NumPy, and use them as a constant",
    "UniqueV2": "the size of its output depends on values; do it before or after the model",
    "Unique": "the size of its output depends on values; do it before or after the model",
    "EnsureShape": "remove it, and give the shape in the TensorSpec that the model is exported with",
    "CheckNumerics": "remove it before exporting, or check what the model gives where it is called",
    "Assert": "remove checks before exporting, or make them where the model is called",
    "Print": "remove it before exporting",
    "PrintV2": "remove it before exporting",
    "IRFFT": "for a fixed length, multiply by the matrix of the inverse transform, a constant",
    "CropAndResize": "outside of loops it converts; take it out of the loop (all boxes in one call)",
    "ResizeNearestNeighbor": "export with a fixed image size, or repeat pixels (tf.keras.layers.UpSampling2D)",
    "ScatterNd": "where the places are known, write tf.concat or tf.pad; else tf.one_hot and a sum",
    "TensorScatterUpdate": "where the places are known, write tf.concat; else tf.where with a mask from tf.one_hot",
}


def alternative(op_type: str) -> str:
    """What to write in place of an op; "" when nothing well known is."""
    if "Random" in op_type:
        return _RANDOM
    return ALTERNATIVES.get(op_type, "")
