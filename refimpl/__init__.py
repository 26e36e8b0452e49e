"""refimpl runs the parts of a TensorFlow SavedModel that TensorRT supports in engines, the rest in TensorFlow, and
proves that the answers stay TensorFlow's.

``import refimpl`` is light: nothing heavy is imported until it is used, and it is all that ``tf.saved_model.load``
needs to load a bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refimpl import hook

if TYPE_CHECKING:
    from refimpl.api import convert as convert
    from refimpl.api import explain as explain
    from refimpl.api import export as export
    from refimpl.recipe import Recipe as Recipe
    from refimpl.runtime import load as load

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "convert", "explain", "export", "load"]

_HOMES = {
    "convert": "refimpl.api",
    "explain": "refimpl.api",
    "export": "refimpl.api",
    "load": "refimpl.runtime",
    "Recipe": "refimpl.recipe",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'refimpl' has no attribute {name!r}")


hook.install()
