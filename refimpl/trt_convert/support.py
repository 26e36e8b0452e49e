"""Small parts of the converters: samples on disk, reports in TF-TRT's words, what is said once."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import env
from refimpl.bundle import LeftOp
from refimpl.recipe import Recipe
from refimpl.runtime import DISALLOWED
from refimpl.trt_convert.params import TrtConversionParams, log

InputFn = Callable[[], Iterable[Any]]
Attributes = dict[str, str | int | bool | None]  # of engine nodes; None for one that must not be there


class Home:
    """A temporary folder that goes when nothing refers to it any more, without a word."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="refimpl-trt-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def aborted() -> Exception:
    """TF-TRT's error for an island that would run in TensorFlow although that was forbidden."""
    import tensorflow as tf

    error: Exception = tf.errors.AbortedError(None, None, DISALLOWED)
    return error


@functools.cache
def tell_once(text: str) -> None:
    """Warn of something once per process."""
    log.warning("%s", text)


def tell_scope() -> str | None:
    """The GPU that ``tf.device`` asks for, when it is not the first, with a warning: it decides nothing here."""
    import tensorflow as tf

    device = str(tf.zeros([]).device)
    if "gpu" not in device.lower() or "gpu:0" in device.lower():
        return None
    log.warning(
        "tf.device around convert() has no effect (%s): engines run on the first GPU that CUDA_VISIBLE_DEVICES shows",
        device,
    )
    return device


def attributes_of(params: TrtConversionParams) -> Attributes:
    """TF-TRT's attributes of an engine node, as far as the parameters say them."""
    return {
        "use_calibration": bool(params.use_calibration),
        "static_engine": False,
        "max_cached_engines_count": params.maximum_cached_engines,
        "workspace_size_bytes": params.max_workspace_size_bytes,
        "max_batch_size": -1,
        "serialized_segment": "",
        "use_explicit_precision": False,
        "allow_build_at_runtime": True,
    }


def default_recipe() -> Recipe:
    """TF-TRT's narrower set of ops for who asks for it without touching code."""
    return Recipe(op_set="tf-trt" if env.flag("REFIMPL_TFTRT_OPS", default=False) else "tensorrt")


def in_tftrt_words(
    left: Iterable[LeftOp], denylist: Iterable[str], excluded: Mapping[str, str] | None = None
) -> list[LeftOp]:
    """The reasons, said as TF-TRT says them where it has words for them.

    Args:
        left: the ops that stay.
        denylist: op types that ``TF_TRT_OP_DENYLIST`` keeps in TensorFlow.
        excluded: nodes that stay whatever they are, and TF-TRT's reason.
    """
    denied = dict.fromkeys(denylist, "Denylisted with the env var TF_TRT_OP_DENYLIST")
    named = excluded or {}
    return [
        replace(op, reason=named.get(op.name) or denied.get(op.type) or op.reason)
        if op.reason.startswith("kept in TensorFlow as asked")
        else op
        for op in left
    ]


def tell_dropped(left: Iterable[LeftOp], recipe: Mapping[str, Any]) -> None:
    """Warn when islands stay in TensorFlow only because there are too many of them."""
    count = recipe["max_engines"]
    if any(op.reason.endswith("(max_engines)") for op in left):
        log.warning(
            "there are more than %d segments with at least minimum_segment_size=%d; only the largest are converted "
            "(TF_TRT_MAX_ALLOWED_ENGINES=0 lifts the limit)",
            count,
            recipe["min_segment_size"],
        )


def write_report(path: str, text: str, what: str) -> None:
    """Write a report to a file; a report that cannot be written is no reason to fail."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError:
        log.error("Failed to open output file: `%s`", path)
    else:
        log.warning("%s saved at: `%s`", what, path)


Samples = Callable[[], Iterable[Mapping[str, Any]]]


@contextlib.contextmanager
def stored(samples: Iterable[Mapping[str, Any]] | None) -> Iterator[Samples | None]:
    """Samples as something that can be read again and again; they are drawn once, and need not fit into memory."""
    if samples is None:
        yield None
        return
    from refimpl.converter.samples import read_npz

    with tempfile.TemporaryDirectory(prefix="refimpl-samples-") as folder:
        files = []
        for index, sample in enumerate(samples):
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in sample.items()}
            files.append(Path(folder) / f"{index:06d}.npz")
            np.savez(files[-1], **arrays)

        def calibration_input_fn() -> Iterator[Mapping[str, Any]]:
            yield from map(read_npz, files)

        calibration_input_fn.__qualname__ = calibration_input_fn.__name__  # errors name samples by it
        yield calibration_input_fn
