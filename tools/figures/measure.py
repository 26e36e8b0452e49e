"""Convert, run and compare: what all sections share."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import refimpl
from refimpl import calibration
from refimpl.bundle import CALIBRATION, Manifest
from refimpl.recipe import Recipe

Array = Any
Tell = Callable[[str], None]
Samples = Sequence[Mapping[str, Array]]
REPAIRED = "of it alone costs the island"  # how the converter begins to say why it lifted a layer


@dataclass(frozen=True)
class Wanted:
    """Something that ought to hold, and what was found."""

    what: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """One measurement, ready to be written down.

    Attributes:
        title: its heading.
        text: what stands before the tables, in Markdown.
        tables: for people.
        wanted: what ought to hold.
        facts: the numbers, for machines.
    """

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A bundle, how it was made and how long that took."""

    path: Path
    manifest: Manifest
    seconds: float

    def layers(self) -> Counter[str]:
        """How many layers compute in what; without a rewrite there are none."""
        return Counter(precision for island in self.manifest.islands for _, _, precision, _ in island.layers)

    def repaired(self) -> list[str]:
        """Layers that were lifted because the island disagreed with TensorFlow."""
        rows = (row for island in self.manifest.islands for row in island.layers)
        return [name for name, _, _, reason in rows if REPAIRED in reason]

    def tried(self) -> list[Mapping[str, Any]]:
        """What ``auto`` measured."""
        return [row for record in self.manifest.signatures for row in record.tried]

    def notes(self) -> list[str]:
        """What is said of the islands, and of the whole."""
        return [*(note for island in self.manifest.islands for note in island.notes), *self.manifest.notes]

    def warnings(self) -> list[str]:
        """What the calibration table warns about."""
        if not (self.path / CALIBRATION).is_file():
            return []
        return [line for table in calibration.load(self.path / CALIBRATION) for line in table.warnings]

    def engine_bytes(self, kind: str) -> int:
        """Size of all stored engines of a kind."""
        files = [engine.file for island in self.manifest.islands for engine in island.engines if engine.kind == kind]
        return sum((self.path / name).stat().st_size for name in files)

    def run(self, inputs: Mapping[str, Array], engine: str = "onnxruntime") -> dict[str, Array]:
        """The bundle's outputs.

        Raises:
            RuntimeError: an island did not run in that engine.
        """
        result = refimpl.load(self.path, engines=(engine,)).run(inputs)
        if others := [item for item in result.islands if item.engine != engine]:
            raise RuntimeError(f"{self.path.name}: {others[0]} was not run by {engine}")
        return result.outputs


def convert(model: Path, bundle: Path, samples: Samples | None, **recipe: Any) -> Made:
    """Convert with these choices and samples."""
    began = time.monotonic()
    manifest = refimpl.convert(model, bundle, Recipe(**recipe), samples=samples)
    return Made(bundle, manifest, time.monotonic() - began)


def tensorflow(model: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What TensorFlow itself answers, by the model's default signature, in a session: that loads old models, too."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        signature = v1.saved_model.load(session, ["serve"], str(model)).signature_def["serving_default"]
        feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
        wanted = {name: item.name for name, item in signature.outputs.items()}
        found: dict[str, Array] = session.run(wanted, feeds)
    return found


def relative(got: Array, want: Array) -> float:
    """Euclidean norm of the error over that of the wanted values."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def cosine(got: Array, want: Array) -> float:
    """Between two arrays, as vectors."""
    got, want = np.asarray(got, np.float64).ravel(), np.asarray(want, np.float64).ravel()
    return float(got @ want / (np.linalg.norm(got) * np.linalg.norm(want)))


def centred(values: Array) -> Array:
    """Without the mean over the rows: what tells one row from another."""
    return np.asarray(values, np.float64) - np.asarray(values, np.float64).mean(0)


def top1(got: Array, labels: Array) -> float:
    """Share of rows whose largest value is at the label."""
    return float(np.mean(np.asarray(got).argmax(-1) == labels))


def counted(layers: Mapping[str, int]) -> str:
    """``"3 int8, 1 fp16"``."""
    return ", ".join(f"{layers[kind]} {kind}" for kind in ("int8", "fp16", "bf16", "fp32") if layers.get(kind)) or "-"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def short(names: Iterable[str]) -> str:
    """Layer names as people know them: without the calls that TensorFlow wraps them in."""
    kept = ["/".join(part for part in name.split("/") if "PartitionedCall" not in part) for name in names]
    return ", ".join(kept) or "-"


def model_of_the_tests(name: str) -> Path:
    """A SavedModel that the tests use, too: made on first use, then cached."""
    models = importlib.import_module("tests.models")
    found: Path = models.saved_model(name)
    return found


def inputs_of_the_tests(name: str, seed: int) -> dict[str, Array]:
    """Inputs for it as its maker has them."""
    models = importlib.import_module("tests.models")
    found: dict[str, Array] = models.MODELS[name].expect.inputs(np.random.default_rng(seed))
    return found


def digits_qat(target: Path) -> tuple[Array, Array]:
    """A network that the tests train with fake quantization; returns images and labels that it was not trained on."""
    models = importlib.import_module("tests.models_quant")
    models.digits_qat(target)
    images, labels = models.digits()
    return images[-360:], labels[-360:]
