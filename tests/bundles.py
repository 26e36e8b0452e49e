"""Bundles for tests: made once per process from a model of the zoo, then copied and damaged at will."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import refimpl
from refimpl import bundle, calibration, cli, oracle, runtime
from refimpl.bundle import Manifest
from refimpl.converter.precision import calibrate
from refimpl.recipe import Recipe
from refimpl.runtime import LoadedBundle
from tests.models import sample_inputs, saved_model

DEFAULT = Recipe()
_FOLDER = tempfile.TemporaryDirectory(prefix="refimpl-test-bundles-")
POINTER, MANIFEST = bundle.POINTER, bundle.MANIFEST


def make_bundle(name: str, recipe: Recipe = DEFAULT) -> Path:
    """The bundle of a model of the zoo; nobody may change it."""
    target = Path(_FOLDER.name) / f"{name}-{recipe.digest()[:8]}"
    if not target.exists():
        refimpl.convert(saved_model(name), target, recipe)
    return target


def copy_of(name: str, folder: Path, recipe: Recipe = DEFAULT) -> Path:
    """A bundle of one's own; every folder is a bundle that the runtime has not seen."""
    return Path(shutil.copytree(make_bundle(name, recipe), folder / "bundle"))


def files_of(folder: Path) -> list[str]:
    """Every file of a bundle, by its path in it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def reseal(folder: Path, **changes: Any) -> Manifest:
    """Write checksums that are right again after files, or fields of the manifest, were changed."""
    return bundle.seal(folder, Manifest(**{**vars(bundle.read(folder, check_files=False)), **changes}))


@functools.cache
def _original(name: str) -> Any:
    return tf.saved_model.load(str(saved_model(name)))


def feeds_of(name: str) -> dict[str, np.ndarray]:
    """The first sample inputs of a model."""
    return sample_inputs(name)[0]


def answers(name: str, inputs: Mapping[str, np.ndarray], signature: str = "serving_default") -> dict[str, np.ndarray]:
    """What the model itself says in TensorFlow."""
    return call(_original(name), inputs, signature)


def call(model: Any, inputs: Mapping[str, np.ndarray], signature: str = "serving_default") -> dict[str, np.ndarray]:
    """One call of what ``tf.saved_model.load`` gave."""
    result = model.signatures[signature](**{key: tf.constant(value) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in result.items()}


def assert_same(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """Same names, dtypes, shapes and, within a few roundings of float32, values; NaN is equal to NaN."""
    assert got.keys() == want.keys()
    assert want, "nothing to compare"
    for name, value in want.items():
        assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_allclose(got[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def engines_of(loaded: LoadedBundle, inputs: Mapping[str, np.ndarray], signature: str = "") -> set[tuple[str, str]]:
    """(engine, reason) of every island in one run."""
    return {(run.engine, run.reason) for run in loaded.run(inputs, signature).islands}


def counts_of(folder: Path) -> dict[tuple[str, str], int]:
    """How often each (engine, reason) ran in this process, over all islands of the bundle at this place."""
    owner = runtime._runtime(str(folder / POINTER), bundle.read(folder, check_files=False).bundle_id)
    found: dict[tuple[str, str], int] = {}
    for run, count in owner.counts.items():
        found[run.engine, run.reason] = found.get((run.engine, run.reason), 0) + count
    return found


@functools.cache
def golden_of(name: str) -> Path:
    """A golden record of a model of the zoo."""
    target = Path(_FOLDER.name) / f"{name}-golden"
    oracle.record(saved_model(name), target)
    return target


def commands(name: str, folder: Path) -> dict[str, list[object]]:
    """A call of every command that succeeds; ``folder`` is where it may write."""
    return {
        "convert": ["convert", saved_model(name), folder / "new"],
        "explain": ["explain", saved_model(name)],
        "inspect": ["inspect", make_bundle(name)],
        "run": ["run", make_bundle(name), "--inputs", "random"],
        "record": ["record", saved_model(name), folder / "golden"],
        "check": ["check", make_bundle(name), golden_of(name)],
        "bisect": ["bisect", make_bundle(name), golden_of(name)],
        "export": ["export", make_bundle(name), folder / "export"],
        "calibration": ["calibration", "show", calibration_table()],
        "cache": ["cache", "show", cache_with_entries()],
        "doctor": ["doctor"],
    }


def calibration_table() -> Path:
    """A table of one range, as int8 calibration writes it."""
    seen = calibrate.Histogram()
    seen.add(np.linspace(-2, 3, 5000, dtype=np.float32))
    ranges = {calibration.range_key("island", "x"): calibrate.range_of(seen, "minmax")}
    table = calibration.make_table("0" * 64, "serving_default", ranges, method="minmax", percentile=99.99, batches=1)
    file = Path(_FOLDER.name) / "table.json"
    if not file.exists():
        calibration.save(table, file)
    return file


def cache_with_entries() -> Path:
    """A cache that a conversion has written to."""
    folder = Path(_FOLDER.name) / "cache"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as place:
            refimpl.convert(saved_model("odd_ops"), Path(place) / "bundle", cache=folder)
    return folder


def assert_refused(capfd: pytest.CaptureFixture[str], *args: object, says: str, hint: str = "") -> str:
    """``refimpl ARGS`` fails with exit code 2, one error and one hint, and leaves the working directory as it was.

    Returns:
        What went to stderr.
    """
    before = sorted(Path.cwd().rglob("*"))
    assert main(*args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert says in errors[0]
    hints = [line for line in err.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1, err
    assert hint in hints[0]
    assert sorted(Path.cwd().rglob("*")) == before, "nothing half-written"
    return err


@contextlib.contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[str]]:
    """Messages of the runtime's log, whatever a command line run before has done to the loggers."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= level:
                lines.append(record.getMessage())

    logger, handler = logging.getLogger("refimpl.runtime"), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def command(*args: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """``refimpl ARGS`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "refimpl", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=300,
        check=False,
        **options,
    )


def main(*args: object) -> int:
    """``refimpl ARGS`` in this process; its exit code."""
    loggers = logging.getLogger("refimpl")
    before = loggers.level, loggers.propagate, list(loggers.handlers)
    try:
        return cli.main([str(arg) for arg in args])
    finally:
        loggers.level, loggers.propagate, loggers.handlers[:] = before
        loggers.setLevel(before[0])
