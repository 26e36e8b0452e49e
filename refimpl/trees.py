"""The files of a directory tree, those behind symbolic links too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def files_of(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file below a directory, in no particular order.

    Links to directories are followed, which ``Path.rglob`` does not do: TensorFlow reads the weights behind a
    ``variables`` that is one, so whoever tells models apart must read them, too. A link back up is left alone.

    Args:
        folder: the directory.
        above: for the function's own use.

    Raises:
        OSError: a directory cannot be read.
    """
    own = folder.resolve()
    if own in above:
        return
    for item in folder.iterdir():
        if item.is_dir():
            yield from files_of(item, (*above, own))
        elif item.is_file():
            yield item
