"""What the project promises of speed and size, line by line, and how each is read from the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.bench import scale, sizes, start
from tools.bench.conversion import OURS, TF2ONNX
from tools.bench.inference import GRAPH, INFER, SESSION, TENSORFLOW
from tools.bench.samples import Row

MODELS = ("resnet50", "bert_base", "efficientnetb0")
Values = Callable[[Row], list[float]]


@dataclass(frozen=True, slots=True)
class Promise:
    """A line that holds or does not. Exactly one of the limits is set; the median is held against it.

    Attributes:
        part: whose samples decide.
        subject: which of its rows.
        what: a sentence.
        values: the numbers, one a round.
        at_most: the largest median allowed.
        at_least: the smallest.
        unit: of the numbers; empty for a ratio.
    """

    part: str
    subject: str
    what: str
    values: Values
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""

    def holds(self, median: float) -> bool:
        """Whether a median keeps the promise."""
        return (self.at_most is None or median <= self.at_most) and (self.at_least is None or median >= self.at_least)

    def target(self) -> str:
        """``"≤ 0.25"``."""
        number = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        return f"{number} {self.unit}".rstrip()


def _ratio(name: str, peer: str, quantity: str) -> Values:
    return lambda row: row.ratios(name, peer, quantity)


def _difference(name: str, peer: str, quantity: str) -> Values:
    return lambda row: row.differences(name, peer, quantity)


def _of_its_weights(row: Row) -> list[float]:
    pairs = zip(row.values(OURS, "peak MiB"), row.values(OURS, "weights MiB"), strict=True)
    return [peak / weights for peak, weights in pairs]


def _conversions() -> list[Promise]:
    quantities = {"wall time": "wall s", "peak memory": "peak MiB"}
    return [
        Promise(
            "conversion",
            model,
            f"{model}: {said} of a full conversion, over that of tf2onnx alone",
            _ratio(OURS, TF2ONNX, quantity),
            at_most=0.25,
        )
        for model in MODELS
        for said, quantity in quantities.items()
    ]


def _inferences() -> list[Promise]:
    found = []
    for batch, faster in ((1, 1.8), (8, 1.4)):
        subject = f"resnet50, batch {batch}"
        for way, said in ((GRAPH, "the bundle, called through TensorFlow"), (INFER, "the bundle, called by `infer`")):
            of_tensorflow, of_session = _ratio(TENSORFLOW, way, "ms"), _ratio(way, SESSION, "ms")
            found += [
                Promise(
                    "inference",
                    subject,
                    f"{subject}: speed of {said}, over TensorFlow's",
                    of_tensorflow,
                    at_least=faster,
                ),
                Promise(
                    "inference", subject, f"{subject}: time of {said}, over a bare session's", of_session, at_most=1.05
                ),
            ]
    return found


def _overheads() -> list[Promise]:
    found = (
        ("an engine node's overhead, through TensorFlow", GRAPH, TENSORFLOW, 120),
        ("an engine's overhead, through `infer`", INFER, SESSION, 20),
    )
    return [
        Promise("inference", "one Relu", what, _difference(name, peer, "µs"), at_most=limit, unit="µs")
        for what, name, peer, limit in found
    ]


def _sizes() -> list[Promise]:
    of_parts = _ratio(sizes.BUNDLE, sizes.PARTS, "MiB")
    said = "size of the bundle, over that of the original's weights and the engines"
    return [Promise("size", model, f"{model}: {said}", of_parts, at_most=1.15) for model in MODELS]


def _memory() -> list[Promise]:
    return [
        Promise(
            "scale",
            item.name,
            f"{item.name}: peak memory of a conversion, over the weights",
            _of_its_weights,
            at_most=3,
        )
        for item in (scale.HEAVIEST, scale.STACK, scale.TABLE)
    ]


PROMISES: tuple[Promise, ...] = (
    *_conversions(),
    *_inferences(),
    *_overheads(),
    Promise(
        "start",
        "resnet50",
        "resnet50: time to load the bundle, over `tf.saved_model.load` of the original and a session",
        _ratio(start.INFER, start.PEER, "load s"),
        at_most=0.5,
    ),
    *_sizes(),
    *_memory(),
)
