"""Register the engine node's function with TensorFlow, now or as soon as TensorFlow is imported.

Importing TensorFlow takes seconds, so ``import refimpl`` must not; a program may import the two in either order.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_HOME = "tensorflow.python.ops.script_ops"  # where TensorFlow keeps its Python functions
_TOKEN = "refimpl.engine.v1"
_registered: list[Any] = []  # TensorFlow holds the function weakly; this keeps it alive
_threads = threading.local()


def install() -> None:
    """Register now if TensorFlow's registry is there, else when it comes."""
    if _HOME in sys.modules and hasattr(sys.modules[_HOME], "_py_funcs"):
        _register(sys.modules[_HOME])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(module: ModuleType) -> None:
    """Register as the kind of object that ``tf.py_function`` registers.

    TensorFlow converts what a plain function returns, and looks at NumPy's version for each array again (10 µs each).
    Results of the other kind it takes as they are: :func:`refimpl.runtime.call_engine` returns arrays.
    """
    base: Any = getattr(module, "EagerFunc", object)

    class Engine(base):  # type: ignore[misc]
        """The function behind every engine node."""

        def __init__(self) -> None:  # the base's wants a function
            self.run: Any = None

        def __call__(self, *args: Any) -> Any:
            if not hasattr(_threads, "kept"):
                _threads.kept = _keep_state_of_thread()
            if self.run is None:  # only now, so that importing TensorFlow does not import the runtime
                from refimpl.runtime import call_engine

                self.run = call_engine
            return self.run(*args) if base is object else self.run(*args[2])  # after device and token

    _registered[:] = [Engine()]
    module._py_funcs._funcs[_TOKEN] = _registered[0]


def _keep_state_of_thread() -> bool:
    """Let this thread keep its state of Python's until it ends.

    A thread of TensorFlow's gets one for each call of a Python function, and gives it up after it, which takes 20 µs.
    It is kept while it is asked for once more than it is released. A thread that Python started has its own anyhow.
    """
    ctypes.pythonapi.PyGILState_Ensure()
    return True


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the normal import of one module happen, then registers."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _HOME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
