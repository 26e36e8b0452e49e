"""FP16 and INT8: ranges, rewritten graphs, and what they cost."""
