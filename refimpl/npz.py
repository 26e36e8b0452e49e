"""Reading ``.npz`` files, a zip archive of one ``.npy`` file per array, without ever running what is in them."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]

_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, KeyError, TypeError, RuntimeError)


def read(source: IO[bytes]) -> dict[str, Array]:
    """Every array of an archive, by name.

    Args:
        source: the file, open for reading and seeking.

    Raises:
        ValueError: it is no archive of arrays, it is damaged, or it holds Python objects.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            if archive.testzip() is not None:
                raise ValueError("a member is damaged")
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGE as error:
        raise ValueError(f"it is not an npz archive, or is cut short ({_lower(error)})") from None
    source.seek(0)
    with contextlib.ExitStack() as stack:
        try:
            arrays = stack.enter_context(np.load(source, allow_pickle=False))
            return {name: _array(arrays, name) for name in names}
        except _DAMAGE as error:
            raise ValueError(f"it is damaged ({_lower(error)})") from None


def no_archives(folder: Path) -> str:
    """What a folder without ``.npz`` files has instead, for an error message; empty when it is not worth a word."""
    if any(folder.glob("*.npz")) or not any(folder.glob("*.npy")):
        return ""
    return ".npy files and no .npz"


def _array(arrays: Any, name: str) -> Array:
    """One member; NumPy's own error would advise to allow pickle, which lets a file run code."""
    try:
        found = arrays[name]
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise ValueError(f"array {name!r} holds Python objects, or is no array") from None
        raise ValueError(f"array {name!r} is damaged ({_lower(error)})") from None
    if not isinstance(found, np.ndarray):
        raise ValueError(f"member {name!r} is not an array")
    return found


def _lower(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text[:1].lower() + text[1:]
