"""The cache: finished work, kept on disk by the digest of everything that it depends on."""

from __future__ import annotations

from refimpl.cache.entries import Entry, Key, file_digest
from refimpl.cache.store import (
    DEFAULT_LIMIT,
    MARK,
    Cache,
    from_environment,
    from_environment_if_usable,
    open_cache,
    parse_size,
)

__all__ = [
    "DEFAULT_LIMIT",
    "MARK",
    "Cache",
    "Entry",
    "Key",
    "file_digest",
    "from_environment",
    "from_environment_if_usable",
    "open_cache",
    "parse_size",
]
