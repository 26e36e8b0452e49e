"""The command ``completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_HELP = """Print the script that lets a SHELL complete commands, options, choices and files.

\b
bash: refimpl completion bash > ~/.local/share/bash-completion/completions/refimpl
zsh:  refimpl completion zsh > ~/.zfunc/_refimpl    (a folder of your fpath)
fish: refimpl completion fish > ~/.config/fish/completions/refimpl.fish
"""


@click.command(help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script of a shell."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this version of click completes nothing for {shell}", context)
    command = context.find_root().command
    click.echo(found(command, {}, "refimpl", "_REFIMPL_COMPLETE").source())
