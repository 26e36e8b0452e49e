"""The library itself: NVIDIA TensorRT or TensorRT for RTX, whichever is installed, and what it says while it works."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from refimpl.errors import UnsupportedError


@functools.cache
def module() -> Any:
    """``tensorrt`` or else ``tensorrt_rtx``; None when neither can be imported."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            found = importlib.import_module(name)
        except Exception:  # noqa: BLE001  a broken installation fails with anything, from ImportError to a missing shared library
            continue
        if hasattr(found, "Builder"):  # a folder of type stubs can be imported as well, and has nothing
            return found
    return None


def require() -> Any:
    """Like :func:`module`.

    Raises:
        UnsupportedError: neither can be imported; the hint says what to install.
    """
    if (found := module()) is None:
        raise UnsupportedError(
            "neither tensorrt nor tensorrt_rtx can be imported",
            hint="pip install 'refimpl[rtx]' (TensorRT for RTX, no GPU needed to build) or 'refimpl[tensorrt]'",
        )
    return found


def version() -> str:
    """Name and version; "" when neither is installed."""
    found = module()
    return f"{found.__name__} {found.__version__}" if found else ""


class Log:
    """Collects the errors that TensorRT reports, so that a failure can be explained."""

    def __init__(self, trt: Any) -> None:
        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(inner, severity: Any, message: str) -> None:  # noqa: N805
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    del self.errors[:-_KEPT]
                    self.errors.append(message)

            def __init__(inner) -> None:  # noqa: N805
                trt.ILogger.__init__(inner)

        self.errors: list[str] = []
        self.logger = Logger()

    def said(self, count: int = 2) -> str:
        """The last errors, shortened; "" without any."""
        return "; ".join(shorten(message) for message in self.errors[-count:])


_KEPT = 20  # errors; an engine that fails in every call may live long


def shorten(text: str) -> str:
    """One line of at most 240 characters."""
    text = " ".join(text.split())[:240]
    return "not supported" if text in ("", "false") else text  # the text of the assertion that failed
