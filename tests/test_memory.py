"""What was freed is given back to the system, and a library without the call for it is no error."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pytest

from refimpl import memory

BLOCK = 100_000  # bytes; smaller than what a C library maps by itself
BLOCKS = 500


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(memory._trim() is None, reason="this C library has no malloc_trim")
def test_freed_blocks_below_one_that_is_held_go_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:
        libc.free(block)
    before = resident()
    memory.give_back()
    assert before - resident() > BLOCK * BLOCKS // 2
    libc.free(blocks[-1])


def test_a_library_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._trim.cache_clear()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    try:
        memory.give_back()
        assert memory._trim() is None
    finally:
        memory._trim.cache_clear()
