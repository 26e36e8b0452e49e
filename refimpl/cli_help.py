"""``refimpl help``: what an error or a warning means and what to do, without a network."""

from __future__ import annotations

import logging

import click

from refimpl import troubleshooting
from refimpl.errors import RecipeError, RefimplError
from refimpl.troubleshooting import Entry

_WIDTH = 80  # columns of the list


@click.command("help")
@click.argument("words", nargs=-1, metavar="[ANCHOR|MESSAGE]")
def help_command(words: tuple[str, ...]) -> None:
    """Explain an error or a warning.

    ANCHOR is the name that an error ends with; or give the MESSAGE itself, or a part of it. Without either, all
    names are listed.
    """
    if not words:
        _list_all()
        return
    said = " ".join(words)
    entry = troubleshooting.named(said) or troubleshooting.entry_of(said)
    if entry is None:
        near = troubleshooting.nearest(said)
        hint = f"perhaps: {', '.join(near)}" if near else "refimpl help without words lists all entries"
        raise RecipeError(f"no entry {said!r} in {troubleshooting.PAGE}", hint=hint)
    click.echo(f"{entry.anchor} ({entry.section})\n\n{entry.text}")


def _list_all() -> None:
    section = ""
    for entry in troubleshooting.entries():
        if entry.section != section:
            click.echo(f"{entry.section}:")
            section = entry.section
        about = entry.messages[0] if entry.messages else ""
        click.echo(f"  {entry.anchor:<28}{_shortened(about, _WIDTH - 30)}".rstrip())


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def describe_error(error: RefimplError) -> str:
    """An error as it is printed: what, where, what to do, and where there is more."""
    entry = troubleshooting.entry_of(error.message)
    return f"{error}{_more(entry, chr(10))}"


class WarningFormatter(logging.Formatter):
    """Level and message; a warning or an error of the log says where there is more."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        text = super().format(record)
        if record.levelno < logging.WARNING or "\n" in text:
            return text
        return f"{text}{_more(troubleshooting.entry_of(record.getMessage()), ' (')}"


def _more(entry: Entry | None, before: str) -> str:
    if entry is None:
        return ""
    return f"{before}more: refimpl help {entry.anchor}" + (")" if before.endswith("(") else "")
