"""The group of all commands: what ``refimpl`` does before, without and instead of one of them."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import click

from refimpl import __version__, env
from refimpl.cli_help import WarningFormatter

_EXAMPLE = """\
\b
Example:
  refimpl explain my_model            what goes into engines, and why not all
  refimpl convert my_model my_bundle  the bundle, every island verified
  refimpl inspect my_bundle           look what is in it
"""


class Group(click.Group):
    """A group whose commands take ``-v`` and ``-q`` as well, and which suggests the nearest of an unknown one."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Take in a command, and give it, or the commands of a group, the options that all have."""
        for command in _leaves(cmd):
            command.params += [_verbosity("-v", "--verbose"), _verbosity("-q", "--quiet")]
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of use, not of the alphabet."""
        del ctx
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names.

        Raises:
            UsageError: there is none.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and name[:1] != "-":
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            more = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{more}", ctx)
        return super().resolve_command(ctx, args)


def _leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for item in command.commands.values():
            yield from _leaves(item)
    else:
        yield command


def _verbosity(short: str, long: str) -> click.Option:
    """The option of a command; it means the same before the command's name."""

    def heed(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given and not context.resilient_parsing:
            set_level(verbose=short == "-v", quiet=short == "-q")

    told = "Say more on stderr." if short == "-v" else "No progress and no warnings."
    return click.Option([short, long], is_flag=True, expose_value=False, callback=heed, help=told)


def set_level(*, verbose: bool, quiet: bool) -> None:
    """What is logged, and whether progress is shown; ``verbose`` wins."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logging.getLogger("refimpl").setLevel(level)


class _Stderr(logging.Handler):
    """Writes to the stderr of the moment: a bar of progress replaces it while it is drawn, and lines go above."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)  # noqa: T201


def _set_up_log() -> None:
    handler = _Stderr()
    handler.setFormatter(WarningFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("refimpl")
    logger.handlers[:] = [handler]
    logger.propagate = False


@click.group(
    cls=Group,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXAMPLE,
)
@click.option("--version", is_flag=True, help="Show the version; with -v also those of the libraries that matter.")
@click.option("-v", "--verbose", is_flag=True, help="Say what the runtime picks, and more.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only: no progress and no warnings.")
@click.pass_context
def group(context: click.Context, *, version: bool, verbose: bool, quiet: bool) -> None:
    """Run the parts of a TensorFlow SavedModel that TensorRT supports in engines, and prove the answers stay
    TensorFlow's.
    """
    if version:
        _show_versions(verbose=verbose)
        context.exit(0)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)
    _set_up_log()
    set_level(verbose=verbose, quiet=quiet)
    env.quiet_tensorflow()


def _show_versions(*, verbose: bool) -> None:
    click.echo(f"refimpl, version {__version__}")
    if verbose:
        found: dict[str, Any] = {name: number for name, number in env.versions().items() if name != "refimpl"}
        for name, number in found.items():
            click.echo(f"{name}, version {number}")
