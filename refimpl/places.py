"""What a file or a folder is that was given where a bundle is wanted, and which command is for it."""

from __future__ import annotations

from pathlib import Path

_CONVERT = "make one with refimpl convert SAVED_MODEL BUNDLE"
_KERAS = "load it in Keras and write a SavedModel with model.export(...); then refimpl convert"
# What a folder holds -> what it is, and what to do with it.
_FOLDERS = (
    ("saved_model.pb", "a SavedModel that was not converted", "refimpl convert {0} BUNDLE makes one of it"),
    ("saved_model.pbtxt", "a SavedModel that was not converted", "refimpl convert {0} BUNDLE makes one of it"),
    ("golden.json", "a golden record", "refimpl check BUNDLE {0} judges a bundle by it"),
    ("refimpl_cache.json", "a cache", "refimpl cache show {0} lists what is in it"),
    ("reproduce.sh", "an export for other tools", "name the bundle that it was made from"),
    ("../assets/refimpl_bundle.json", "a folder inside a bundle", "name the bundle itself"),
)
_FILES = {
    ".pb": "name the folder that it lies in",
    ".onnx": "islands and other ONNX models are for polygraphy run and Netron; name the bundle",
    ".h5": _KERAS,
    ".keras": _KERAS,
}


def recognised(path: Path) -> tuple[str, str]:
    """What ``path`` is, and what to do with it: two sentences without a capital.

    Args:
        path: a file or folder that is there and is no bundle.
    """
    if path.is_file():
        return "a file", _FILES.get(path.suffix, f"a bundle is a folder; {_CONVERT}")
    for name, what, advice in _FOLDERS:
        if (path / name).is_file():
            return what, advice.format(path)
    return "no SavedModel either", _CONVERT
