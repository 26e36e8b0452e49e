"""``python -m refimpl``."""

from refimpl.cli import process

process()
