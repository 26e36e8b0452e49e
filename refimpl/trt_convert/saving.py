"""What ``save()`` does with ``tf.saved_model.SaveOptions``, of which little applies, since a bundle is copied and not
traced again; and what it writes beside the bundle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_debug_info_pb2

from refimpl.trt_convert.params import log

DEBUG_INFO = "debug/saved_model_debug_info.pb"  # TensorFlow's place for it


def tell_options(options: Any) -> None:
    """Warn of every option that was given and does nothing."""
    defaults = tf.saved_model.SaveOptions()
    names = sorted(name for name in type(defaults).__slots__ if name != "save_debug_info")
    if idle := [name for name in names if getattr(options, name, None) != getattr(defaults, name)]:
        log.warning(
            "options of save() without effect: %s (the SavedModel is copied, not traced again)", ", ".join(idle)
        )


def write_debug_info(folder: Path, concrete: Any) -> None:
    """Say of every op of the converted function where Python made it, beside what the model itself has said.

    Args:
        folder: the SavedModel.
        concrete: the converted function.
    """
    file = folder / DEBUG_INFO
    info = graph_debug_info_pb2.GraphDebugInfo()
    if file.is_file():
        info.ParseFromString(file.read_bytes())
    files = {name: index for index, name in enumerate(info.files)}
    function = concrete.name.decode() if isinstance(concrete.name, bytes) else concrete.name
    for op in concrete.graph.get_operations():
        for frame in op.traceback or ():  # none for an op that was imported: the model's own information has it
            if frame.filename not in files:
                files[frame.filename] = len(info.files)
                info.files.append(frame.filename)
            info.traces[f"{op.name}@{function}"].file_line_cols.add(
                file_index=files[frame.filename], line=frame.lineno, func=frame.name, code=frame.line or ""
            )
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(info.SerializeToString(deterministic=True))


@contextlib.contextmanager
def exported(target: Path, *, wanted: bool) -> Iterator[None]:
    """Meanwhile a bundle is written to ``target``; then it is exported, if ``TF_TRT_EXPORT_TRT_ENGINES_PATH`` says so.

    Args:
        target: where the bundle goes.
        wanted: False when it holds no engines, of which TF-TRT exported nothing.

    Raises:
        RecipeError: the variable's folder cannot be written to; nothing has happened then.
        BundleError: the disk is full.
    """
    from refimpl import exporter

    place = exporter.check_place() if wanted else None
    if place:
        exporter.check_room(place, target)
    yield
    if place:
        exporter.export_to_place(target, place)
