"""What ``tools/precision.py`` measures, a module for each kind of model, and how it is written down."""
