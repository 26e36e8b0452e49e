"""Precision: rewrite a verified island's ONNX so that it computes in float16, bfloat16 or int8.

Every room here takes an ``onnx.ModelProto`` and returns a new one; none builds or ships anything.
"""
