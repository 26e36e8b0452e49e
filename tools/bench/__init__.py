"""Benchmarks: models of many sizes and shapes, and what is measured with them."""
