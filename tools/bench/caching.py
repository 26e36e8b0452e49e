"""What a second conversion costs with the cache: against a conversion without one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.bench import machine, processes, workshop
from tools.bench.parts import Pair, Part, Subject, model_of
from tools.bench.samples import Round, Sample
from tools.bench.workshop import Workshop

WITHOUT, FILLS, HITS, OTHER = "without a cache", "fills it", "hits", "other option"
_OTHER = ("--max-engines", "1000")  # leaves the engines as they are, and the key not


def options(subject: Subject, cache: Path) -> dict[str, list[str]]:
    """Of the conversions of one round, in this order."""
    with_cache = ["--cache", str(cache)]
    more = {WITHOUT: [], FILLS: with_cache, HITS: with_cache, OTHER: [*with_cache, *_OTHER]}
    return {name: [*subject.options, *words] for name, words in more.items()}


def rounds(subject: Subject, shop: Workshop, count: int) -> Iterator[Round]:
    """Every round begins with an empty cache."""
    model = shop.saved_model(subject.spec)
    workshop.read_all(model)
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=shop.folder) as folder:
            wanted = options(subject, Path(folder, "cache"))
            calls = {
                name: lambda name=name, words=words: _converted(model, Path(folder, name), words, name == HITS)
                for name, words in wanted.items()
            }
            yield machine.take_turns(calls)


def _converted(model: Path, bundle: Path, words: list[str], hits: bool) -> Sample:
    taken = processes.run(workshop.convert(model, bundle, *words))
    found = workshop.manifest(bundle)
    if any("from the cache" in note for note in found["notes"]) != hits:
        raise processes.BenchError(
            f"{bundle.name}: the cache was {'not used' if hits else 'used'}: {json.dumps(found['notes'])}",
            hint="this is a mistake of the benchmark, or of the cache",
        )
    return {**taken, "stages s": sum(found["timings"].values())}


def spelled(subject: Subject) -> Mapping[str, str]:
    """The commands as one types them."""
    wanted = options(subject, Path("CACHE"))
    commands = {name: workshop.convert(Path("MODEL"), Path("BUNDLE"), *words) for name, words in wanted.items()}
    return model_of(subject) | {name: processes.spelled(words) for name, words in commands.items()}


def _subject(name: str, spec: str = "") -> Subject:
    return Subject(name, spec or name, ("--engine", "tensorrt"))


PART = Part(
    name="caching",
    title="The second conversion",
    about=(
        "Whole processes; *stages* leaves out their start, imports and exit. Each round begins with an empty cache: "
        "a conversion without one, one that *fills it*, the same again, which *hits*, and one after a change of an "
        "*other option* (`--max-engines`) that leaves the engines as they are."
    ),
    full=(_subject("resnet50"), _subject("efficientnetb0")),
    quick=(_subject("dense", "dense_stack:width=64,depth=2"),),
    repeats=5,
    rounds=rounds,
    commands=spelled,
    pairs=(Pair(FILLS, WITHOUT), Pair(HITS, WITHOUT), Pair(OTHER, WITHOUT)),
)
