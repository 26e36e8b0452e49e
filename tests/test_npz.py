"""Reading .npz: everything that is no archive of arrays is one plain sentence, and nothing in it is ever run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import npz

ARRAYS = {"x": np.ones((40, 3), np.float32), "a/b": np.arange(2), "../c": np.array([b"s", b""])}


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(**files: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    return stream.getvalue()


def test_arrays_come_back() -> None:
    found = npz.read(io.BytesIO(archive(**ARRAYS)))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


WHOLE = archive(**ARRAYS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not an npz archive"),
        (b"x = 1, 2, 3", "is not an npz archive"),
        (b"\x93NUMPY\x01\x00", "is not an npz archive"),
        (b"\x80\x04]\x94.", "is not an npz archive"),
        (WHOLE[:-1], "is not an npz archive"),
        (WHOLE[: len(WHOLE) // 2], "is not an npz archive"),
        (flipped(WHOLE, 200), "a member is damaged"),
        (zipped(**{"readme.txt": "hi"}), "member 'readme.txt' is not an array"),
        (zipped(**{"x.npy": "hi"}), "member 'x' is not an array"),
        (archive(x=np.array([{}], object)), "array 'x' holds Python objects"),
    ],
)
def test_what_is_no_archive_of_arrays(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        npz.read(io.BytesIO(data))
    assert "allow_pickle" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda folder: np.save(folder / "a.npy", np.ones(1)), ".npy files and no .npz"),
        (lambda folder: None, ""),
        (lambda folder: (np.save(folder / "a.npy", np.ones(1)), np.savez(folder / "b.npz", x=np.ones(1))), ""),
    ],
)
def test_a_folder_of_single_arrays(tmp_path: Path, write: Callable[[Path], object], says: str) -> None:
    write(tmp_path)
    assert npz.no_archives(tmp_path) == says
