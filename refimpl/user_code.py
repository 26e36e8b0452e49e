"""Functions of the user's own, named on the command line as ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def user_function(where: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names, looked for in the current directory too.

    Raises:
        Exception: whatever the import raises; the caller knows what the function is for.
    """
    module, _, function = where.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
