"""The commands ``cache show`` and ``cache clear``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from refimpl import env, terminal
from refimpl.cache import Cache, Entry, open_cache
from refimpl.errors import RecipeError
from refimpl.tables import Column
from refimpl.text import counted

_PLACE = click.argument("folder", type=click.Path(path_type=Path), metavar="[DIR]", required=False)
_COLUMNS = (
    Column("key"),
    Column("what"),
    Column("model", "name"),
    Column("of it", "name"),
    Column("precision"),
    Column("size", "number"),
    Column("last used"),
)


@click.group()
def cache() -> None:
    """Look into the cache of finished work, or empty it. DIR defaults to REFIMPL_CACHE_DIR."""


@cache.command()
@_PLACE
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(folder: Path | None, *, as_json: bool) -> None:
    """List what is in the cache DIR, what was used last coming first."""
    found = _open(folder, read_only=True)
    entries = found.entries()[::-1]
    if as_json:
        click.echo(json.dumps({"folder": str(found.folder), "entries": [item.to_json() for item in entries]}, indent=2))
        return
    console, rows = terminal.stdout_console(), []
    for item in entries:
        used = str(item.to_json()["last_use"])[5:16].replace("T", " ")
        rows.append((item.key[:8], item.kind, *_named(item), _size(item.size), used))
    terminal.print_table(console, _COLUMNS, rows)
    total = _size(sum(item.size for item in entries))
    terminal.print_line(console, f"{counted(len(entries), 'entry')}, {total} (times are UTC)")


@cache.command()
@_PLACE
def clear(folder: Path | None) -> None:
    """Remove everything from the cache DIR."""
    count, size = _open(folder, read_only=False).clear()
    click.echo(f"removed {counted(count, 'entry')}, {_size(size)}")


def _open(folder: Path | None, *, read_only: bool) -> Cache:
    place = folder or env.cache_directory()
    if not place:
        raise RecipeError("no cache is named", hint="name its directory, or set REFIMPL_CACHE_DIR")
    found = open_cache(place, read_only=True)  # which makes none
    return found if read_only else open_cache(place)


def _named(entry: Entry) -> tuple[str, str, str]:
    """Model, part of it, and precision; of timings, which belong to no model, the library."""
    label = entry.label
    part = label.get("signature") or label.get("island") or label.get("library", "")
    return label.get("model", ""), part, label.get("precision", "")


def _size(size: int) -> str:
    return f"{size / 10**6:.1f} MB" if size >= 10**5 else f"{size / 1000:.1f} kB"
