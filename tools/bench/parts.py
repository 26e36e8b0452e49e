"""What a benchmark is: subjects, peers that take turns, and who is compared with whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tools.bench import processes, workshop
from tools.bench.samples import Round
from tools.bench.workshop import Workshop


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure.

    Attributes:
        name: what people call it; a part's subjects have different names.
        spec: the model, as ``tools.bench.models`` spells it.
        options: of its conversion.
        settings: numbers that the part understands: ``{"batch": 8}``.
    """

    name: str
    spec: str
    options: tuple[str, ...] = ()
    settings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A ratio, or a difference, that a table shows."""

    name: str
    peer: str
    difference: bool = False
    only: str = ""  # the quantity that is compared; every one that both have, if empty

    def __str__(self) -> str:
        return f"{self.name} {'-' if self.difference else '/'} {self.peer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One benchmark.

    Attributes:
        name: as it is asked for, and of its JSON file.
        title: its heading.
        about: Markdown: what is run, and what the names of the peers mean.
        full: subjects of the figures in docs/.
        quick: small ones, which together take seconds.
        repeats: rounds, when nothing else is asked for.
        rounds: measures; gives up to so many rounds, each as soon as it is there.
        commands: what is run, by peer.
        facts: numbers that belong to a subject.
        pairs: what is compared.
    """

    name: str
    title: str
    about: str
    full: tuple[Subject, ...]
    quick: tuple[Subject, ...]
    repeats: int
    rounds: Callable[[Subject, Workshop, int], Iterator[Round]]
    commands: Callable[[Subject], Mapping[str, str]]
    facts: Callable[[Subject, Workshop], Mapping[str, float]] = lambda subject, shop: {}  # noqa: ARG005
    pairs: tuple[Pair, ...] = ()


def made(subject: Subject) -> dict[str, str]:
    """How a subject's model and its bundle are made, as one types it."""
    convert = processes.python("-m", "refimpl", "convert", "MODEL", "BUNDLE", *subject.options)
    return {**model_of(subject), "bundle": processes.spelled(convert)}


def model_of(subject: Subject) -> dict[str, str]:
    """How a subject's model is made, as one types it."""
    return {"model": processes.spelled(processes.python("-m", "tools.bench.models", subject.spec, "MODEL"))}


def facts_of(subject: Subject, shop: Workshop) -> dict[str, float]:
    """Of a subject whose bundle the workshop keeps: ops, islands, weights."""
    return workshop.facts(shop.saved_model(subject.spec), shop.bundle(subject.spec, *subject.options))
