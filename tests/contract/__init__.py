"""Promises about the code itself: layers, who may import what, sizes, packaging."""
