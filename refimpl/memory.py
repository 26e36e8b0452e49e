"""Memory that was let go of, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any


def give_back() -> None:
    """Return what was freed to the system, where the C library can (glibc): it would keep megabytes for later.

    Where two steps hold a copy of the weights each, the first one's would still be there while the second one runs.
    """
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return None
