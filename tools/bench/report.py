"""From raw samples to figures, and from figures to Markdown: no measuring here.

:func:`figures` computes everything that is said anywhere; :func:`markdown` only spells it. So the two files agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tools.bench.growth import growths
from tools.bench.parts import Pair, Part
from tools.bench.promises import PROMISES
from tools.bench.samples import BUSY, Row, Spread, short, spread

Records = Mapping[str, Mapping[str, Row]]  # by part, then by subject
PLOTS = ("performance-promises.svg", "performance-growth.svg")  # as ``tools.bench.plots`` draws them
LINEAR = 1.15  # the largest exponent that is called linear: a tenfold size costs at most 1.4 times what a line says


def figures(parts: Sequence[Part], records: Records) -> dict[str, Any]:
    """Every figure as plain data: promises, samples, ratios, growth, machines."""
    growth = [asdict(item) for item in growths(records.get("scale", {}))]
    sections = [_section(part, records.get(part.name, {})) for part in parts]
    return {"promises": [*_promises(records), *_linear(growth)], "parts": sections, "growth": growth}


def _promises(records: Records) -> Iterator[dict[str, Any]]:
    for item in PROMISES:
        row = records.get(item.part, {}).get(item.subject)
        found: dict[str, Any] = {"what": item.what, "target": item.target(), "spread": None, "met": None, "busy": False}
        if row is not None:
            values = spread(item.values(row))
            found |= {"spread": asdict(values), "met": item.holds(values.median), "busy": bool(row.busy)}
        yield {**found, "part": item.part, "rounds": len(row.rounds) if row else 0}


def _linear(growth: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A conversion's time is to grow linearly in ops: the exponent that was fitted says whether it does."""
    for item in growth:
        value = item["fit"]["exponent"]
        if (item["axis"], item["cost"]) == ("ops", "wall s") and value is not None:
            yield {
                "what": "exponent of a conversion's time over the number of ops",
                "target": f"≤ {LINEAR:g}",
                "spread": asdict(Spread(value, value, value)),
                "met": value <= LINEAR,
                "busy": item["busy"],
                "part": "scale",
                "rounds": item["rounds"],
            }


def _section(part: Part, rows: Mapping[str, Row]) -> dict[str, Any]:
    return {
        "name": part.name,
        "title": part.title,
        "about": part.about,
        "rows": [_row(part, row) for row in rows.values()],
    }


def _row(part: Part, row: Row) -> dict[str, Any]:
    names = list(row.rounds[0].samples)
    quantities = list(dict.fromkeys(q for name in names for q in row.rounds[0].samples[name]))
    samples = {name: {q: asdict(spread(row.values(name, q))) for q in quantities if row.has(q, name)} for name in names}
    return {
        "subject": row.subject,
        "rounds": len(row.rounds),
        "busy": row.busy,
        "date": row.date,
        "loads": row.loads,
        "beside": max(item.beside for item in row.rounds),
        "machine": row.machine,
        "facts": row.facts,
        "commands": row.commands,
        "quantities": quantities,
        "samples": samples,
        "ratios": _ratios(part.pairs, row, quantities),
    }


def _ratios(pairs: Sequence[Pair], row: Row, quantities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By pair and quantity; a pair that the row does not have is left out."""
    found = {}
    for pair in pairs:
        compare = row.differences if pair.difference else row.ratios
        shared = [q for q in quantities if pair.only in ("", q) and row.has(q, pair.name, pair.peer)]
        if shared:
            found[str(pair)] = {q: asdict(spread(compare(pair.name, pair.peer, q))) for q in shared}
    return found


def markdown(data: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The figures for people; ``plots`` are names of files beside it."""
    return "\n".join(_lines(data, plots)).rstrip() + "\n"


def _lines(data: Mapping[str, Any], plots: Sequence[str]) -> Iterator[str]:
    yield from ("# Performance: figures", "")
    yield "Written by `python -m tools.bench report` from the raw samples in `docs/benchmarks/performance/`;"
    yield "do not edit. What they mean is said in [performance.md](../performance.md). Numbers are medians, with"
    yield "the smallest and the largest; ratios are taken round by round, between peers that took turns. A round"
    yield f"during which other work kept more than {BUSY:g} cores busy counts as one of a **busy** machine."
    yield from ("", *_machines(data), "## Promises", "")
    head = ("promised", "target", "measured", "rounds", "met")
    yield from _table(head, [_promised(item) for item in data["promises"]])
    for name in plots:
        yield from (f"![{name.partition('.')[0].replace('-', ' ')}]({name})", "")
    for part in data["parts"]:
        yield from (f"## {part['title']}", "", part["about"], "")
        if part["rows"]:
            yield from _measured(part, _distinct(data))
        else:
            yield from (f"Not measured: `python -m tools.bench {part['name']}`.", "")
        if part["name"] == "scale" and data["growth"]:
            yield from _growth(data["growth"])


def _machines(data: Mapping[str, Any]) -> Iterator[str]:
    for number, machine in enumerate(_distinct(data), 1):
        versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
        rest = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("versions", "processor"))
        yield f"* machine {number}: {machine.get('processor', 'unknown processor')}, {rest}; {versions}"
    yield ""


def _promised(item: Mapping[str, Any]) -> Sequence[str]:
    if item["spread"] is None:
        return item["what"], item["target"], "-", "0", f"not measured: `{item['part']}`"
    met = ("yes" if item["met"] else "**no**") + (" (**busy** machine)" if item["busy"] else "")
    return item["what"], item["target"], _spelled(item["spread"]), str(item["rounds"]), met


def _measured(part: Mapping[str, Any], machines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (f"* {_state(row, machines)}" for row in part["rows"])
    kinds = list(dict.fromkeys(tuple(row["quantities"]) for row in part["rows"]))
    for quantities in kinds:
        rows = [row for row in part["rows"] if tuple(row["quantities"]) == quantities]
        for what, key in (("measured", "samples"), ("ratio or difference", "ratios")):
            body = [
                (row["subject"], name, *(_spelled(found[q]) if q in found else "" for q in quantities))
                for row in rows
                for name, found in row[key].items()
            ]
            if body:
                yield from ("", *_table(("subject", what, *quantities), body)[:-1])
    yield from ("", "```")
    yield from dict.fromkeys(text for row in part["rows"] for text in row["commands"].values())
    yield from ("```", "")


def _state(row: Mapping[str, Any], machines: Sequence[Mapping[str, Any]]) -> str:
    """When and where a row was measured, and how quiet the machine was."""
    facts = ", ".join(f"{name} {short(value)}" for name, value in row["facts"].items())
    where = f"machine {machines.index(row['machine']) + 1}, " if len(machines) > 1 else ""
    busy = f"; **busy** in {row['busy']} of {row['rounds']} rounds" if row["busy"] else ""
    loads = " to ".join(f"{value:.2f}" for value in row["loads"])
    return (
        f"{row['subject']}{facts and f' ({facts})'}: rounds {row['rounds']}, {where}{row['date']}, "
        f"load average {loads}, at most {row['beside']:.2f} cores busy with other work{busy}"
    )


def _growth(growth: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "Lines by least squares. The exponent is of what comes on top of the smallest model's cost; 1 is linear."
    yield from ("*TensorFlow loads it* is what loading the largest costs without converting it.", "")
    head = (
        "cost",
        "grows with",
        "sizes",
        "line",
        "furthest point from it",
        "exponent",
        "largest",
        "TensorFlow loads it",
    )
    body = []
    for item in growth:
        line, unit = item["fit"], item["cost"].split()[-1]
        body.append(
            (
                item["cost"],
                item["size"],
                ", ".join(short(size) for size in item["sizes"]),
                f"{short(line['start'])} + {line['slope']:.3g} {unit} each",
                f"{line['off']:.0%}",
                "-" if line["exponent"] is None else f"{line['exponent']:.2f}",
                f"{short(item['costs'][-1])} {unit}",
                f"{short(item['loaded'][-1])} {unit}",
            )
        )
    yield from _table(head, body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [f"| {' | '.join(row)} |" for row in body]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows, ""]


def _spelled(values: Mapping[str, float]) -> str:
    found = Spread(**values)
    return str(found) if found.low != found.high else short(found.median)


def _distinct(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every machine that a row was measured on, with its versions."""
    found: list[Mapping[str, Any]] = []
    for machine in (row["machine"] for part in data["parts"] for row in part["rows"]):
        if machine not in found:
            found.append(machine)
    return found
