"""The models that are asked about on a GPU, and how they travel to a machine that has no packages to make them with.

    python -m tools.gpu.subjects FOLDER                    # write those of the tests that are small enough to travel
    python -m tools.gpu.prediction --carried FOLDER        # there

A folder holds one folder per model: ``model`` (the SavedModel), ``sample-0.npz`` ... (what it is converted with) and
``judged.npz`` (other inputs, to be compared on).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.figures import digits, measure, photos
from tools.gpu import networks

Array = Any
SAMPLES = 4
# Of the tests: recurrent, small encoders, one with strings in front and behind, two that others trained.
OF_THE_TESTS = ("lstm", "bert", "vit", "decode_and_label", "basic_pitch", "facial_expression")


@dataclass(frozen=True)
class Subject:
    """A model, real samples to convert it with, and other inputs to judge it on."""

    make: Callable[[Path], Path]  # from a folder to write into, to the SavedModel
    samples: Callable[[], Sequence[Mapping[str, Array]]]
    judged: Callable[[], Mapping[str, Array]]


def _digits() -> Subject:
    def make(folder: Path) -> Path:
        digits.digits_cnn(folder / "digits")
        return folder / "digits"

    return Subject(make, digits.calibration_batches, lambda: {"image": digits.held_out()[0][:50]})


def _photographs(name: str) -> Subject:
    def make(folder: Path) -> Path:
        photos.network(name, folder / name)
        return folder / name

    def images(count: int, seed: int) -> Mapping[str, Array]:
        return {"image": photos.prepared(name, photos.crops(count, seed))}

    return Subject(make, lambda: [images(2, 100 + i) for i in range(SAMPLES)], lambda: images(2, 999))


def _of_the_tests(name: str) -> Subject:
    inputs = measure.inputs_of_the_tests
    return Subject(
        lambda _: measure.model_of_the_tests(name),
        lambda: [inputs(name, i) for i in range(SAMPLES)],
        lambda: inputs(name, 9),
    )


def _encoder() -> Subject:
    def make(folder: Path) -> Path:
        networks.encoder(folder / "encoder")
        return folder / "encoder"

    return Subject(make, lambda: [networks.encoded(i) for i in range(SAMPLES)], lambda: networks.encoded(9))


def _detector() -> Subject:
    def make(folder: Path) -> Path:
        networks.detector(folder / "detector")
        return folder / "detector"

    return Subject(make, lambda: [networks.pictures(2, i) for i in range(SAMPLES)], lambda: networks.pictures(2, 9))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "digits": _digits,
    "detector": _detector,
    "encoder": _encoder,
    **{name: (lambda name=name: _photographs(name)) for name in photos.NETWORKS},  # type: ignore[misc]
    **{name: (lambda name=name: _of_the_tests(name)) for name in OF_THE_TESTS},  # type: ignore[misc]
}


def carry(name: str, folder: Path) -> None:
    """Write one model and its inputs."""
    subject, target = SUBJECTS[name](), folder / name
    target.mkdir(parents=True)
    shutil.copytree(subject.make(target / "made"), target / "model")
    shutil.rmtree(target / "made", ignore_errors=True)
    for index, sample in enumerate(subject.samples()):
        np.savez(target / f"sample-{index}.npz", **dict(sample))
    np.savez(target / "judged.npz", **dict(subject.judged()))


def known(folder: Path | None) -> tuple[str, ...]:
    """Names of all models, those of a folder among them."""
    return tuple(dict.fromkeys([*SUBJECTS, *(carried(folder) if folder else ())]))


def carried(folder: Path) -> dict[str, Callable[[], Subject]]:
    """What was written into a folder, by name."""
    return {item.name: (lambda item=item: _carried(item)) for item in sorted(folder.iterdir()) if item.is_dir()}  # type: ignore[misc]


def _carried(folder: Path) -> Subject:
    files = sorted(folder.glob("sample-*.npz"))
    return Subject(
        lambda _: folder / "model", lambda: [_read(file) for file in files], lambda: _read(folder / "judged.npz")
    )


def _read(file: Path) -> dict[str, Array]:
    """Strings are objects, which numpy stores by pickling; these files were written by :func:`carry`."""
    with np.load(file, allow_pickle=True) as arrays:
        return dict(arrays)


def main(argv: Sequence[str] | None = None) -> int:
    """Write models to take along."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(OF_THE_TESTS), help="models, with commas")
    given = parser.parse_args(argv)
    for name in given.only.split(","):
        carry(name, given.folder)
        size = sum(file.stat().st_size for file in (given.folder / name).rglob("*") if file.is_file())
        print(f"{name}: {measure.mib(size)}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
