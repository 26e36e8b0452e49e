"""The command line: commands, logging, and how errors become exit codes (0 fine, 1 mismatch, 2 the user's, 3 ours)."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from refimpl import __version__, env
from refimpl.cli_bisect import bisect
from refimpl.cli_cache import cache
from refimpl.cli_calibration import calibration
from refimpl.cli_check import check
from refimpl.cli_completion import completion
from refimpl.cli_convert import convert
from refimpl.cli_doctor import doctor
from refimpl.cli_explain import explain, inspect
from refimpl.cli_export import export
from refimpl.cli_group import group
from refimpl.cli_help import describe_error, help_command
from refimpl.cli_picture import picture
from refimpl.cli_record import record
from refimpl.cli_report import report
from refimpl.cli_run import run
from refimpl.errors import RefimplError

for command in (
    convert,
    explain,
    inspect,
    run,
    record,
    check,
    bisect,
    report,
    picture,
    export,
    calibration,
    cache,
    doctor,
    help_command,
    completion,
):
    group.add_command(command)


def process() -> NoReturn:
    """Run one command, and end the process with its exit code."""
    env.own_process()
    code = main()
    env.skip_collections()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of models are Unicode, a terminal may not be
    try:
        code = group.main(args=list(argv) if argv is not None else None, prog_name="refimpl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except RefimplError as error:
        click.echo(f"error: {describe_error(error)}", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing is left half-written", err=True)
        return 2
    except BrokenPipeError:
        return 0
    except Exception:  # noqa: BLE001  (the last line of defence: what is left is a bug of refimpl)
        traceback.print_exc()
        click.echo(f"error: this is a bug in refimpl {__version__}; please report it with the lines above", err=True)
        return 3


if __name__ == "__main__":
    process()
