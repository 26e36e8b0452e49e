"""The command line: commands, logging, and how errors become exit codes (0 fine, 1 mismatch, 2 the user's, 3 ours)."""

from __future__ import annotations

import logging
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
from refimpl.cli_convert import convert, explain, inspect, run
from refimpl.cli_export import export
from refimpl.cli_record import record
from refimpl.doctor import doctor
from refimpl.errors import RefimplError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="refimpl")
@click.option("-v", "--verbose", is_flag=True, help="Say what the runtime picks, and more.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def group(*, verbose: bool, quiet: bool) -> None:
    """Run the parts of a TensorFlow SavedModel that TensorRT supports in engines, and prove the answers stay
    TensorFlow's.
    """
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("refimpl")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    env.quiet_tensorflow()


for command in (convert, explain, inspect, run, record, check, bisect, export, calibration, cache, doctor):
    group.add_command(command)


def process() -> NoReturn:
    """Run one command, and end the process with its exit code."""
    env.own_process()
    code = main()
    env.skip_collections()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = group.main(args=list(argv) if argv is not None else None, prog_name="refimpl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except RefimplError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing was written", err=True)
        return 2
    except BrokenPipeError:
        return 0
    except Exception:  # noqa: BLE001  (the last line of defence: what is left is a bug of refimpl)
        traceback.print_exc()
        click.echo(f"error: this is a bug in refimpl {__version__}; please report it with the lines above", err=True)
        return 3


if __name__ == "__main__":
    process()
